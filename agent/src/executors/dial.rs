//! A connection for what is spoken on top of it, or in what state the port is.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use probeops_shared::outcome::Failure;
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, IcmpMessage};
use probeops_shared::tools::tcp::report::PortState;
use tokio::net::TcpStream;

use crate::executors::broken;
use crate::net::tcp::{self, Handshake};

/// What came of it.
pub(super) enum Dialled {
    /// A connection.
    Open {
        /// The connection.
        stream: TcpStream,
        /// How long it took.
        took: Duration,
    },
    /// None.
    Closed(Closed),
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) struct Closed {
    /// In what state the port is.
    pub(super) state: PortState,
    /// Why, in words.
    pub(super) reason: String,
    /// The ICMP message that said so.
    pub(super) icmp: Option<IcmpMessage>,
    /// How long it took until it was said; absent when nobody said anything in time.
    pub(super) took: Option<Duration>,
}

/// Connects to an address that policy allows; a failure is one of this machine.
pub(super) async fn dial(tool: ToolName, to: SocketAddr, patience: Duration) -> Result<Dialled, Failure> {
    dial_from(tool, None, to, patience).await
}

/// The same from an address of this machine.
pub(super) async fn dial_from(tool: ToolName, from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Result<Dialled, Failure> {
    let handshake = tcp::connect(from, to, patience).await.map_err(|error| broken(tool, "open a connection", &error))?;
    Ok(match handshake {
        Handshake::Open { stream, took } => Dialled::Open { stream, took },
        Handshake::Failed { errno, icmp, took } => {
            let (state, reason) = judge(Family::of(to.ip()), errno, icmp.as_ref());
            Dialled::Closed(Closed { state, reason, icmp, took: Some(took) })
        }
        Handshake::Silent => {
            let reason = format!("timed out: no answer within {} ms", patience.as_millis());
            Dialled::Closed(Closed { state: PortState::Filtered, reason, icmp: None, took: None })
        }
    })
}

/// What a failed handshake says about the port.
fn judge(family: Family, errno: Errno, icmp: Option<&IcmpMessage>) -> (PortState, String) {
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
