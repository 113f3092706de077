//! A DNS of our own: a signed root, `test.` below it, and below that `probe.test` (signed), `plain.test` (not) and `bogus.test` (whose parent
//! names a key that it has not). BIND has the zones, each level on an address of its own; Unbound asks them and validates.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::place::must;

/// The root's server.
pub const ROOT: &str = "10.77.100.54";
/// The server of `probe.test`.
pub const AUTHORITY: &str = "10.77.100.56";
/// The validating resolver.
pub const RESOLVER: &str = "10.77.100.53";

/// Writes the zones and what BIND and Unbound need. Children first: their parents carry their DS.
pub(super) fn write(folder: &Path) {
    let write =
        |name: &str, text: &str| fs::write(folder.join(name), text.replace("FOLDER", &folder.display().to_string())).expect("a file");
    write("named.conf", include_str!("../../testnet/named.conf"));
    write("unbound.conf", include_str!("../../testnet/unbound.conf"));
    write("hints", ". 3600 NS ns1.root.\nns1.root. 3600 A 10.77.100.54\nns1.root. 3600 AAAA fd77:100::54\n");
    write("plain.zone", include_str!("../../testnet/plain.zone"));
    // The signer of a zone takes those of the zones below it from such files.
    write("dsset-bogus.test.", &format!("bogus.test. IN DS 12345 13 2 {}\n", "0".repeat(64)));
    fs::create_dir(folder.join("keys")).expect("a folder");
    for (origin, file, text, how) in [
        ("probe.test", "probe.zone", include_str!("../../testnet/probe.zone"), &["-3", "aabb"][..]),
        ("test", "test.zone", include_str!("../../testnet/test.zone"), &[]),
        (".", "root.zone", include_str!("../../testnet/root.zone"), &[]),
    ] {
        write(file, text);
        for use_of_key in [&["-f", "KSK"][..], &[]] {
            let keygen = ["-q", "-K", "keys", "-a", "ECDSAP256SHA256"];
            must(Command::new("dnssec-keygen").current_dir(folder).args(keygen).args(use_of_key).arg(origin), "");
        }
        let signzone = ["-q", "-P", "-S", "-g", "-K", "keys", "-o", origin];
        must(Command::new("dnssec-signzone").current_dir(folder).args(signzone).args(how).arg(file), "");
    }
    write("bind.keys", &delv_anchor(folder));
}

/// The root's key as delv(1) takes it.
fn delv_anchor(folder: &Path) -> String {
    let keys = fs::read_dir(folder.join("keys")).expect("a folder").map(|entry| entry.expect("a file").path());
    let of_root = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("K.+"));
    let texts = keys.filter(|path| of_root(path) && path.extension().is_some_and(|kind| kind == "key"));
    let texts: Vec<String> = texts.map(|path| fs::read_to_string(path).expect("a file")).collect();
    let anchor = texts.iter().flat_map(|text| text.lines()).find_map(|line| line.split_once("DNSKEY 257 ")).expect("the root's key").1;
    let words: Vec<&str> = anchor.split_whitespace().collect();
    let [protocol, algorithm, key @ ..] = words.as_slice() else { panic!("{anchor}") };
    format!("trust-anchors {{ . static-key 257 {protocol} {algorithm} \"{}\"; }};\n", key.concat())
}
