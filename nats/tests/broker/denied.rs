//! What each kind of credential must not do, refused by the broker.

mod replica;

use fixture::{Broker, Sentry, api, collector, node, recorder, registrar, service, service_at_the_door, store};
use probeops_nats::permissions::Role;
use probeops_nats::sentry::Bounds;
use probeops_shared::audit::Record;
use probeops_shared::subjects::broker;

use crate::fixture;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Publish(&'static str),
    Subscribe(&'static str),
    Join(&'static str, &'static str),
}
use Attempt::{Join, Publish, Subscribe};

/// What would make the trail forget, by its own API and by those that reach across accounts.
const ON_THE_TRAIL: [Attempt; 18] = [
    Publish("$JS.API.STREAM.DELETE.AUDIT"),
    Publish("$JS.API.STREAM.PURGE.AUDIT"),
    Publish("$JS.API.STREAM.UPDATE.AUDIT"),
    Publish("$JS.API.STREAM.CREATE.AUDIT"),
    Publish("$JS.API.STREAM.RESTORE.AUDIT"),
    Publish("$JS.API.STREAM.SNAPSHOT.AUDIT"),
    Publish("$JS.API.STREAM.MSG.DELETE.AUDIT"),
    Publish("$JS.API.STREAM.PEER.REMOVE.AUDIT"),
    Publish("$JS.API.STREAM.LEADER.STEPDOWN.AUDIT"),
    Publish("$JS.API.CONSUMER.CREATE.AUDIT"),
    Publish("$JS.API.CONSUMER.CREATE.AUDIT.x"),
    Publish("$JS.API.CONSUMER.DURABLE.CREATE.AUDIT.x"),
    Publish("$JS.API.CONSUMER.DELETE.AUDIT.x"),
    Publish("$JS.API.ACCOUNT.PURGE.AUDIT"),
    Publish("$JS.API.META.LEADER.STEPDOWN"),
    Publish("$JS.API.SERVER.REMOVE"),
    Publish("audit.v1.other.writer"),
    Subscribe("audit.v1.>"),
];

/// What is tried is refused, and in the trail: by whom, and on what subject.
pub(crate) async fn refuses((broker, sentry): &(Broker, Sentry), role: &Role, attempts: &[Attempt]) {
    let mut connection = broker.connect(role).await;
    let mut tried = Vec::new();
    for attempt in attempts {
        let subject = match *attempt {
            Publish(subject) => {
                connection.client.publish(subject, "x".into()).await.unwrap();
                subject
            }
            Subscribe(subject) => {
                drop(connection.client.subscribe(subject).await.unwrap());
                subject
            }
            Join(subject, queue) => {
                drop(connection.client.queue_subscribe(subject, queue.to_owned()).await.unwrap());
                subject
            }
        };
        let refused = connection.violation().await;
        assert!(refused.contains(&format!("\"{subject}\"")), "{role:?} {attempt:?}: {refused}");
        tried.push(*attempt);
    }
    let principal = match role {
        Role::Node { .. } => format!("node:{}", role.name()),
        Role::Service { .. } => format!("service:{}", role.name()),
        _ => format!("part:{}", role.name()),
    };
    let key = format!("key {} of account {}", connection.credentials.public_key, role.account().as_str());
    let noticed = |record: &Record, attempt: &Attempt| {
        let (subject, what) = match attempt {
            Publish(subject) => (subject, "publish".to_owned()),
            Subscribe(subject) => (subject, "subscribe".to_owned()),
            Join(subject, queue) => (subject, format!("subscribe in queue group {queue}")),
        };
        record.principal == principal
            && record.target == **subject
            && record.detail.starts_with(&format!("{what};"))
            && record.detail.contains(&key)
    };
    sentry.notices(tried, noticed).await;
    connection.client.drain().await.unwrap();
}

/// The same attempts on streams and buckets as those make them who have them from another account.
pub(crate) fn by_keepers(attempts: &[Attempt]) -> Vec<Attempt> {
    let here = |subject: &str| -> &'static str { broker::said_by_keepers(subject).leak() };
    let made = attempts.iter().map(|attempt| match *attempt {
        Publish(subject) => Publish(here(subject)),
        Subscribe(subject) => Subscribe(here(subject)),
        Join(subject, queue) => Join(here(subject), queue),
    });
    made.collect()
}

/// A broker, and a sentry that cuts nobody: what is tried here is not a flood.
pub(crate) async fn watched() -> (Broker, Sentry) {
    let broker = Broker::start().await;
    let sentry = broker.sentry(Bounds { violations: u32::MAX, ..Bounds::default() }).await;
    (broker, sentry)
}

#[tokio::test]
async fn no_credential_that_runs_makes_the_trail_forget() {
    let broker = watched().await;
    let running = [
        node("n1", "eu"),
        service("svc"),
        service_at_the_door("svc"),
        api(),
        store(),
        collector(),
        registrar(),
        recorder(),
        Role::Acknowledger,
        Role::FrontDoor,
        Role::Observer,
        Role::Auditor,
        broker.0.presence(),
        Role::Sentry,
        Role::Keymaster,
        Role::KeymasterDesk,
        Role::Reloader,
    ];
    for role in &running {
        refuses(&broker, role, &ON_THE_TRAIL).await;
    }
    // Whoever may change the stream, which is not kept online, cannot make it forget either, but by what age it lets things go.
    let provisioner: Vec<Attempt> = ON_THE_TRAIL
        .into_iter()
        .filter(|attempt| !matches!(attempt, Publish("$JS.API.STREAM.UPDATE.AUDIT" | "$JS.API.STREAM.CREATE.AUDIT")))
        .collect();
    refuses(&broker, &Role::AuditProvisioner, &provisioner).await;
}

const NODE_ATTEMPTS: &[Attempt] = &[
    Subscribe("job.v1.eu.echo.*"),
    Join("job.v1.eu.echo.*", "other"),
    Join("job.v1.us.echo.*", "w"),
    Join("job.v1.eu.ping.*", "w"),
    Subscribe(">"),
    Subscribe("node.v1.n2.>"),
    Subscribe("_INBOX.>"),
    Subscribe("_INBOX.api-1.>"),
    Subscribe("_INBOX_n.n2.>"),
    Subscribe("ev.v1.>"),
    Subscribe("$SYS.>"),
    Publish("_INBOX.api-1.token.n2"),
    Publish("_INBOX.api-1.token._"),
    Publish("_INBOX_n.n1.x"),
    Publish("_INBOX_c.api-1.x"),
    Publish("ev.v1.eu.n2.beat"),
    Publish("ev.v1.us.n1.beat"),
    Publish("job.v1.eu.echo.n1"),
    Publish("api.v1.run.n1"),
    Publish("api.v1.run.svc"),
    Publish("$SRV.PING"),
    Join("api.v1.run.*", "f"),
    Subscribe("$SRV.>"),
    Publish("node.v1.n2.ctl.cancel.api-1"),
    Publish("audit.v1.node.n1"),
    Publish("key.v1.mint_node.n1"),
    Publish("key.v1.revoke.api-1"),
    Join("key.v1.>", "k"),
    Publish("$JS.API.STREAM.INFO.JOBS"),
    Publish("$KV.PRESENCE.eu.n1"),
    Publish("callback.v1.x"),
    Publish("later.v1.online.x"),
    Publish("sched.v1.x"),
    Publish("$JS.ACK.CALLBACKS.deliver.1.1.1.1.0"),
    Publish("$SYS.REQ.SERVER.PING"),
    Subscribe("*"),
    Subscribe("job.v1.>"),
    Join("job.v1.>", "w"),
    Join("job.v1.eu.*.*", "w"),
    Subscribe("node.v1.>"),
    Subscribe("node.v1.*.job.echo.*"),
    Join("node.v1.n2.>", "w"),
    Subscribe("_INBOX_n.>"),
    Subscribe("_INBOX_f.>"),
    Subscribe("_INBOX_c.>"),
    // Not even where it answers itself.
    Subscribe("_INBOX.api-1.token.n1"),
    Join("ev.v1.>", "c"),
    Join("key.v1.>", "k"),
    Subscribe("audit.v1.>"),
    Subscribe("jobs.v1.>"),
    Subscribe("$KV.>"),
    Subscribe("$JS.>"),
    Subscribe("$JS.EVENT.ADVISORY.>"),
    Publish("_INBOX.svc.n1"),
    Publish("_INBOX.svc.a.b.n1"),
    Publish("_INBOX.api-1.token.n1.x"),
    Publish("_INBOX_f.svc.x"),
    Publish("_INBOX_n.n2.cut"),
    Publish("ev.v1.eu.*.beat"),
    Publish("node.v1.n1.job.echo.n1"),
    Publish("node.v1.n2.job.echo.svc"),
    Publish("job.v1.eu.echo.api-1"),
    Publish("key.v1.mint_node.n1"),
    Publish("key.v1.revoke.sentry"),
    Publish("rep.v1.api-1.cancel.n1"),
    Publish("jobs.v1.o.x.state"),
    Publish("audit.v1.violation.sentry"),
    Publish("$KV.NODES.n1"),
    Publish("$KV.KEYS.x"),
    Publish("$JS.API.INFO"),
    Publish("$JS.API.STREAM.CREATE.X"),
    Publish("$JS.API.STREAM.DELETE.AUDIT"),
    Publish("$JS.FC.x"),
    Publish("$SYS.REQ.CLAIMS.UPDATE"),
    Publish("$SYS.REQ.SERVER.PING.CONNZ"),
    Publish("$SYS.REQ.USER.INFO"),
];

const NODE_TO_THE_OTHER: &[Attempt] = &[
    Publish("node.v1.n2.job.echo.n1"),
    Publish("node.v1.n2.ctl.cancel.n1"),
    Publish("node.v1.n2.x"),
    Publish("_INBOX_n.n2.x"),
    Publish("_INBOX.n2.t.n2"),
    Subscribe("_INBOX.n1.>"),
    Subscribe("_INBOX.*.*.n2"),
    Subscribe("ev.v1.eu.n2.>"),
];

const NODE_TO_THE_FIRST: &[Attempt] = &[
    Publish("node.v1.n1.job.echo.n2"),
    Publish("_INBOX_n.n1.x"),
    Publish("_INBOX.api-1.t.n1"),
    Publish("ev.v1.eu.n1.x"),
    Subscribe("_INBOX.*.*.n1"),
    Subscribe("ev.v1.eu.n1.x"),
];

#[tokio::test]
async fn a_node_may_not() {
    let broker = watched().await;
    refuses(&broker, &node("n1", "eu"), NODE_ATTEMPTS).await;
    // Two in one hand: neither can send the other anything, so neither gets a message with a reply subject of its own choice.
    refuses(&broker, &node("n1", "eu"), NODE_TO_THE_OTHER).await;
    refuses(&broker, &node("n2", "eu"), NODE_TO_THE_FIRST).await;
}

#[tokio::test]
async fn a_service_may_not() {
    let broker = watched().await;
    let attempts = [
        Publish("job.v1.us.echo.svc"),
        Publish("job.v1.eu.ping.svc"),
        Publish("job.v1.eu.echo.other"),
        Publish("job.v1.eu.echo.api-1"),
        Publish("node.v1.n2.job.echo.svc"),
        Publish("node.v1.n1.ctl.cancel.svc"),
        Publish("api.v1.run.other"),
        Publish("$SRV.PING"),
        Join("api.v1.run.*", "f"),
        Join("api.v1.run.svc", "f"),
        Publish("_INBOX.other.token.n1"),
        Publish("_INBOX.svc.token.n1"),
        Publish("ev.v1.eu.n1.beat"),
        Publish("audit.v1.api.svc"),
        Publish("jobs.v1.o.x.state"),
        Publish("callback.v1.x"),
        Publish("later.v1.online.x"),
        Publish("sched.v1.x"),
        Publish("rep.v1.api-1.cancel.svc"),
        Publish("key.v1.mint_service.svc"),
        Publish("key.v1.mint_service.api-1"),
        Join("key.v1.>", "k"),
        Publish("$KV.KEYS.x"),
        Publish("$KV.SECRETS.o.x"),
        Publish("$JS.API.STREAM.INFO.JOBS"),
        Subscribe("_INBOX.other.>"),
        Subscribe("_INBOX.>"),
        Subscribe("job.v1.>"),
        Join("job.v1.eu.echo.*", "w"),
        Subscribe("node.v1.n1.>"),
        Subscribe(">"),
        Subscribe("_INBOX_f.other.>"),
        Subscribe("_INBOX_f.>"),
        Subscribe("_INBOX.*.*.n1"),
        Subscribe("_INBOX_n.n1.>"),
        Subscribe("_INBOX_c.api-1.>"),
        Subscribe("ev.v1.>"),
        Join("ev.v1.>", "c"),
        Join("key.v1.>", "k"),
        Subscribe("audit.v1.>"),
        Subscribe("$SYS.>"),
        Subscribe("$SRV.>"),
        Subscribe("$KV.>"),
        Publish("_INBOX_f.svc.x"),
        Publish("_INBOX_f.other.x"),
        Publish("job.v1.*.echo.svc"),
        Publish("job.v1.eu.echo.svc.x"),
        Publish("key.v1.mint_service.svc"),
        Publish("key.v1.revoke.svc"),
        Publish("audit.v1.violation.svc"),
        Publish("$JS.API.STREAM.CREATE.X"),
        Publish("$JS.API.STREAM.DELETE.AUDIT"),
        Publish("$SYS.REQ.CLAIMS.UPDATE"),
        Publish("$SYS.REQ.USER.INFO"),
    ];
    refuses(&broker, &service("svc"), &attempts).await;
    let at_the_door = [
        Publish("job.v1.eu.echo.svc"),
        Publish("node.v1.n1.job.echo.svc"),
        Publish("api.v1.run.other"),
        Subscribe("_INBOX.other.>"),
        Subscribe(">"),
    ];
    refuses(&broker, &service_at_the_door("svc"), &at_the_door).await;
}

#[tokio::test]
async fn a_command_of_the_operator_may_not() {
    let broker = watched().await;
    let attempts = [
        Publish("job.v1.eu.echo.command-1"),
        Publish("node.v1.n1.job.echo.command-1"),
        Publish("node.v1.n1.ctl.drain.command-1"),
        Publish("_INBOX_n.n1.x"),
        Publish("jobs.v1.o.x.state"),
        Publish("rep.v1.api-1.cancel.svc"),
        Publish("audit.v1.api.api-1"),
        Publish("audit.v1.command.command-2"),
        Publish("api.v1.run.command-1"),
        Publish("$KV.PRESENCE.eu.n1"),
        Publish("$JS.API.STREAM.PURGE.KV_KEYS"),
        Publish("$JS.API.STREAM.DELETE.KV_NODES"),
        Publish("callback.v1.x"),
        Publish("later.v1.online.x"),
        Publish("sched.v1.x"),
        Publish("$JS.API.DIRECT.GET.KV_SECRETS"),
        Publish("$JS.API.STREAM.MSG.DELETE.AUDIT"),
        Publish("$SYS.REQ.CLAIMS.UPDATE"),
        Subscribe("_INBOX_c.command-2.>"),
        Subscribe("$KV.KEYS.>"),
        Subscribe(">"),
    ];
    refuses(&broker, &registrar(), &attempts).await;
    refuses(&broker, &registrar(), &by_keepers(&attempts)).await;
    refuses(&broker, &registrar(), &[Publish("audit.v1.command.command-1")]).await;
    refuses(&broker, &recorder(), &attempts).await;
    refuses(&broker, &recorder(), &[Publish("$KV.KEYS.x"), Publish("$JS.API.STREAM.INFO.KV_KEYS"), Publish("$KV.TOKENS.x")]).await;
}

const PART_COLLECTING: &[Attempt] = &[
    Publish("$KV.KEYS.x"),
    Publish("$KV.NODES.n1"),
    Publish("audit.v1.api.api-1"),
    Publish("audit.v1.violation.sentry"),
    Publish("job.v1.eu.echo.api-1"),
    Publish("node.v1.n1.ctl.drain.api-1"),
    Publish("_INBOX_n.n1.x"),
    Publish("jobs.v1.o.x.state"),
    Publish("rep.v1.api-1.cancel.svc"),
    Publish("$JS.API.STREAM.PURGE.KV_PRESENCE"),
    Publish("$JS.API.CONSUMER.CREATE.KV_PRESENCE"),
    Subscribe("ev.v1.>"),
    Join("ev.v1.>", "other"),
    Subscribe("_INBOX.api-1.>"),
];

const PART_ACKNOWLEDGING: &[Attempt] = &[
    Publish("_INBOX.api-1.token.n1"),
    Publish("_INBOX_c.api-1.x"),
    Publish("_INBOX_n.n1"),
    Publish("job.v1.eu.echo.api-1"),
    Publish("node.v1.n1.ctl.drain.api-1"),
    Publish("ev.v1.eu.n1.beat"),
    Publish("audit.v1.node.api-1"),
    Publish("$KV.PRESENCE.eu.n1"),
    Publish("$JS.API.STREAM.INFO.JOBS"),
    Subscribe("_INBOX_n.n1.>"),
    Subscribe("ev.v1.>"),
    Subscribe(">"),
];

const PART_FRONT_DOOR: &[Attempt] = &[
    Publish("job.v1.eu.echo.svc"),
    Publish("job.v1.eu.echo.frontdoor"),
    Publish("node.v1.n1.ctl.drain.api-1"),
    Publish("api.v1.run.svc"),
    Publish("_INBOX_n.n1.x"),
    Publish("_INBOX_c.api-1.x"),
    // What a node would answer: whoever has the front door cannot pass for one.
    Publish("_INBOX.svc.token.n1"),
    Publish("_INBOX.api-1.token.n1"),
    Publish("_INBOX.svc.x"),
    Subscribe("_INBOX_f.svc.>"),
    Publish("rep.v1.api-1.cancel.frontdoor"),
    Publish("audit.v1.api.api-1"),
    Publish("$KV.SERVICES.svc"),
    Publish("$JS.API.STREAM.INFO.JOBS"),
    Publish("$SRV.PING"),
    Subscribe("api.v1.run.*"),
    Join("api.v1.run.*", "other"),
    Subscribe("_INBOX.svc.>"),
    Subscribe(">"),
];

const PART_OBSERVING: &[Attempt] = &[
    Publish("api.v1.run.svc"),
    Publish("api.v1.run.observer"),
    Publish("job.v1.eu.echo.observer"),
    Publish("_INBOX.svc.t.n1"),
    Publish("$JS.API.STREAM.INFO.JOBS"),
    Publish("$KV.SERVICES.svc"),
    Subscribe("_INBOX.svc.>"),
    Subscribe("$SRV.>"),
    Subscribe("api.v1.run.*"),
    Subscribe(">"),
];

const PART_PRESENCE: &[Attempt] = &[
    Publish("$SYS.REQ.CLAIMS.UPDATE"),
    Publish("$SYS.REQ.SERVER.PING"),
    Publish("$SYS.REQ.SERVER.PING.VARZ"),
    Publish("$SYS.REQ.SERVER.x.RELOAD"),
    Publish("$SYS.REQ.ACCOUNT.PING.CONNZ"),
    Publish("$SYS.REQ.ACCOUNT.x.CONNZ"),
    Publish("$SYS.REQ.CLAIMS.DELETE"),
    Publish("$JS.API.ACCOUNT.PURGE.x"),
    Subscribe("$SYS.>"),
    Subscribe("$SYS.ACCOUNT.*.CONNECT"),
    Subscribe("$SYS.SERVER.>"),
];

const PART_SENTRY: &[Attempt] = &[
    Publish("audit.v1.violation.other"),
    Publish("audit.v1.node.sentry"),
    Publish("key.v1.mint_node.sentry"),
    Publish("key.v1.revoke.api-1"),
    Publish("_INBOX_n.n1.x"),
    Publish("_INBOX.svc.token.n1"),
    Publish("$KV.NODES.n1"),
    Publish("$KV.REVOKED.x"),
    Publish("js.v1.$KV.NODES.n1"),
    Publish("js.v1.$KV.PRESENCE.eu.n1"),
    Publish("$JS.API.STREAM.INFO.KV_NODES"),
    Publish("$JS.API.DIRECT.GET.KV_REVOKED.$KV.REVOKED.x"),
    Publish("job.v1.eu.echo.sentry"),
    Publish("$SYS.REQ.SERVER.x.KICK"),
    Subscribe("audit.v1.>"),
    Subscribe("ev.v1.>"),
    Subscribe(">"),
];

#[tokio::test]
async fn the_parts_of_the_control_plane_may_not() {
    let broker = watched().await;
    refuses(&broker, &collector(), PART_COLLECTING).await;
    refuses(&broker, &Role::Acknowledger, PART_ACKNOWLEDGING).await;
    refuses(&broker, &Role::FrontDoor, PART_FRONT_DOOR).await;
    refuses(&broker, &Role::Observer, PART_OBSERVING).await;
    refuses(&broker, &broker.0.presence(), PART_PRESENCE).await;
    refuses(&broker, &Role::Sentry, PART_SENTRY).await;
}

const POWER_KEYMASTER: &[Attempt] = &[
    Publish("$SYS.REQ.CLAIMS.DELETE"),
    Publish("$SYS.REQ.CLAIMS.LIST"),
    Publish("$SYS.REQ.SERVER.PING.CONNZ"),
    Publish("$SYS.REQ.SERVER.x.KICK"),
    Publish("$SYS.REQ.SERVER.x.LDM"),
    Publish("$SYS.REQ.ACCOUNT.x.CLAIMS.LOOKUP"),
    Publish("$JS.API.ACCOUNT.PURGE.x"),
    Publish("$JS.API.STREAM.DELETE.AUDIT"),
    Publish("anything"),
    Subscribe("$SYS.>"),
    Subscribe("$SYS.ACCOUNT.*.CONNECT"),
    Subscribe(">"),
];

const POWER_DESK: &[Attempt] = &[
    Publish("_INBOX.api-1.token.n1"),
    Publish("_INBOX_n.n1.x"),
    Publish("_INBOX_f.svc.x"),
    Publish("key.v1.revoke.api-1"),
    Publish("job.v1.eu.echo.keymaster-desk"),
    Publish("audit.v1.api.keymaster-desk"),
    Publish("$KV.NODES.n1"),
    Publish("$JS.API.STREAM.INFO.KV_NODES"),
    Publish("job.v1.eu.echo.api-1"),
    Publish("audit.v1.api.api-1"),
    Publish("$KV.NODES.x"),
    Publish("$JS.API.STREAM.INFO.JOBS"),
    Publish("$SYS.REQ.CLAIMS.UPDATE"),
    Subscribe("key.v1.>"),
    Join("key.v1.>", "other"),
    Subscribe("_INBOX_c.api-1.>"),
    Subscribe("_INBOX_c.>"),
    Subscribe(">"),
];

const POWER_AUDITOR: &[Attempt] = &[
    Publish("audit.v1.api.api-1"),
    Publish("$JS.API.STREAM.DELETE.AUDIT"),
    Publish("$JS.API.STREAM.PURGE.AUDIT"),
    Publish("$JS.API.STREAM.UPDATE.AUDIT"),
    Publish("$JS.API.STREAM.MSG.DELETE.AUDIT"),
    Publish("$JS.API.STREAM.CREATE.OTHER"),
    Publish("$JS.API.CONSUMER.CREATE.AUDIT"),
    Publish("$JS.API.STREAM.SNAPSHOT.AUDIT"),
    Publish("$JS.API.STREAM.LIST"),
    Publish("job.v1.eu.echo.auditor"),
    Subscribe("audit.v1.>"),
    Subscribe(">"),
];

const POWER_PROVISIONER: &[Attempt] = &[
    Publish("$JS.API.STREAM.DELETE.JOBS"),
    Publish("$JS.API.STREAM.PURGE.KV_KEYS"),
    Publish("$JS.API.STREAM.CREATE.OTHER"),
    Publish("$JS.API.STREAM.INFO.OTHER"),
    Publish("$JS.API.CONSUMER.CREATE.KV_KEYS"),
    Publish("$JS.API.CONSUMER.CREATE.CALLBACKS.other"),
    Publish("$JS.API.CONSUMER.MSG.NEXT.CALLBACKS.deliver"),
    Publish("$JS.API.DIRECT.GET.KV_SECRETS"),
    Publish("$JS.API.DIRECT.GET.KV_KEYS"),
    Publish("$KV.KEYS.x"),
    Publish("job.v1.eu.echo.api-1"),
    Publish("audit.v1.api.api-1"),
    Subscribe("jobs.v1.>"),
    Subscribe(">"),
];

const POWER_AUDIT_PROVISIONER: &[Attempt] = &[
    Publish("$JS.API.STREAM.DELETE.AUDIT"),
    Publish("$JS.API.STREAM.PURGE.AUDIT"),
    Publish("$JS.API.STREAM.MSG.DELETE.AUDIT"),
    Publish("$JS.API.STREAM.CREATE.OTHER"),
    Publish("$JS.API.STREAM.RESTORE.AUDIT"),
    Publish("$JS.API.CONSUMER.CREATE.AUDIT"),
    Publish("$JS.API.DIRECT.GET.AUDIT"),
    Publish("audit.v1.api.api-1"),
    Publish("$KV.KEYS.x"),
    Subscribe("audit.v1.>"),
    Subscribe(">"),
];

#[tokio::test]
async fn those_with_power_have_no_other() {
    let broker = watched().await;
    refuses(&broker, &Role::Keymaster, POWER_KEYMASTER).await;
    refuses(&broker, &Role::KeymasterDesk, POWER_DESK).await;
    refuses(&broker, &Role::Auditor, POWER_AUDITOR).await;
    refuses(&broker, &Role::Provisioner, POWER_PROVISIONER).await;
    refuses(&broker, &Role::AuditProvisioner, POWER_AUDIT_PROVISIONER).await;
}
