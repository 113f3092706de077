//! Starting, stopping, provisioning, revoking.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use fixture::{Broker, PATIENCE, api, collector, node, recorder, registrar, store};
use probeops_nats::config::{TlsEnd, WebSocket};
use probeops_nats::connect::{Link, LinkError, LinkEvent};
use probeops_nats::keymaster;
use probeops_nats::layout::Layout;
use probeops_nats::permissions::{AccountName, Role};
use probeops_nats::revoke::tell;
use probeops_nats::server::supervise;
use probeops_nats::tls;
use probeops_nats::vault::CREDENTIAL_LIFETIME;
use probeops_shared::subjects;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::fixture;

const POLL: Duration = Duration::from_millis(20);

#[tokio::test]
async fn provisioning_again_changes_nothing_and_survives_a_restart() {
    let mut broker = Broker::configured();
    broker.run().await.unwrap();
    let first = broker.provision().await.unwrap();
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
        "CALLBACKS",
        "LATER",
        "KV_SCHEDULES",
        "KV_SECRETS",
        "KV_DELIVERIES",
    ];
    assert_eq!(first.created, ["AUDIT", "JOBS"].into_iter().chain(buckets).collect::<Vec<_>>());
    assert_eq!(first.servers, ["probeops"]);
    let again = broker.provision().await.unwrap();
    assert_eq!((again.created.len(), again.changed.len()), (0, 0));
    broker.stop().await;
    broker.run().await.unwrap();
    let restarted = broker.provision().await.unwrap();
    assert_eq!((restarted.created.len(), restarted.changed.len()), (0, 0), "{restarted:?}");
    let left: Vec<_> = std::fs::read_dir(broker.layout.creds_dir()).unwrap().collect();
    assert!(left.is_empty(), "credentials of provisioners stay nowhere: {left:?}");
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_and_does_not_come_back() {
    let mut broker = Broker::start().await;
    let system = broker.connect(&Role::Keymaster).await;
    let mut bad = broker.connect(&node("n1", "eu")).await;
    let mut good = broker.connect(&node("n2", "eu")).await;
    let claims = broker.vault.revoke(&bad.credentials.public_key).unwrap();
    assert_eq!(keymaster::push(&system.client, &claims).await.unwrap().servers, ["probeops"]);
    let said = bad
        .next(|event| match event {
            LinkEvent::Refused(text) => Some(text.clone()),
            _ => None,
        })
        .await;
    assert!(said.to_lowercase().contains("authentication revoked"), "{said}");

    let creds = broker.layout.node_creds(&"n1".parse().unwrap());
    std::fs::write(&creds, bad.credentials.to_creds_file()).unwrap();
    let link = broker.link(creds.clone());
    assert!(matches!(broker.try_connect(&link).await, Err(LinkError::Refused(_))));
    // Nor after a restart: the broker keeps the claims, and only those of the system account are in its configuration.
    broker.stop().await;
    broker.run().await.unwrap();
    assert!(matches!(broker.try_connect(&link).await, Err(LinkError::Refused(_))));
    // A new credential for the same node has a new key.
    broker.vault.mint_to(&creds, &node("n1", "eu"), CREDENTIAL_LIFETIME).unwrap();
    broker.try_connect(&link).await.unwrap();
    while let Ok(event) = good.events.try_recv() {
        assert!(!matches!(event, LinkEvent::Refused(_)), "the other one is left alone: {event:?}");
    }
}

#[tokio::test]
async fn whatever_part_a_credential_is_of_it_is_void_in_its_own_account_when_it_is_revoked() {
    let broker = Broker::start().await;
    for role in [api(), store(), registrar(), recorder(), collector(), Role::Auditor, Role::Acknowledger, Role::FrontDoor, Role::Sentry] {
        let mut stolen = broker.connect(&role).await;
        let key = &stolen.credentials.public_key;
        let claims = broker.vault.revoke_anywhere(key).unwrap();
        let pushed = tell(&broker.layout, &broker.servers(), Some(broker.layout.ca_certificate()), &claims).await.unwrap();
        assert_eq!(pushed.servers, ["probeops"], "{role:?}");
        assert!(broker.vault.is_revoked(role.account(), key).unwrap());
        stolen.next(|event| matches!(event, LinkEvent::Refused(_)).then_some(())).await;
        let creds = broker.layout.creds("stolen");
        std::fs::write(&creds, stolen.credentials.to_creds_file()).unwrap();
        assert!(matches!(broker.try_connect(&broker.link(creds.clone())).await, Err(LinkError::Refused(_))), "{role:?}");
        // Where it lay another is made, with another key.
        broker.vault.mint_to(&creds, &role, CREDENTIAL_LIFETIME).unwrap();
        broker.try_connect(&broker.link(creds)).await.unwrap();
    }
    // One of which nothing is known is void wherever it could be.
    let mut unknown = broker.connect(&store()).await;
    std::fs::remove_file(broker.layout.ledger_dir().join(&unknown.credentials.public_key)).unwrap();
    let claims = broker.vault.revoke_anywhere(&unknown.credentials.public_key).unwrap();
    assert_eq!(claims.len(), AccountName::PUSHED.len());
    tell(&broker.layout, &broker.servers(), Some(broker.layout.ca_certificate()), &claims).await.unwrap();
    unknown.next(|event| matches!(event, LinkEvent::Refused(_)).then_some(())).await;
    // The servers' own account is in their configuration.
    let keymaster = broker.vault.mint(&Role::Keymaster, CREDENTIAL_LIFETIME).unwrap().public_key;
    let refused = broker.vault.revoke(&keymaster).unwrap_err().to_string();
    assert!(refused.contains("is of the servers' own account"), "{refused}");
}

#[tokio::test]
async fn claims_that_nobody_has_signed_are_not_taken() {
    let broker = Broker::start().await;
    let system = broker.connect(&Role::Keymaster).await;
    let claims = broker.vault.account_jwt(AccountName::Application).unwrap();
    let (touched, _) = claims.rsplit_once('.').unwrap();
    let refused = keymaster::push(&system.client, &format!("{touched}.AAAA")).await.unwrap_err().to_string();
    assert!(refused.starts_with("server probeops refused the account's claims: "), "{refused}");
    // A credential without the right is told so, and does not wait for ever.
    let other = broker.connect(&api()).await;
    let refused = keymaster::push(&other.client, &claims).await.unwrap_err().to_string();
    assert!(refused.contains("is this the credential of the keymaster?"), "{refused}");
}

#[tokio::test]
async fn only_those_we_signed_for_come_in_and_only_to_whom_they_trust() {
    let broker = Broker::start().await;
    let stranger = Broker::configured();
    let creds = stranger.layout.creds("node");
    stranger.vault.mint_to(&creds, &node("n1", "eu"), CREDENTIAL_LIFETIME).unwrap();
    assert!(matches!(broker.try_connect(&broker.link(creds)).await, Err(LinkError::Refused(_))), "another operator's node");

    let own = broker.layout.creds("node");
    broker.vault.mint_to(&own, &node("n1", "eu"), CREDENTIAL_LIFETIME).unwrap();
    let link = broker.link(own);
    let wrong_ca = Link { ca: tls::ensure(&stranger.layout, &[]).unwrap().authority, ..link.clone() };
    let refused = broker.try_connect(&wrong_ca).await.unwrap_err();
    assert!(matches!(&refused, LinkError::Unreachable(why) if why.contains("certificate")), "{refused}");

    let websocket = broker.settings.websocket.unwrap().listen.port();
    let over_websocket = Link { servers: vec![format!("wss://localhost:{websocket}")], ..link };
    broker.try_connect(&over_websocket).await.unwrap().flush().await.unwrap();
    // Ours for the inside come by the plain way only.
    let inside = broker.layout.creds("inside");
    broker.vault.mint_to(&inside, &Role::Provisioner, CREDENTIAL_LIFETIME).unwrap();
    let over_websocket = Link { creds: inside, ..over_websocket };
    assert!(matches!(broker.try_connect(&over_websocket).await, Err(LinkError::Refused(_))));
}

#[tokio::test]
async fn an_expired_credential_is_cut_off() {
    let broker = Broker::start().await;
    let creds = broker.layout.creds("short");
    let minted = broker.vault.mint_to(&creds, &node("n1", "eu"), Duration::from_secs(2)).unwrap();
    let link = broker.link(creds);
    let (_client, mut events) = probeops_nats::connect::connect(&link, "n1", &subjects::node_inbox("n1")).await.unwrap();
    let ended = async { while !matches!(events.recv().await, Some(LinkEvent::Refused(_)) | None) {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert!(probeops_shared::timestamp::Timestamp::now().unix_s() >= minted.expires_at.unix_s());
}

#[tokio::test]
async fn a_port_in_use_is_one_line_that_names_it() {
    let mut broker = Broker::configured();
    let taken = TcpListener::bind(broker.settings.listen).unwrap();
    let refused = broker.run().await.unwrap_err().to_string();
    let port = taken.local_addr().unwrap().port();
    assert_eq!(
        refused,
        format!("port {port} for the broker (127.0.0.1:{port}) is already in use; stop the program that has it, or choose another port")
    );
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let mut broker = Broker::configured();
    std::fs::write(broker.layout.server_conf(), "listen: nonsense\n").unwrap();
    let refused = broker.run().await.unwrap_err().to_string();
    assert!(refused.starts_with("nats-server ended (exit status: 1): ") && refused.contains("server.conf"), "{refused}");

    broker.settings.write(&broker.vault, &broker.layout.server_conf()).unwrap();
    std::fs::write(broker.layout.server_certificate(), "nonsense").unwrap();
    let refused = broker.run().await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
}

#[tokio::test]
async fn the_end_of_the_server_is_noticed() {
    let mut broker = Broker::start().await;
    let running = broker.running.as_mut().unwrap();
    assert!(Command::new("kill").args(["-KILL", "--", &format!("-{}", running.process_group())]).status().unwrap().success());
    let ended = tokio::time::timeout(PATIENCE, running.ended()).await.unwrap().to_string();
    assert!(ended.starts_with("nats-server ended (signal: 9 (SIGKILL))"), "{ended}");
}

#[tokio::test]
async fn a_server_behind_a_proxy_listens_everywhere_and_logs_to_standard_error() {
    let mut broker = Broker::configured();
    broker.settings.listen = (Ipv4Addr::UNSPECIFIED, broker.settings.listen.port()).into();
    broker.settings.websocket = broker.settings.websocket.map(|websocket| WebSocket { tls: TlsEnd::Proxy, ..websocket });
    broker.settings.log_file = None;
    broker.settings.write(&broker.vault, &broker.layout.server_conf()).unwrap();
    broker.run().await.unwrap();
    assert!(listens(broker.settings.websocket.unwrap().listen).await);
    let log = std::fs::read_to_string(broker.layout.server_stderr()).unwrap();
    assert!(log.contains("Server is ready"), "{log}");
    assert!(!log.contains("[ERR]"), "{log}");
}

async fn listens(address: std::net::SocketAddr) -> bool {
    TcpStream::connect(address).await.is_ok()
}

#[tokio::test]
async fn a_server_stops_with_us_however_we_end() {
    let mut broker = Broker::start().await;
    broker.stop().await;
    assert!(!listens(broker.settings.listen).await);

    // Forgotten: dropped without being stopped.
    broker.run().await.unwrap();
    drop(broker.running.take());
    gone(broker.settings.listen).await;

    // Killed: another process has started it and has no time to stop it.
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "lifecycle::holds_a_server_until_it_is_killed"])
        .env("PROBEOPS_TEST_DATA", broker.layout.root())
        .env("PROBEOPS_TEST_LISTEN", broker.settings.listen.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !listens(broker.settings.listen).await {
        assert!(Instant::now() < deadline, "the other process did not start a server");
        sleep(POLL).await;
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    gone(broker.settings.listen).await;
}

async fn gone(address: std::net::SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while listens(address).await {
        assert!(Instant::now() < deadline, "the server still listens on {address}");
        sleep(POLL).await;
    }
}

#[tokio::test]
#[ignore = "the other process of a_server_stops_with_us_however_we_end"]
async fn holds_a_server_until_it_is_killed() {
    let layout = Layout::new(PathBuf::from(std::env::var_os("PROBEOPS_TEST_DATA").unwrap()));
    let listen = std::env::var("PROBEOPS_TEST_LISTEN").unwrap().parse().unwrap();
    let certificate = tls::ensure(&layout, &[]).unwrap();
    let settings = probeops_nats::config::ServerSettings::in_layout(&layout, &certificate, listen);
    let program = fixture::program(&layout);
    let _running = supervise::start(&program, &layout.server_conf(), &settings, &layout.server_stderr()).await.unwrap();
    std::future::pending::<()>().await;
}
