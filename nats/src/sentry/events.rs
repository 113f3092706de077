//! What the system account says of connections.

use async_nats::Message;
use serde::Deserialize;

use crate::claims::Claims;
use crate::sentry::parsed;
use crate::sentry::watch::Who;

/// Something that happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It was let in.
    Came {
        /// The server's id.
        server: String,
        /// Its number there.
        cid: u64,
        /// With which credential.
        who: Who,
        /// From where.
        host: String,
    },
    /// It has gone.
    Went {
        /// The server's id.
        server: String,
        /// Its number there.
        cid: u64,
    },
    /// It was not let in.
    Refused {
        /// From where it came.
        host: String,
        /// Why, in the broker's words.
        why: String,
        /// Whom it says it is. Nothing of it is proven.
        says: Option<String>,
    },
}

/// Why somebody has gone who never said who he is, where that is of interest: not of those who only looked whether the port is open.
const OF_INTEREST: [&str; 2] = ["TLS Handshake Failure", "Authentication Timeout"];

#[derive(Deserialize)]
struct Told {
    server: Server,
    client: Client,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Server {
    id: String,
}

#[derive(Deserialize)]
struct Client {
    id: u64,
    #[serde(default)]
    host: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    jwt: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    name_tag: String,
}

/// Reads an event; `None` if it is of no interest.
pub(super) fn read(message: &Message) -> Option<Event> {
    let Told { server: Server { id: server }, client, reason } = parsed(message)?;
    let subject = message.subject.as_str();
    let (cid, host) = (client.id, client.host);
    if subject.ends_with(".CLIENT.AUTH.ERR") {
        let claimed = Claims::read(&client.jwt).ok().map(|claims| format!("{} ({})", claims.name, claims.subject));
        let says = claimed.or_else(|| [client.user, client.name].into_iter().find(|name| !name.is_empty()));
        return Some(Event::Refused { host, why: reason, says });
    }
    if subject == probeops_shared::subjects::broker::STRANGER_DISCONNECT {
        return OF_INTEREST.contains(&reason.as_str()).then_some(Event::Refused { host, why: reason, says: None });
    }
    if subject.ends_with(".CONNECT") {
        return Some(Event::Came { server, cid, who: Who::read(&client.user, &client.jwt, &client.name_tag), host });
    }
    Some(Event::Went { server, cid })
}
