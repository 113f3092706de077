use probeops_shared::subjects::{ANY, REST};

use super::*;
use crate::streams::definitions::{application, audit};

fn node() -> Role {
    Role::Node { node: "n1".parse().unwrap(), region: "eu".parse().unwrap(), tools: vec![ToolName::Echo] }
}

fn service(regions: &[&str], tools: &[ToolName], nodes: &[&str]) -> Role {
    Role::Service {
        name: "svc".parse().unwrap(),
        regions: regions.iter().map(|region| region.parse().unwrap()).collect(),
        tools: tools.to_vec(),
        nodes: nodes.iter().map(|node| node.parse().unwrap()).collect(),
        direct: true,
    }
}

fn every_role() -> Vec<Role> {
    vec![
        node(),
        Role::Api { caller: "api-1".parse().unwrap() },
        Role::Store { caller: "api-1".parse().unwrap() },
        service(&["eu"], &[ToolName::Echo], &["n1"]),
        Role::FrontDoor,
        Role::Observer,
        Role::Registrar { name: "command-1".parse().unwrap() },
        Role::Recorder { name: "command-1".parse().unwrap() },
        Role::Collector { name: "api-1".parse().unwrap() },
        Role::Acknowledger,
        Role::Presence { accounts: vec!["ACC".to_owned()] },
        Role::Sentry,
        Role::Keymaster,
        Role::Reloader,
        Role::KeymasterDesk,
        Role::Auditor,
        Role::Mirror,
        Role::Provisioner,
        Role::AuditProvisioner,
    ]
}

#[track_caller]
fn check(role: &Role, publish: &[&str], subscribe: &[&str]) {
    let permissions = role.permissions().unwrap();
    assert_eq!(permissions.publish, publish);
    assert_eq!(permissions.subscribe, subscribe);
}

#[test]
fn a_node_answers_and_announces_itself_and_takes_what_it_was_granted() {
    check(&node(), &["_INBOX.*.*.n1", "ev.v1.eu.n1.>"], &["job.v1.eu.echo.* w", "node.v1.n1.>", "_INBOX_n.n1.>"]);
    let permissions = node().permissions().unwrap();
    assert_eq!(permissions.max_subscriptions, Some(4));
    assert_eq!(permissions.max_payload_bytes, Some(272 * 1024));
    let without_tools = Role::Node { node: "n1".parse().unwrap(), region: "eu".parse().unwrap(), tools: Vec::new() };
    assert_eq!(without_tools.permissions().unwrap().max_subscriptions, Some(3));
}

#[test]
fn a_service_asks_in_its_own_name_where_it_was_granted() {
    check(
        &service(&["eu", "us"], &[ToolName::Echo], &["n9"]),
        &["job.v1.eu.echo.svc", "job.v1.us.echo.svc", "node.v1.n9.job.echo.svc", "api.v1.run.svc"],
        &["_INBOX.svc.>", "_INBOX_f.svc.>"],
    );
    let Role::Service { name, regions, tools, nodes, .. } = service(&["eu"], &[ToolName::Echo], &["n9"]) else { unreachable!() };
    check(&Role::Service { name, regions, tools, nodes, direct: false }, &["api.v1.run.svc"], &["_INBOX.svc.>", "_INBOX_f.svc.>"]);
    for nothing in [service(&[], &[ToolName::Echo], &[]), service(&["eu"], &[], &["n1"])] {
        let refused = nothing.permissions().unwrap_err();
        assert_eq!(refused, "service `svc` needs at least one tool, and at least one region or node");
    }
}

#[test]
fn names_of_the_api_are_its_own() {
    for (name, why) in [("api-1", "names that begin with api- are those of the API"), ("observer", "it is the name of whoever looks")] {
        let service =
            Role::Service { name: name.parse().unwrap(), regions: Vec::new(), tools: Vec::new(), nodes: Vec::new(), direct: true };
        assert!(service.permissions().unwrap_err().contains(why), "{name}");
    }
    let name: Caller = "svc".parse().unwrap();
    for api in [Role::Api { caller: name.clone() }, Role::Store { caller: name }] {
        assert!(api.permissions().unwrap_err().contains("their names begin with api-"));
    }
}

#[test]
fn a_replica_of_the_api_dispatches_in_its_own_name() {
    check(
        &Role::Api { caller: "api-1".parse().unwrap() },
        &["job.v1.*.*.api-1", "node.v1.*.job.*.api-1", "node.v1.*.ctl.*.api-1", "rep.v1.*.*.api-1", "key.v1.*.api-1", "audit.v1.api.api-1"],
        &["_INBOX.api-1.>", "rep.v1.api-1.>", "_INBOX_c.api-1.>"],
    );
}

#[test]
fn a_replica_of_the_api_keeps_streams_and_buckets_where_it_speaks_to_nobody() {
    let permissions = Role::Store { caller: "api-1".parse().unwrap() }.permissions().unwrap();
    assert_eq!(
        permissions.publish[..9],
        [
            "jobs.v1.>",
            "js.v1.DIRECT.GET.JOBS",
            "$JS.FC.>",
            "js.v1.STREAM.INFO.JOBS",
            "js.v1.DIRECT.GET.JOBS.jobs.v1.>",
            "js.v1.CONSUMER.CREATE.JOBS",
            "js.v1.CONSUMER.CREATE.JOBS.>",
            "js.v1.CONSUMER.INFO.JOBS.*",
            "js.v1.CONSUMER.DELETE.JOBS.*",
        ]
    );
    assert_eq!(
        permissions.publish[9..16],
        [
            "js.v1.$KV.KEYS.>",
            "js.v1.STREAM.INFO.KV_KEYS",
            "js.v1.DIRECT.GET.KV_KEYS.$KV.KEYS.>",
            "js.v1.CONSUMER.CREATE.KV_KEYS",
            "js.v1.CONSUMER.CREATE.KV_KEYS.>",
            "js.v1.CONSUMER.INFO.KV_KEYS.*",
            "js.v1.CONSUMER.DELETE.KV_KEYS.*",
        ]
    );
    let callbacks: Vec<&String> = permissions.publish.iter().filter(|subject| subject.to_lowercase().contains("callback")).collect();
    assert_eq!(
        callbacks,
        [
            "callback.v1.>",
            "$JS.ACK.CALLBACKS.>",
            "js.v1.STREAM.INFO.CALLBACKS",
            "js.v1.CONSUMER.INFO.CALLBACKS.deliver",
            "js.v1.CONSUMER.MSG.NEXT.CALLBACKS.deliver",
            "js.v1.CONSUMER.INFO.CALLBACKS.deliver-spare",
            "js.v1.CONSUMER.MSG.NEXT.CALLBACKS.deliver-spare",
        ]
    );
    assert_eq!(permissions.subscribe, ["_INBOX_c.api-1.>"]);
    assert!(!permissions.publish.contains(&"js.v1.$KV.PRESENCE.>".to_owned()), "only collectors write PRESENCE");
    let of_replicas: Vec<&String> = permissions.publish.iter().filter(|subject| subject.starts_with("js.v1.$KV.REPLICAS")).collect();
    assert_eq!(of_replicas, ["js.v1.$KV.REPLICAS.api-1"], "each says only of itself that it is there");
    assert!(permissions.publish.contains(&"js.v1.$KV.SERVICES.>".to_owned()), "services are granted over HTTP, too");
    assert!(!permissions.publish.iter().any(|subject| subject.starts_with("api.v1.")), "nobody but services knocks at the front door");
}

#[test]
fn a_command_of_the_operator_changes_the_registers_and_asks_no_node() {
    let permissions = Role::Registrar { name: "command-1".parse().unwrap() }.permissions().unwrap();
    assert_eq!(permissions.publish[..2], ["$JS.FC.>", "js.v1.$KV.KEYS.>"]);
    check(&Role::Recorder { name: "command-1".parse().unwrap() }, &["audit.v1.command.command-1"], &["_INBOX_c.command-1.>"]);
    for bucket in ["KEYS", "NODES", "SERVICES"] {
        assert!(permissions.publish.contains(&format!("js.v1.$KV.{bucket}.>")), "{bucket}");
    }
    assert!(!permissions.publish.iter().any(|subject| subject.starts_with("job.") || subject.starts_with("node.")));
    assert_eq!(permissions.subscribe, ["_INBOX_c.command-1.>"]);
}

#[test]
fn the_parts_of_the_control_plane_have_what_they_need_and_no_more() {
    check(
        &Role::Collector { name: "c1".parse().unwrap() },
        &["audit.v1.node.*", "js.v1.$KV.PRESENCE.>", "js.v1.STREAM.INFO.KV_PRESENCE", "js.v1.DIRECT.GET.KV_PRESENCE.$KV.PRESENCE.>"],
        &["ev.v1.> c", "_INBOX_c.c1.>"],
    );
    check(&Role::Acknowledger, &["_INBOX_n.*.>"], &["_INBOX_c.acknowledger.>"]);
    assert_eq!(Role::Acknowledger.permissions().unwrap().max_subscriptions, Some(1));
    check(&Role::FrontDoor, &["_INBOX_f.*.>"], &["_INBOX_c.frontdoor.>", "api.v1.run.* f", "$SRV.>"]);
    check(&Role::Observer, &["$SRV.>"], &["_INBOX_f.observer.>"]);
    check(&Role::Reloader, &["$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.*.RELOAD"], &["_INBOX_c.reloader.>"]);
    check(&Role::Keymaster, &["$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.SERVER.PING"], &["_INBOX_c.keymaster.>"]);
    check(&Role::KeymasterDesk, &["_INBOX_c.*.>", "audit.v1.keymaster.keymaster-desk"], &["_INBOX_c.keymaster-desk.>", "key.v1.> k"]);
    check(
        &Role::Presence { accounts: vec!["ACC".to_owned()] },
        &["$SYS.REQ.SERVER.*.KICK", "$SYS.REQ.ACCOUNT.ACC.CONNZ"],
        &[
            "_INBOX_c.presence.>",
            "$SYS.SERVER.*.CLIENT.AUTH.ERR",
            "$SYS.ACCOUNT.$G.DISCONNECT",
            "$SYS.ACCOUNT.ACC.CONNECT",
            "$SYS.ACCOUNT.ACC.DISCONNECT",
        ],
    );
    check(
        &Role::Sentry,
        &["audit.v1.violation.sentry", "key.v1.revoke.sentry", "_INBOX_n.*.cut", "js.v1.$KV.REVOKED.>"],
        &["_INBOX_c.sentry.>"],
    );
    check(
        &Role::Auditor,
        &["js.v1.DIRECT.GET.AUDIT", "js.v1.STREAM.INFO.AUDIT", "js.v1.DIRECT.GET.AUDIT.audit.v1.>"],
        &["_INBOX_c.auditor.>"],
    );
    check(
        &Role::Mirror,
        &[
            "$JS.probeops.API.CONSUMER.CREATE.AUDIT",
            "$JS.probeops.API.CONSUMER.CREATE.AUDIT.>",
            "$JS.probeops.API.STREAM.INFO.AUDIT",
            "$JS.FC.>",
        ],
        &["mirror.audit.>", "$JSC.>", "_INBOX.>"],
    );
    check(
        &Role::AuditProvisioner,
        &["$JS.API.STREAM.INFO.AUDIT", "$JS.API.STREAM.CREATE.AUDIT", "$JS.API.STREAM.UPDATE.AUDIT"],
        &["_INBOX_c.audit-provisioner.>"],
    );
}

#[test]
fn no_list_is_empty_because_the_broker_takes_that_for_everything() {
    for role in every_role() {
        let permissions = role.permissions().unwrap();
        assert!(!permissions.publish.is_empty() && !permissions.subscribe.is_empty(), "{role:?}");
        assert!(!permissions.publish.iter().chain(&permissions.subscribe).any(|subject| subject == REST), "{role:?}");
    }
}

/// Whether some subject fits both patterns.
fn overlap(left: &str, right: &str) -> bool {
    let mut lefts = left.split('.');
    let mut rights = right.split('.');
    loop {
        match (lefts.next(), rights.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == ANY || b == ANY => {}
            _ => return false,
        }
    }
}

#[test]
fn what_nodes_publish_no_node_subscribes_and_no_stream_keeps() {
    let nodes =
        ["n1", "n2"].map(|id| Role::Node { node: id.parse().unwrap(), region: "eu".parse().unwrap(), tools: ToolName::ALL.to_vec() });
    let all = nodes.map(|role| role.permissions().unwrap());
    let streams = application(1).into_iter().chain([audit(1)]);
    let kept: Vec<String> =
        streams.flat_map(|stream| serde_json::from_value::<Vec<String>>(stream.config["subjects"].clone()).unwrap()).collect();
    assert!(kept.len() > application(1).len(), "{kept:?}");
    for published in all.iter().flat_map(|permissions| &permissions.publish) {
        for subscribed in all.iter().flat_map(|permissions| &permissions.subscribe) {
            let subject = subscribed.split(' ').next().unwrap();
            assert!(!overlap(published, subject), "{published} and {subscribed}");
        }
        for subject in &kept {
            assert!(!overlap(published, subject), "{published} and {subject}");
        }
    }
}
