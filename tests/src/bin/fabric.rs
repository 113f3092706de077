//! The `probeops` program as the system tests run it: the same entry point, built with the tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    probeops::main()
}
