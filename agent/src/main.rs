//! `probeops-agent`: runs diagnostics on this network for those who may ask.

use std::process::ExitCode;

use clap::Parser;
use probeops_agent::program::Program;

/// Runs diagnostics on this network for those who may ask. It opens no port: it holds one outgoing connection to the broker.
#[derive(Parser)]
#[command(
    name = "probeops-agent",
    version,
    after_help = "\
Make this machine a node with a token (`probeops enroll-tokens add` makes one), then run it:
  probeops-agent enroll https://probeops.example.com --state /var/lib/probeops-agent
  probeops-agent --state /var/lib/probeops-agent

Or start it with a credential that `probeops nodes add` wrote and you carry here:
  probeops-agent --servers tls://broker.example:4222 --ca ca.pem --creds fra-1.creds

What works on this machine, and what does not, each with its cure:
  probeops-agent doctor --config /etc/probeops/agent.toml

A container engine or service manager sees how it is where it is told a file:
  probeops-agent --health-file /run/probeops/health …    and then    probeops-agent --health-file /run/probeops/health --check-health

The node's owner says in --policy whom tools may touch. It is read again when it changes (and at SIGHUP); to ask it:
  probeops-agent policy test ping 10.0.0.1 --config agent.toml

Exit codes: 0 told to stop and drained, 1 cannot start, 78 the broker refuses the credential (revoked or expired).
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
