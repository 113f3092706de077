//! The command `probeops`: up, a subcommand a tool, nodes, services, keys, audit.
//!
//! # Layout
//! - `up`: a whole fabric on this machine. `provision`: the same in two steps, for containers; `health`, `nats_server`: what they need besides.
//! - `tool`: one subcommand a tool, made from the catalogue. `audit`: the trail. `limits`: what is left. `schedules`: jobs at a time.
//!   `deliveries`: callbacks and their secrets. They ask the HTTP API, by `client`.
//! - `register`: nodes, services and keys, `revoke`: any credential, and `ca`: the broker's authority, with the keys of the data folder (`control`). `keymaster`: the process
//!   that has them meanwhile. `sentry`: the process that watches the broker.
//! - `terminal`, `exit`, `spans`, `lifeline`: what is printed, how the command ends, lengths of time, ending with one's starter.

mod audit;
mod ca;
mod client;
mod control;
mod deliveries;
mod enroll_tokens;
mod exit;
mod health;
mod jobs;
mod keymaster;
mod lifeline;
mod limits;
mod nats_server;
mod provision;
mod register;
mod revoke;
mod schedules;
mod sentry;
mod spans;
mod terminal;
#[cfg(test)]
mod testing;
mod tool;
mod up;

use std::process::ExitCode;

use clap::{Args, Command, FromArgMatches, Parser, Subcommand};
use probeops_nats::process;
use probeops_shared::tools::ToolName;

use crate::exit::{EXIT_CODES, Failed};

/// See the network from inside somewhere else
#[derive(Debug, Parser)]
#[command(name = "probeops", bin_name = "probeops", version, propagate_version = true, arg_required_else_help = true, after_help = format!("\
Examples:
  probeops up                                  # a broker, an API and two agents, here
  probeops ping 127.0.0.1 --from demo-eu       # asks the local `up`; PROBEOPS_URL and
                                               # PROBEOPS_TOKEN name another API
  probeops enroll-tokens add --region eu-central --tools echo,ping,dns,tcp
  probeops audit --since 1h

{EXIT_CODES}"))]
struct Root {
    #[command(subcommand)]
    command: Own,
}

#[derive(Debug, Subcommand)]
enum Own {
    Up(Box<up::UpArgs>),
    #[command(subcommand)]
    Nodes(register::Nodes),
    #[command(subcommand)]
    EnrollTokens(enroll_tokens::EnrollTokens),
    #[command(subcommand)]
    Services(register::Services),
    #[command(subcommand)]
    Keys(register::Keys),
    Revoke(revoke::RevokeArgs),
    #[command(subcommand)]
    Ca(ca::Ca),
    #[command(subcommand)]
    Jobs(jobs::Jobs),
    #[command(subcommand)]
    Schedules(schedules::Schedules),
    #[command(subcommand)]
    Deliveries(deliveries::Deliveries),
    #[command(subcommand)]
    Secrets(deliveries::Secrets),
    Limits(limits::LimitsArgs),
    Audit(audit::AuditArgs),
    Init(provision::InitArgs),
    Provision(provision::ProvisionArgs),
    Health(health::HealthArgs),
    NatsServer(nats_server::NatsServerArgs),
    /// Run the API (the program probeops-api)
    Api(Held<probeops_api::program::Program>),
    Keymaster(Held<keymaster::KeymasterArgs>),
    Sentry(Held<sentry::SentryArgs>),
    /// Run an agent (the program probeops-agent)
    Agent(Held<probeops_agent::program::Program>),
}

/// A program that may be told to end with its starter.
#[derive(Args, Debug)]
struct Held<T: Args> {
    #[command(flatten)]
    program: T,
    /// End when standard input ends
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

impl<T: Args> Held<T> {
    fn release(self) -> T {
        if self.stop_with_stdin {
            lifeline::hold();
        }
        self.program
    }
}

/// The command with a subcommand for every tool.
fn command() -> Command {
    let root = <Root as clap::CommandFactory>::command();
    ToolName::ALL.iter().fold(root, |root, tool| root.subcommand(tool::command(*tool)))
}

/// Runs the command and says how it ended.
pub fn main() -> ExitCode {
    process::keep_memory_private();
    let matches = command().get_matches();
    let asked = matches.subcommand().and_then(|(name, of_tool)| Some((name.parse::<ToolName>().ok()?, of_tool)));
    let done = match asked {
        Some((tool, of_tool)) => tool::run(tool, of_tool),
        None => match Root::from_arg_matches(&matches) {
            Ok(Root { command: Own::Api(program) }) => return program.release().run(),
            Ok(Root { command: Own::Agent(program) }) => return program.release().run(),
            Ok(Root { command: Own::Keymaster(program) }) => return program.release().run(),
            Ok(Root { command: Own::Sentry(program) }) => return program.release().run(),
            Ok(Root { command }) => run(command),
            Err(error) => error.exit(),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { exit, text }) => {
            if !text.is_empty() {
                terminal::note(format!("probeops: {text}"));
            }
            ExitCode::from(exit.code())
        }
    }
}

fn run(command: Own) -> Result<(), Failed> {
    match command {
        Own::Up(args) => up::run(*args),
        Own::Nodes(command) => register::nodes(command),
        Own::EnrollTokens(command) => enroll_tokens::enroll_tokens(&command),
        Own::Services(command) => register::services(command),
        Own::Keys(command) => register::keys(command),
        Own::Revoke(args) => revoke::run(&args),
        Own::Ca(command) => ca::run(&command),
        Own::Jobs(command) => jobs::run(command),
        Own::Schedules(command) => schedules::run(&command),
        Own::Deliveries(command) => deliveries::deliveries(&command),
        Own::Secrets(command) => deliveries::secrets(&command),
        Own::Limits(args) => limits::run(&args),
        Own::Audit(args) => audit::run(&args),
        Own::Init(args) => provision::init(&args),
        Own::Provision(args) => provision::provision(&args),
        Own::Health(args) => health::run(&args),
        Own::NatsServer(args) => nats_server::run(args),
        // Handled before: they end with exit codes of their own.
        Own::Api(_) | Own::Agent(_) | Own::Keymaster(_) | Own::Sentry(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_is_well_formed() {
        command().debug_assert();
    }
}
