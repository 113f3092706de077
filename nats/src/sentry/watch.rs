//! Judges what is seen of connections. It neither reads nor writes anything, and time is told to it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use probeops_shared::ids::{Caller, NodeId, Region};
use probeops_shared::subjects;
use tokio::time::Instant;

use crate::claims::{Body, Claims};
use crate::permissions::Role;
use crate::sentry::events::Event;
use crate::sentry::log::Line;

/// What is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// So many violations of one connection within [`Bounds::within`] end it.
    pub violations: u32,
    /// How long violations count.
    pub within: Duration,
    /// So many messages a second, between two looks, end the connection of a node or a service.
    pub messages_per_s: u64,
    /// So many bytes a second do, too.
    pub bytes_per_s: u64,
    /// Two connections of one node that are there for so long are both alive, though nothing is heard of one: the broker would have ended one
    /// whose other side is gone.
    pub both_alive_after: Duration,
    /// What a connection publishes for so long after another of the same node has come may have been on its way since before: the network was
    /// slow or broken, and what was written meanwhile arrives. What it publishes later it says itself, and is alive.
    pub last_words_within: Duration,
    /// A connection that is alive after so many others of the same node have come, which have gone again, is not that of who they are.
    pub visits: usize,
    /// How long such a visit counts.
    pub visits_within: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            violations: 100,
            within: Duration::from_secs(10),
            messages_per_s: 25_000,
            bytes_per_s: 100_000_000,
            both_alive_after: Duration::from_secs(120),
            last_words_within: Duration::from_secs(30),
            visits: 3,
            visits_within: Duration::from_hours(1),
        }
    }
}

/// How long a connection is remembered that has gone: its last lines may still be read.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// When a connection that was cut and is still there is cut again.
const CUT_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// When the connections of a server that lists none any more count as gone: it has ended, and has another id when it starts again.
const SERVER_SILENT_FOR: Duration = Duration::from_secs(30);
/// The most visits that a connection is remembered to have had.
const VISITS_MAX: usize = 16;
/// The most keys that are remembered as cloned.
const CLONES_MAX: usize = 10_000;

/// Whose credential it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Who {
    /// Its public key.
    pub(super) key: String,
    /// The account it belongs to.
    pub(super) account: String,
    pub(super) kind: Kind,
}

/// What the credential is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A node of a region.
    Node(NodeId, Region),
    /// A service.
    Service(Caller),
    /// A part of ours: a replica of the API, a command, and so on, by name.
    Part(String),
    /// It was not seen to come.
    Unknown,
}

impl Who {
    /// Reads the claims that the broker has accepted.
    pub(super) fn read(key: &str, jwt: &str, account: &str) -> Self {
        let claims = Claims::read(jwt).ok().filter(|claims| claims.subject == key);
        let kind = claims.map_or(Kind::Unknown, |claims| Kind::read(&claims));
        Self { key: key.to_owned(), account: account.to_owned(), kind }
    }

    /// On whose behalf, in the trail.
    pub(super) fn principal(&self) -> String {
        match &self.kind {
            Kind::Node(node, _) => format!("node:{node}"),
            Kind::Service(name) => format!("service:{name}"),
            Kind::Part(name) => format!("part:{name}"),
            Kind::Unknown => format!("nkey:{}", self.key),
        }
    }

    /// Whether its connections may be cut: ending a part of ours for what it does would be an outage by ourselves.
    fn may_be_cut(&self) -> bool {
        !matches!(self.kind, Kind::Part(_))
    }
}

impl Kind {
    fn read(claims: &Claims) -> Self {
        let Body::User(user) = &claims.body.body else { return Self::Unknown };
        let name = &claims.name;
        let as_node = |subject: &String| {
            let (region, node, _) = subjects::parse_event(subject)?;
            (node.as_str() == name).then_some((region, node))
        };
        if let Some((region, node)) = user.publish.allow.iter().find_map(as_node) {
            return Self::Node(node, region);
        }
        match name.parse::<Caller>() {
            Ok(caller) if user.publish.allow.contains(&subjects::front_door(&caller)) => Self::Service(caller),
            _ => Self::Part(name.clone()),
        }
    }
}

/// Something for the trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Who, where the broker knows.
    pub(super) who: Option<Who>,
    /// What was done.
    pub(super) what: String,
    /// The subject, where there is one.
    pub(super) subject: String,
    /// From where.
    pub(super) host: String,
}

/// A connection to be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) server: String,
    pub(super) cid: u64,
    pub(super) who: Who,
    pub(super) host: String,
    pub(super) why: String,
}

impl Cut {
    pub(super) fn finding(&self) -> Finding {
        Finding { who: Some(self.who.clone()), what: format!("cut: {}", self.why), subject: String::new(), host: self.host.clone() }
    }
}

/// A key that two use at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cloned {
    pub(super) who: Who,
    pub(super) hosts: Vec<String>,
}

impl Cloned {
    pub(super) fn finding(&self) -> Finding {
        let what = "clone: its key is used by two connections at the same time; the keymaster is asked to revoke it".to_owned();
        Finding { who: Some(self.who.clone()), what, subject: String::new(), host: self.hosts.join(", ") }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Report(Finding),
    Cut(Cut),
    Revoke(Cloned),
}

/// One connection, as a server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) server: String,
    pub(super) cid: u64,
    /// Absent where names were not asked for.
    pub(super) who: Option<Who>,
    pub(super) host: String,
    /// How many messages it has published.
    pub(super) messages: u64,
    /// How many bytes.
    pub(super) bytes: u64,
}

/// What servers list.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    /// When they were asked.
    pub(super) asked_at: Instant,
    /// Those that answered, by id.
    pub(super) servers: Vec<String>,
    pub(super) connections: Vec<Listed>,
}

/// A connection: its server, by its place in [`Watch::servers`], and its number there.
type Id = (usize, u64);

/// The place of the server that is not known.
const NOWHERE: usize = usize::MAX;

#[derive(Debug)]
struct Connection {
    who: Who,
    host: String,
    since: Instant,
    gone_at: Option<Instant>,
    cut_at: Option<Instant>,
    /// Violations, and since when they are counted.
    violations: (Instant, u32),
    /// Messages and bytes, and when they were told.
    sample: (Instant, u64, u64),
    /// When it was last listed, or came.
    listed_at: Instant,
    /// Whether it was heard to come. When one came that was only listed, and whether before or after another, is not known.
    heard_to_come: bool,
    /// How many messages it had published, and when servers were asked for that.
    counted: (Instant, u64),
    /// It has published something after this.
    spoke_after: Option<Instant>,
    /// Others of the same node that came while it was there: when, and from where.
    visits: Vec<(Instant, String)>,
}

/// All connections, and what is thought of them.
#[derive(Debug)]
pub(super) struct Watch {
    bounds: Bounds,
    /// Ids of servers.
    servers: Vec<String>,
    connections: HashMap<Id, Connection>,
    /// Those of each key that are there.
    by_key: HashMap<String, Vec<Id>>,
    /// Keys of nodes with two connections.
    pairs: HashSet<String>,
    /// Keys of nodes with a connection that was there when another came.
    visited: HashSet<String>,
    /// Keys that were proven to have two users.
    clones: HashSet<String>,
    lacks_names: bool,
}

impl Watch {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            servers: Vec::new(),
            connections: HashMap::new(),
            by_key: HashMap::new(),
            pairs: HashSet::new(),
            visited: HashSet::new(),
            clones: HashSet::new(),
            lacks_names: false,
        }
    }

    /// How many are there.
    pub(super) fn connections(&self) -> usize {
        self.by_key.values().map(Vec::len).sum()
    }

    /// Whether some key has two connections.
    pub(super) fn suspects(&self) -> bool {
        !self.pairs.is_empty()
    }

    /// Whether the last listing had somebody of whom nobody said who he is.
    pub(super) fn lacks_names(&self) -> bool {
        self.lacks_names
    }

    /// Whether the connection of a line was seen; of a server's nothing more can be found out.
    pub(super) fn knows(&self, line: &Line) -> bool {
        line.user.is_empty() || !self.of(line).is_empty()
    }

    /// The connections that a line may be about: one, unless two servers gave the same credential the same number.
    fn of(&self, line: &Line) -> Vec<Id> {
        let ids = (0..self.servers.len()).chain([NOWHERE]).map(|server| (server, line.cid));
        ids.filter(|id| self.connections.get(id).is_some_and(|connection| connection.who.key == line.user)).collect()
    }

    /// Judges an event.
    pub(super) fn event(&mut self, event: Event, now: Instant) -> Vec<Act> {
        match event {
            Event::Came { server, cid, who, host } => {
                let key = who.key.clone();
                self.came((&server, cid), who, host, (now, true));
                self.judge(&key, now)
            }
            Event::Went { server, cid } => {
                let id = (self.place(&server), cid);
                self.went(id, now);
                Vec::new()
            }
            Event::Refused { host, why, says } => {
                let says = says.map_or_else(String::new, |says| format!("; it says it is {}", says.escape_debug()));
                vec![Act::Report(Finding { who: None, what: format!("not let in: {why}{says}"), subject: String::new(), host })]
            }
        }
    }

    /// Judges a line of a log.
    pub(super) fn violation(&mut self, line: &Line, now: Instant) -> Vec<Act> {
        let mut ids = self.of(line);
        if ids.is_empty() {
            // The broker does not say whose the connection of a server is; only with the credential for a copy of the trail one comes in.
            let kind = if line.user.is_empty() { Kind::Part(Role::Mirror.name()) } else { Kind::Unknown };
            let who = Who { key: line.user.clone(), account: line.account.clone(), kind };
            drop(self.connections.insert((NOWHERE, line.cid), Connection::new(who, line.host.clone(), (now, false))));
            ids.push((NOWHERE, line.cid));
        }
        let mut acts = Vec::new();
        for id in ids {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if acts.is_empty() {
                let (what, subject) = (line.what.said().into_owned(), line.what.subject().to_owned());
                acts.push(Act::Report(Finding { who: Some(connection.who.clone()), what, subject, host: line.host.clone() }));
            }
            let (since, count) = &mut connection.violations;
            if now.duration_since(*since) > self.bounds.within {
                (*since, *count) = (now, 0);
            }
            *count += 1;
            if *count >= self.bounds.violations && connection.who.may_be_cut() {
                let why = format!("flood: {count} violations within {} s", self.bounds.within.as_secs());
                acts.extend(self.cut(id, why, now));
            }
        }
        acts
    }

    /// Learns who is there.
    pub(super) fn learn(&mut self, listing: &Listing, now: Instant) {
        self.lacks_names = false;
        for Listed { server, cid, who, host, .. } in &listing.connections {
            let id = (self.place(server), *cid);
            match who {
                Some(who) => self.came((server, *cid), who.clone(), host.clone(), (now, false)),
                None => self.lacks_names |= !self.connections.contains_key(&id),
            }
        }
    }

    /// Judges what servers list: how much each has published since it was last listed, and whether two of one key have.
    pub(super) fn list(&mut self, listing: &Listing, now: Instant) -> Vec<Act> {
        self.learn(listing, now);
        let mut acts = Vec::new();
        let places: HashMap<&str, usize> = self.servers.iter().enumerate().map(|(place, id)| (id.as_str(), place)).collect();
        let answered: HashSet<usize> = listing.servers.iter().filter_map(|id| places.get(id.as_str()).copied()).collect();
        let mut floods = Vec::new();
        for listed in &listing.connections {
            let Some(id) = places.get(listed.server.as_str()).map(|place| (*place, listed.cid)) else { continue };
            if let Some(connection) = self.connections.get_mut(&id) {
                floods.extend(connection.sample(listed, &self.bounds, (listing.asked_at, now)).map(|why| (id, why)));
            }
        }
        let gone = |(id, connection): (&Id, &Connection)| {
            // It may have come after the question.
            let unlisted = answered.contains(&id.0) && connection.listed_at < listing.asked_at;
            let silent = now.duration_since(connection.listed_at) > SERVER_SILENT_FOR;
            (connection.gone_at.is_none() && (unlisted || silent)).then_some(*id)
        };
        let gone: Vec<Id> = self.connections.iter().filter_map(gone).collect();
        for id in gone {
            self.went(id, now);
        }
        self.connections.retain(|_, connection| connection.gone_at.is_none_or(|gone| now.duration_since(gone) < REMEMBERED_FOR));
        for (id, why) in floods {
            acts.extend(self.cut(id, why, now));
        }
        let suspects: HashSet<String> = self.pairs.union(&self.visited).cloned().collect();
        for key in suspects {
            acts.extend(self.judge(&key, now));
        }
        acts
    }

    /// The place of a server.
    fn place(&mut self, server: &str) -> usize {
        self.servers.iter().position(|known| known == server).unwrap_or_else(|| {
            self.servers.push(server.to_owned());
            self.servers.len() - 1
        })
    }

    fn came(&mut self, (server, cid): (&str, u64), who: Who, host: String, (now, heard): (Instant, bool)) {
        let id = (self.place(server), cid);
        if self.connections.get(&id).is_some_and(|known| known.who.key == who.key) {
            return;
        }
        if self.connections.get(&(NOWHERE, cid)).is_some_and(|known| known.who.key == who.key) {
            drop(self.connections.remove(&(NOWHERE, cid)));
        }
        let (key, is_node) = (who.key.clone(), matches!(who.kind, Kind::Node(..)));
        self.went(id, now);
        let ids = self.by_key.entry(key.clone()).or_default();
        if is_node && !ids.is_empty() {
            for older in ids.iter().filter(|_| heard) {
                if let Some(older) = self.connections.get_mut(older) {
                    older.visits.retain(|(came, _)| now.duration_since(*came) < self.bounds.visits_within);
                    older.visits.extend((older.visits.len() < VISITS_MAX).then(|| (now, host.clone())));
                    let _ = self.visited.insert(key.clone());
                }
            }
            let _ = self.pairs.insert(key);
        }
        ids.push(id);
        drop(self.connections.insert(id, Connection::new(who, host, (now, heard))));
    }

    fn went(&mut self, id: Id, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.gone_at.get_or_insert(now);
        let key = connection.who.key.clone();
        if let Some(ids) = self.by_key.get_mut(&key) {
            ids.retain(|known| *known != id);
            if ids.len() < 2 {
                let _ = self.pairs.remove(&key);
            }
            if ids.is_empty() {
                drop(self.by_key.remove(&key));
            }
        }
        // One that was there before all others of its key has no older one that could be alive.
        let visited = self.of_key(&key).any(|connection| !connection.visits.is_empty());
        if !visited {
            let _ = self.visited.remove(&key);
        }
    }

    /// The connections of a key that are there.
    fn of_key(&self, key: &str) -> impl Iterator<Item = &Connection> {
        self.by_key.get(key).into_iter().flatten().filter_map(|id| self.connections.get(id))
    }

    /// Judges a key. A node that reconnects has two connections for a while, as the broker may not know yet that the old one is dead, and what
    /// was on its way in the old one may still arrive. A node never goes on with an old one, though: where one is alive after another has
    /// come, two use the key.
    fn judge(&mut self, key: &str, now: Instant) -> Vec<Act> {
        let there: Vec<&Connection> = self.of_key(key).collect();
        let known = there.len() > 1 && self.clones.contains(key);
        if !known && !self.bounds.two_use(&there, now) {
            return Vec::new();
        }
        let why = "clone: its key is used by two connections at the same time".to_owned();
        let visitors = there.iter().flat_map(|connection| connection.visits.iter().map(|(_, host)| host));
        let mut hosts: Vec<String> = there.iter().map(|connection| &connection.host).chain(visitors).cloned().collect();
        hosts.sort();
        hosts.dedup();
        let who = there.first().map(|connection| connection.who.clone());
        let mut acts = Vec::new();
        for id in self.by_key.get(key).cloned().unwrap_or_default() {
            acts.extend(self.cut(id, why.clone(), now));
        }
        if let Some(who) = who.filter(|_| !acts.is_empty()) {
            if self.clones.len() < CLONES_MAX {
                self.clones.insert(key.to_owned());
            }
            acts.push(Act::Revoke(Cloned { who, hosts }));
        }
        acts
    }

    /// Has a connection cut, unless that was just done or it has gone.
    fn cut(&mut self, (place, cid): Id, why: String, now: Instant) -> Option<Act> {
        let server = self.servers.get(place)?.clone();
        let connection = self.connections.get_mut(&(place, cid))?;
        let just_now = connection.cut_at.is_some_and(|cut| now.duration_since(cut) < CUT_AGAIN_AFTER);
        if connection.gone_at.is_some() || just_now {
            return None;
        }
        connection.cut_at = Some(now);
        Some(Act::Cut(Cut { server, cid, who: connection.who.clone(), host: connection.host.clone(), why }))
    }
}

impl Bounds {
    /// Whether two use the key of these connections, all that it has.
    fn two_use(&self, there: &[&Connection], now: Instant) -> bool {
        let mut since: Vec<Instant> = there.iter().map(|connection| connection.since).collect();
        since.sort_unstable();
        let both_stay = since.get(1).is_some_and(|second| now.duration_since(*second) >= self.both_alive_after);
        both_stay || there.iter().any(|connection| self.outlives(connection, there, now))
    }

    /// Whether a connection is alive after another has come that is there, or several that are gone again.
    fn outlives(&self, connection: &Connection, there: &[&Connection], now: Instant) -> bool {
        let alive_after = |connection: &Connection, came: Instant| connection.is_alive_after(came + self.last_words_within);
        let beside = there.iter().filter(|other| !std::ptr::eq(**other, connection)).any(|other| {
            let later = other.heard_to_come && other.since > connection.since;
            // Where it is not known which came first, both have to be.
            alive_after(connection, other.since) && (later || alive_after(other, connection.since))
        });
        let counts = |came: Instant| now.duration_since(came) < self.visits_within && alive_after(connection, came);
        beside || connection.visits.iter().filter(|(came, _)| counts(*came)).count() >= self.visits
    }
}

impl Connection {
    fn new(who: Who, host: String, (now, heard_to_come): (Instant, bool)) -> Self {
        Self {
            who,
            host,
            since: now,
            gone_at: None,
            cut_at: None,
            violations: (now, 0),
            sample: (now, 0, 0),
            listed_at: now,
            heard_to_come,
            counted: (now, 0),
            spoke_after: None,
            visits: Vec::new(),
        }
    }

    /// Whether it has published something after this moment.
    fn is_alive_after(&self, moment: Instant) -> bool {
        self.spoke_after.is_some_and(|after| after >= moment)
    }

    /// Learns what it has published; why that is too much, if it is.
    fn sample(&mut self, listed: &Listed, bounds: &Bounds, (asked_at, now): (Instant, Instant)) -> Option<String> {
        let (then, messages, bytes) = std::mem::replace(&mut self.sample, (now, listed.messages, listed.bytes));
        self.listed_at = now;
        // The first count of one that was there before is of all its life, and says nothing of when.
        if listed.messages > self.counted.1 && (self.heard_to_come || then != self.since) {
            self.spoke_after = Some(self.counted.0);
        }
        self.counted = (asked_at, listed.messages);
        // What one has published that was there before us is of all its life.
        let first = then == self.since && messages == 0;
        let over_ms = u64::try_from(now.duration_since(then).as_millis()).unwrap_or(u64::MAX).max(1000);
        let per_s = |more: u64, before: u64| more.saturating_sub(before).saturating_mul(1000) / over_ms;
        let (messages_per_s, bytes_per_s) = (per_s(listed.messages, messages), per_s(listed.bytes, bytes));
        let too_much = messages_per_s > bounds.messages_per_s || bytes_per_s > bounds.bytes_per_s;
        if first || !too_much || !self.who.may_be_cut() {
            return None;
        }
        Some(format!("flood: {messages_per_s} messages and {bytes_per_s} bytes a second"))
    }
}

#[cfg(test)]
mod tests;
