//! `tcp`: open connections, say something, and listen to what the other side says.

pub mod dialogue;
pub mod exchange;
mod output;
pub mod ports;
pub mod report;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::tls::pem::{CertificatesPem, PrivateKeyPem};
use crate::tools::http::{MaxTls, MinTls};
use crate::tools::network::{BUDGET_SLACK, FamilyChoice, RESOLUTION_MAX, Source};
use crate::tools::{Class, Tool, tls};

use dialogue::{Bytes, Pattern};
use exchange::{Exchange, Exchanges};
use ports::Ports;
use report::{PortState, TcpExchange, TcpPort, TcpProgress, TcpReport};

/// The most that is read of what a server says first.
pub const BANNER_BYTES_MAX: usize = 1024;
/// The most that is read of what it says then.
pub const REPLY_BYTES_MAX: usize = 4096;
/// The time between two handshakes of a run: at most twenty begin in a second.
pub const PORT_INTERVAL: Duration = Duration::from_millis(50);

/// Open a TCP connection to a port or several, and talk to what listens there: what it says first (`banner`), what it is told (`send`),
/// what it must answer (`expect`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tcp {
    /// Which port.
    pub port: Bounded<0, 65_535, 443>,
    /// Several ports instead of one: numbers and ranges such as `22,80,8000-8010`, at most 20 in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
    /// How long each handshake may take, in seconds; that of TLS may take as long again.
    pub timeout: Seconds<100, 30_000, 5_000>,
    /// Which kind of address to use where the name has both.
    pub family: FamilyChoice,
    /// From which address of the node to connect; the system's choice unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Whether to speak TLS; a certificate that cannot be trusted is told and does not end the talk.
    pub tls: bool,
    /// The name that the certificate must be for, told to the server (SNI); the target unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<Host>,
    /// The oldest version of TLS to offer; what is older than 1.2 can only be looked at, with the tool `tls`.
    pub min_version: MinTls,
    /// The newest version of TLS to offer.
    pub max_version: MaxTls,
    /// Certificates (PEM) of authorities to trust besides those of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<CertificatesPem>,
    /// What to show a server that asks who we are, PEM: a certificate, and those that link it to an authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<CertificatesPem>,
    /// The key of `client_certificate`, PEM without a passphrase. Secret: never shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PrivateKeyPem>,
    /// Whether to listen for what the server says first (SSH, SMTP, FTP and the like do): at most 1024 bytes.
    pub banner: bool,
    /// How long to listen for it, in milliseconds.
    pub banner_wait_ms: Bounded<100, 10_000, 2_000>,
    /// What to send once the port is open, after the banner: text of at most 512 bytes with the escapes `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send: Option<Bytes>,
    /// What the server must say, as text with the same escapes; looked for in the first 4096 bytes after `send`, or of all when
    /// nothing is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<Bytes>,
    /// The same as a regular expression (syntax of Rust's regex crate, over bytes; `(?i)` ignores case).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_regex: Option<Pattern>,
    /// Whether to go over to TLS then.
    pub starttls: bool,
    /// What to say and to expect after that, in turn, at most 10, such as `{"send": "EHLO ${1}\r\n", "expect": "250"}`: each with a `send`, in
    /// which `${1}` stands for what the first group of the last `expect_regex` caught, an `expect` or `expect_regex`, and `starttls` where
    /// TLS begins after it. It ends where the server does not say what is expected.
    pub then: Exchanges,
    /// How long to wait for the reply to each `send` and for what is expected, in milliseconds.
    pub reply_wait_ms: Bounded<100, 10_000, 2_000>,
}

impl Tcp {
    /// The ports to try, in their order.
    pub fn ports(&self) -> Vec<u16> {
        self.ports.as_ref().map_or_else(|| vec![self.port.get_u16()], |ports| ports.as_slice().to_vec())
    }

    /// What is said and expected first.
    fn first(&self) -> Exchange {
        let Self { send, expect, expect_regex, starttls, .. } = self;
        Exchange { send: send.clone(), expect: expect.clone(), expect_regex: expect_regex.clone(), starttls: *starttls }
    }

    /// All that is said and expected, in turn. The first may be nothing.
    pub fn exchanges(&self) -> Vec<Exchange> {
        std::iter::once(self.first()).chain(self.then.as_slice().iter().cloned()).collect()
    }

    /// Whether there is more to do than the handshake.
    pub fn talks(&self) -> bool {
        self.tls || self.banner || self.exchanges().iter().any(|exchange| !exchange.is_empty())
    }

    fn check_tls(&self) -> Result<(), Invalid> {
        let refused = |option: &str, detail: &str| Err(Invalid::new(format!("/parameters/{option}"), detail));
        let begins = usize::from(self.tls) + self.exchanges().iter().filter(|exchange| exchange.starttls).count();
        if begins > 1 {
            let option = if self.starttls { "starttls" } else { "then" };
            return refused(option, "TLS begins once on a connection; leave `tls` at false and all but one `starttls` out");
        }
        let of_tls = [
            ("server_name", self.server_name.is_some()),
            ("min_version", self.min_version != MinTls::default()),
            ("max_version", self.max_version != MaxTls::default()),
            ("ca_certificates", self.ca_certificates.is_some()),
            ("client_certificate", self.client_certificate.is_some()),
        ];
        if let Some((option, _)) = of_tls.into_iter().find(|(_, given)| *given && begins == 0) {
            return refused(option, "it means something only over TLS; set `tls` or `starttls`");
        }
        if self.min_version.version().number() > self.max_version.version().number() {
            let detail = format!("{} is newer than `max_version`, which is {}", self.min_version, self.max_version);
            return refused("min_version", &detail);
        }
        tls::check_client(self.client_certificate.as_ref(), self.client_key.as_ref())
    }

    /// Refuses a place for what no regular expression has caught by then.
    fn check_places(&self) -> Result<(), Invalid> {
        let mut caught = 0;
        for (number, exchange) in self.exchanges().iter().enumerate() {
            let most = exchange.send.as_ref().filter(|_| number > 0).and_then(Bytes::last_place).unwrap_or(0);
            if most > caught {
                let detail =
                    format!("the `send` of number {number} has ${{{most}}} in it, and the last `expect_regex` has {caught} groups");
                return Err(Invalid::new("/parameters/then", detail));
            }
            caught = exchange.expect_regex.as_ref().map_or(caught, |pattern| pattern.regex().captures_len() - 1);
        }
        Ok(())
    }
}

impl Tool for Tcp {
    const SUMMARY: &'static str = "Open TCP connections: which ports are open, refused, filtered or unreachable, and what listens there";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = Host;
    type Report = TcpReport;
    type Progress = TcpProgress;

    fn check(&self, target: &Host) -> Result<(), Invalid> {
        self.family.check(target)?;
        self.source.map_or(Ok(()), |source| source.check(self.family, target))?;
        self.check_tls()?;
        self.check_places()?;
        let refused = |option: &str, detail: &str| Err(Invalid::new(format!("/parameters/{option}"), detail));
        if self.ports.is_some() && self.port != Bounded::default() {
            return refused("port", "`port` is one and `ports` are several; give either");
        }
        if self.expect.is_some() && self.expect_regex.is_some() {
            return refused("expect_regex", "`expect` is text and `expect_regex` a regular expression; give either");
        }
        if self.banner && self.first().expects() && self.send.is_none() {
            return refused("banner", "what is expected is already looked for in what the server says first; leave `banner` out");
        }
        if self.banner_wait_ms != Bounded::default() && !self.banner {
            return refused("banner_wait_ms", "no banner is listened for; set `banner`");
        }
        if self.reply_wait_ms != Bounded::default() && !self.exchanges().iter().any(Exchange::waits) {
            return refused("reply_wait_ms", "no reply is waited for; give `send` or `expect`");
        }
        Ok(())
    }

    fn conceal(parameters: &mut Map<String, Value>) {
        if let Some(key) = parameters.get_mut("client_key") {
            *key = "***".into();
        }
    }

    fn budget(&self) -> Duration {
        let listening = if self.banner { self.banner_wait_ms.ms() } else { Duration::ZERO };
        let exchanges = self.exchanges();
        let waits = exchanges.iter().filter(|exchange| exchange.waits()).count();
        let replying = self.reply_wait_ms.ms().saturating_mul(u32::try_from(waits).unwrap_or(u32::MAX));
        let starting = PORT_INTERVAL.saturating_mul(u32::try_from(self.ports().len()).unwrap_or(u32::MAX));
        let handshakes =
            self.timeout.duration().saturating_mul(if self.tls || exchanges.iter().any(|exchange| exchange.starttls) { 2 } else { 1 });
        RESOLUTION_MAX + starting + handshakes + listening + replying + BUDGET_SLACK
    }

    fn output(&self, target: &Host, report: &TcpReport) -> String {
        report.ports.iter().map(|port| output::of(self, target, report.address, port)).collect()
    }

    /// One port prints what it knows at once; of several each prints when it is done, so that their lines do not mix.
    fn progress_output(&self, target: &Host, progress: &TcpProgress) -> String {
        let one = self.ports().len() == 1;
        match progress {
            TcpProgress::Open { address, port, connect_ms } if one => {
                let report = TcpPort { port: *port, state: PortState::Open, connect_ms: Some(*connect_ms), ..TcpPort::default() };
                output::heading(target, *address, &report)
            }
            TcpProgress::Resolved(_) | TcpProgress::Open { .. } | TcpProgress::Exchange { .. } => String::new(),
            TcpProgress::Port { report, .. } if one && report.state == PortState::Open && self.talks() => output::dialogue(self, report),
            TcpProgress::Port { address, report } => output::of(self, target, *address, report),
        }
    }

    /// A port is not open, or what listens there does not say what is expected, or does not speak TLS.
    fn is_bad(&self, report: &TcpReport) -> bool {
        report.ports.iter().any(|port| {
            port.state != PortState::Open
                || port.tls.as_ref().is_some_and(|tls| tls.failure.is_some())
                || port.exchanges().any(TcpExchange::has_failed)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::network::Family;
    use crate::tools::{Spec, ToolName};

    #[track_caller]
    fn refuses(parameters: &Value, pointer: &str, part: &str) {
        let invalid = Spec::parse(ToolName::Tcp, "example.com", parameters.as_object().unwrap().clone()).unwrap_err();
        assert_eq!(invalid.pointer, pointer, "{invalid}");
        assert!(invalid.detail.contains(part), "{invalid}");
    }

    #[test]
    fn options_that_mean_nothing_together_are_refused() {
        refuses(&json!({"port": 22, "ports": "22"}), "/parameters/port", "give either");
        refuses(&json!({"ports": "1-21"}), "/parameters/ports", "more than 20 ports");
        refuses(&json!({"ports": 22}), "/parameters/ports", "must be a string, not 22");
        refuses(&json!({"send": "\\q"}), "/parameters/send", "`\\q` means nothing");
        refuses(&json!({"server_name": "example.org"}), "/parameters/server_name", "set `tls`");
        refuses(&json!({"min_version": "1.3"}), "/parameters/min_version", "set `tls`");
        refuses(&json!({"max_version": "1.2"}), "/parameters/max_version", "set `tls`");
        refuses(&json!({"tls": true, "min_version": "1.1"}), "/parameters/min_version", "\"1.2\", \"1.3\"");
        let none = json!({"tls": true, "min_version": "1.3", "max_version": "1.2"});
        refuses(&none, "/parameters/min_version", "1.3 is newer than `max_version`, which is 1.2");
        refuses(&json!({"tls": true, "starttls": true}), "/parameters/starttls", "TLS begins once");
        refuses(&json!({"then": [{"starttls": true}, {"starttls": true}]}), "/parameters/then", "TLS begins once");
        refuses(&json!({"then": [{"send": "a", "expect": "a", "expect_regex": "a"}]}), "/parameters/then", "number 1 has not");
        refuses(&json!({"then": [{"send": "a"}, {}]}), "/parameters/then", "number 2 has not");
        refuses(&json!({"then": vec![json!({"send": "a"}); 11]}), "/parameters/then", "at most 10 exchanges, not 11");
        refuses(
            &json!({"then": [{"send": "${1}"}]}),
            "/parameters/then",
            "number 1 has ${1} in it, and the last `expect_regex` has 0 groups",
        );
        refuses(&json!({"expect_regex": "(a)", "then": [{"send": "${2}"}]}), "/parameters/then", "has 1 groups");
        refuses(&json!({"tls": true, "client_key": "x"}), "/parameters/client_key", "");
        refuses(&json!({"expect": "a", "expect_regex": "a"}), "/parameters/expect_regex", "give either");
        refuses(&json!({"expect_regex": "("}), "/parameters/expect_regex", "unclosed group");
        refuses(&json!({"expect": "220", "banner": true}), "/parameters/banner", "leave `banner` out");
        refuses(&json!({"banner_wait_ms": 500}), "/parameters/banner_wait_ms", "set `banner`");
        refuses(&json!({"reply_wait_ms": 500}), "/parameters/reply_wait_ms", "give `send` or `expect`");
    }

    #[test]
    fn the_budget_covers_what_is_asked_for_and_no_more() {
        let with = |parameters: Value| serde_json::from_value::<Tcp>(parameters).unwrap().budget();
        let without = with(json!({}));
        assert_eq!(with(json!({"banner": true})), without + Duration::from_secs(2));
        assert_eq!(with(json!({"banner": true, "send": "x", "reply_wait_ms": 500})), without + Duration::from_millis(2500));
        assert_eq!(with(json!({"tls": true, "timeout": 3})), without + Duration::from_secs(1));
        assert_eq!(with(json!({"expect": "a", "then": [{"send": "x"}, {"starttls": true}]})), without + Duration::from_secs(9));
        assert_eq!(with(json!({"ports": "1-20"})), without + PORT_INTERVAL * 19);
    }

    #[test]
    fn what_is_told_of_one_port_adds_up_to_the_output() {
        let (tcp, target) = (Tcp { banner: true, port: Bounded::new(25).unwrap(), ..Tcp::default() }, "192.0.2.1".parse().unwrap());
        let address = "192.0.2.1".parse().unwrap();
        let report = TcpPort {
            port: 25,
            state: PortState::Open,
            connect_ms: Some(1.0),
            banner: Some("220 x\\r\\n".to_owned()),
            banner_bytes: Some(7),
            ..TcpPort::default()
        };
        let told =
            [TcpProgress::Open { address, port: 25, connect_ms: 1.0 }, TcpProgress::Port { address, report: Box::new(report.clone()) }];
        let told: String = told.iter().map(|progress| tcp.progress_output(&target, progress)).collect();
        let whole = TcpReport { address, family: Family::V4, resolve_ms: None, ports: vec![report] };
        assert_eq!(told, tcp.output(&target, &whole));
    }
}
