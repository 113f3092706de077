//! Credentials of none of the parts that run: of the command that has servers read their certificates again, and of a server of somebody else
//! that keeps a copy of the trail.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use async_nats::jetstream;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, ServerName};
use async_nats::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use data_encoding::BASE64URL_NOPAD;
use denied::Attempt::{Join, Publish, Subscribe};
use denied::{Attempt, refuses, watched};
use fixture::{Broker, PATIENCE, Sentry, api};
use nkeys::KeyPair;
use probeops_nats::connect::{Link, LinkError};
use probeops_nats::permissions::Role;
use probeops_nats::reload::reload;
use probeops_nats::sentry::Bounds;
use probeops_nats::server::ports::free_port;
use probeops_nats::vault::CREDENTIAL_LIFETIME;
use probeops_nats::vault::credentials::Credentials;
use probeops_shared::audit::Record;
use probeops_shared::subjects::{self, broker, storage};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{denied, fixture};

const RELOADING: &[Attempt] = &[
    Publish("$SYS.REQ.CLAIMS.UPDATE"),
    Publish("$SYS.REQ.CLAIMS.DELETE"),
    Publish("$SYS.REQ.CLAIMS.LIST"),
    Publish("$SYS.REQ.CLAIMS.PACK"),
    Publish("$SYS.REQ.SERVER.PING.VARZ"),
    Publish("$SYS.REQ.SERVER.PING.CONNZ"),
    Publish("$SYS.REQ.SERVER.x.KICK"),
    Publish("$SYS.REQ.SERVER.x.LDM"),
    Publish("$SYS.REQ.SERVER.x.CONNZ"),
    Publish("$SYS.REQ.SERVER.x.RELOAD.y"),
    Publish("$SYS.REQ.ACCOUNT.x.CONNZ"),
    Publish("$SYS.REQ.ACCOUNT.x.CLAIMS.LOOKUP"),
    Publish("$SYS.REQ.ACCOUNT.PING.CONNZ"),
    Publish("$SYS.REQ.USER.INFO"),
    Publish("$SYS.ACCOUNT.x.CLAIMS.UPDATE"),
    Publish("$JS.API.ACCOUNT.PURGE.x"),
    Publish("$JS.API.SERVER.REMOVE"),
    Publish("$JS.API.INFO"),
    Publish("$JS.API.STREAM.LIST"),
    Publish("$KV.KEYS.x"),
    Publish("$KV.NODES.n1"),
    Publish("jobs.v1.o.x.state"),
    Publish("job.v1.eu.echo.reloader"),
    Publish("node.v1.n1.ctl.drain.reloader"),
    Publish("key.v1.revoke.reloader"),
    Publish("key.v1.mint_node.api-1"),
    Publish("audit.v1.command.reloader"),
    Publish("audit.v1.violation.sentry"),
    Publish("_INBOX_c.keymaster.x"),
    Publish("_INBOX_n.n1.x"),
    Publish("anything"),
    Subscribe("$SYS.>"),
    Subscribe("$SYS.ACCOUNT.*.CONNECT"),
    Subscribe("$SYS.SERVER.>"),
    Subscribe("$SYS.REQ.CLAIMS.UPDATE"),
    Subscribe("_INBOX_c.keymaster.>"),
    Subscribe("_INBOX.>"),
    Join("key.v1.>", "k"),
    Subscribe(">"),
];

#[tokio::test]
async fn who_has_servers_read_their_certificates_again_may_nothing_else() {
    let broker = watched().await;
    refuses(&broker, &Role::Reloader, RELOADING).await;
}

#[tokio::test]
async fn a_command_has_servers_read_their_certificates_again() {
    let broker = Broker::start().await;
    let reloaded = reload(&broker.layout, &broker.servers(), Some(broker.layout.ca_certificate())).await;
    assert_eq!(reloaded.unwrap(), ["probeops"]);
    let mut connection = broker.connect(&Role::Reloader).await;
    let asked = async |subject: String| -> Value {
        let answer = timeout(PATIENCE, connection.client.request(subject, "".into())).await.unwrap().unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    };
    let pinged = asked(broker::SERVER_PING.to_owned()).await;
    let id = pinged["server"]["id"].as_str().unwrap();
    let answer = asked(broker::server_reload(id)).await;
    assert!(answer["server"]["id"] == *id && answer.get("error").is_none(), "{answer}");
    assert!(connection.violations_so_far().is_empty());
}

/// A broker that servers of others may connect to, and a sentry that cuts nobody.
async fn mirrored() -> (Broker, Sentry, SocketAddr) {
    let mut broker = Broker::configured();
    let mirrors = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    broker.settings.mirrors = Some(mirrors);
    broker.settings.write(&broker.vault, &broker.layout.server_conf()).unwrap();
    broker.run().await.unwrap();
    Box::pin(broker.provision()).await.unwrap();
    let sentry = broker.sentry(Bounds { violations: u32::MAX, ..Bounds::default() }).await;
    (broker, sentry, mirrors)
}

/// A server of somebody else that obeys nothing of what it is told that it may: it speaks the protocol by hand.
struct Leaf {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Leaf {
    /// Comes in with this credential, over TLS.
    fn connect(to: SocketAddr, ca: &[u8], credentials: &Credentials) -> Self {
        let mut tcp = TcpStream::connect(to).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        // Its greeting comes in the clear, byte by byte so that nothing of TLS is taken.
        let mut greeting = Vec::new();
        while !greeting.ends_with(b"\r\n") {
            let mut byte = [0];
            tcp.read_exact(&mut byte).unwrap();
            greeting.push(byte[0]);
        }
        let info: Value = serde_json::from_slice(greeting.strip_prefix(b"INFO ").unwrap()).unwrap();
        assert_eq!(info["tls_required"], true, "{info}");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca).unwrap()).unwrap();
        let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
        let tls = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
        let mut leaf = Self { stream: BufReader::new(StreamOwned::new(tls, tcp)) };
        let signed = KeyPair::from_seed(&credentials.seed).unwrap().sign(info["nonce"].as_str().unwrap().as_bytes()).unwrap();
        let connect = json!({
            "jwt": credentials.jwt, "sig": BASE64URL_NOPAD.encode(&signed), "server_id": "NLEAF", "name": "leaf", "domain": "leaf", "headers": true,
            "jetstream": true, "tls_required": true,
        });
        leaf.say(&format!("CONNECT {connect}\r\nPING\r\n"));
        leaf
    }

    fn say(&mut self, words: &str) {
        self.stream.get_mut().write_all(words.as_bytes()).unwrap();
        self.stream.get_mut().flush().unwrap();
    }

    /// The next line that begins so, or all that was said until the end.
    fn hears(&mut self, beginning: &str) -> Result<String, String> {
        let mut said = String::new();
        loop {
            let mut line = String::new();
            match self.stream.read_line(&mut line) {
                Ok(0) | Err(_) => return Err(said),
                Ok(_) if line.starts_with(beginning) => return Ok(line),
                Ok(_) => said.push_str(&line),
            }
        }
    }

    /// All that is said until a line has this.
    fn until(&mut self, part: &str) -> String {
        let mut said = String::new();
        while !said.lines().last().is_some_and(|line| line.contains(part)) {
            let mut line = String::new();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "it ends: {said}");
            said.push_str(&line);
        }
        said
    }

    fn tries(&mut self, attempt: Attempt) {
        match attempt {
            Publish(subject) => self.say(&format!("LMSG {subject} 1\r\nx\r\nPING\r\n")),
            Subscribe(subject) => self.say(&format!("LS+ {subject}\r\nPING\r\n")),
            Join(subject, queue) => self.say(&format!("LS+ {subject} {queue} 1\r\nPING\r\n")),
        }
    }
}

const MIRRORING: &[Attempt] = &[
    Publish("audit.v1.api.api-1"),
    Publish("audit.v1.violation.sentry"),
    Publish("$JS.API.INFO"),
    Publish("$JS.API.STREAM.INFO.AUDIT"),
    Publish("$JS.probeops.API.STREAM.DELETE.AUDIT"),
    Publish("$JS.probeops.API.STREAM.PURGE.AUDIT"),
    Publish("$JS.probeops.API.STREAM.UPDATE.AUDIT"),
    Publish("$JS.probeops.API.STREAM.CREATE.OTHER"),
    Publish("$JS.probeops.API.STREAM.MSG.DELETE.AUDIT"),
    Publish("$JS.probeops.API.STREAM.MSG.GET.AUDIT"),
    Publish("$JS.probeops.API.STREAM.RESTORE.AUDIT"),
    Publish("$JS.probeops.API.STREAM.SNAPSHOT.AUDIT"),
    Publish("$JS.probeops.API.STREAM.LIST"),
    Publish("$JS.probeops.API.CONSUMER.DELETE.AUDIT.x"),
    Publish("$JS.probeops.API.CONSUMER.DURABLE.CREATE.AUDIT.x"),
    Publish("$JS.probeops.API.CONSUMER.MSG.NEXT.AUDIT.x"),
    Publish("$JS.probeops.API.DIRECT.GET.AUDIT"),
    Publish("$SYS.REQ.CLAIMS.UPDATE"),
    Publish("$SYS.REQ.SERVER.PING"),
    Publish("$SYS.REQ.USER.INFO"),
    Publish("$KV.KEYS.x"),
    Publish("job.v1.eu.echo.mirror"),
    Publish("key.v1.revoke.sentry"),
    Publish("mirror.audit.x"),
    Publish("_INBOX_c.auditor.x"),
    Subscribe("audit.v1.api.api-1"),
    Join("job.v1.eu.echo.x", "w"),
];

/// What it may subscribe, because the broker judges a pattern only when it has something for it: nothing of it comes.
const HEARD_BY_OTHERS: [&str; 8] = ["_R_.>", "audit.v1.>", "$JS.API.>", "$JS.probeops.API.>", "$JS.EVENT.>", "_INBOX_c.>", "job.v1.>", ">"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_that_copies_the_trail_may_nothing_else_whatever_it_sends() {
    let (broker, sentry, mirrors) = mirrored().await;
    let creds = broker.layout.creds("mirror");
    let credentials = broker.vault.mint_to(&creds, &Role::Mirror, CREDENTIAL_LIFETIME).unwrap();
    // No client comes in with it, over whatever transport.
    let websocket = format!("wss://localhost:{}", broker.settings.websocket.unwrap().listen.port());
    for servers in [broker.servers(), vec![websocket]] {
        let refused = broker.try_connect(&Link { servers, ..broker.link(creds.clone()) }).await;
        assert!(matches!(refused, Err(LinkError::Refused(_))), "{:?}", refused.err());
    }
    sentry.notices(vec!["it says it is mirror ("], |record: &Record, words| record.detail.contains(words)).await;
    // And no server comes in with one that is for clients.
    let ca = std::fs::read(broker.layout.ca_certificate()).unwrap();
    let of_an_api = broker.vault.mint(&api(), CREDENTIAL_LIFETIME).unwrap();
    let comes_in = |credentials: &Credentials| Leaf::connect(mirrors, &ca, credentials).hears("PONG");
    assert!(tokio::task::block_in_place(|| comes_in(&of_an_api)).is_err());
    assert!(tokio::task::block_in_place(|| comes_in(&credentials)).is_ok());
    let trail = broker.connect(&Role::Auditor).await;
    let recorded = async || {
        let info = timeout(PATIENCE, trail.client.request(broker::lent(&broker::stream_info(storage::AUDIT)), "".into())).await;
        serde_json::from_slice::<Value>(&info.unwrap().unwrap().payload).unwrap()
    };
    let before = recorded().await;
    for attempt in MIRRORING {
        tokio::task::block_in_place(|| {
            let mut leaf = Leaf::connect(mirrors, &ca, &credentials);
            leaf.hears("PONG").unwrap();
            leaf.tries(*attempt);
            let said = leaf.hears("PONG").expect_err(&format!("{attempt:?} is taken"));
            assert!(said.contains("-ERR 'Permissions Violation for "), "{attempt:?}: {said}");
        });
    }
    let noticed = |record: &Record, attempt: &Attempt| {
        let (subject, what) = match attempt {
            Publish(subject) => (subject, "publish"),
            Subscribe(subject) | Join(subject, _) => (subject, "subscribe"),
        };
        record.principal == "part:mirror"
            // Below the name of our domain it is our own question.
            && record.target == subject.replace("$JS.probeops.API.", "$JS.API.")
            && record.detail.starts_with(&format!("{what}; from 127.0.0.1, a server of account AUDIT"))
    };
    sentry.notices(MIRRORING.to_vec(), noticed).await;
    let after = recorded().await;
    assert_eq!(before["config"], after["config"], "the stream of the trail is what it was");
    assert!(after["state"]["first_seq"] == 1 && after["state"]["num_deleted"].is_null(), "{after}");
    sentry.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_that_subscribes_everything_hears_its_own_answers_alone() {
    let (broker, sentry, mirrors) = mirrored().await;
    let credentials = broker.vault.mint(&Role::Mirror, CREDENTIAL_LIFETIME).unwrap();
    let ca = std::fs::read(broker.layout.ca_certificate()).unwrap();
    let mut leaf = tokio::task::block_in_place(|| {
        let mut leaf = Leaf::connect(mirrors, &ca, &credentials);
        for subject in HEARD_BY_OTHERS.into_iter().chain(["_INBOX.leaf.>"]) {
            leaf.say(&format!("LS+ {subject}\r\nLS+ {subject} q 1\r\n"));
        }
        // What a copy acknowledges nobody waits for; the broker lets it pass.
        leaf.say("LMSG $JS.ACK.AUDIT.x.1.1.1.1.0 1\r\nx\r\n");
        leaf
    });
    let asking = broker.connect(&api()).await;
    for _ in 0..3 {
        let stored = jetstream::new(asking.client.clone()).publish(subjects::audit("api", "api-1"), "[]".into()).await.unwrap();
        timeout(PATIENCE, stored).await.unwrap().unwrap();
    }
    let reading = broker.connect(&Role::Auditor).await;
    timeout(PATIENCE, reading.client.request(broker::lent(&broker::stream_info(storage::AUDIT)), "".into())).await.unwrap().unwrap();
    let heard = tokio::task::block_in_place(|| {
        leaf.say("LMSG $JS.probeops.API.STREAM.INFO.AUDIT _INBOX.leaf.1 0\r\n\r\n");
        let mut heard = leaf.until("LMSG _INBOX.leaf.1 ");
        // Its answer came last; what was for others would have come before.
        heard.push_str(&leaf.until("stream_info_response"));
        heard
    });
    let messages: Vec<&str> = heard.lines().filter(|line| line.starts_with("LMSG ") || line.starts_with("HMSG ")).collect();
    assert!(messages.len() == 1 && messages[0].starts_with("LMSG _INBOX.leaf.1 "), "{heard}");
    sentry.end().await;
}
