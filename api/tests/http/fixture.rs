//! A real nats-server, provisioned, and APIs on it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use probeops_api::access::keys::{NewKey, mint};
use probeops_api::config::Given;
use probeops_nats::config::ServerSettings;
use probeops_nats::connect::{Link, connect};
use probeops_nats::layout::Layout;
use probeops_nats::permissions::Role;
use probeops_nats::server::ports::free_port;
use probeops_nats::server::supervise::{self, Running};
use probeops_nats::server::{Program, Search, VARIABLE};
use probeops_nats::vault::{CREDENTIAL_LIFETIME, Vault};
use probeops_nats::{process, streams, tls};
use probeops_shared::access::Scope;
use probeops_shared::ids::Caller;
use probeops_shared::registry::NodeGrant;
use probeops_shared::subjects::{self, storage};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use ureq::http::{HeaderMap, Request};

/// How long anything in a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// The wait between two looks at something that is about to happen.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A broker with one region, one node that is never there, and an admin's key.
pub(crate) struct Fabric {
    pub(crate) admin: String,
    layout: Layout,
    vault: Vault,
    servers: Vec<String>,
    settings: ServerSettings,
    running: Option<Running>,
}

/// An API.
pub(crate) struct Api {
    pub(crate) base: String,
    stop: CancellationToken,
    running: JoinHandle<Result<(), String>>,
}

/// What an API answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

/// What to ask an API.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) token: Option<String>,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

fn program(layout: &Layout) -> Program {
    static FOUND: OnceLock<Program> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let search = Search::usual(std::env::var_os(VARIABLE).map(PathBuf::from), layout);
        search.find_or_fetch(&|progress| eprintln!("{progress}")).unwrap_or_else(|error| panic!("{error}"))
    });
    found.clone()
}

impl Fabric {
    pub(crate) async fn start() -> Self {
        // Boxed: tests hold it beside much else.
        Box::pin(Self::begin()).await
    }

    async fn begin() -> Self {
        process::install_tls_provider();
        let folder = std::env::temp_dir().join(format!("probeops-api-{:016x}", rand::random::<u64>()));
        let layout = Layout::new(folder);
        let vault = Vault::open_or_create(&layout).unwrap();
        let certificate = tls::ensure(&layout, &[]).unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut settings = ServerSettings::in_layout(&layout, &certificate, listen);
        settings.monitoring_port = Some(free_port().unwrap());
        settings.write(&vault, &layout.server_conf()).unwrap();
        let running = supervise::start(&program(&layout), &layout.server_conf(), &settings, &layout.server_stderr()).await.unwrap();
        let servers = vec![format!("tls://{listen}")];
        streams::provision(&layout, &vault, &servers, Some(&layout.ca_certificate())).await.unwrap();
        let admin =
            mint(NewKey { name: "admin".to_owned(), scopes: vec![Scope::Admin], created_by: "test".to_owned(), ..NewKey::default() });
        let fabric = Self { admin: admin.key, layout, vault, servers, settings, running: Some(running) };
        fabric.keep(storage::KEYS, &admin.record.id, &admin.record).await;
        fabric.grant("fra-1", "eu-central").await;
        fabric
    }

    /// Grants a node `echo`, as the operator's command does.
    pub(crate) async fn grant(&self, id: &str, region: &str) {
        self.grant_to(id, region, "U").await;
    }

    /// Grants it to this key.
    pub(crate) async fn grant_to(&self, id: &str, region: &str, public_key: &str) {
        let (tools, expires_at) = (vec![ToolName::Echo], Timestamp::now());
        let grant = NodeGrant::new(id.parse().unwrap(), region.parse().unwrap(), tools, public_key, expires_at);
        self.keep(storage::NODES, id, &grant).await;
    }

    /// A connection with a credential for this role.
    pub(crate) async fn connect(&self, role: &Role) -> async_nats::Client {
        let creds = self.layout.creds(&role.name());
        self.vault.mint_to(&creds, role, CREDENTIAL_LIFETIME).unwrap();
        let link = Link { servers: self.servers.clone(), ca: Some(self.layout.ca_certificate()), creds };
        connect(&link, &role.name(), &role.inbox_prefix()).await.unwrap().0
    }

    /// Bounds the audit trail to so many bytes, as only whoever provisions may; what it was bounded to before.
    pub(crate) async fn bound_the_trail(&self, bytes_max: u64) -> u64 {
        let client = self.connect(&Role::AuditProvisioner).await;
        let ask = async |subject: String, body: Value| {
            let answer = client.request(subject, body.to_string().into()).await.unwrap();
            let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
            assert!(answer.get("error").is_none(), "{answer}");
            answer["config"].clone()
        };
        let mut config = ask(subjects::broker::stream_info(storage::AUDIT), Value::Null).await;
        let before = config["max_bytes"].as_u64().unwrap();
        config["max_bytes"] = bytes_max.into();
        ask(subjects::broker::stream_update(storage::AUDIT), config).await;
        before
    }

    pub(crate) async fn stop_broker(&mut self) {
        self.running.take().unwrap().stop().await.unwrap();
    }

    pub(crate) async fn start_broker(&mut self) {
        let conf = self.layout.server_conf();
        let started = supervise::start(&program(&self.layout), &conf, &self.settings, &self.layout.server_stderr()).await;
        self.running = Some(started.unwrap());
    }

    /// Writes to a bucket as the operator's command does.
    async fn keep(&self, bucket: &str, key: &str, value: &impl Serialize) {
        let client = self.connect(&Role::Store { caller: Caller::new_api() }).await;
        let bucket = async_nats::jetstream::with_prefix(client, subjects::broker::LENT).get_key_value(bucket).await.unwrap();
        bucket.put(key, serde_json::to_vec(value).unwrap().into()).await.unwrap();
    }

    /// Starts an API with a name of its own, changed as `change` wants.
    pub(crate) async fn api(&self, change: impl FnOnce(&mut Given)) -> Api {
        let caller = Caller::new_api();
        let creds = self.layout.root().join(caller.as_str());
        std::fs::create_dir_all(&creds).unwrap();
        let roles = [
            ("api", Role::Api { caller: caller.clone() }),
            ("store", Role::Store { caller: caller.clone() }),
            ("collector", Role::Collector { name: caller }),
            ("acknowledger", Role::Acknowledger),
            ("frontdoor", Role::FrontDoor),
            ("auditor", Role::Auditor),
        ];
        for (name, role) in roles {
            self.vault.mint_to(&creds.join(format!("{name}.creds")), &role, CREDENTIAL_LIFETIME).unwrap();
        }
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        let mut given = Given {
            http: Some(address.clone()),
            servers: Some(self.servers.clone()),
            ca: Some(self.layout.ca_certificate()),
            creds: Some(creds),
            ..Given::default()
        };
        change(&mut given);
        let stop = CancellationToken::new();
        let running = tokio::spawn(Box::pin(probeops_api::run(given.complete().unwrap(), stop.clone())));
        let api = Api { base: format!("http://{address}"), stop, running };
        api.until("/readyz", |answer| answer.status == 200).await;
        // What the bucket says of nodes comes by watching it.
        api.until_as(&self.admin, "/v1/nodes/fra-1", |answer| answer.status == 200).await;
        api
    }

    pub(crate) async fn stop(mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await.unwrap();
        }
        std::fs::remove_dir_all(self.layout.root()).unwrap();
    }
}

impl Api {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }

    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Asks; an API that does not answer yet has the status 0.
    pub(crate) async fn ask(&self, ask: Ask) -> Answer {
        let url = format!("{}{}", self.base, ask.path);
        tokio::task::spawn_blocking(move || send(&url, ask)).await.unwrap()
    }

    pub(crate) async fn get(&self, token: &str, path: &str) -> Answer {
        self.ask(Ask { method: "GET", path: path.to_owned(), token: Some(token.to_owned()), ..Ask::default() }).await
    }

    pub(crate) async fn post(&self, token: &str, path: &str, body: &str) -> Answer {
        let headers = vec![("content-type", "application/json".to_owned())];
        let (token, body) = (Some(token.to_owned()), body.as_bytes().to_vec());
        self.ask(Ask { method: "POST", path: path.to_owned(), token, headers, body }).await
    }

    pub(crate) async fn until(&self, path: &str, good: impl Fn(&Answer) -> bool) -> Answer {
        self.until_as("", path, good).await
    }

    /// Asks until the answer is as wanted.
    pub(crate) async fn until_as(&self, token: &str, path: &str, good: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(token, path).await;
            if good(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path}: {answer:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn send(url: &str, ask: Ask) -> Answer {
    let agent =
        ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build());
    let mut request = Request::builder().method(ask.method).uri(url);
    if let Some(token) = ask.token.filter(|token| !token.is_empty()) {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    for (name, value) in ask.headers {
        request = request.header(name, value);
    }
    match agent.run(request.body(ask.body).unwrap()) {
        Ok(mut response) => {
            let text = response.body_mut().read_to_string().unwrap();
            let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
            Answer { status: response.status().as_u16(), headers: response.headers().clone(), body }
        }
        Err(error) => Answer { status: 0, headers: HeaderMap::new(), body: error.to_string().into() },
    }
}
