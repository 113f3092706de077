//! The `probeops` program as the system tests run it: the same entry point, built with the tests.

use std::process::ExitCode;

/// Why it is not the C library's own says the workspace's `Cargo.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    probeops::main()
}
