//! `tcp`: open a connection, and listen to what the other side says first.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Seconds};
use crate::host::Host;
use crate::invalid::Invalid;
use crate::tools::choice::choice;
use crate::tools::network::{BUDGET_SLACK, Family, IcmpMessage, RESOLUTION_MAX, Resolved};
use crate::tools::{Class, Tool};

/// The most that is read of what a server says first.
pub const BANNER_BYTES_MAX: usize = 1024;

/// Open a TCP connection to a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tcp {
    /// Which port.
    pub port: Bounded<1, 65_535, 443>,
    /// How long the handshake may take, in seconds.
    pub timeout: Seconds<100, 30_000, 5_000>,
    /// Which kind of address to use where the name has both.
    pub family: Family,
    /// Whether to listen for what the server says first (SSH, SMTP, FTP and the like do): at most 1024 bytes.
    pub banner: bool,
    /// How long to listen for it, in milliseconds.
    pub banner_wait_ms: Bounded<100, 10_000, 2_000>,
}

choice! {
    /// What became of the handshake.
    PortState {
        /// It was completed.
        Open = "open",
        /// The host, or a firewall in its name, said that nothing listens there.
        Refused = "refused",
        /// Nobody answered, or somebody said that the connection is forbidden.
        #[default]
        Filtered = "filtered",
        /// The host cannot be reached.
        Unreachable = "unreachable",
    }
}

/// What became of the connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TcpReport {
    /// The address that was asked.
    pub address: IpAddr,
    /// Its family.
    pub family: Family,
    /// The port.
    pub port: u16,
    /// How long the name took to resolve, in milliseconds; absent for a literal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve_ms: Option<f64>,
    /// What became of the handshake.
    pub state: PortState,
    /// How long it took until the port was open or refused, in milliseconds; absent when nobody answered for the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    /// The ICMP message that said so; absent when it was the TCP of the host, or silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMessage>,
    /// Why it is not open, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the server said first; what is not printable ASCII is escaped as in `\r\n` and `\xff`. Absent unless asked for and heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banner: Option<String>,
    /// The size of the banner; 0 when the server kept silent, absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banner_bytes: Option<usize>,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TcpProgress {
    /// Where the target is.
    Resolved(Resolved),
    /// The port is open, and the banner is listened for.
    Open {
        /// How long that took, in milliseconds.
        connect_ms: f64,
    },
}

impl Tool for Tcp {
    const SUMMARY: &'static str = "Open a TCP connection: open, refused, filtered or unreachable, and how long it took";
    const CLASS: Class = Class::Probe;
    const EXAMPLE_TARGET: &'static str = "example.com";
    type Target = Host;
    type Report = TcpReport;
    type Progress = TcpProgress;

    fn check(&self, target: &Host) -> Result<(), Invalid> {
        self.family.check(target)
    }

    fn budget(&self) -> Duration {
        let listening = if self.banner { self.banner_wait_ms.ms() } else { Duration::ZERO };
        RESOLUTION_MAX + self.timeout.duration() + listening + BUDGET_SLACK
    }

    fn output(&self, target: &Host, report: &TcpReport) -> String {
        let port = report.port;
        let host = if target.address().is_some() { target.to_string() } else { format!("{target} ({})", report.address) };
        let took = report.connect_ms.map_or_else(String::new, |connect_ms| format!(" in {connect_ms:.3} ms"));
        let mut text = match report.state {
            PortState::Open => format!("Connection to {host} {port} port [tcp/{}] succeeded{took}!\n", service(port)),
            PortState::Refused | PortState::Filtered | PortState::Unreachable => {
                match report.reason.as_deref().unwrap_or(report.state.as_str()) {
                    silence if silence.starts_with("timed out") => format!("nc: connect to {host} port {port} (tcp) {silence}\n"),
                    reason => format!("nc: connect to {host} port {port} (tcp) failed{took}: {reason}\n"),
                }
            }
        };
        match (&report.banner, report.banner_bytes) {
            (Some(banner), _) => {
                // One line for each line of the banner, so that it reads as it was sent.
                for line in banner.split_inclusive("\\n") {
                    let _ = writeln!(text, "{}", line.trim_end_matches("\\n").trim_end_matches("\\r"));
                }
            }
            (None, Some(0)) => {
                let _ = writeln!(text, "(no banner within {} ms)", self.banner_wait_ms);
            }
            (None, _) => {}
        }
        text
    }
}

/// The name that nc prints for a port: Debian's `/etc/services`, as far as people ask for.
fn service(port: u16) -> &'static str {
    match port {
        21 => "ftp",
        22 => "ssh",
        23 => "telnet",
        25 => "smtp",
        53 => "domain",
        80 => "http",
        88 => "kerberos",
        110 => "pop3",
        111 => "sunrpc",
        119 => "nntp",
        139 => "netbios-ssn",
        143 => "imap2",
        179 => "bgp",
        389 => "ldap",
        443 => "https",
        445 => "microsoft-ds",
        465 => "submissions",
        514 => "shell",
        587 => "submission",
        636 => "ldaps",
        853 => "domain-s",
        873 => "rsync",
        993 => "imaps",
        995 => "pop3s",
        1433 => "ms-sql-s",
        1883 => "mqtt",
        2049 => "nfs",
        3306 => "mysql",
        3389 => "ms-wbt-server",
        5060 => "sip",
        5061 => "sip-tls",
        5222 => "xmpp-client",
        5432 => "postgresql",
        5671 => "amqps",
        5672 => "amqp",
        6379 => "redis",
        8080 => "http-alt",
        8883 => "secure-mqtt",
        9418 => "git",
        _ => "*",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: PortState) -> TcpReport {
        TcpReport {
            address: "192.0.2.1".parse().unwrap(),
            family: Family::V4,
            port: 22,
            resolve_ms: None,
            state,
            connect_ms: None,
            icmp: None,
            reason: None,
            banner: None,
            banner_bytes: None,
        }
    }

    #[test]
    fn output_reads_like_nc() {
        let (tcp, target) = (Tcp::default(), "example.com".parse().unwrap());
        let open = TcpReport { connect_ms: Some(1.5), banner: Some("SSH-2.0-x\\r\\n".to_owned()), ..report(PortState::Open) };
        assert_eq!(
            tcp.output(&target, &open),
            "Connection to example.com (192.0.2.1) 22 port [tcp/ssh] succeeded in 1.500 ms!\nSSH-2.0-x\n"
        );
        let refused = TcpReport { connect_ms: Some(0.25), reason: Some("Connection refused".to_owned()), ..report(PortState::Refused) };
        let address = "192.0.2.1".parse().unwrap();
        assert_eq!(tcp.output(&address, &refused), "nc: connect to 192.0.2.1 port 22 (tcp) failed in 0.250 ms: Connection refused\n");
    }

    #[test]
    fn the_budget_covers_the_banner_only_when_it_is_asked_for() {
        let with = Tcp { banner: true, ..Tcp::default() };
        assert_eq!(with.budget(), Tcp::default().budget() + Duration::from_secs(2));
    }
}
