//! What streams and buckets are.

use std::time::Duration;

use probeops_shared::presence::{BEAT_INTERVAL_MS, BEATS_UNTIL_GONE, REPLICA_GONE_AFTER};
use probeops_shared::subjects::{self, REST, broker, storage};
use serde_json::{Map, Value, json};

use crate::vault::CREDENTIAL_LIFETIME;

const MIB: u64 = 1024 * 1024;
/// How long a job's state and outcomes are kept.
const JOBS_KEPT: Duration = Duration::from_hours(24);
/// What stream JOBS may take on disk, in bytes; then the oldest go.
const JOBS_BYTES_MAX: u64 = 1024 * MIB;
/// How long the audit trail is kept.
const AUDIT_KEPT: Duration = Duration::from_hours(400 * 24);
/// What it may take on disk, in bytes, each of its replicas counted; then it takes no more, and no job is run. The oldest are never let go for it.
const AUDIT_BYTES_MAX: u64 = 12 * 1024 * MIB;
/// How long a repeated audit record is recognised as such.
const AUDIT_DUPLICATES: Duration = Duration::from_mins(2);
/// What a bucket may take on disk, in bytes.
const BUCKET_BYTES_MAX: u64 = 64 * MIB;
/// The largest value of a bucket, in bytes.
const BUCKET_VALUE_BYTES_MAX: u64 = 64 * 1024;
/// How many may follow a bucket at once: each replica does once, and for a moment whoever lists its keys.
const BUCKET_FOLLOWERS_MAX: u32 = 1024;
/// After so long without its client the broker forgets a consumer, whatever was asked when it was made: those of a credential that was revoked
/// are in nobody's way for longer.
const FOLLOWER_GONE_AFTER: Duration = Duration::from_mins(1);
/// How many values of a key of a register are kept.
const REGISTER_HISTORY: u32 = 5;
/// How long a callback may wait to be delivered: longer than any caller may ask for.
const CALLBACKS_KEPT: Duration = Duration::from_hours(48);
/// What stream CALLBACKS may take on disk, in bytes; then no more are taken.
const CALLBACKS_BYTES_MAX: u64 = 512 * MIB;
/// How long a callback that is queued again is recognised as such.
const CALLBACKS_DUPLICATES: Duration = Duration::from_mins(2);
/// How long a replica has for one attempt to deliver; then another makes it.
const DELIVER_WITHIN: Duration = Duration::from_secs(30);
/// How many callbacks may wait for their next attempt, those that were put off too: more than there is room for in the stream, so that those of one
/// caller hold up nobody else's. How many one caller may have there is the API's to say.
const DELIVERIES_WAITING_MAX: u32 = 10_000_000;
/// How long what became of a callback is kept.
const DELIVERIES_KEPT: Duration = Duration::from_hours(7 * 24);
/// What bucket DELIVERIES may take on disk, in bytes; then the oldest go.
const DELIVERIES_BYTES_MAX: u64 = 256 * MIB;
/// What stream LATER may take on disk, in bytes. A broker with schedules lets the oldest go then, so the API takes no more jobs long before.
const LATER_BYTES_MAX: u64 = 512 * MIB;
/// What bucket SCHEDULES may take on disk, in bytes.
const SCHEDULES_BYTES_MAX: u64 = 256 * MIB;
/// How long a replica has to take what is due.
const DUE_WITHIN: Duration = Duration::from_secs(30);
/// How many that are due may wait at once for a replica, those that were put off included.
const DUE_WAITING_MAX: u32 = 20_000;
/// How long a replica has to say that it still holds a job that waits for a node.
const ONLINE_WITHIN: Duration = Duration::from_secs(30);
/// How many jobs that wait for a node replicas may hold at once, those that were put off included.
const ONLINE_WAITING_MAX: u32 = 100_000;
/// How long the mark of an expired key is kept, for watchers that were away.
const LIMIT_MARKERS_KEPT: Duration = Duration::from_mins(1);
/// How long what is left of a limit is kept; no rate has a longer window.
const LIMITS_KEPT: Duration = Duration::from_hours(1);
/// How long an idempotency key is known.
const IDEMPOTENCY_KEPT: Duration = Duration::from_hours(24);
/// What they may take on disk, in bytes: about a million; then the oldest go.
const IDEMPOTENCY_BYTES_MAX: u64 = 256 * MIB;

/// A stream as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Its configuration, in the words of the broker's API.
    pub config: Map<String, Value>,
    /// The durable consumers it has. Only the provisioner makes them, so that nobody else needs to be able to.
    pub consumers: Vec<Consumer>,
}

/// A durable consumer as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Consumer {
    /// Its name, and those it has where the broker cannot use the ones before.
    pub names: [&'static str; 2],
    /// Its configuration, in the words of the broker's API.
    pub config: Map<String, Value>,
}

/// All streams and buckets of the store.
pub fn application(replicas: u32) -> Vec<Definition> {
    let presence_age = Duration::from_millis(BEAT_INTERVAL_MS * BEATS_UNTIL_GONE);
    let forgetful = |after: Duration| {
        json!({
            "max_age": nanos(after),
            "allow_msg_ttl": true,
            "subject_delete_marker_ttl": nanos(LIMIT_MARKERS_KEPT),
        })
    };
    let register = || json!({});
    vec![
        stream(
            storage::JOBS,
            replicas,
            json!({
                "subjects": [subjects::jobs()],
                "max_age": nanos(JOBS_KEPT),
                "max_bytes": JOBS_BYTES_MAX,
                "allow_msg_ttl": true,
                "consumer_limits": {"inactive_threshold": nanos(FOLLOWER_GONE_AFTER)},
            }),
        ),
        bucket(storage::PRESENCE, replicas, 1, forgetful(presence_age)),
        bucket(storage::REPLICAS, replicas, 1, forgetful(REPLICA_GONE_AFTER)),
        bucket(
            storage::IDEMPOTENCY,
            replicas,
            1,
            json!({"max_age": nanos(IDEMPOTENCY_KEPT), "max_bytes": IDEMPOTENCY_BYTES_MAX, "discard": "old"}),
        ),
        // A full one takes nothing new: what is forgotten would be allowed again.
        bucket(storage::LIMITS, replicas, 1, json!({"max_age": nanos(LIMITS_KEPT)})),
        bucket(storage::KEYS, replicas, REGISTER_HISTORY, register()),
        bucket(storage::NODES, replicas, REGISTER_HISTORY, register()),
        bucket(storage::SERVICES, replicas, REGISTER_HISTORY, register()),
        bucket(storage::REVOKED, replicas, 1, json!({"max_age": nanos(CREDENTIAL_LIFETIME)})),
        // Of a token that has expired nothing is kept, after a while.
        bucket(storage::TOKENS, replicas, 1, json!({"allow_msg_ttl": true, "subject_delete_marker_ttl": nanos(LIMIT_MARKERS_KEPT)})),
        callbacks(replicas),
        later(replicas),
        // Of one that was deleted nothing is kept, after a while.
        bucket(
            storage::SCHEDULES,
            replicas,
            1,
            json!({"max_bytes": SCHEDULES_BYTES_MAX, "allow_msg_ttl": true, "subject_delete_marker_ttl": nanos(LIMIT_MARKERS_KEPT)}),
        ),
        // A secret that was replaced is not kept, and of one that was deleted nothing is, after a while.
        bucket(storage::SECRETS, replicas, 1, json!({"allow_msg_ttl": true, "subject_delete_marker_ttl": nanos(LIMIT_MARKERS_KEPT)})),
        bucket(
            storage::DELIVERIES,
            replicas,
            1,
            json!({"max_age": nanos(DELIVERIES_KEPT), "max_bytes": DELIVERIES_BYTES_MAX, "discard": "old"}),
        ),
    ]
}

/// The queue of callbacks: a message is there until its callback is delivered or given up.
fn callbacks(replicas: u32) -> Definition {
    let queue = json!({
        "subjects": [subjects::callbacks()],
        "retention": "workqueue",
        "max_age": nanos(CALLBACKS_KEPT),
        "max_bytes": CALLBACKS_BYTES_MAX,
        "discard": "new",
        "duplicate_window": nanos(CALLBACKS_DUPLICATES),
    });
    let deliver = json!({
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "ack_wait": nanos(DELIVER_WITHIN),
        "max_deliver": -1,
        "max_ack_pending": DELIVERIES_WAITING_MAX,
    });
    let consumers = vec![Consumer { names: storage::DELIVER, config: object(deliver) }];
    Definition { consumers, ..stream(storage::CALLBACKS, replicas, queue) }
}

/// What is to be done later: schedules, those that are due, and jobs that wait for a node. A schedule's message makes those on the subject that it
/// names, at its time. The newest of a subject replaces the one before: of a schedule that was due several times while nobody looked, one is left.
/// Without a greatest age, which would end schedules; each message that ends in time says so itself.
fn later(replicas: u32) -> Definition {
    let later = json!({
        "subjects": [subjects::later_due(REST), subjects::later_online_all(), subjects::schedule(REST)],
        "max_age": 0,
        "max_bytes": LATER_BYTES_MAX,
        "max_msgs_per_subject": 1,
        "discard": "old",
        "allow_msg_ttl": true,
        "allow_msg_schedules": true,
    });
    let consumer = |names, filter: String, within: Duration, waiting_max: u32| {
        let config = json!({
            "filter_subject": filter,
            "ack_policy": "explicit",
            "deliver_policy": "all",
            "ack_wait": nanos(within),
            "max_deliver": -1,
            "max_ack_pending": waiting_max,
        });
        Consumer { names, config: object(config) }
    };
    let consumers = vec![
        consumer(storage::DUE, subjects::later_due(REST), DUE_WITHIN, DUE_WAITING_MAX),
        consumer(storage::ONLINE, subjects::later_online_all(), ONLINE_WITHIN, ONLINE_WAITING_MAX),
    ];
    Definition { consumers, ..stream(storage::LATER, replicas, later) }
}

/// The stream of the audit trail.
pub fn audit(replicas: u32) -> Definition {
    stream(
        storage::AUDIT,
        replicas,
        json!({
            "subjects": [broker::AUDIT_ALL],
            "max_age": nanos(AUDIT_KEPT),
            "max_bytes": AUDIT_BYTES_MAX / u64::from(replicas.max(1)),
            "discard": "new",
            "duplicate_window": nanos(AUDIT_DUPLICATES),
            "deny_delete": true,
            "deny_purge": true,
        }),
    )
}

fn bucket(name: &str, replicas: u32, history: u32, more: Value) -> Definition {
    let mut bucket = stream(
        &broker::bucket_stream(name),
        replicas,
        json!({
            "subjects": [broker::bucket_all(name)],
            "max_msgs_per_subject": history,
            "max_bytes": BUCKET_BYTES_MAX,
            "max_msg_size": BUCKET_VALUE_BYTES_MAX,
            "max_age": 0,
            "discard": "new",
            // Of those that mark what has expired the broker does not take no for an answer: elsewhere one message shall not empty a bucket.
            "allow_rollup_hdrs": more.get("subject_delete_marker_ttl").is_some(),
            "deny_delete": true,
            "max_consumers": BUCKET_FOLLOWERS_MAX,
            "consumer_limits": {"inactive_threshold": nanos(FOLLOWER_GONE_AFTER)},
        }),
    );
    bucket.config.extend(object(more));
    bucket
}

fn stream(name: &str, replicas: u32, more: Value) -> Definition {
    let mut config = object(json!({
        "name": name,
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": replicas,
        "allow_direct": true,
        "max_msgs": -1,
        "max_consumers": -1,
    }));
    config.extend(object(more));
    Definition { name: name.to_owned(), config, consumers: Vec::new() }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_has_a_bound_and_its_own_subjects() {
        let all: Vec<Definition> = application(1).into_iter().chain([audit(1)]).collect();
        for definition in &all {
            let number = |key: &str| definition.config.get(key).and_then(Value::as_i64).unwrap_or(-1);
            assert!(number("max_bytes") > 0 || number("max_age") > 0, "{} has no bound", definition.name);
            assert_eq!(definition.config.get("allow_direct"), Some(&Value::Bool(true)));
        }
        let names: Vec<&str> = all.iter().map(|definition| definition.name.as_str()).collect();
        let buckets = [
            "KV_PRESENCE",
            "KV_REPLICAS",
            "KV_IDEMPOTENCY",
            "KV_LIMITS",
            "KV_KEYS",
            "KV_NODES",
            "KV_SERVICES",
            "KV_REVOKED",
            "KV_TOKENS",
            "KV_SECRETS",
            "KV_DELIVERIES",
            "KV_SCHEDULES",
        ];
        let sorted = |mut names: Vec<String>| {
            names.sort_unstable();
            names
        };
        let expected = ["JOBS", "CALLBACKS", "LATER", "AUDIT"].into_iter().chain(buckets).map(str::to_owned).collect();
        assert_eq!(sorted(names.iter().map(ToString::to_string).collect()), sorted(expected));
        let provisioned: Vec<String> = crate::permissions::lists::stored_streams();
        let made = names.iter().filter(|name| **name != "AUDIT").map(ToString::to_string).collect();
        assert_eq!(sorted(provisioned), sorted(made), "the provisioner may make exactly these");
    }

    #[test]
    fn three_of_everything_fit_into_the_account() {
        let reserved: i64 = application(3).iter().filter_map(|definition| definition.config.get("max_bytes")?.as_i64()).sum();
        let account = crate::vault::accounts::claims(crate::permissions::AccountName::Store, "", |_| "");
        assert!(3 * reserved <= account.limits.disk_storage, "{reserved}");
    }

    #[test]
    fn the_trail_fits_into_its_account_and_lets_nothing_go_when_it_is_full() {
        for replicas in [1, 3] {
            let trail = audit(replicas);
            let reserved = trail.config["max_bytes"].as_i64().unwrap() * i64::from(replicas);
            let account = crate::vault::accounts::claims(crate::permissions::AccountName::Audit, "", |_| "");
            assert!(reserved <= account.limits.disk_storage, "{reserved}");
            assert_eq!(trail.config["discard"], "new");
        }
    }

    #[test]
    fn presence_ends_after_three_beats() {
        let presence = &application(1)[1];
        assert_eq!(presence.config.get("max_age"), Some(&json!(30_000_000_000_u64)));
        assert_eq!(presence.config.get("max_msgs_per_subject"), Some(&json!(1)));
    }
}
