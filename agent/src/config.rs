//! What the operator of a node may set.

use std::path::PathBuf;

use clap::Args;
use probeops_nats::connect::Link;
use probeops_nats::process::LogFormat;
use probeops_shared::host::DnsName;
use probeops_shared::ids::NodeId;
use probeops_shared::planted;
use probeops_shared::tools::Class;
use probeops_shared::tools::ping::report::IcmpEngine;
use serde::{Deserialize, Serialize};

use crate::enroll::{Folder, TokenSource};
use crate::policy::Endpoint;
use crate::way::proxy::Proxies;

/// The proxy on the way out, for the API as for the broker.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxySetting {
    /// An HTTP proxy on the way to the API and the broker, `http://HOST:PORT` or `http://USER@HOST:PORT`; `none` for none; what the environment says (`HTTPS_PROXY`, `NO_PROXY`) unless given. It is kept with the node's key, and the agent uses it
    #[arg(long, env = "PROBEOPS_PROXY", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// A file with the password of the proxy's user, which the agent must be able to read; only its path is kept
    #[arg(long, env = "PROBEOPS_PROXY_PASSWORD_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_password_file: Option<PathBuf>,
}

/// How long runs may go on after the agent was told to stop, unless set otherwise.
const DRAIN_TIMEOUT_S: u64 = 60;

/// How many MiB of audit records may wait, unless set otherwise, and at most.
const SPOOL_MIB: usize = 32;
const SPOOL_MIB_MAX: usize = 256;

/// How long the name of the zone for origins may be.
const ASN_ZONE_LENGTH_MAX: usize = 213;

/// The agent's settings as given: flags, then environment, then the file; what is absent has a default.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Given {
    /// The broker's addresses: `tls://HOST:4222` or `wss://HOST/PATH`, several with commas
    #[arg(long, env = "PROBEOPS_SERVERS", value_delimiter = ',', value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers: Option<Vec<String>>,
    /// The authorities that may have signed the broker's certificate (PEM, read again at every connection); the system's own unless given
    #[arg(long, env = "PROBEOPS_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// This node's credential, where the operator made it (`probeops nodes add`) and carries it here
    #[arg(long, env = "PROBEOPS_CREDS", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds: Option<PathBuf>,
    /// Where a node that enrolled keeps its key and credential (`probeops-agent enroll`), in the place of --creds, --servers and --ca; and, with
    /// --creds too, the audit records that are not sent yet
    #[arg(long, env = "PROBEOPS_STATE", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
    /// Enrol with this API first, where --state holds no credential yet
    #[arg(long, env = "PROBEOPS_ENROLL", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enroll: Option<String>,
    /// The authority that signed that API's certificate (PEM); the system's own unless given
    #[arg(long, env = "PROBEOPS_ENROLL_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enroll_ca: Option<PathBuf>,
    /// The enrolment token; none where an operator registered the node's key
    #[arg(long, env = "PROBEOPS_ENROLL_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enroll_token_file: Option<PathBuf>,
    /// The name to enrol with, where the token leaves it open [default: this machine's own]
    #[arg(long, env = "PROBEOPS_NODE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// An HTTP proxy on the way to the broker and the API, `http://HOST:PORT` or `http://USER@HOST:PORT`; `none` for none; that of the enrolment, or what the environment says (`HTTPS_PROXY`, `NO_PROXY`), unless given
    #[arg(long, env = "PROBEOPS_PROXY", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// A file with the password of the proxy's user
    #[arg(long, env = "PROBEOPS_PROXY_PASSWORD_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_password_file: Option<PathBuf>,
    /// Whom tools may touch from here (TOML), read again when it changes and at SIGHUP; the default policy unless given
    #[arg(long, env = "PROBEOPS_POLICY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PathBuf>,
    /// Name servers to resolve names with, ADDRESS or ADDRESS:PORT; the system's own way unless given
    #[arg(long, env = "PROBEOPS_RESOLVERS", value_delimiter = ',', value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolvers: Option<Vec<String>>,
    /// The zone with `origin.` and `origin6.` that says which AS announces an address; asn.cymru.com, for public addresses only, unless given
    #[arg(long, env = "PROBEOPS_ASN_ZONE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asn_zone: Option<String>,
    /// What speaks ICMP for ping: own, or surge (surge-ping) with fewer options [default: own]
    #[arg(long, env = "PROBEOPS_ICMP_ENGINE", value_name = "ENGINE", value_parser = icmp_engine)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_engine: Option<IcmpEngine>,
    /// How many light runs (echo) at once [default: 256]
    #[arg(long, env = "PROBEOPS_SLOTS_LIGHT", value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots_light: Option<usize>,
    /// How many probe runs (ping, dns, tcp) at once [default: 32]
    #[arg(long, env = "PROBEOPS_SLOTS_PROBE", value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots_probe: Option<usize>,
    /// How long runs may go on after SIGTERM, in seconds [default: 60]
    #[arg(long, env = "PROBEOPS_DRAIN_TIMEOUT_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout_s: Option<u64>,
    /// How many MiB of audit records may wait for the control plane; beyond, jobs are answered `busy` [default: 32]
    #[arg(long, env = "PROBEOPS_SPOOL_MIB", value_name = "MIB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool_mib: Option<usize>,
    /// A file in which the agent says how it is, for --check-health; none unless given
    #[arg(long, env = "PROBEOPS_HEALTH_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_file: Option<PathBuf>,
    /// How log lines look: text or json [default: text on a terminal, else json]
    #[arg(long, env = "PROBEOPS_LOG_FORMAT", value_name = "FORMAT", value_parser = log_format)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("must be text or json, not `{text}`")),
    }
}

fn icmp_engine(text: &str) -> Result<IcmpEngine, String> {
    IcmpEngine::ALL.iter().copied().find(|engine| engine.as_str() == text).ok_or_else(|| format!("must be own or surge, not `{text}`"))
}

/// The agent's settings, complete.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// The broker's addresses.
    pub servers: Vec<String>,
    /// The authorities that may have signed its certificate.
    pub ca: Option<PathBuf>,
    /// This node's credential.
    pub creds: PathBuf,
    /// Where it keeps what is to outlive it.
    pub state: Option<PathBuf>,
    /// How it comes by its credential, where the operator does not carry it here.
    #[serde(skip)]
    pub enrolling: Option<Enrolling>,
    /// The proxy on the way out.
    #[serde(flatten)]
    pub proxy: ProxySetting,
    /// The owner's policy.
    pub policy: Option<PathBuf>,
    /// Name servers to resolve names with; the system's way when empty.
    pub resolvers: Vec<std::net::SocketAddr>,
    /// The zone that says which autonomous system announces an address, private ones too; Team Cymru's, of public addresses, unless set.
    pub asn_zone: Option<String>,
    /// What speaks ICMP for ping.
    pub icmp_engine: IcmpEngine,
    /// Light runs at once.
    pub slots_light: usize,
    /// Probe runs at once.
    pub slots_probe: usize,
    /// How long runs may go on after the agent was told to stop, in seconds.
    pub drain_timeout_s: u64,
    /// How much of audit records may wait, in MiB.
    pub spool_mib: usize,
    /// Where the agent says how it is.
    pub health_file: Option<PathBuf>,
    /// How log lines look.
    pub log_format: Option<LogFormat>,
}

/// How a node comes by its credential.
#[derive(Clone, Debug)]
pub struct Enrolling {
    /// Where it keeps it.
    pub state: PathBuf,
    /// With which API it enrols; where that is not set, the one that it has enrolled with, once it is known.
    pub api: Option<String>,
    /// Who signed that API's certificate.
    pub ca: Option<PathBuf>,
    /// Where the token is.
    pub token: TokenSource,
    /// The name that it is to have.
    pub node: Option<NodeId>,
}

impl Given {
    /// What is set here, and where it is not, what is set there.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            servers: self.servers.or(file.servers),
            ca: self.ca.or(file.ca),
            creds: self.creds.or(file.creds),
            state: self.state.or(file.state),
            enroll: self.enroll.or(file.enroll),
            enroll_ca: self.enroll_ca.or(file.enroll_ca),
            enroll_token_file: self.enroll_token_file.or(file.enroll_token_file),
            node: self.node.or(file.node),
            proxy: self.proxy.or(file.proxy),
            proxy_password_file: self.proxy_password_file.or(file.proxy_password_file),
            policy: self.policy.or(file.policy),
            resolvers: self.resolvers.or(file.resolvers),
            asn_zone: self.asn_zone.or(file.asn_zone),
            icmp_engine: self.icmp_engine.or(file.icmp_engine),
            slots_light: self.slots_light.or(file.slots_light),
            slots_probe: self.slots_probe.or(file.slots_probe),
            drain_timeout_s: self.drain_timeout_s.or(file.drain_timeout_s),
            spool_mib: self.spool_mib.or(file.spool_mib),
            health_file: self.health_file.or(file.health_file),
            log_format: self.log_format.or(file.log_format),
        }
    }

    /// Completes the settings with defaults and checks them.
    pub fn complete(self) -> Result<Settings, String> {
        const SLOTS_MAX: usize = 65_536;
        let slots = |given: Option<usize>, class: Class, name: &str| match given.unwrap_or(class.default_slots()) {
            1 if planted!("settings" if given.is_some()) => Ok(0),
            slots @ 1..=SLOTS_MAX => Ok(slots),
            other => Err(format!("{name} must be from 1 to {SLOTS_MAX}, not {other}")),
        };
        let resolvers = self.resolvers.unwrap_or_default();
        let spool_mib = match self.spool_mib.unwrap_or(SPOOL_MIB) {
            mib @ 1..=SPOOL_MIB_MAX => mib,
            other => return Err(format!("spool_mib must be from 1 to {SPOOL_MIB_MAX}, not {other}")),
        };
        // A credential that the operator carries here wins.
        let enrolling = self.state.clone().filter(|_| self.creds.is_none()).map(|state| Enrolling {
            state,
            api: self.enroll,
            ca: self.enroll_ca,
            token: self.enroll_token_file.map_or(TokenSource::Nowhere, TokenSource::File),
            node: self.node,
        });
        let creds = self.creds.or_else(|| enrolling.as_ref().map(|enrolling| Folder::new(&enrolling.state).creds_path()));
        // Who enrols is told where the broker is.
        let servers = self.servers.or_else(|| enrolling.as_ref().map(|_| Vec::new()));
        let proxy = ProxySetting { proxy: self.proxy, proxy_password_file: self.proxy_password_file };
        drop(Proxies::new(&proxy)?);
        Ok(Settings {
            servers: servers
                .ok_or("no broker is given: set --servers (PROBEOPS_SERVERS, `servers` in the file), such as tls://broker.example:4222")?,
            ca: self.ca,
            creds: creds.ok_or(
                "no credential is given: set --state (PROBEOPS_STATE, `state` in the file) to the folder of a node that enrolled, or --creds to what \
                 `probeops nodes add` wrote",
            )?,
            state: self.state,
            enrolling,
            proxy,
            policy: self.policy,
            resolvers: resolvers.iter().map(|text| resolver(text)).collect::<Result<_, _>>()?,
            asn_zone: self.asn_zone.map(|text| asn_zone(&text)).transpose()?,
            icmp_engine: self.icmp_engine.unwrap_or_default(),
            slots_light: slots(self.slots_light, Class::Light, "slots_light")?,
            slots_probe: slots(self.slots_probe, Class::Probe, "slots_probe")?,
            drain_timeout_s: self.drain_timeout_s.unwrap_or(DRAIN_TIMEOUT_S),
            spool_mib,
            health_file: self.health_file,
            log_format: self.log_format,
        })
    }
}

impl Settings {
    /// What stands between us and the broker.
    pub(crate) fn proxies(&self) -> Result<Proxies, String> {
        Proxies::new(&self.proxy)
    }

    /// What tools must keep away from besides the broker and what is on the way to it.
    pub(crate) fn api(&self) -> Result<Option<Endpoint>, String> {
        self.enrolling.as_ref().and_then(|enrolling| enrolling.api.as_deref()).map(Endpoint::of_api).transpose()
    }

    /// Where the broker is and who we are.
    pub fn link(&self) -> Link {
        Link { servers: self.servers.clone(), ca: self.ca.clone(), creds: self.creds.clone() }
    }
}

impl ProxySetting {
    /// The same, with a path that is good from everywhere.
    #[must_use]
    pub(crate) fn absolute(&self) -> Self {
        let path = self.proxy_password_file.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        Self { proxy: self.proxy.clone(), proxy_password_file: path }
    }
}

pub(crate) fn resolver(text: &str) -> Result<std::net::SocketAddr, String> {
    const DNS_PORT: u16 = 53;
    let address = text.parse().map(|address| std::net::SocketAddr::new(address, DNS_PORT));
    address
        .or_else(|_| text.parse())
        .map_err(|_| format!("resolvers: `{text}` is not ADDRESS or ADDRESS:PORT, such as 192.0.2.53 or [2001:db8::53]:53"))
}

fn asn_zone(text: &str) -> Result<String, String> {
    match text.parse() {
        // Before it there is room for an IPv6 network, two characters a nibble, and `origin6.`, in a name of 253 characters.
        Ok(DnsName::Name(name)) if (1..=ASN_ZONE_LENGTH_MAX).contains(&name.len()) => Ok(name),
        _ => Err(format!("asn_zone: `{text}` is no name of a zone of at most {ASN_ZONE_LENGTH_MAX} characters, such as asn.example.com")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Given {
        Given { servers: Some(vec!["tls://b:4222".to_owned()]), creds: Some("n.creds".into()), ..Given::default() }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file: Given = toml::from_str("slots_light = 7\nslots_probe = 8\nicmp_engine = \"surge\"").unwrap();
        let settings = Given { slots_light: Some(9), ..minimal() }.or(file).complete().unwrap();
        assert_eq!((settings.slots_light, settings.slots_probe, settings.icmp_engine), (9, 8, IcmpEngine::Surge));
        assert!(toml::to_string(&settings).unwrap().contains("icmp_engine = \"surge\""));
        let settings = minimal().complete().unwrap();
        assert_eq!((settings.slots_light, settings.icmp_engine), (256, IcmpEngine::Own));
    }

    #[test]
    fn what_is_missing_or_out_of_bounds_is_named() {
        assert!(Given::default().complete().unwrap_err().contains("--servers"));
        assert!(Given { slots_probe: Some(0), ..minimal() }.complete().unwrap_err().contains("slots_probe must be from 1"));
        assert!(Given { spool_mib: Some(257), ..minimal() }.complete().unwrap_err().contains("spool_mib must be from 1 to 256, not 257"));
        assert!(icmp_engine("raw").unwrap_err().contains("own or surge"));
        assert_eq!(asn_zone("asn.corp.example.").unwrap(), "asn.corp.example");
        for wrong in [".", "10.0.0.1", "a b", &"a.".repeat(108)] {
            assert!(asn_zone(wrong).unwrap_err().contains(&format!("`{wrong}` is no name of a zone")), "{wrong}");
        }
        assert!(Given { resolvers: Some(vec!["x".to_owned()]), ..minimal() }.complete().unwrap_err().contains("`x`"));
    }

    #[test]
    fn no_file_of_the_package_that_may_have_a_password_in_it_is_for_everybody() {
        let manifest: toml::Table = include_str!("../Cargo.toml").parse().unwrap();
        let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
        let mut etc = assets.iter().filter(|asset| asset[1].as_str().unwrap().starts_with("etc/")).peekable();
        assert!(etc.peek().is_some() && etc.all(|asset| asset[2].as_str() == Some("640")));
    }

    #[test]
    fn the_file_that_the_package_brings_shows_the_defaults() {
        let parse = |text: &str| probeops_shared::settings::parse::<Given>(text, std::path::Path::new("agent.toml")).unwrap();
        let shipped = include_str!("../dist/agent.toml");
        let bare = parse(shipped);
        assert_eq!((bare.servers.as_ref(), bare.slots_probe), (None, None));
        // A comment for people has a space after its sign, a setting has none.
        let shown: String = shipped
            .lines()
            .filter(|line| !line.starts_with("# "))
            .fold(String::new(), |all, line| all + line.trim_start_matches('#') + "\n");
        let (shown, defaults) = (parse(&shown).complete().unwrap(), minimal().complete().unwrap());
        assert_eq!(
            (shown.slots_light, shown.slots_probe, shown.drain_timeout_s, shown.spool_mib),
            (defaults.slots_light, defaults.slots_probe, defaults.drain_timeout_s, defaults.spool_mib)
        );
        assert!(shown.ca.is_some() && !shown.resolvers.is_empty());
    }
}
