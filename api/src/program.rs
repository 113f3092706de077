//! The API as a program: `probeops-api`, and `probeops api`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use probeops_nats::process;
use probeops_shared::settings;

use crate::config::{Given, Settings};

/// What may be said on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct Program {
    /// Where the settings are
    #[command(flatten)]
    pub given: Given,
    /// A settings file (TOML); flags and environment win over it
    #[arg(long, env = "PROBEOPS_API_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings as they are after flags, environment, file and defaults, and stop
    #[arg(long)]
    pub print_config: bool,
}

impl Program {
    /// Runs the API until SIGTERM or SIGINT. Exit codes: 0 told to stop, 1 cannot start or go on.
    pub fn run(self) -> ExitCode {
        process::keep_memory_private();
        process::install_tls_provider();
        let settings = match self.settings() {
            Ok(Some(settings)) => settings,
            Ok(None) => return ExitCode::SUCCESS,
            Err(detail) => return complain(&detail),
        };
        process::start_log(settings.log_format);
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return complain(&format!("cannot start threads: {error}")),
        };
        let ended = runtime.block_on(async {
            let stop = process::stop_signal().map_err(|error| format!("cannot listen to signals: {error}"))?;
            Box::pin(crate::run(settings, stop)).await
        });
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(detail) => complain(&detail),
        }
    }

    /// The settings, or nothing when they were only to be printed.
    fn settings(self) -> Result<Option<Settings>, String> {
        let file: Given = settings::load_if_given(self.config.as_deref()).map_err(|error| error.to_string())?;
        let settings = self.given.or(file).complete()?;
        if !self.print_config {
            return Ok(Some(settings));
        }
        let text = settings::printed(settings.given())?;
        std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot print: {error}"))?;
        Ok(None)
    }
}

fn complain(detail: &str) -> ExitCode {
    // With nowhere to complain to, the exit code has to do.
    drop(writeln!(std::io::stderr(), "probeops-api: {detail}"));
    ExitCode::FAILURE
}
