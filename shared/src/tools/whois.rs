//! `whois`: ask registries who holds a name, an address or a network.

mod output;
pub mod registered;
pub mod report;
pub mod url;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::tls::pem::CertificatesPem;
use crate::tools::choice::choice;
use crate::tools::network::{BUDGET_SLACK, FamilyChoice, RESOLUTION_MAX};
use crate::tools::{Class, Tool};

use registered::Registered;
use report::{Registry, WhoisProgress, WhoisReport, WhoisStatus};
use url::RdapUrl;

/// The port of WHOIS (RFC 3912).
pub const WHOIS_PORT: u16 = 43;
/// How many redirects of RDAP are followed.
pub const REDIRECTS_MAX: u32 = 3;
/// How many referrals of WHOIS are followed: from IANA to the registry, and from there to the registrar.
pub const REFERRALS_MAX: u32 = 2;
/// The most that is kept of an answer of WHOIS.
pub const WHOIS_BYTES_MAX: usize = 64 * 1024;
/// The most that an answer of RDAP may be: a part of it cannot be read.
pub const RDAP_BYTES_MAX: usize = 128 * 1024;

/// Ask registries who holds a domain, an address or an autonomous system (`AS64500`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Whois {
    /// How to ask: RDAP first and WHOIS where that brings no answer (WHOIS only, when a `server` is given), or one of them.
    pub protocol: WhoisProtocol,
    /// Which RDAP server to ask, by URL; rdap.org, which redirects to every registry, unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdap_server: Option<RdapUrl>,
    /// Certificates (PEM) of authorities that the RDAP server may be certified by, besides those that the node trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<CertificatesPem>,
    /// Which WHOIS server to ask; IANA's, which refers to every registry, unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Host>,
    /// On which port of the `server`.
    pub port: Bounded<1, 65_535, { WHOIS_PORT as u64 }>,
    /// Whether to ask the server that an answer refers to, at most two in turn.
    pub recursion: bool,
    /// How long each server may take, in seconds.
    pub timeout: Seconds<100, 30_000, 10_000>,
    /// Which kind of address of a server to use where its name has both.
    pub family: FamilyChoice,
}

impl Default for Whois {
    fn default() -> Self {
        Self {
            protocol: WhoisProtocol::default(),
            rdap_server: None,
            ca_certificates: None,
            server: None,
            port: Bounded::default(),
            recursion: true,
            timeout: Seconds::default(),
            family: FamilyChoice::default(),
        }
    }
}

choice! {
    /// How to ask.
    WhoisProtocol {
        /// RDAP, then WHOIS.
        #[default]
        Auto = "auto",
        /// RDAP only.
        Rdap = "rdap",
        /// WHOIS only.
        Whois = "whois",
    }
}

impl Whois {
    /// The RDAP server to ask; unless given, one that redirects to the registry that IANA's bootstrap files name (RFC 9224).
    pub fn rdap_server(&self) -> RdapUrl {
        let redirector = || RdapUrl { tls: true, host: Host::Name("rdap.org".to_owned()), port: 443, path: "/".to_owned() };
        self.rdap_server.clone().unwrap_or_else(redirector)
    }

    /// The WHOIS server to ask; unless given, IANA's.
    pub fn whois_server(&self) -> Host {
        self.server.clone().unwrap_or_else(|| Host::Name("whois.iana.org".to_owned()))
    }

    /// How to ask, in order.
    pub fn protocols(&self) -> &'static [Registry] {
        match self.protocol {
            WhoisProtocol::Rdap => &[Registry::Rdap],
            WhoisProtocol::Whois => &[Registry::Whois],
            WhoisProtocol::Auto if self.server.is_some() && self.rdap_server.is_none() => &[Registry::Whois],
            WhoisProtocol::Auto => &[Registry::Rdap, Registry::Whois],
        }
    }
}

impl Tool for Whois {
    const SUMMARY: &'static str = "Ask registries by RDAP or WHOIS who holds a domain, an address or an autonomous system";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = Registered;
    type Report = WhoisReport;
    type Progress = WhoisProgress;

    fn check(&self, _target: &Registered) -> Result<(), Invalid> {
        let refused = |option: &str, detail: &str| Err(Invalid::new(format!("/parameters/{option}"), detail));
        let asks = |registry| self.protocols().contains(&registry);
        if self.rdap_server.is_some() && !asks(Registry::Rdap) {
            return refused("rdap_server", "RDAP is not asked; leave `rdap_server` out or `protocol` at \"auto\"");
        }
        if self.ca_certificates.is_some() && !asks(Registry::Rdap) {
            return refused("ca_certificates", "only RDAP speaks TLS, and it is not asked");
        }
        if self.server.is_some() && !asks(Registry::Whois) {
            return refused("server", "`server` is asked by WHOIS; give `rdap_server`, or leave `protocol` at \"auto\"");
        }
        if self.server.is_none() && self.port != Bounded::default() {
            return refused("port", "`port` is a port of the `server`, and none is given");
        }
        if let Some(url) = &self.rdap_server {
            self.family.check(&url.host).map_err(|invalid| Invalid { detail: format!("`rdap_server`: {}", invalid.detail), ..invalid })?;
        }
        self.server.as_ref().map_or(Ok(()), |server| self.family.check(server))
    }

    /// Every server that may be asked, with the search for its address.
    fn budget(&self) -> Duration {
        let servers: u32 = self
            .protocols()
            .iter()
            .map(|registry| match registry {
                Registry::Rdap => 1 + REDIRECTS_MAX,
                Registry::Whois => 1 + REFERRALS_MAX,
            })
            .sum();
        (RESOLUTION_MAX + self.timeout.duration()).saturating_mul(servers) + BUDGET_SLACK
    }

    fn output(&self, _target: &Registered, report: &WhoisReport) -> String {
        let record = |status| report.record.as_ref().filter(|_| status == WhoisStatus::Found);
        report.queries.iter().map(|query| output::answer(report.kind, query, record(query.status))).collect()
    }

    fn progress_output(&self, target: &Registered, progress: &WhoisProgress) -> String {
        match progress {
            WhoisProgress::Asking { .. } => String::new(),
            WhoisProgress::Answer { record, query } => output::answer(target.kind(), query, record.as_deref()),
        }
    }

    /// There is no such entry, or no registry said.
    fn is_bad(&self, report: &WhoisReport) -> bool {
        report.registered != Some(true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::tools::{Spec, ToolName};

    #[track_caller]
    fn refuses(parameters: &Value, pointer: &str, part: &str) {
        let invalid = Spec::parse(ToolName::Whois, "example.com", parameters.as_object().unwrap().clone()).unwrap_err();
        assert_eq!(invalid.pointer, pointer, "{invalid}");
        assert!(invalid.detail.contains(part), "{invalid}");
    }

    #[test]
    fn options_that_mean_nothing_together_are_refused() {
        refuses(&json!({"protocol": "rdap", "server": "whois.example"}), "/parameters/server", "give `rdap_server`");
        refuses(&json!({"protocol": "whois", "rdap_server": "https://rdap.example/"}), "/parameters/rdap_server", "RDAP is not asked");
        refuses(&json!({"port": 4343}), "/parameters/port", "none is given");
        refuses(&json!({"server": "192.0.2.1", "family": "6"}), "/parameters/family", "is an IPv4 address");
        refuses(&json!({"rdap_server": "https://192.0.2.1/", "family": "6"}), "/parameters/family", "`rdap_server`: 192.0.2.1");
        refuses(&json!({"rdap_server": "rdap.example"}), "/parameters/rdap_server", "it has no https://");
        refuses(&json!({"server": "-h"}), "/parameters/server", "starts with `-`");
    }

    #[test]
    fn a_server_that_is_given_is_the_one_that_is_asked() {
        let protocols = |parameters: Value| serde_json::from_value::<Whois>(parameters).unwrap().protocols();
        assert_eq!(protocols(json!({})), [Registry::Rdap, Registry::Whois]);
        assert_eq!(protocols(json!({"server": "whois.example"})), [Registry::Whois]);
        assert_eq!(protocols(json!({"server": "whois.example", "rdap_server": "https://rdap.example"})), [Registry::Rdap, Registry::Whois]);
        assert_eq!(protocols(json!({"rdap_server": "https://rdap.example"})), [Registry::Rdap, Registry::Whois]);
    }

    #[test]
    fn the_longest_legal_run_stays_below_five_minutes() {
        let slowest: Whois = serde_json::from_value(json!({"timeout": 30})).unwrap();
        assert!(slowest.budget() < Duration::from_mins(5), "{:?}", slowest.budget());
    }
}
