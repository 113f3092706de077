//! `tcp`: open connections, say something, and listen to what the other side says.

pub mod dialogue;
mod output;
pub mod ports;
pub mod report;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::tls::pem::CertificatesPem;
use crate::tools::network::{BUDGET_SLACK, Family, RESOLUTION_MAX};
use crate::tools::{Class, Tool};

use dialogue::{Bytes, Pattern};
use ports::Ports;
use report::{PortState, TcpPort, TcpProgress, TcpReport};

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
    pub port: Bounded<1, 65_535, 443>,
    /// Several ports instead of one: numbers and ranges such as `22,80,8000-8010`, at most 20 in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
    /// How long each handshake may take, in seconds; that of TLS may take as long again.
    pub timeout: Seconds<100, 30_000, 5_000>,
    /// Which kind of address to use where the name has both.
    pub family: Family,
    /// Whether to speak TLS; a certificate that cannot be trusted is told and does not end the talk.
    pub tls: bool,
    /// The name that the certificate must be for, told to the server (SNI); the target unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<Host>,
    /// Certificates (PEM) of authorities to trust besides those of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<CertificatesPem>,
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
    /// How long to wait for the reply to `send` and for what is expected, in milliseconds.
    pub reply_wait_ms: Bounded<100, 10_000, 2_000>,
}

impl Tcp {
    /// The ports to try, in their order.
    pub fn ports(&self) -> Vec<u16> {
        self.ports.as_ref().map_or_else(|| vec![self.port.get_u16()], |ports| ports.as_slice().to_vec())
    }

    /// Whether a certain answer is wanted.
    pub fn expects(&self) -> bool {
        self.expect.is_some() || self.expect_regex.is_some()
    }

    /// Whether there is more to do than the handshake.
    pub fn talks(&self) -> bool {
        self.tls || self.banner || self.send.is_some() || self.expects()
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
        let refused = |option: &str, detail: &str| Err(Invalid::new(format!("/parameters/{option}"), detail));
        if self.ports.is_some() && self.port != Bounded::default() {
            return refused("port", "`port` is one and `ports` are several; give either");
        }
        for (option, given) in [("server_name", self.server_name.is_some()), ("ca_certificates", self.ca_certificates.is_some())] {
            if given && !self.tls {
                return refused(option, "it means something only over TLS; set `tls`");
            }
        }
        if self.expect.is_some() && self.expect_regex.is_some() {
            return refused("expect_regex", "`expect` is text and `expect_regex` a regular expression; give either");
        }
        if self.banner && self.expects() && self.send.is_none() {
            return refused("banner", "what is expected is already looked for in what the server says first; leave `banner` out");
        }
        if self.banner_wait_ms != Bounded::default() && !self.banner {
            return refused("banner_wait_ms", "no banner is listened for; set `banner`");
        }
        if self.reply_wait_ms != Bounded::default() && self.send.is_none() && !self.expects() {
            return refused("reply_wait_ms", "no reply is waited for; give `send` or `expect`");
        }
        Ok(())
    }

    fn budget(&self) -> Duration {
        let listening = if self.banner { self.banner_wait_ms.ms() } else { Duration::ZERO };
        let replying = if self.send.is_some() || self.expects() { self.reply_wait_ms.ms() } else { Duration::ZERO };
        let starting = PORT_INTERVAL.saturating_mul(u32::try_from(self.ports().len()).unwrap_or(u32::MAX));
        let handshakes = self.timeout.duration().saturating_mul(if self.tls { 2 } else { 1 });
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
            TcpProgress::Resolved(_) | TcpProgress::Open { .. } => String::new(),
            TcpProgress::Port { report, .. } if one && report.state == PortState::Open && self.talks() => output::dialogue(self, report),
            TcpProgress::Port { address, report } => output::of(self, target, *address, report),
        }
    }

    /// A port is not open, or what listens there does not say what is expected, or does not speak TLS.
    fn is_bad(&self, report: &TcpReport) -> bool {
        report.ports.iter().any(|port| {
            port.state != PortState::Open
                || port.expect.as_ref().is_some_and(|expect| !expect.matched)
                || port.tls.as_ref().is_some_and(|tls| tls.failure.is_some())
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
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
