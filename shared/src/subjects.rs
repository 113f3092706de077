//! Every subject of the broker. Nothing else spells one.
//!
//! Arguments are names already checked to be single tokens, or [`ANY`] for a permission or a wildcard subscription.

pub mod broker;

use std::fmt::Display;

use crate::ids::{Caller, JobId, NodeId, Region, ReplyToken};
use crate::keymaster::Verb;
use crate::planted;
use crate::tools::ToolName;

/// Any one token.
pub const ANY: &str = "*";
/// Everything that follows.
pub const REST: &str = ">";
/// The queue group of nodes.
pub const NODE_QUEUE: &str = "w";
/// The queue group of front doors.
pub const FRONT_DOOR_QUEUE: &str = "f";
/// The queue group of collectors.
pub const COLLECTOR_QUEUE: &str = "c";
/// The queue group of keymasters.
pub const KEYMASTER_QUEUE: &str = "k";
/// The last token of a job's reply subject: the broker's "no responders" lands here, and nothing else can.
pub const NO_RESPONDERS: &str = "_";

/// What the inboxes begin with that servers make for questions of their own. In the account of the trail nobody else has such.
/// Not those below `_R_`, where the broker has the answers pass that others of the account wait for: who hears such a subject can answer on it.
pub const SERVER_INBOXES: [&str; 2] = ["$JSC", "_INBOX"];

/// The category of audit records that replicas of the API make.
pub const AUDIT_API: &str = "api";
/// The category of audit records that nodes make.
pub const AUDIT_NODE: &str = "node";
/// The category of audit records that commands of the operator make.
pub const AUDIT_COMMAND: &str = "command";

/// The category of audit records that the sentry makes.
pub const AUDIT_VIOLATION: &str = "violation";
/// The category of audit records that the keymaster makes.
pub const AUDIT_KEYMASTER: &str = "keymaster";
/// The sentry's name on the broker.
pub const SENTRY: &str = "sentry";
/// The last token of [`node_cut`].
pub const CUT: &str = "cut";

/// What [`job`] makes, with its arguments named: of low cardinality, for traces.
pub const JOB_TEMPLATE: &str = "job.v1.<region>.<tool>.<caller>";
/// What [`node_job`] makes, the same way.
pub const NODE_JOB_TEMPLATE: &str = "node.v1.<node>.job.<tool>.<caller>";

/// Streams and buckets by name.
pub mod storage {
    /// Stream of job states and outcomes.
    pub const JOBS: &str = "JOBS";
    /// Stream of the audit trail, in its own account.
    pub const AUDIT: &str = "AUDIT";
    /// Bucket of nodes online: `<region>.<node>` to [`crate::presence::Beat`].
    pub const PRESENCE: &str = "PRESENCE";
    /// Bucket of nodes granted: id to [`crate::registry::NodeGrant`].
    pub const NODES: &str = "NODES";
    /// Bucket of nodes' keys that the sentry had revoked: public key to [`crate::registry::RevokedKey`].
    pub const REVOKED: &str = "REVOKED";
    /// Bucket of enrolment tokens, hashed, by id; the broker forgets those that have expired. And of the key that signs challenges.
    pub const TOKENS: &str = "TOKENS";
    /// Bucket of services granted: name to [`crate::registry::ServiceGrant`].
    pub const SERVICES: &str = "SERVICES";
    /// Bucket of the API's replicas that are there, by name; the broker forgets those that do not say so again.
    pub const REPLICAS: &str = "REPLICAS";
    /// Bucket of idempotency keys, hashed, and the jobs they became.
    pub const IDEMPOTENCY: &str = "IDEMPOTENCY";
    /// Bucket of what is left of limits: `rate.<of>` and `once.<of>`, of a principal `p.<hash>` or of a node `n.<id>`.
    pub const LIMITS: &str = "LIMITS";
    /// Bucket of API keys, hashed.
    pub const KEYS: &str = "KEYS";
    /// Stream of callbacks that are to be delivered.
    pub const CALLBACKS: &str = "CALLBACKS";
    /// The consumer of stream CALLBACKS that all replicas of the API share. The second is there instead of the first only where the broker cannot
    /// read what it had written of the first, which keeps that name taken.
    pub const DELIVER: [&str; 2] = ["deliver", "deliver-spare"];
    /// Stream of jobs and schedules for later.
    pub const LATER: &str = "LATER";
    /// The consumer of stream LATER with the schedules that are due, and its spare (see [`DELIVER`]).
    pub const DUE: [&str; 2] = ["due", "due-spare"];
    /// The consumer of stream LATER with the jobs that wait for a node, and its spare (see [`DELIVER`]).
    pub const ONLINE: [&str; 2] = ["online", "online-spare"];
    /// Bucket of schedules: `<owner>.<id>`.
    pub const SCHEDULES: &str = "SCHEDULES";
    /// Bucket of secrets that sign callbacks: `<owner>.<id>`.
    pub const SECRETS: &str = "SECRETS";
    /// Bucket of what became of callbacks: `<owner>.<delivery>`.
    pub const DELIVERIES: &str = "DELIVERIES";
}

/// The key of a node in bucket PRESENCE.
pub fn presence_key(region: &Region, node: &NodeId) -> String {
    format!("{region}.{node}")
}

/// A job for any one node of a region that can run the tool.
pub fn job(region: impl Display, tool: impl Display, caller: impl Display) -> String {
    format!("job.v1.{region}.{tool}.{caller}")
}

/// A job for one node.
pub fn node_job(node: impl Display, tool: impl Display, caller: impl Display) -> String {
    format!("node.v1.{node}.job.{tool}.{caller}")
}

/// A control message for one node.
pub fn node_control(node: impl Display, verb: impl Display, caller: impl Display) -> String {
    format!("node.v1.{node}.ctl.{verb}.{caller}")
}

/// All that is addressed to one node.
pub fn node_all(node: impl Display) -> String {
    format!("node.v1.{node}.>")
}

/// Where a job is answered: `responder` is a node, or [`NO_RESPONDERS`] in the reply subject itself.
pub fn reply(caller: impl Display, token: impl Display, responder: impl Display) -> String {
    format!("_INBOX.{caller}.{token}.{responder}")
}

/// All answers to one caller.
pub fn replies(caller: impl Display) -> String {
    format!("_INBOX.{caller}.>")
}

/// The inbox prefix of a client library (JetStream, KV) for a user.
pub fn client_inbox(user: impl Display) -> String {
    format!("_INBOX_c.{user}")
}

/// The inbox prefix of a caller, where answers of nodes come.
pub fn caller_inbox(caller: impl Display) -> String {
    format!("_INBOX.{caller}")
}

/// The inbox prefix of a service's client library, where the front door answers. No job is answered there: who answers at the front door cannot
/// pass for a node.
pub fn door_inbox(caller: impl Display) -> String {
    format!("_INBOX_f.{caller}")
}

/// Where a node is told why its connection is about to be cut.
pub fn node_cut(node: impl Display) -> String {
    format!("{}.{CUT}", node_inbox(node))
}

/// The inbox prefix of a node.
pub fn node_inbox(node: impl Display) -> String {
    format!("_INBOX_n.{node}")
}

/// What a node tells of itself.
pub fn event(region: impl Display, node: impl Display, kind: impl Display) -> String {
    format!("ev.v1.{region}.{node}.{kind}")
}

/// All events of all nodes.
pub fn events() -> String {
    "ev.v1.>".to_owned()
}

/// A batch of audit records.
pub fn audit(category: impl Display, writer: impl Display) -> String {
    format!("audit.v1.{category}.{writer}")
}

/// The category and the publisher of a batch of audit records.
pub fn parse_audit(subject: &str) -> Option<(&str, &str)> {
    subject.strip_prefix("audit.v1.")?.split_once('.').filter(|(_, publisher)| !publisher.contains('.'))
}

/// The state of a job, in stream JOBS. `owner` is a token made of its principal's name.
pub fn job_state(owner: impl Display, job: impl Display) -> String {
    format!("jobs.v1.{owner}.{job}.state")
}

/// The outcome of one run of a job, in stream JOBS.
pub fn job_run(owner: impl Display, job: impl Display, index: impl Display) -> String {
    format!("jobs.v1.{owner}.{job}.run.{index}")
}

/// A batch of what a job's nodes tell while it goes on, in stream JOBS.
pub fn job_events(owner: impl Display, job: impl Display, batch: impl Display) -> String {
    format!("jobs.v1.{owner}.{job}.ev.{batch}")
}

/// An outcome of a job's run that came after the run was over, in stream JOBS. `which` is a token made of the run and its attempt.
pub fn job_late(owner: impl Display, job: impl Display, which: impl Display) -> String {
    format!("jobs.v1.{owner}.{job}.late.{which}")
}

/// That a job goes on at a replica, in stream JOBS: what is left when the replica is gone is found by it. The broker forgets it in time.
pub fn job_open(replica: impl Display, job: impl Display) -> String {
    format!("jobs.v1.{replica}.{job}.open")
}

/// What became of a schedule's firing, in stream JOBS. `due` is a token made of when it was due.
pub fn job_firing(owner: impl Display, schedule: impl Display, due: impl Display) -> String {
    format!("jobs.v1.{owner}.{schedule}.fired.{due}")
}

/// All of one job, in stream JOBS.
pub fn job_all(owner: impl Display, job: impl Display) -> String {
    format!("jobs.v1.{owner}.{job}.{REST}")
}

/// What a message of stream JOBS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfJob<'a> {
    /// The job's state.
    State,
    /// The outcome of the run with this index.
    Run(usize),
    /// A batch of events.
    Events(&'a str),
    /// An outcome that came late.
    Late,
    /// That it goes on; the first token is not its owner but the replica.
    Open,
}

/// Reads a subject of stream JOBS: owner, job, and what it is.
pub fn parse_job(subject: &str) -> Option<(&str, JobId, OfJob<'_>)> {
    let tokens: Vec<&str> = subject.split('.').collect();
    match tokens.as_slice() {
        ["jobs", "v1", owner, job, "state"] => Some((owner, job.parse().ok()?, OfJob::State)),
        ["jobs", "v1", owner, job, "run", index] => Some((owner, job.parse().ok()?, OfJob::Run(index.parse().ok()?))),
        ["jobs", "v1", owner, job, "late", _] => Some((owner, job.parse().ok()?, OfJob::Late)),
        ["jobs", "v1", replica, job, "open"] => Some((replica, job.parse().ok()?, OfJob::Open)),
        ["jobs", "v1", owner, job, "ev", batch] => Some((owner, job.parse().ok()?, OfJob::Events(batch))),
        _ => None,
    }
}

/// All of stream JOBS.
pub fn jobs() -> String {
    "jobs.v1.>".to_owned()
}

/// A callback that is to be delivered, in stream CALLBACKS. `owner` is a token made of its principal's name.
pub fn callback(owner: impl Display, delivery: impl Display) -> String {
    format!("callback.v1.{owner}.{delivery}")
}

/// All of stream CALLBACKS.
pub fn callbacks() -> String {
    "callback.v1.>".to_owned()
}

/// A schedule that is due, in stream LATER; the broker's scheduler puts it there.
pub fn later_due(schedule: impl Display) -> String {
    format!("later.v1.due.{schedule}")
}

/// A job that waits for a node, in stream LATER. `owner` is a token made of its principal's name.
pub fn later_online(owner: impl Display, job: impl Display) -> String {
    format!("later.v1.online.{owner}.{job}")
}

/// All jobs that wait for a node, in stream LATER.
pub fn later_online_all() -> String {
    "later.v1.online.>".to_owned()
}

/// A schedule of the broker's, in stream LATER.
pub fn schedule(id: impl Display) -> String {
    format!("sched.v1.{id}")
}

/// A message from one replica of the API to another.
pub fn replica(to: impl Display, verb: impl Display, from: impl Display) -> String {
    format!("rep.v1.{to}.{verb}.{from}")
}

/// All messages of other replicas to one.
pub fn replica_all(to: impl Display) -> String {
    format!("rep.v1.{to}.{REST}")
}

/// Reads a message from another replica: what it wants, and who it is, attested by the broker.
pub fn parse_replica(subject: &str) -> Option<(&str, Caller)> {
    let tokens: Vec<&str> = subject.split('.').collect();
    match tokens.as_slice() {
        ["rep", "v1", _, verb, from] => Some((verb, from.parse().ok()?)),
        _ => None,
    }
}

/// A request to the keymaster.
pub fn keymaster(verb: impl Display, caller: impl Display) -> String {
    format!("key.v1.{verb}.{caller}")
}

/// All requests to the keymaster.
pub fn keymaster_all() -> String {
    "key.v1.>".to_owned()
}

/// Reads a request to the keymaster: what it wants, and who it is, attested by the broker.
pub fn parse_keymaster(subject: &str) -> Option<(Verb, Caller)> {
    let (verb, caller) = subject.strip_prefix("key.v1.")?.split_once('.')?;
    Some((Verb::ALL.into_iter().find(|known| known.as_str() == verb)?, caller.parse().ok()?))
}

/// The front door: a job that a replica of the API runs for a service, as it does over HTTP.
pub fn front_door(caller: impl Display) -> String {
    format!("api.v1.run.{caller}")
}

/// Who knocked at the front door, attested by the broker.
pub fn parse_front_door(subject: &str) -> Option<Caller> {
    subject.strip_prefix("api.v1.run.")?.parse().ok()
}

/// Whether this is a subject in the inbox of `caller`, and of nobody else: only there may the front door answer him. The broker lets the front
/// door publish to every inbox of its kind, and does not check the reply subject that a message names.
pub fn is_own_door_inbox(given: &str, caller: &Caller) -> bool {
    is_inbox_below("_INBOX_f.", given, caller.as_str())
}

/// Whether this is a subject in the inbox of `caller`'s client library, and of nobody else: only there may the keymaster answer him, likewise.
pub fn is_own_client_inbox(given: &str, caller: &Caller) -> bool {
    is_inbox_below("_INBOX_c.", given, caller.as_str())
}

/// Whether this is a subject in the sentry's inbox: only the sentry asks to be answered there.
pub fn is_sentrys_inbox(given: &str) -> bool {
    is_inbox_below("_INBOX_c.", given, SENTRY)
}

fn is_inbox_below(prefix: &str, given: &str, name: &str) -> bool {
    let own = given.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(name)).and_then(|rest| rest.strip_prefix('.'));
    let token = |token: &str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    own.is_some_and(|own| own.len() <= 256 && own.split('.').all(token))
}

/// What a message delivered to a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToNode {
    /// A job. The tool is text: it is compared with the message's.
    Job {
        /// The subject's tool.
        tool: String,
        /// Who published it, attested by the broker.
        caller: Caller,
    },
    /// A control message.
    Control {
        /// What to do.
        verb: String,
        /// Who published it, attested by the broker.
        caller: Caller,
    },
}

/// Reads a subject that a node is subscribed to.
pub fn parse_to_node(subject: &str) -> Option<ToNode> {
    let tokens: Vec<&str> = subject.split('.').collect();
    match tokens.as_slice() {
        ["job", "v1", _, tool, caller] | ["node", "v1", _, "job", tool, caller] => {
            Some(ToNode::Job { tool: (*tool).to_owned(), caller: caller.parse().ok()? })
        }
        ["node", "v1", _, "ctl", verb, caller] => Some(ToNode::Control { verb: (*verb).to_owned(), caller: caller.parse().ok()? }),
        _ => None,
    }
}

/// The subject on which `node` answers, if `given` is a reply subject that `caller` may ask to be answered on:
/// exactly `_INBOX.<caller>.<one token>._`.
pub fn answer(given: &str, caller: &Caller, node: &NodeId) -> Option<String> {
    let rest = given.strip_prefix("_INBOX.")?.strip_prefix(caller.as_str())?.strip_prefix('.')?;
    let token = rest.strip_suffix("._")?;
    let one_token =
        !token.is_empty() && token.len() <= 64 && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    (one_token || planted!("subjects" if token.starts_with('_') && token.contains('.'))).then(|| reply(caller, token, node))
}

/// The attempt and the responder of an answer to `caller`.
pub fn parse_reply<'a>(subject: &'a str, caller: &Caller) -> Option<(ReplyToken, &'a str)> {
    let rest = subject.strip_prefix("_INBOX.")?.strip_prefix(caller.as_str())?.strip_prefix('.')?;
    let (token, responder) = rest.split_once('.')?;
    (!responder.contains('.')).then_some((token.parse().ok()?, responder))
}

/// Reads an event's subject: region, node, kind.
pub fn parse_event(subject: &str) -> Option<(Region, NodeId, &str)> {
    let tokens: Vec<&str> = subject.split('.').collect();
    match tokens.as_slice() {
        ["ev", "v1", region, node, kind] => Some((region.parse().ok()?, node.parse().ok()?, kind)),
        _ => None,
    }
}

/// What a node subscribes for a tool.
pub fn node_tool_group(region: &Region, tool: ToolName) -> String {
    job(region, tool, ANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_answers_only_in_the_asking_callers_inbox() {
        let caller: Caller = "svc".parse().unwrap();
        let node: NodeId = "n1".parse().unwrap();
        assert_eq!(answer("_INBOX.svc.abc._", &caller, &node).as_deref(), Some("_INBOX.svc.abc.n1"));
        for foreign in [
            "_INBOX.other.abc._",
            "_INBOX.svc.abc",
            "_INBOX.svc.abc.n2",
            "_INBOX.svc.a.b._",
            "_INBOX.svc..._",
            "_INBOX.svc._",
            "_INBOX.svc.*._",
            "_INBOX.svc.>._",
            "_INBOX.svcx.abc._",
            "job.v1.eu.ping.svc",
            "",
        ] {
            assert_eq!(answer(foreign, &caller, &node), None, "{foreign}");
        }
    }

    #[test]
    fn the_front_door_answers_only_in_the_inbox_of_who_knocked() {
        let caller: Caller = "svc".parse().unwrap();
        assert_eq!(parse_front_door(&front_door(&caller)), Some(caller.clone()));
        assert_eq!(parse_front_door("api.v1.run.a.b"), None);
        for own in ["_INBOX_f.svc.abc", "_INBOX_f.svc.abc.1", "_INBOX_f.svc.XvT-_9.0"] {
            assert!(is_own_door_inbox(own, &caller), "{own}");
        }
        for foreign in [
            "_INBOX_f.other.abc",
            "_INBOX_f.svcx.abc",
            "_INBOX_f.svc",
            "_INBOX_f.svc.",
            "_INBOX_f.svc..a",
            "_INBOX_f.svc.*",
            "_INBOX_f.svc.a.>",
            "_INBOX.svc.abc",
            "_INBOX_n.svc.a",
            "node.v1.n1.ctl.drain.svc",
            "$JS.API.STREAM.DELETE.JOBS",
            "",
        ] {
            assert!(!is_own_door_inbox(foreign, &caller), "{foreign}");
            assert!(!is_own_client_inbox(&foreign.replace("_INBOX_f.", "_INBOX_c."), &caller), "{foreign}");
        }
        assert!(is_own_client_inbox("_INBOX_c.svc.abc.1", &caller) && !is_own_client_inbox("_INBOX.svc.abc.1", &caller));
    }

    #[test]
    fn subjects_are_read_as_they_are_written() {
        let region: Region = "eu".parse().unwrap();
        let caller: Caller = "svc".parse().unwrap();
        assert_eq!(
            parse_to_node(&job(&region, ToolName::Echo, &caller)),
            Some(ToNode::Job { tool: "echo".to_owned(), caller: caller.clone() })
        );
        assert_eq!(
            parse_to_node(&node_control("n1", "cancel", &caller)),
            Some(ToNode::Control { verb: "cancel".to_owned(), caller: caller.clone() })
        );
        assert_eq!(parse_to_node("node.v1.n1.other"), None);
        let token = ReplyToken::new();
        assert_eq!(parse_reply(&reply(&caller, token, "n1"), &caller), Some((token, "n1")));
        assert_eq!(parse_event(&event(&region, "n1", "beat")), Some((region, "n1".parse().unwrap(), "beat")));
        let job = JobId::new();
        assert_eq!(parse_job(&job_state("o", job)), Some(("o", job, OfJob::State)));
        assert_eq!(parse_job(&job_run("o", job, 3)), Some(("o", job, OfJob::Run(3))));
        assert_eq!(parse_job(&job_events("o", job, 7)), Some(("o", job, OfJob::Events("7"))));
        assert_eq!(parse_job(&job_late("o", job, "3-1")), Some(("o", job, OfJob::Late)));
        assert_eq!(parse_job(&job_open("api-1", job)), Some(("api-1", job, OfJob::Open)));
        assert_eq!(parse_job("jobs.v1.o.x.state"), None);
        assert_eq!(parse_keymaster(&keymaster(Verb::Revoke, "api-1")), Some((Verb::Revoke, "api-1".parse().unwrap())));
        assert_eq!(parse_keymaster("key.v1.mint_api.api-1"), None);
        assert_eq!(parse_replica(&replica("api-1", "cancel", "api-2")), Some(("cancel", "api-2".parse().unwrap())));
    }
}
