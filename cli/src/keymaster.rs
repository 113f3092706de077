//! `probeops keymaster`: the process that has the signing keys.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};
use probeops_nats::keymaster::{self, MintsPerMinute, Settings, check_health};
use probeops_nats::process;

use crate::control::{Control, DataArgs};
use crate::terminal::note;

/// Sign credentials of nodes and services, and take them back on every server of the broker, for APIs that ask over NATS
#[derive(Args, Debug)]
#[command(after_help = "\
The only process with the signing keys: run one for each data folder, where nobody else can read it. It opens no port; APIs ask it over the
broker, which attests who asks. Exit codes: 0 told to stop, 1 cannot start or go on.

Examples:
  probeops keymaster --data /data
  probeops keymaster --check-health --health-file /run/probeops/health")]
pub(crate) struct KeymasterArgs {
    #[command(flatten)]
    data: DataArgs,
    /// So many credentials a minute one API may ask for; more are refused until a part of the minute has gone by
    #[arg(long, env = "PROBEOPS_MINTS_PER_MINUTE_MAX", value_name = "NUMBER", default_value_t = MintsPerMinute::default().0)]
    mints_per_minute_max: NonZeroU32,
    /// Where it says that every server of the broker is at the claims of this data folder, for container engines and service managers
    #[arg(long, env = "PROBEOPS_HEALTH_FILE", value_name = "FILE")]
    health_file: Option<PathBuf>,
    /// Say whether the keymaster that writes the health file is well: exit 0 if it is, else 1 and why
    #[arg(long, requires = "health_file")]
    check_health: bool,
    /// How log lines look: text or json [default: text on a terminal, else json]
    #[arg(long, env = "PROBEOPS_LOG_FORMAT", value_name = "FORMAT", value_parser = probeops_api::config::log_format)]
    log_format: Option<process::LogFormat>,
}

impl KeymasterArgs {
    /// Runs it until SIGTERM or SIGINT.
    pub(crate) fn run(self) -> ExitCode {
        let done = if self.check_health { self.check() } else { self.serve() };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                note(format!("probeops-keymaster: {why}"));
                ExitCode::FAILURE
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let path = self.health_file.as_deref().ok_or("no health file is given: set --health-file (PROBEOPS_HEALTH_FILE)")?;
        check_health(path).map_err(|error| format!("{error:#}"))
    }

    fn serve(self) -> Result<(), String> {
        // What is in this memory signs everything: it goes to no core file and no debugger of the same user.
        set_dumpable(false).map_err(|error| format!("cannot keep the memory from being dumped: {error}"))?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| format!("cannot turn core files off: {error}"))?;
        process::install_tls_provider();
        process::start_log(self.log_format);
        let control = Control::open(&self.data).map_err(|failed| failed.text)?;
        let ca = control.ca();
        let mints = MintsPerMinute(self.mints_per_minute_max);
        let settings = Settings { layout: control.layout, servers: control.servers, ca, mints, health_file: self.health_file };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start threads: {error}"))?;
        runtime.block_on(async {
            let stop = process::stop_signal().map_err(|error| format!("cannot listen to signals: {error}"))?;
            keymaster::run(settings, stop).await.map_err(|error| format!("{error:#}"))
        })
    }
}
