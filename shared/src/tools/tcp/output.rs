//! What `nc -v` (netcat-openbsd) prints, with how long it took and who said no.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::Tcp;
use super::exchange::Exchange;
use super::report::{PortState, TcpExchange, TcpPort, TcpTls};
use crate::host::Host;
use crate::tls::{TlsSession, TlsVersion};

/// All lines about a port.
pub(super) fn of(options: &Tcp, target: &Host, address: IpAddr, report: &TcpPort) -> String {
    heading(target, address, report) + &dialogue(options, report)
}

/// What became of the handshake.
pub(super) fn heading(target: &Host, address: IpAddr, report: &TcpPort) -> String {
    let port = report.port;
    let host = target.with_address(address);
    let took = report.connect_ms.map_or_else(String::new, |connect_ms| format!(" in {connect_ms:.3} ms"));
    match report.state {
        PortState::Open => format!("Connection to {host} {port} port [tcp/{}] succeeded{took}!\n", service(port)),
        PortState::Refused | PortState::Filtered | PortState::Unreachable => {
            match report.reason.as_deref().unwrap_or(report.state.as_str()) {
                silence if silence.starts_with("timed out") => format!("nc: connect to {host} port {port} (tcp) {silence}\n"),
                reason => format!("nc: connect to {host} port {port} (tcp) failed{took}: {reason}\n"),
            }
        }
    }
}

/// What was said over the connection.
pub(super) fn dialogue(options: &Tcp, report: &TcpPort) -> String {
    let mut text = report.tls.as_deref().map_or_else(String::new, encryption);
    match (&report.banner, report.banner_bytes) {
        (Some(banner), _) => text.push_str(&lines(banner)),
        (None, Some(0)) => {
            let _ = writeln!(text, "(no banner within {} ms)", options.banner_wait_ms);
        }
        (None, _) => {}
    }
    for (asked, became) in options.exchanges().iter().zip(report.exchanges()) {
        text.push_str(&exchange(options, asked, became));
    }
    text
}

fn exchange(options: &Tcp, asked: &Exchange, became: &TcpExchange) -> String {
    let mut text = String::new();
    match (&became.reply, became.reply_bytes) {
        (Some(reply), _) => text.push_str(&lines(reply)),
        (None, Some(0)) => {
            let _ = writeln!(text, "(no reply within {} ms)", options.reply_wait_ms);
        }
        (None, _) => {}
    }
    if let Some(expect) = &became.expect {
        let wanted = match (&asked.expect, &asked.expect_regex) {
            (Some(wanted), _) => format!("\"{wanted}\""),
            (None, Some(wanted)) => format!("/{wanted}/"),
            (None, None) => String::new(),
        };
        let _ = match &expect.found {
            Some(found) => writeln!(text, "(expected {wanted}: found \"{found}\")"),
            None => writeln!(text, "(expected {wanted}: not found)"),
        };
    }
    text + &became.starttls.as_deref().map_or_else(String::new, encryption)
}

/// What was agreed, and whom it was agreed with.
fn encryption(tls: &TcpTls) -> String {
    if let Some(failure) = &tls.failure {
        return format!("(no TLS: {failure})\n");
    }
    let TlsSession { version, cipher, chain, problems, .. } = &tls.session;
    let version = version.map_or("TLS", TlsVersion::printed);
    let cipher = cipher.as_ref().map_or_else(String::new, |cipher| format!(", {cipher}"));
    let subject = chain.first().map_or_else(String::new, |own| format!(", {}", own.subject));
    let verdict = if problems.is_empty() {
        "verified".to_owned()
    } else {
        let problems: Vec<&str> = problems.iter().map(|problem| problem.detail.as_str()).collect();
        format!("not trusted: {}", problems.join("; "))
    };
    format!("({version}{cipher}{subject}, {verdict})\n")
}

/// One line for each line that was sent, so that it reads as it was meant.
fn lines(escaped: &str) -> String {
    escaped.split_inclusive("\\n").map(|line| line.trim_end_matches("\\n").trim_end_matches("\\r").to_owned() + "\n").collect()
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
    use super::super::report::TcpExpectation;
    use super::*;

    #[test]
    fn output_reads_like_nc() {
        let (tcp, name, address) = (Tcp::default(), "example.com".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let open = TcpPort {
            port: 22,
            state: PortState::Open,
            connect_ms: Some(1.5),
            banner: Some("SSH-2.0-x\\r\\n".to_owned()),
            ..TcpPort::default()
        };
        assert_eq!(
            of(&tcp, &name, address, &open),
            "Connection to example.com (192.0.2.1) 22 port [tcp/ssh] succeeded in 1.500 ms!\nSSH-2.0-x\n"
        );
        let refused = TcpPort {
            port: 22,
            state: PortState::Refused,
            connect_ms: Some(0.25),
            reason: Some("Connection refused".to_owned()),
            ..TcpPort::default()
        };
        let literal = "192.0.2.1".parse().unwrap();
        assert_eq!(
            of(&tcp, &literal, address, &refused),
            "nc: connect to 192.0.2.1 port 22 (tcp) failed in 0.250 ms: Connection refused\n"
        );
    }

    #[test]
    fn a_dialogue_ends_in_its_verdict() {
        let tcp = Tcp { expect: "+PONG".parse().ok(), ..Tcp::default() };
        let report = TcpPort {
            state: PortState::Open,
            first: TcpExchange {
                reply: Some("-ERR\\r\\n".to_owned()),
                reply_bytes: Some(6),
                expect: Some(TcpExpectation::default()),
                ..TcpExchange::default()
            },
            ..TcpPort::default()
        };
        assert_eq!(dialogue(&tcp, &report), "-ERR\n(expected \"+PONG\": not found)\n");
        let silent = TcpPort { first: TcpExchange { reply: None, reply_bytes: Some(0), ..report.first }, ..report };
        assert_eq!(dialogue(&tcp, &silent), "(no reply within 2000 ms)\n(expected \"+PONG\": not found)\n");
    }
}
