//! Judges what is seen of connections. It neither reads nor writes anything, and time is told to it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use probeops_shared::ids::{Caller, NodeId, Region};
use probeops_shared::subjects;
use tokio::time::Instant;

use crate::claims::{Body, Claims};
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
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            violations: 100,
            within: Duration::from_secs(10),
            messages_per_s: 25_000,
            bytes_per_s: 100_000_000,
            both_alive_after: Duration::from_secs(120),
        }
    }
}

/// How long a connection is remembered that has gone: its last lines may still be read.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// When a connection that was cut and is still there is cut again.
const CUT_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// When the connections of a server that lists none any more count as gone: it has ended, and has another id when it starts again.
const SERVER_SILENT_FOR: Duration = Duration::from_secs(30);
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
    paired: Paired,
}

/// What is known of a connection while its key has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paired {
    /// Not even what it had published when that began.
    New,
    /// It had published so much.
    Silent(u64),
    /// It has published since.
    Spoke,
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
    /// Keys of nodes with two connections, and since when.
    pairs: HashMap<String, Instant>,
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
            pairs: HashMap::new(),
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

    /// Whether the connection of a line was seen.
    pub(super) fn knows(&self, line: &Line) -> bool {
        !self.of(line).is_empty()
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
                self.came(&server, cid, who, host, now);
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
            let who = Who { key: line.user.clone(), account: line.account.clone(), kind: Kind::Unknown };
            drop(self.connections.insert((NOWHERE, line.cid), Connection::new(who, line.host.clone(), now)));
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
                Some(who) => self.came(server, *cid, who.clone(), host.clone(), now),
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
                floods.extend(connection.sample(listed, &self.bounds, now).map(|why| (id, why)));
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
        let pairs: Vec<String> = self.pairs.keys().cloned().collect();
        for key in pairs {
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

    fn came(&mut self, server: &str, cid: u64, who: Who, host: String, now: Instant) {
        let id = (self.place(server), cid);
        if self.connections.get(&id).is_some_and(|known| known.who.key == who.key) {
            return;
        }
        if self.connections.get(&(NOWHERE, cid)).is_some_and(|known| known.who.key == who.key) {
            drop(self.connections.remove(&(NOWHERE, cid)));
        }
        let (key, is_node) = (who.key.clone(), matches!(who.kind, Kind::Node(..)));
        self.went(id, now);
        drop(self.connections.insert(id, Connection::new(who, host, now)));
        let ids = self.by_key.entry(key.clone()).or_default();
        ids.push(id);
        if is_node && ids.len() > 1 {
            for id in ids {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.paired = Paired::New;
                }
            }
            let _ = self.pairs.insert(key, now);
        }
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
    }

    /// Judges a key. A node that reconnects has two connections for a while, as the broker may not know yet that the old one is dead; so two
    /// make a clone when both speak, or live on longer than a dead one would.
    fn judge(&mut self, key: &str, now: Instant) -> Vec<Act> {
        let Some(since) = self.pairs.get(key).copied() else { return Vec::new() };
        let ids = self.by_key.get(key).cloned().unwrap_or_default();
        let speaking =
            ids.iter().filter(|id| self.connections.get(id).is_some_and(|connection| connection.paired == Paired::Spoke)).count();
        let known = self.clones.contains(key);
        if !known && speaking < 2 && now.duration_since(since) < self.bounds.both_alive_after {
            return Vec::new();
        }
        let mut acts = Vec::new();
        let why = "clone: its key is used by two connections at the same time".to_owned();
        let hosts = ids.iter().filter_map(|id| self.connections.get(id)).map(|connection| connection.host.clone()).collect();
        let who = ids.first().and_then(|id| self.connections.get(id)).map(|connection| connection.who.clone());
        for id in ids {
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

impl Connection {
    fn new(who: Who, host: String, now: Instant) -> Self {
        Self {
            who,
            host,
            since: now,
            gone_at: None,
            cut_at: None,
            violations: (now, 0),
            sample: (now, 0, 0),
            listed_at: now,
            paired: Paired::New,
        }
    }

    /// Learns what it has published; why that is too much, if it is.
    fn sample(&mut self, listed: &Listed, bounds: &Bounds, now: Instant) -> Option<String> {
        let (then, messages, bytes) = std::mem::replace(&mut self.sample, (now, listed.messages, listed.bytes));
        self.listed_at = now;
        self.paired = match self.paired {
            Paired::New => Paired::Silent(listed.messages),
            Paired::Silent(before) if listed.messages > before => Paired::Spoke,
            paired => paired,
        };
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
mod tests {
    use super::*;
    use crate::sentry::log::What;

    struct Scene {
        watch: Watch,
        begun: Instant,
        /// Server, number, name, messages.
        there: Vec<(&'static str, u64, &'static str, u64)>,
    }

    fn who(name: &str) -> Who {
        let kind = match name {
            "api-1" => Kind::Part(name.to_owned()),
            "svc" => Kind::Service(name.parse().unwrap()),
            _ => Kind::Node(name.parse().unwrap(), "eu".parse().unwrap()),
        };
        Who { key: format!("U{name}"), account: "APP".to_owned(), kind }
    }

    impl Scene {
        fn new() -> Self {
            Self { watch: Watch::new(Bounds::default()), begun: Instant::now(), there: Vec::new() }
        }

        fn at(&self, s: u64) -> Instant {
            self.begun + Duration::from_secs(s)
        }

        fn comes(&mut self, s: u64, server: &'static str, cid: u64, name: &'static str) -> Vec<Act> {
            self.there.push((server, cid, name, 0));
            let event = Event::Came { server: server.to_owned(), cid, who: who(name), host: "h".to_owned() };
            self.watch.event(event, self.at(s))
        }

        fn goes(&mut self, s: u64, server: &str, cid: u64) {
            self.there.retain(|there| (there.0, there.1) != (server, cid));
            assert!(self.watch.event(Event::Went { server: server.to_owned(), cid }, self.at(s)).is_empty());
        }

        fn publishes(&mut self, cid: u64, messages: u64) {
            self.there.iter_mut().filter(|there| there.1 == cid).for_each(|there| there.3 += messages);
        }

        fn listed(&mut self, s: u64) -> Vec<Act> {
            let listed = |&(server, cid, _, messages): &(&str, u64, &str, u64)| Listed {
                server: server.to_owned(),
                cid,
                who: None,
                host: "h".to_owned(),
                messages,
                bytes: messages,
            };
            let connections = self.there.iter().map(listed).collect();
            let listing = Listing { asked_at: self.at(s), servers: vec!["s1".to_owned(), "s2".to_owned()], connections };
            self.watch.list(&listing, self.at(s))
        }

        fn violates(&mut self, s: u64, cid: u64, name: &str) -> Vec<Act> {
            let line = Line {
                cid,
                account: "APP".to_owned(),
                user: format!("U{name}"),
                host: "h".to_owned(),
                what: What::Publish("x".to_owned()),
            };
            self.watch.violation(&line, self.at(s))
        }
    }

    fn cuts(acts: &[Act]) -> Vec<(String, u64)> {
        let cut = |act: &Act| if let Act::Cut(cut) = act { Some((cut.server.clone(), cut.cid)) } else { None };
        acts.iter().filter_map(cut).collect()
    }

    #[test]
    fn two_that_speak_with_one_key_are_cut_and_their_key_is_revoked() {
        let mut scene = Scene::new();
        scene.comes(0, "s1", 1, "n1");
        scene.comes(10, "s2", 1, "n1");
        assert!(scene.watch.suspects());
        assert!(scene.listed(11).is_empty());
        scene.there[0].3 += 1;
        assert!(scene.listed(12).is_empty(), "one of them only");
        scene.there[1].3 += 1;
        let acts = scene.listed(13);
        assert_eq!(cuts(&acts), [("s1".to_owned(), 1), ("s2".to_owned(), 1)]);
        assert!(matches!(acts.last(), Some(Act::Revoke(cloned)) if cloned.who.principal() == "node:n1"), "{acts:?}");
        // Until it is revoked, no two of them come in again.
        scene.goes(14, "s1", 1);
        scene.goes(14, "s2", 1);
        assert!(scene.comes(15, "s1", 2, "n1").is_empty());
        assert_eq!(cuts(&scene.comes(15, "s2", 3, "n1")).len(), 2);
    }

    #[test]
    fn one_that_reconnects_is_no_clone() {
        let mut scene = Scene::new();
        scene.comes(0, "s1", 1, "n1");
        scene.publishes(1, 100);
        scene.listed(1);
        // Its wire was cut; the broker will know of the old connection's end in a minute.
        scene.comes(10, "s2", 2, "n1");
        for s in 11..70 {
            scene.publishes(2, 1);
            assert!(scene.listed(s).is_empty(), "{s}");
        }
        scene.goes(70, "s1", 1);
        assert!(!scene.watch.suspects());
        assert!(scene.listed(200).is_empty());
    }

    #[test]
    fn a_clone_that_only_listens_is_one_too() {
        let mut scene = Scene::new();
        scene.comes(0, "s1", 1, "n1");
        scene.comes(1, "s1", 2, "n1");
        scene.publishes(1, 1);
        for s in 2..121 {
            assert!(scene.listed(s).is_empty(), "{s}");
        }
        assert_eq!(cuts(&scene.listed(122)).len(), 2);
    }

    #[test]
    fn services_may_have_many_connections() {
        let mut scene = Scene::new();
        for cid in 0..10 {
            assert!(scene.comes(0, "s1", cid, "svc").is_empty());
        }
        assert!(!scene.watch.suspects() && scene.listed(100).is_empty());
    }

    #[test]
    fn a_flood_of_messages_is_cut_and_a_part_of_ours_is_not() {
        let mut scene = Scene::new();
        scene.comes(0, "s1", 1, "n1");
        scene.comes(0, "s1", 2, "api-1");
        scene.listed(1);
        for cid in [1, 2] {
            scene.publishes(cid, 200_000);
        }
        assert_eq!(cuts(&scene.listed(6)), [("s1".to_owned(), 1)]);
        assert!(scene.listed(7).is_empty(), "and once");
    }

    #[test]
    fn a_flood_of_violations_is_cut_and_a_few_are_not() {
        let mut scene = Scene::new();
        scene.comes(0, "s1", 1, "n1");
        for s in 0..300 {
            let acts = scene.violates(s, 1, "n1");
            assert!(matches!(acts.as_slice(), [Act::Report(_)]), "one a second: {acts:?}");
        }
        let acts: Vec<Act> = (0..150).flat_map(|_| scene.violates(400, 1, "n1")).collect();
        assert_eq!(cuts(&acts), [("s1".to_owned(), 1)]);
        // Of somebody with the same number at a server whom the log does not mean.
        assert!(
            scene
                .violates(401, 1, "n2")
                .iter()
                .all(|act| matches!(act, Act::Report(finding) if finding.who.as_ref().is_some_and(|who| who.kind == Kind::Unknown)))
        );
    }

    #[test]
    fn who_is_no_longer_listed_has_gone() {
        let mut scene = Scene::new();
        scene.comes(0, "s1", 1, "n1");
        scene.there.clear();
        scene.listed(1);
        assert_eq!(scene.watch.connections(), 0);
        scene.listed(100);
        assert!(scene.watch.connections.is_empty());
    }
}
