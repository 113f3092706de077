//! The lists themselves.

use std::fmt::Display;

use probeops_shared::ids::{Caller, NodeId, Region};
use probeops_shared::job::JOB_BYTES_MAX;
use probeops_shared::keymaster::Verb;
use probeops_shared::outcome::OUTCOME_BYTES_MAX;
use probeops_shared::subjects::{
    self, ANY, AUDIT_API, AUDIT_COMMAND, AUDIT_KEYMASTER, AUDIT_NODE, AUDIT_VIOLATION, COLLECTOR_QUEUE, FRONT_DOOR_QUEUE, KEYMASTER_QUEUE,
    NODE_QUEUE, REST, broker, storage,
};
use probeops_shared::tools::ToolName;

use crate::permissions::{Permissions, Role, Transport};

/// What headers may add to a message, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;

pub(super) fn of(role: &Role) -> Result<Permissions, String> {
    let permissions = match role {
        Role::Node { node, region, tools } => node_permissions(node, region, tools),
        Role::Api { caller } => api_permissions(caller)?,
        Role::Store { caller } => store_permissions(caller, role)?,
        Role::Service { name, regions, tools, nodes, direct } => service_permissions(name, (regions, tools, nodes), *direct)?,
        Role::FrontDoor => front_door_permissions(role),
        Role::Observer => internal(vec![broker::SERVICES_ALL.to_owned()], role),
        Role::Recorder { name } => internal(vec![subjects::audit(AUDIT_COMMAND, name)], role),
        Role::Registrar { .. } => internal(kept_by_command().iter().map(|subject| broker::said_by_keepers(subject)).collect(), role),
        Role::Collector { name } => collector_permissions(name),
        Role::Acknowledger => Permissions {
            // It needs none; an inbox to which nobody publishes keeps the list from being empty, which would mean everything. With a limit of 0
            // the server ends the connection for having too many.
            max_subscriptions: Some(1),
            ..internal(vec![below(&subjects::node_inbox(ANY))], role)
        },
        Role::Presence { accounts } => presence_permissions(role, accounts),
        Role::Sentry => {
            let revoke = subjects::keymaster(Verb::Revoke, role.name());
            let publish =
                vec![subjects::audit(AUDIT_VIOLATION, role.name()), revoke, subjects::node_cut(ANY), broker::lent(&revocations_told())];
            Permissions { transports: vec![Transport::Standard], ..internal(publish, role) }
        }
        Role::Keymaster => {
            let publish = vec![broker::CLAIMS_UPDATE.to_owned(), broker::SERVER_PING.to_owned()];
            Permissions { transports: vec![Transport::Standard], ..internal(publish, role) }
        }
        Role::Reloader => internal(vec![broker::SERVER_PING.to_owned(), broker::server_reload(ANY)], role),
        Role::KeymasterDesk => {
            let publish = vec![below(&subjects::client_inbox(ANY)), subjects::audit(AUDIT_KEYMASTER, role.name())];
            let mut permissions = internal(publish, role);
            permissions.subscribe.push(format!("{} {KEYMASTER_QUEUE}", subjects::keymaster_all()));
            Permissions { transports: vec![Transport::Standard], ..permissions }
        }
        Role::Auditor => internal(trail_reading().iter().map(|subject| broker::lent(subject)).collect(), role),
        Role::Mirror => Permissions {
            // It asks for a consumer by the name of our domain, and what it gets comes below one subject.
            publish: vec![
                broker::of_our_domain(&broker::consumer_create(storage::AUDIT)),
                broker::of_our_domain(&broker::consumer_create_named(storage::AUDIT, REST)),
                broker::of_our_domain(&broker::stream_info(storage::AUDIT)),
                broker::FLOW_CONTROL.to_owned(),
            ],
            subscribe: [broker::MIRRORED].into_iter().chain(subjects::SERVER_INBOXES).map(below).collect(),
            max_subscriptions: None,
            max_payload_bytes: None,
            transports: vec![Transport::Leaf],
        },
        Role::Provisioner => {
            let mut permissions = provisioner_permissions(role, &stored_streams());
            let verbs = |(stream, name)| [broker::consumer_info(stream, name), broker::consumer_create_named(stream, name)];
            permissions.publish.extend(consumers().flat_map(verbs));
            // One with a filter is made on a subject that has it.
            let filtered = [(storage::DUE, subjects::later_due(REST)), (storage::ONLINE, subjects::later_online_all())];
            let made = |(names, filter): ([&'static str; 2], String)| {
                names.map(|name| broker::consumer_create_named(storage::LATER, format_args!("{name}.{filter}")))
            };
            permissions.publish.extend(filtered.into_iter().flat_map(made));
            permissions
        }
        Role::AuditProvisioner => provisioner_permissions(role, &[storage::AUDIT.to_owned()]),
    };
    Ok(permissions)
}

/// The names of the streams of the store, those behind buckets included.
pub fn stored_streams() -> Vec<String> {
    let buckets = [
        storage::PRESENCE,
        storage::REPLICAS,
        storage::IDEMPOTENCY,
        storage::LIMITS,
        storage::KEYS,
        storage::NODES,
        storage::SERVICES,
        storage::REVOKED,
        storage::TOKENS,
        storage::SECRETS,
        storage::DELIVERIES,
        storage::SCHEDULES,
    ];
    [storage::JOBS, storage::CALLBACKS, storage::LATER].map(str::to_owned).into_iter().chain(buckets.map(broker::bucket_stream)).collect()
}

/// The durable consumers of the store: stream and name.
fn consumers() -> impl Iterator<Item = (&'static str, &'static str)> {
    let of = |stream, names: [&'static str; 2]| names.map(|name| (stream, name));
    [of(storage::CALLBACKS, storage::DELIVER), of(storage::LATER, storage::DUE), of(storage::LATER, storage::ONLINE)].into_iter().flatten()
}

fn node_permissions(node: &NodeId, region: &Region, tools: &[ToolName]) -> Permissions {
    let mut subscribe: Vec<String> =
        tools.iter().map(|tool| format!("{} {NODE_QUEUE}", subjects::node_tool_group(region, *tool))).collect();
    subscribe.push(subjects::node_all(node));
    subscribe.push(below(&subjects::node_inbox(node)));
    Permissions {
        publish: vec![subjects::reply(ANY, ANY, node), subjects::event(region, node, REST)],
        // More would let it hoard shares of queue groups. One more than it needs: whenever the server is told the account's claims it ends
        // connections that have as many as they may.
        max_subscriptions: Some(subscribe.len() + 1),
        subscribe,
        max_payload_bytes: Some(OUTCOME_BYTES_MAX + HEADER_BYTES_MAX),
        transports: vec![Transport::Standard, Transport::WebSocket],
    }
}

fn check_api(caller: &Caller) -> Result<(), String> {
    caller.is_api().then_some(()).ok_or_else(|| format!("`{caller}` cannot be a replica of the API: their names begin with api-"))
}

fn api_permissions(caller: &Caller) -> Result<Permissions, String> {
    check_api(caller)?;
    Ok(Permissions {
        publish: vec![
            subjects::job(ANY, ANY, caller),
            subjects::node_job(ANY, ANY, caller),
            subjects::node_control(ANY, ANY, caller),
            subjects::replica(ANY, ANY, caller),
            subjects::keymaster(ANY, caller),
            subjects::audit(AUDIT_API, caller),
        ],
        subscribe: vec![subjects::replies(caller), subjects::replica_all(caller), below(&subjects::client_inbox(caller))],
        max_subscriptions: None,
        max_payload_bytes: None,
        transports: vec![Transport::Standard, Transport::WebSocket],
    })
}

fn store_permissions(caller: &Caller, role: &Role) -> Result<Permissions, String> {
    check_api(caller)?;
    Ok(internal(kept_by_api(caller).iter().map(|subject| broker::said_by_keepers(subject)).collect(), role))
}

/// What a command of the operator says to streams and buckets, as it is spelled where those are.
pub fn kept_by_command() -> Vec<String> {
    let mut publish = vec![broker::FLOW_CONTROL.to_owned()];
    publish.extend([storage::KEYS, storage::NODES, storage::SERVICES, storage::TOKENS].into_iter().flat_map(bucket_writing));
    publish.extend(bucket_reading(storage::REVOKED));
    publish
}

/// What a replica says to streams and buckets, as it is spelled where those are.
pub fn kept_by_api(caller: impl Display) -> Vec<String> {
    let mut publish = vec![subjects::jobs(), broker::direct_get(storage::JOBS), broker::FLOW_CONTROL.to_owned()];
    publish.extend(stream_reading(storage::JOBS, &subjects::jobs()));
    publish.extend([storage::KEYS, storage::NODES, storage::SERVICES].into_iter().flat_map(bucket_writing));
    publish.extend([storage::PRESENCE, storage::REPLICAS, storage::REVOKED].into_iter().flat_map(bucket_reading));
    // It says of itself that it is there, and of nobody else.
    publish.push(broker::bucket_key(storage::REPLICAS, caller));
    publish.extend([subjects::callbacks(), broker::acknowledgements(storage::CALLBACKS), broker::stream_info(storage::CALLBACKS)]);
    publish.extend([subjects::later_online_all(), subjects::schedule(REST), broker::acknowledgements(storage::LATER)]);
    // What is there of a subject, and taking it away: a job that waits no longer, a schedule that ends.
    publish.extend([
        broker::stream_info(storage::LATER),
        broker::direct_get_last(storage::LATER, subjects::later_online_all()),
        broker::direct_get_last(storage::LATER, subjects::schedule(REST)),
        broker::direct_get(storage::LATER),
        broker::stream_purge(storage::LATER),
    ]);
    let taking = |(stream, name)| [broker::consumer_info(stream, name), broker::consumer_next(stream, name)];
    publish.extend(consumers().flat_map(taking));
    publish.extend(
        [storage::SECRETS, storage::DELIVERIES, storage::IDEMPOTENCY, storage::SCHEDULES, storage::LIMITS, storage::TOKENS]
            .into_iter()
            .flat_map(bucket_by_key),
    );
    publish
}

/// What writing a bucket needs, which is by key and revision, and what reading it needs.
fn bucket_writing(bucket: &str) -> Vec<String> {
    let mut publish = bucket_reading(bucket);
    publish.insert(0, broker::bucket_all(bucket));
    publish
}

/// What writing a bucket and reading it by key or by the beginning of keys needs, without following it.
fn bucket_by_key(bucket: &str) -> Vec<String> {
    let stream = broker::bucket_stream(bucket);
    vec![
        broker::bucket_all(bucket),
        broker::stream_info(&stream),
        broker::direct_get(&stream),
        broker::direct_get_last(&stream, broker::bucket_all(bucket)),
    ]
}

/// What reading and watching a bucket needs.
fn bucket_reading(bucket: &str) -> Vec<String> {
    stream_reading(&broker::bucket_stream(bucket), &broker::bucket_all(bucket))
}

/// What reading and following a stream needs. Following makes a consumer that the broker names; after an interruption the client makes one by
/// name and removes the old one. Listing keys asks for the consumer's state.
fn stream_reading(stream: &str, subject: &str) -> Vec<String> {
    vec![
        broker::stream_info(stream),
        broker::direct_get_last(stream, subject),
        broker::consumer_create(stream),
        broker::consumer_create_named(stream, REST),
        broker::consumer_info(stream, ANY),
        broker::consumer_delete(stream, ANY),
    ]
}

fn service_permissions(
    name: &Caller,
    (regions, tools, nodes): (&[Region], &[ToolName], &[NodeId]),
    direct: bool,
) -> Result<Permissions, String> {
    name.check_service()?;
    if tools.is_empty() || (regions.is_empty() && nodes.is_empty()) {
        return Err(format!("service `{name}` needs at least one tool, and at least one region or node"));
    }
    let by_region = regions.iter().flat_map(|region| tools.iter().map(move |tool| subjects::job(region, tool, name)));
    let by_node = nodes.iter().flat_map(|node| tools.iter().map(move |tool| subjects::node_job(node, tool, name)));
    let jobs = direct.then(|| by_region.chain(by_node)).into_iter().flatten();
    Ok(Permissions {
        publish: jobs.chain([subjects::front_door(name)]).collect(),
        subscribe: vec![subjects::replies(name), below(&subjects::door_inbox(name))],
        max_subscriptions: None,
        max_payload_bytes: Some(JOB_BYTES_MAX + HEADER_BYTES_MAX),
        transports: vec![Transport::Standard, Transport::WebSocket],
    })
}

fn front_door_permissions(role: &Role) -> Permissions {
    let mut permissions = internal(vec![below(&subjects::door_inbox(ANY))], role);
    permissions.subscribe.extend([format!("{} {FRONT_DOOR_QUEUE}", subjects::front_door(ANY)), broker::SERVICES_ALL.to_owned()]);
    permissions
}

fn collector_permissions(name: &Caller) -> Permissions {
    let presence = presence_keeping();
    Permissions {
        publish: [subjects::audit(AUDIT_NODE, ANY)].into_iter().chain(presence.iter().map(|subject| broker::lent(subject))).collect(),
        subscribe: vec![format!("{} {COLLECTOR_QUEUE}", subjects::events()), below(&subjects::client_inbox(name))],
        max_subscriptions: None,
        max_payload_bytes: None,
        transports: vec![Transport::Standard, Transport::WebSocket],
    }
}

/// What reading the trail needs.
pub fn trail_reading() -> [String; 3] {
    [broker::direct_get(storage::AUDIT), broker::stream_info(storage::AUDIT), broker::direct_get_last(storage::AUDIT, broker::AUDIT_ALL)]
}

/// Where it is said of a key that it is to be revoked, for the register.
pub fn revocations_told() -> String {
    broker::bucket_all(storage::REVOKED)
}

/// What keeping bucket PRESENCE needs.
pub fn presence_keeping() -> [String; 3] {
    let (stream, all) = (broker::bucket_stream(storage::PRESENCE), broker::bucket_all(storage::PRESENCE));
    [all.clone(), broker::stream_info(&stream), broker::direct_get_last(&stream, all)]
}

fn presence_permissions(role: &Role, accounts: &[String]) -> Permissions {
    let mut permissions = internal(vec![broker::server_kick(ANY)], role);
    permissions.publish.extend(accounts.iter().map(broker::account_connections));
    permissions.subscribe.extend([broker::AUTHENTICATION_ERRORS.to_owned(), broker::STRANGER_DISCONNECT.to_owned()]);
    let comes_and_goes = |account| [broker::account_connect(account), broker::account_disconnect(account)];
    permissions.subscribe.extend(accounts.iter().flat_map(comes_and_goes));
    Permissions { transports: vec![Transport::Standard], ..permissions }
}

fn provisioner_permissions(role: &Role, streams: &[String]) -> Permissions {
    let verbs = |stream: &String| [broker::stream_info(stream), broker::stream_create(stream), broker::stream_update(stream)];
    let publish = streams.iter().flat_map(verbs).collect();
    Permissions { transports: vec![Transport::Standard], ..internal(publish, role) }
}

/// A part of ours that asks and is answered in its own inbox.
fn internal(publish: Vec<String>, role: &Role) -> Permissions {
    Permissions {
        publish,
        subscribe: vec![below(&role.inbox_prefix())],
        max_subscriptions: None,
        max_payload_bytes: None,
        transports: vec![Transport::Standard, Transport::WebSocket],
    }
}

fn below(prefix: &str) -> String {
    format!("{prefix}.{REST}")
}
