//! A replica of the API, with both of its credentials.

use super::Attempt::{self, Join, Publish, Subscribe};
use super::{by_keepers, refuses, watched};
use crate::fixture::api;
use probeops_nats::permissions::Role;

/// What is tried with both of its credentials, of which one speaks and the other keeps.
const WITH_BOTH: &[Attempt] = &[
    Publish("job.v1.eu.echo.api-2"),
    Publish("node.v1.n1.ctl.drain.api-2"),
    Publish("_INBOX.api-1.token.n1"),
    Publish("_INBOX_n.n1.x"),
    Publish("ev.v1.eu.n1.beat"),
    Publish("audit.v1.api.api-2"),
    Publish("key.v1.mint_node.api-2"),
    Publish("key.v1.revoke.api-2"),
    Publish("_INBOX_c.api-2.x"),
    Join("key.v1.>", "k"),
    Subscribe("_INBOX_c.api-2.>"),
    Publish("$KV.PRESENCE.eu.n1"),
    Publish("$KV.REPLICAS.api-2"),
    Publish("$JS.API.STREAM.PURGE.KV_REPLICAS"),
    Publish("$JS.API.STREAM.PURGE.KV_IDEMPOTENCY"),
    Publish("$JS.API.STREAM.PURGE.KV_SERVICES"),
    Publish("api.v1.run.svc"),
    Publish("api.v1.run.api-1"),
    Join("api.v1.run.*", "f"),
    Subscribe("$SRV.PING"),
    Publish("$JS.API.STREAM.PURGE.KV_LIMITS"),
    Publish("$JS.API.STREAM.DELETE.JOBS"),
    Publish("$JS.API.STREAM.PURGE.KV_KEYS"),
    Publish("$JS.API.STREAM.UPDATE.KV_KEYS"),
    Publish("$JS.API.STREAM.CREATE.X"),
    Publish("$JS.API.STREAM.PURGE.JOBS"),
    Publish("$JS.API.STREAM.MSG.DELETE.JOBS"),
    Publish("$JS.API.CONSUMER.CREATE.CALLBACKS.deliver"),
    Publish("$JS.API.CONSUMER.CREATE.CALLBACKS"),
    Publish("$JS.API.CONSUMER.DELETE.CALLBACKS.deliver"),
    Publish("$JS.API.CONSUMER.MSG.NEXT.CALLBACKS.other"),
    Publish("$JS.API.STREAM.PURGE.CALLBACKS"),
    Publish("$JS.API.CONSUMER.CREATE.LATER.due"),
    Publish("$JS.API.CONSUMER.CREATE.LATER"),
    Publish("$JS.API.CONSUMER.DELETE.LATER.due"),
    Publish("$JS.API.CONSUMER.MSG.NEXT.LATER.other"),
    Publish("$JS.API.STREAM.UPDATE.LATER"),
    Publish("$JS.API.STREAM.MSG.GET.LATER"),
    // What is due the broker alone says.
    Publish("later.v1.due.x"),
    Publish("$JS.API.CONSUMER.CREATE.KV_SECRETS"),
    Publish("$JS.ACK.JOBS.x.1.1.1.1.0"),
    Publish("rep.v1.api-2.cancel.api-3"),
    Subscribe("rep.v1.api-2.>"),
    Publish("$SYS.REQ.CLAIMS.UPDATE"),
    Subscribe("_INBOX.api-2.>"),
    Subscribe("_INBOX_c.api-2.>"),
    Subscribe("_INBOX.svc.>"),
    Join("job.v1.eu.echo.*", "w"),
    Subscribe("ev.v1.>"),
    Subscribe("$KV.KEYS.>"),
    Subscribe(">"),
    // Nor keys of another: it asks the keymaster in its own name, and speaks for nobody else.
    Publish("key.v1.mint_node.api-2"),
    Publish("key.v1.revoke.sentry"),
    Publish("$KV.REVOKED.x"),
    Publish("_INBOX_f.svc.x"),
    Publish("_INBOX_n.n1.cut"),
    Subscribe("_INBOX_f.svc.>"),
    Join("ev.v1.>", "c"),
    Subscribe("audit.v1.>"),
    // The trail: of its account it sees and reaches nothing.
    Publish("audit.v1.violation.sentry"),
    Publish("audit.v1.violation.api-1"),
    Publish("audit.v1.keymaster.api-1"),
    Publish("audit.v1.keymaster.keymaster-desk"),
    Publish("$JS.API.STREAM.DELETE.AUDIT"),
    Publish("$JS.API.STREAM.PURGE.AUDIT"),
    Publish("$JS.API.STREAM.UPDATE.AUDIT"),
    Publish("$JS.API.STREAM.MSG.DELETE.AUDIT"),
    Publish("$JS.API.STREAM.MSG.GET.AUDIT"),
    Publish("$JS.API.STREAM.CREATE.AUDIT"),
    Publish("$JS.API.STREAM.CREATE.MIRROR"),
    Publish("$JS.API.STREAM.RESTORE.AUDIT"),
    Publish("$JS.API.STREAM.SNAPSHOT.AUDIT"),
    Publish("$JS.API.STREAM.REMOVE.AUDIT"),
    Publish("$JS.API.CONSUMER.CREATE.AUDIT"),
    Publish("$JS.API.CONSUMER.DELETE.AUDIT.x"),
    Publish("$JS.API.DIRECT.GET.AUDIT"),
    Publish("$JS.API.META.LEADER.STEPDOWN"),
    Publish("$JS.API.ACCOUNT.PURGE.x"),
];

/// A replica where it speaks reaches no stream and no bucket …
const SPEAKING_KEEPS: &[Attempt] = &[
    Publish("jobs.v1.o.x.state"),
    Publish("callback.v1.o.x"),
    Publish("later.v1.online.o.x"),
    Publish("sched.v1.x"),
    Publish("$KV.KEYS.x"),
    Publish("$KV.NODES.n1"),
    Publish("$KV.SERVICES.x"),
    Publish("$KV.REPLICAS.api-1"),
    Publish("$JS.API.INFO"),
    Publish("$JS.API.STREAM.INFO.JOBS"),
    Publish("$JS.API.DIRECT.GET.KV_KEYS"),
    Publish("$JS.API.CONSUMER.CREATE.JOBS"),
    Publish("$JS.API.CONSUMER.MSG.NEXT.CALLBACKS.deliver"),
    // Nor what is lent to those beside it.
    Publish("js.v1.$KV.REVOKED.x"),
    Publish("js.v1.$KV.PRESENCE.eu.n1"),
    Publish("js.v1.DIRECT.GET.AUDIT"),
];

/// … and where it keeps them, nobody.
const KEEPING_SPEAKS: &[Attempt] = &[
    Publish("job.v1.eu.echo.api-1"),
    Publish("node.v1.n1.job.echo.api-1"),
    Publish("node.v1.n1.ctl.drain.api-1"),
    Publish("rep.v1.api-2.cancel.api-1"),
    Publish("key.v1.mint_node.api-1"),
    Publish("key.v1.revoke.api-1"),
    Publish("audit.v1.api.api-3"),
    Publish("job.v1.eu.echo.api-3"),
    Publish("key.v1.revoke.api-3"),
    Subscribe("_INBOX.api-3.>"),
    Subscribe("rep.v1.api-3.>"),
];

#[tokio::test]
async fn a_replica_of_the_api_may_not() {
    let broker = watched().await;
    refuses(&broker, &api(), WITH_BOTH).await;
    refuses(&broker, &api(), SPEAKING_KEEPS).await;
    // Of one name a hundred are recorded at once.
    let store = |name: &str| Role::Store { caller: name.parse().unwrap() };
    refuses(&broker, &store("api-3"), KEEPING_SPEAKS).await;
    // Neither as it is said where streams are, nor as it is lent.
    let spelled_there = [WITH_BOTH, SPEAKING_KEEPS].concat().into_iter().filter(|attempt| by_keepers(&[*attempt]) != [*attempt]);
    refuses(&broker, &store("api-4"), &spelled_there.collect::<Vec<_>>()).await;
    refuses(&broker, &store("api-5"), &by_keepers(WITH_BOTH)).await;
}
