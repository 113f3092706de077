//! A real nats-server with our configuration, for one test.

use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use async_nats::{Client, jetstream};
use probeops_nats::config::{ServerSettings, TlsEnd, WebSocket};
use probeops_nats::connect::{Link, LinkError, LinkEvent, connect};
use probeops_nats::layout::Layout;
use probeops_nats::permissions::Role;
use probeops_nats::sentry::{self, Bounds};
use probeops_nats::server::ports::free_port;
use probeops_nats::server::supervise::{self, Running};
use probeops_nats::server::{Program, Search, VARIABLE};
use probeops_nats::streams::{Provisioned, provision};
use probeops_nats::vault::credentials::Credentials;
use probeops_nats::vault::{CREDENTIAL_LIFETIME, Vault};
use probeops_nats::{process, tls};
use probeops_shared::audit::chain::Batch;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::subjects::{self, storage};
use probeops_shared::tools::ToolName;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long anything in a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A fresh folder that goes with its owner.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("probeops-broker-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The nats-server of this machine, found or fetched once.
pub(crate) fn program(layout: &Layout) -> Program {
    static FOUND: OnceLock<Program> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let search = Search::usual(std::env::var_os(VARIABLE).map(PathBuf::from), layout);
        search.find_or_fetch(&|progress| eprintln!("{progress}")).unwrap_or_else(|error| panic!("{error}"))
    });
    found.clone()
}

pub(crate) struct Broker {
    pub(crate) layout: Layout,
    pub(crate) vault: Vault,
    pub(crate) settings: ServerSettings,
    pub(crate) running: Option<Running>,
    _scratch: Scratch,
}

/// A connection, and what happens to it.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) events: mpsc::Receiver<LinkEvent>,
    pub(crate) credentials: Credentials,
}

impl Broker {
    /// Configured, not started.
    pub(crate) fn configured() -> Self {
        process::install_tls_provider();
        let scratch = Scratch::new();
        let layout = Layout::new(scratch.path());
        let vault = Vault::open_or_create(&layout).unwrap();
        let certificate = tls::ensure(&layout, &[]).unwrap();
        let loopback = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut settings = ServerSettings::in_layout(&layout, &certificate, loopback(free_port().unwrap()));
        settings.websocket = Some(WebSocket { listen: loopback(free_port().unwrap()), tls: TlsEnd::Server });
        settings.monitoring_port = Some(free_port().unwrap());
        settings.write(&vault, &layout.server_conf()).unwrap();
        Self { layout, vault, settings, running: None, _scratch: scratch }
    }

    /// Started and provisioned.
    pub(crate) async fn start() -> Self {
        let mut broker = Self::configured();
        broker.run().await.unwrap();
        Box::pin(broker.provision()).await.unwrap();
        broker
    }

    pub(crate) async fn run(&mut self) -> anyhow::Result<()> {
        let program = program(&self.layout);
        let running = supervise::start(&program, &self.layout.server_conf(), &self.settings, &self.layout.server_stderr()).await?;
        self.running = Some(running);
        Ok(())
    }

    pub(crate) async fn stop(&mut self) {
        self.running.take().unwrap().stop().await.unwrap();
    }

    pub(crate) async fn provision(&self) -> anyhow::Result<Provisioned> {
        provision(&self.layout, &self.vault, &self.servers(), Some(&self.layout.ca_certificate())).await
    }

    pub(crate) fn servers(&self) -> Vec<String> {
        vec![format!("tls://{}", self.settings.listen)]
    }

    pub(crate) fn link(&self, creds: PathBuf) -> Link {
        Link { servers: self.servers(), ca: Some(self.layout.ca_certificate()), creds }
    }

    pub(crate) async fn connect(&self, role: &Role) -> Connection {
        let creds = self.layout.creds(&format!("test-{:016x}", rand::random::<u64>()));
        let credentials = self.vault.mint_to(&creds, role, CREDENTIAL_LIFETIME).unwrap();
        let (client, events) = connect(&self.link(creds), &role.name(), &role.inbox_prefix()).await.unwrap();
        Connection { client, events, credentials }
    }

    /// Starts a sentry, and reads what it has to say.
    pub(crate) async fn sentry(&self, bounds: Bounds) -> Sentry {
        sentry::mint(&self.layout, &self.vault, CREDENTIAL_LIFETIME).unwrap();
        let settings = sentry::Settings {
            servers: self.servers(),
            ca: Some(self.layout.ca_certificate()),
            creds: self.layout.sentry_dir(),
            logs: vec![self.layout.server_log()],
            bounds,
            health_file: None,
        };
        Sentry::start(settings, self.connect(&Role::Auditor).await.client).await
    }

    pub(crate) fn presence(&self) -> Role {
        let [presence, _] = sentry::roles(&self.vault);
        presence
    }

    pub(crate) async fn try_connect(&self, link: &Link) -> Result<Client, LinkError> {
        connect(link, "test", "_INBOX.test").await.map(|(client, _)| client)
    }
}

/// A running sentry, and the trail.
pub(crate) struct Sentry {
    auditor: Client,
    stop: CancellationToken,
    running: JoinHandle<Result<(), String>>,
}

/// All that is in the trail, as whoever may read it finds it there.
pub(crate) async fn recorded(auditor: &Client) -> Vec<Record> {
    let trail = jetstream::with_prefix(auditor.clone(), subjects::broker::LENT).get_stream(storage::AUDIT).await.unwrap();
    let last = trail.get_info().await.unwrap().state.last_sequence;
    let mut records = Vec::new();
    for sequence in 1..=last {
        let message = trail.direct_get(sequence).await.unwrap();
        // What tests write themselves may be anything.
        let batch = serde_json::from_slice::<Batch<Record>>(&message.payload);
        records.extend(batch.into_iter().flat_map(|batch| batch.records).map(|link| link.record));
    }
    records
}

impl Sentry {
    /// Starts one; whoever may read the trail does so.
    pub(crate) async fn start(settings: sentry::Settings, auditor: Client) -> Self {
        let stop = CancellationToken::new();
        let (ready, is_ready) = oneshot::channel();
        let running = tokio::spawn(sentry::run(settings, ready, stop.clone()));
        tokio::time::timeout(PATIENCE, is_ready).await.unwrap().unwrap();
        Self { auditor, stop, running }
    }

    /// All records of violations.
    pub(crate) async fn records(&self) -> Vec<Record> {
        let mut records = recorded(&self.auditor).await;
        records.retain(|record| record.verdict == Verdict::Violation);
        records
    }

    /// Waits until the trail has a record of each of these.
    pub(crate) async fn notices<T: Debug>(&self, mut wanted: Vec<T>, is: impl Fn(&Record, &T) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let records = self.records().await;
            wanted.retain(|wanted| !records.iter().any(|record| is(record, wanted)));
            if wanted.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "not noticed: {wanted:?}; only {records:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.unwrap().unwrap().unwrap();
    }
}

impl Connection {
    /// The next event that `wanted` knows.
    pub(crate) async fn next<T>(&mut self, wanted: impl Fn(&LinkEvent) -> Option<T>) -> T {
        let found = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap()
    }

    /// The violations of permissions until now.
    pub(crate) fn violations_so_far(&mut self) -> Vec<LinkEvent> {
        std::iter::from_fn(|| self.events.try_recv().ok()).filter(|event| matches!(event, LinkEvent::Violation(_))).collect()
    }

    /// The text of the next violation of permissions.
    pub(crate) async fn violation(&mut self) -> String {
        self.next(|event| match event {
            LinkEvent::Violation(text) => Some(text.clone()),
            _ => None,
        })
        .await
    }
}

pub(crate) fn node(id: &str, region: &str) -> Role {
    Role::Node { node: id.parse().unwrap(), region: region.parse().unwrap(), tools: vec![ToolName::Echo] }
}

pub(crate) fn service(name: &str) -> Role {
    Role::Service {
        name: name.parse().unwrap(),
        regions: vec!["eu".parse().unwrap()],
        tools: vec![ToolName::Echo],
        nodes: vec!["n1".parse().unwrap()],
        direct: true,
    }
}

/// A service that has its jobs run at the front door.
pub(crate) fn service_at_the_door(name: &str) -> Role {
    let Role::Service { name, regions, tools, nodes, .. } = service(name) else { unreachable!() };
    Role::Service { name, regions, tools, nodes, direct: false }
}

pub(crate) fn api() -> Role {
    Role::Api { caller: "api-1".parse().unwrap() }
}

/// The same replica where streams and buckets are.
pub(crate) fn store() -> Role {
    Role::Store { caller: "api-1".parse().unwrap() }
}

pub(crate) fn registrar() -> Role {
    Role::Registrar { name: "command-1".parse().unwrap() }
}

/// The same command where the trail is written.
pub(crate) fn recorder() -> Role {
    Role::Recorder { name: "command-1".parse().unwrap() }
}

pub(crate) fn collector() -> Role {
    Role::Collector { name: "api-1".parse().unwrap() }
}
