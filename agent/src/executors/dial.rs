//! A connection for what is spoken on top of it, or in what state the port is.

use std::net::SocketAddr;
use std::time::Duration;

use probeops_shared::outcome::Failure;
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, IcmpMessage};
use probeops_shared::tools::tcp::report::PortState;
use tokio::net::TcpStream;

use crate::executors::{broken, tcp::judge};
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
    /// Whether nobody said anything in time.
    pub(super) silent: bool,
}

/// Connects to an address that policy allows; a failure is one of this machine.
pub(super) async fn dial(tool: ToolName, to: SocketAddr, patience: Duration) -> Result<Dialled, Failure> {
    let handshake = tcp::connect(to, patience).await.map_err(|error| broken(tool, "open a connection", &error))?;
    Ok(match handshake {
        Handshake::Open { stream, took } => Dialled::Open { stream, took },
        Handshake::Failed { errno, icmp, .. } => {
            let (state, reason) = judge(Family::of(to.ip()), errno, icmp.as_ref());
            Dialled::Closed(Closed { state, reason, icmp, silent: false })
        }
        Handshake::Silent => {
            let reason = format!("timed out: no answer within {} ms", patience.as_millis());
            Dialled::Closed(Closed { state: PortState::Filtered, reason, icmp: None, silent: true })
        }
    })
}
