//! `probeops-api`: questions over HTTP, answered from private networks.

use std::process::ExitCode;

use clap::Parser;
use probeops_api::program::Program;

/// Questions over HTTP, answered from private networks.
#[derive(Parser)]
#[command(
    name = "probeops-api",
    version,
    after_help = "\
Start it with what `probeops init` and `probeops provision` wrote:
  probeops-api --servers tls://broker.example:4222 --ca tls/ca.pem --creds creds --http 127.0.0.1:8080

Exit codes: 0 told to stop, 1 cannot start or go on.
Logs go to standard error; PROBEOPS_LOG=debug shows more."
)]
struct Command {
    #[command(flatten)]
    program: Program,
}

/// Why it is not the C library's own says the workspace's `Cargo.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    Command::parse().program.run()
}
