//! The agent as a program: `probeops-agent`, and `probeops agent`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use probeops_nats::process;
use probeops_shared::settings;

use crate::agent;
use crate::config::{Given, Settings};
use crate::doctor::Doctor;
use crate::enroll::Folder;
use crate::enroll::command::Command;
use crate::health;
use crate::policy::command::PolicyCommand;

/// How many threads a node needs at most: diagnostics wait more than they work. One for each processor, as two on one only wake each other.
const WORKER_THREADS_MAX: usize = 2;

/// What may be said on the command line.
#[derive(Args, Clone, Debug, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Program {
    /// Where the settings are
    #[command(flatten)]
    pub given: Given,
    /// A settings file (TOML); flags and environment win over it
    #[arg(long, env = "PROBEOPS_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings as they are after flags, environment, file and defaults, and stop
    #[arg(long)]
    pub print_config: bool,
    /// Say whether the agent that writes --health-file is well, and stop: exit 0 if it is, else 1
    #[arg(long)]
    pub check_health: bool,
    /// What to do instead of running
    #[command(subcommand)]
    pub task: Option<Task>,
}

/// What an agent's program does besides running.
#[derive(Clone, Debug, Subcommand)]
pub enum Task {
    /// Say what works on this machine and what does not, each with its cure
    Doctor(Box<Doctor>),
    /// Become a node, or another key of it
    #[command(flatten)]
    Enroll(Command),
    /// Show the owner's policy, or ask it, without running anything
    #[command(subcommand)]
    Policy(PolicyCommand),
}

impl Program {
    /// Runs the agent until SIGTERM or SIGINT. Exit codes: 0 drained, 1 cannot start, 78 credential refused for good.
    pub fn run(self) -> ExitCode {
        if self.check_health {
            return self.checked();
        }
        process::keep_memory_private();
        process::install_tls_provider();
        match self.task {
            Some(Task::Doctor(doctor)) => return doctor.run(),
            Some(Task::Enroll(command)) => return command.run(),
            Some(Task::Policy(command)) => return command.run(),
            None => {}
        }
        let settings = match self.settings() {
            Ok(Some(settings)) => settings,
            Ok(None) => return ExitCode::SUCCESS,
            Err(detail) => return complain(&detail, 1),
        };
        process::start_log(settings.log_format);
        if let Some(Err(error)) = settings.state.as_deref().map(|state| Folder::new(state).become_owner()) {
            return complain(&error.to_string(), 1);
        }
        let threads = std::thread::available_parallelism().map_or(1, |processors| processors.get().min(WORKER_THREADS_MAX));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return complain(&format!("cannot start threads: {error}"), 1),
        };
        let ended = runtime.block_on(async {
            let stop = process::stop_signal().map_err(|error| agent::AgentError::Start(format!("cannot listen to signals: {error}")))?;
            Box::pin(agent::run(settings, stop)).await
        });
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error.to_string(), error.exit_code()),
        }
    }

    /// Asks the file that a running agent writes.
    fn checked(self) -> ExitCode {
        let file: Result<Given, _> = settings::load_if_given(self.config.as_deref());
        let checked = file.map_err(|error| error.to_string()).and_then(|file| {
            let path = self.given.or(file).health_file;
            health::check(&path.ok_or("no health file is given: set --health-file (PROBEOPS_HEALTH_FILE, `health_file` in the file)")?)
        });
        match checked {
            Ok(()) => ExitCode::SUCCESS,
            Err(detail) => complain(&detail, 1),
        }
    }

    /// The settings, or nothing when they were only to be printed.
    fn settings(self) -> Result<Option<Settings>, String> {
        let file: Given = settings::load_if_given(self.config.as_deref()).map_err(|error| error.to_string())?;
        let settings = self.given.or(file).complete()?;
        if !self.print_config {
            return Ok(Some(settings));
        }
        let text = settings::printed(&settings)?;
        std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot print: {error}"))?;
        Ok(None)
    }
}

fn complain(detail: &str, code: u8) -> ExitCode {
    // With nowhere to complain to, the exit code has to do.
    drop(writeln!(std::io::stderr(), "probeops-agent: {detail}"));
    ExitCode::from(code)
}
