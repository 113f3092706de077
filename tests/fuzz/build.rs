//! Finds libFuzzer, which has `main`.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBFUZZER");
    let library = std::env::var_os("LIBFUZZER").map(PathBuf::from).expect("LIBFUZZER: the path of libFuzzer.a; run.sh sets it");
    println!("cargo:rustc-link-search=native={}", library.parent().expect("a file in a folder").display());
    println!("cargo:rustc-link-lib=static=Fuzzer");
    println!("cargo:rustc-link-lib=dylib=stdc++");
}
