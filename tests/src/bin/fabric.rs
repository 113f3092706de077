//! The `probeops` program as the system tests run it: the same entry point, built with the tests.

use std::process::ExitCode;

/// A job is many small allocations on several threads, which the C library's own allocator makes a sixth of its cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    probeops::main()
}
