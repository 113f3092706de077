//! `probeops sentry`: sees what the broker refuses, records it, and cuts clones and floods.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use probeops_nats::keymaster::check_health;
use probeops_nats::layout::Layout;
use probeops_nats::process::{self, LogFormat};
use probeops_nats::sentry::{self, Bounds, Settings};
use tokio::sync::oneshot;

use crate::client::DATA_DEFAULT;
use crate::control::read_servers;
use crate::terminal::note;

/// Watch the broker: record what it refuses, cut connections that flood it, and cut and revoke a node's key that two use
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
It needs no signing key: of the data folder it reads sentry/, tls/ca.pem, the addresses of the broker, and the broker's log.
What it sees is in the trail: probeops audit --verdict violation

Examples:
  probeops sentry --data .probeops
  probeops sentry --broker-log /log/a.log --broker-log /log/b.log   # a broker of two servers")]
pub(crate) struct SentryArgs {
    /// The data folder of `probeops up` or `probeops init`, or a copy of those parts of it
    #[arg(long, env = "PROBEOPS_DATA", value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
    /// The broker's addresses, where they are not those that the data folder names
    #[arg(long, env = "PROBEOPS_SERVERS", value_delimiter = ',', value_name = "URL")]
    servers: Vec<String>,
    /// The log of the broker, of each server of it; only there it says which connection broke its permissions [default: that in the data folder]
    #[arg(long = "broker-log", env = "PROBEOPS_BROKER_LOG", value_delimiter = ',', value_name = "FILE")]
    logs: Vec<PathBuf>,
    /// So many violations of one connection in ten seconds end it
    #[arg(long, value_name = "NUMBER", default_value_t = Bounds::default().violations)]
    violations_max: u32,
    /// So many messages a second end the connection of a node or a service
    #[arg(long, value_name = "NUMBER", default_value_t = Bounds::default().messages_per_s)]
    messages_per_s_max: u64,
    /// So many bytes a second do, too
    #[arg(long, value_name = "BYTES", default_value_t = Bounds::default().bytes_per_s)]
    bytes_per_s_max: u64,
    /// What a node's connection publishes for so long after another of it has come may have been on its way since before; later, two use its key.
    /// More where networks are slow
    #[arg(long, value_name = "SECONDS", default_value_t = Bounds::default().last_words_within.as_secs())]
    last_words_s: u64,
    /// Where it says that it sees the broker's connections, for container engines and service managers
    #[arg(long, env = "PROBEOPS_HEALTH_FILE", value_name = "FILE")]
    health_file: Option<PathBuf>,
    /// Say whether the sentry that writes the health file is well: exit 0 if it is, else 1 and why
    #[arg(long, requires = "health_file")]
    check_health: bool,
    /// How log lines look: text or json [default: text on a terminal, else json]
    #[arg(long, env = "PROBEOPS_LOG_FORMAT", value_name = "FORMAT", value_parser = probeops_api::config::log_format)]
    log_format: Option<LogFormat>,
}

impl SentryArgs {
    /// Runs the sentry until SIGTERM or SIGINT. Exit codes: 0 told to stop, 1 cannot start or go on.
    pub(crate) fn run(self) -> ExitCode {
        let done = if self.check_health { self.check() } else { self.watch() };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                note(format!("probeops sentry: {why}"));
                ExitCode::FAILURE
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let path = self.health_file.as_deref().ok_or("no health file is given: set --health-file (PROBEOPS_HEALTH_FILE)")?;
        check_health(path).map_err(|error| format!("{error:#}"))
    }

    fn watch(self) -> Result<(), String> {
        process::install_tls_provider();
        process::start_log(self.log_format);
        let settings = self.settings()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
        runtime.block_on(async {
            let stop = process::stop_signal().map_err(|error| format!("cannot listen to signals: {error}"))?;
            let (ready, _) = oneshot::channel();
            Box::pin(sentry::run(settings, ready, stop)).await
        })
    }

    fn settings(self) -> Result<Settings, String> {
        let layout = Layout::new(&self.data);
        let servers = if self.servers.is_empty() { read_servers(&layout).map_err(|error| error.to_string())? } else { self.servers };
        let logs = if self.logs.is_empty() { vec![layout.server_log()] } else { self.logs };
        let bounds = Bounds {
            violations: self.violations_max,
            messages_per_s: self.messages_per_s_max,
            bytes_per_s: self.bytes_per_s_max,
            last_words_within: Duration::from_secs(self.last_words_s),
            ..Bounds::default()
        };
        let ca = Some(layout.ca_certificate()).filter(|ca| ca.exists());
        Ok(Settings { servers, ca, creds: layout.sentry_dir(), logs, bounds, health_file: self.health_file })
    }
}
