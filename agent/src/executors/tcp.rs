//! `tcp`: one handshake, and what the server says first.

use std::net::SocketAddr;

use nix::errno::Errno;
use probeops_shared::host::Host;
use probeops_shared::outcome::Failure;
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, IcmpMessage, ms};
use probeops_shared::tools::tcp::{BANNER_BYTES_MAX, PortState, Tcp, TcpProgress, TcpReport};

use crate::executors::{Context, Found, Live, broken};
use crate::net::tcp::{self, Handshake};

pub(super) async fn run(context: &Context, target: &Host, options: &Tcp, live: &Live) -> Result<TcpReport, Failure> {
    let port = options.port.get_u16();
    let reached = context.reach(target, Some(port), options.family).await?;
    live.tell(options, target, &TcpProgress::Resolved(reached.resolved()));
    let handshake = tcp::connect(SocketAddr::new(reached.address, port), options.timeout.duration()).await;
    let handshake = handshake.map_err(|error| broken(ToolName::Tcp, "open a connection", &error))?;
    let report = TcpReport {
        address: reached.address,
        family: Family::of(reached.address),
        port,
        resolve_ms: reached.resolve_ms,
        state: PortState::Filtered,
        connect_ms: None,
        icmp: None,
        reason: None,
        banner: None,
        banner_bytes: None,
    };
    Ok(match handshake {
        Handshake::Open { mut stream, took } => {
            let report = TcpReport { state: PortState::Open, connect_ms: Some(ms(took)), ..report };
            if !options.banner {
                return Ok(report);
            }
            live.set(Found::of(options, target, &report));
            live.tell(options, target, &TcpProgress::Open { connect_ms: ms(took) });
            let heard = tcp::listen(&mut stream, BANNER_BYTES_MAX, options.banner_wait_ms.ms()).await;
            let banner = (!heard.is_empty()).then(|| heard.escape_ascii().to_string());
            TcpReport { banner, banner_bytes: Some(heard.len()), ..report }
        }
        Handshake::Failed { errno, icmp, took } => {
            let (state, reason) = judge(report.family, errno, icmp.as_ref());
            let connect_ms = (state == PortState::Refused).then(|| ms(took));
            TcpReport { state, connect_ms, icmp, reason: Some(reason), ..report }
        }
        Handshake::Silent => {
            let reason = format!("timed out: no answer within {} ms", options.timeout.duration().as_millis());
            TcpReport { reason: Some(reason), ..report }
        }
    })
}

/// What a failed handshake says about the port.
pub(super) fn judge(family: Family, errno: Errno, icmp: Option<&IcmpMessage>) -> (PortState, String) {
    let system = errno.desc();
    match icmp {
        Some(icmp) => {
            let from = icmp.from.map_or_else(String::new, |from| format!(" from {from}"));
            let state = match (icmp.is_port_unreachable(family), icmp.is_prohibition(family)) {
                (true, _) => PortState::Refused,
                (false, true) => PortState::Filtered,
                (false, false) => PortState::Unreachable,
            };
            (state, format!("{system} (ICMP{from}: {})", icmp.meaning))
        }
        None if matches!(errno, Errno::ECONNREFUSED | Errno::ECONNRESET) => (PortState::Refused, system.to_owned()),
        // A filter on this machine itself.
        None if matches!(errno, Errno::EPERM | Errno::EACCES) => (PortState::Filtered, format!("{system} (a rule of this machine)")),
        None => (PortState::Unreachable, system.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn judges(errno: Errno, icmp: Option<(u8, u8)>, state: PortState) {
        let icmp = icmp.map(|(kind, code)| IcmpMessage::new(Family::V4, kind, code, Some("192.0.2.254".parse().unwrap())));
        assert_eq!(judge(Family::V4, errno, icmp.as_ref()).0, state, "{errno} {icmp:?}");
    }

    #[test]
    fn a_port_is_judged_by_who_said_what() {
        judges(Errno::ECONNREFUSED, None, PortState::Refused);
        judges(Errno::ECONNREFUSED, Some((3, 3)), PortState::Refused);
        judges(Errno::EHOSTUNREACH, Some((3, 13)), PortState::Filtered);
        judges(Errno::EHOSTUNREACH, Some((3, 10)), PortState::Filtered);
        judges(Errno::EHOSTUNREACH, Some((3, 1)), PortState::Unreachable);
        judges(Errno::EHOSTUNREACH, None, PortState::Unreachable);
        judges(Errno::ENETUNREACH, None, PortState::Unreachable);
        judges(Errno::EPERM, None, PortState::Filtered);
    }
}
