//! The `probeops` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    probeops::main()
}
