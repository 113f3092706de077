//! Whether an agent with a credential runs on this machine: two connections of one credential at the same time look like a stolen one.
//!
//! An agent holds a name that only one process of a network namespace can have at a time, and that is gone with it however it ends: an abstract
//! address of UNIX sockets (unix(7)). Nothing is said over it.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use probeops_nats::connect::Credential;

/// The name, as long as this lives.
#[derive(Debug)]
pub(crate) struct Here {
    _name: UnixListener,
}

/// Takes the name of this credential; `AddrInUse` when another process has it.
pub(crate) fn take(credential: &Credential) -> io::Result<Here> {
    let name = format!("probeops-agent/{}/{}", credential.name, credential.account);
    Ok(Here { _name: UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)? })
}

/// Whether another process has it.
pub(crate) fn is_taken(credential: &Credential) -> bool {
    take(credential).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}
