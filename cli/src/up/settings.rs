//! What `up` may be told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use probeops_nats::process::LogFormat;
use probeops_nats::server::ports::free_port;
use probeops_nats::vault::CREDENTIAL_LIFETIME;
use probeops_shared::access::TargetPattern;
use probeops_shared::settings;
use serde::{Deserialize, Serialize};

use crate::client::DATA_DEFAULT;
use crate::exit::Failed;
use crate::spans;

const HTTP_DEFAULT: &str = "127.0.0.1:8080";
const BROKER_DEFAULT: &str = "127.0.0.1:0";

/// Start a broker, an API and two agents on this machine
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
It finds or fetches nats-server, makes keys and credentials in the data folder, and prints a curl line to paste.
Ctrl-C ends all of it; started again it keeps its state. It never changes the system, unless told so by --allow-ping.

Examples:
  probeops up
  probeops up --once                                   # two jobs, printed in full, exit 0 or 1
  probeops up --broker 0.0.0.0:4222 --name broker.lan  # agents on other machines can connect")]
pub(crate) struct UpArgs {
    #[command(flatten)]
    given: Given,
    /// Run one job over HTTP and one straight over NATS, print both, and stop
    #[arg(long)]
    once: bool,
    /// Let this user's group send pings (`net.ipv4.ping_group_range`); needs root
    #[arg(long)]
    allow_ping: bool,
    /// A settings file (TOML); flags and environment win over it
    #[arg(long, env = "PROBEOPS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings as they are after flags, environment, file and defaults, and stop
    #[arg(long)]
    print_config: bool,
}

/// The settings as given: flags, then environment, then the file; what is absent has a default.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    /// The data folder [default: .probeops]
    #[arg(long, env = "PROBEOPS_DATA", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// Where the API listens; port 0 means any free one [default: 127.0.0.1:8080]
    #[arg(long, env = "PROBEOPS_HTTP", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    /// Where the broker listens; port 0 means the one it had before, or any free one [default: 127.0.0.1:0]
    #[arg(long, env = "PROBEOPS_BROKER", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<String>,
    /// Names and addresses under which agents elsewhere reach the broker, for its certificate
    #[arg(long = "name", env = "PROBEOPS_NAMES", value_delimiter = ',', value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<Vec<String>>,
    /// Where callbacks may go beyond the public internet, as of `probeops api --callback-allow`, such as an n8n here: 127.0.0.0/8
    #[arg(long, env = "PROBEOPS_CALLBACK_ALLOW", value_delimiter = ',', value_name = "PLACE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_allow: Option<Vec<TargetPattern>>,
    /// The nats-server to use; found or fetched unless given
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    nats_server: Option<PathBuf>,
    /// How long the credentials of this fabric last; they are renewed at each start and while it runs [default: 30d]
    #[arg(long, env = "PROBEOPS_CREDENTIAL_LIFETIME", value_name = "SPAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    credential_lifetime: Option<String>,
    /// How log lines look: text or json [default: text on a terminal, else json]
    #[arg(long, env = "PROBEOPS_LOG_FORMAT", value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<String>,
}

/// The settings, complete.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) data: PathBuf,
    pub(super) http: SocketAddr,
    pub(super) broker: SocketAddr,
    pub(super) names: Vec<String>,
    pub(super) callback_allow: Vec<TargetPattern>,
    pub(super) nats_server: Option<PathBuf>,
    pub(super) credential_lifetime: Duration,
    pub(super) log_format: Option<LogFormat>,
    pub(super) once: bool,
    pub(super) allow_ping: bool,
}

impl UpArgs {
    /// The settings, or nothing when they were only to be printed.
    pub(super) fn settings(self) -> Result<Option<Settings>, Failed> {
        let file: Given = settings::load_if_given(self.config.as_deref()).map_err(Failed::usage)?;
        let given = self.given.or(file);
        let shown = given.with_defaults(self.once);
        let complete = given.complete(self.once, self.allow_ping).map_err(Failed::usage)?;
        if self.print_config {
            crate::terminal::say(settings::printed(&shown).map_err(Failed::work)?.trim_end());
            return Ok(None);
        }
        Ok(Some(complete))
    }
}

impl Given {
    fn or(self, file: Self) -> Self {
        Self {
            data: self.data.or(file.data),
            http: self.http.or(file.http),
            broker: self.broker.or(file.broker),
            names: self.names.or(file.names),
            callback_allow: self.callback_allow.or(file.callback_allow),
            nats_server: self.nats_server.or(file.nats_server),
            credential_lifetime: self.credential_lifetime.or(file.credential_lifetime),
            log_format: self.log_format.or(file.log_format),
        }
    }

    fn with_defaults(&self, once: bool) -> Self {
        Self {
            data: Some(self.data.clone().unwrap_or_else(|| DATA_DEFAULT.into())),
            http: Some(self.http.clone().unwrap_or_else(|| http_default(once).to_owned())),
            broker: Some(self.broker.clone().unwrap_or_else(|| BROKER_DEFAULT.to_owned())),
            credential_lifetime: Some(self.credential_lifetime.clone().unwrap_or_else(|| spans::shown(CREDENTIAL_LIFETIME))),
            ..self.clone()
        }
    }

    fn complete(self, once: bool, allow_ping: bool) -> Result<Settings, String> {
        let address = |name: &str, given: Option<&str>, default: &str| {
            let text = given.unwrap_or(default);
            text.parse::<SocketAddr>().map_err(|_| format!("{name}: `{text}` is not an IP address and a port, such as {default}"))
        };
        let http = address("http", self.http.as_deref(), http_default(once))?;
        let broker = address("broker", self.broker.as_deref(), BROKER_DEFAULT)?;
        if !http.ip().is_loopback() {
            return Err(format!(
                "http: {http} can be reached by others, and `up` serves clear text; start `probeops api` with --tls-cert and --tls-key instead"
            ));
        }
        let credential_lifetime = match self
            .credential_lifetime
            .as_deref()
            .map(spans::parse)
            .transpose()
            .map_err(|detail| format!("credential_lifetime: {detail}"))?
        {
            None => CREDENTIAL_LIFETIME,
            Some(lifetime) if !lifetime.is_zero() && lifetime <= CREDENTIAL_LIFETIME => lifetime,
            Some(_) => return Err("credential_lifetime: credentials last from 1s to 30d".to_owned()),
        };
        let log_format = match self.log_format.as_deref() {
            None => None,
            Some("text") => Some(LogFormat::Text),
            Some("json") => Some(LogFormat::Json),
            Some(other) => return Err(format!("log_format: must be text or json, not `{other}`")),
        };
        let data = self.data.unwrap_or_else(|| DATA_DEFAULT.into());
        if data.as_os_str().is_empty() {
            return Err(format!("data: must name a folder, such as {DATA_DEFAULT}"));
        }
        let (names, callback_allow) = (self.names.unwrap_or_default(), self.callback_allow.unwrap_or_default());
        Ok(Settings {
            data,
            http,
            broker,
            names,
            callback_allow,
            nats_server: self.nats_server,
            credential_lifetime,
            log_format,
            once,
            allow_ping,
        })
    }
}

/// One run is no service: it takes no port that somebody may want.
fn http_default(once: bool) -> &'static str {
    if once { "127.0.0.1:0" } else { HTTP_DEFAULT }
}

impl Settings {
    /// Refuses an address for the API that is taken, before anything is started.
    pub(super) fn require_http(&self) -> Result<(), Failed> {
        self.listen().map(drop)
    }

    /// Where the API shall listen, with a port that is free.
    pub(super) fn listen(&self) -> Result<SocketAddr, Failed> {
        if self.http.port() == 0 {
            let port = free_port().map_err(|error| Failed::work(format!("no port is free: {error}")))?;
            return Ok(SocketAddr::new(self.http.ip(), port));
        }
        match std::net::TcpListener::bind(self.http) {
            Ok(_free) => Ok(self.http),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Failed::work(format!(
                "port {} for the API ({}) is already in use; stop the program that has it, or choose another with --http",
                self.http.port(),
                self.http
            ))),
            Err(error) => Err(Failed::work(format!("the API cannot listen on {}: {error}; choose another address with --http", self.http))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_named() {
        let refused = |given: Given, words: &str| {
            let error = given.complete(false, false).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        let text = |text: &str| Some(text.to_owned());
        refused(Given { http: text("8080"), ..Given::default() }, "http: `8080`");
        refused(Given { http: text("0.0.0.0:80"), ..Given::default() }, "clear text");
        refused(Given { credential_lifetime: text("40d"), ..Given::default() }, "credential_lifetime");
        refused(Given { log_format: text("xml"), ..Given::default() }, "log_format");
        assert_eq!(Given::default().complete(false, false).unwrap().http.port(), 8080);
        assert_eq!(Given::default().complete(true, false).unwrap().http.port(), 0);
    }
}
