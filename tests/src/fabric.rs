//! The whole fabric: a real broker with TLS and credentials, APIs and agents as processes of their own.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use probeops_api::access::keys::{NewKey, mint};
use probeops_nats::connect::{Link, connect};
use probeops_nats::layout::Layout;
use probeops_nats::permissions::Role;
use probeops_nats::server::{Search, ports};
use probeops_nats::vault::Vault;
use probeops_nats::{process, streams, tls};
use probeops_shared::access::Scope;
use probeops_shared::ids::{Caller as CallerName, NodeId, Region};
use probeops_shared::presence::Beat;
use probeops_shared::registry::{NodeGrant, ServiceGrant};
use probeops_shared::subjects::{self, storage};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

use crate::broker::{Home, Server};
use crate::http::Caller;
use crate::process::{HANG, LOOK_EVERY, Process};

/// How long the credentials of a test last.
const LIFETIME: Duration = Duration::from_hours(1);

/// How many entries of a bucket are written at once.
const PUTS_AT_ONCE: usize = 128;

/// A broker, and everything that is started on it.
#[derive(Debug)]
pub struct Fabric {
    layout: Layout,
    vault: Vault,
    runtime: tokio::runtime::Runtime,
    /// The servers of the broker; most fabrics have one.
    servers: Vec<Server>,
    keymaster: RefCell<Option<Process>>,
    nats_server: PathBuf,
    admin_key: String,
    /// What its programs log (`PROBEOPS_LOG`).
    log: Option<&'static str>,
    apis: RefCell<usize>,
    /// Agents live as long as the fabric, unless a test ends them.
    agents: RefCell<Vec<Rc<Agent>>>,
    /// The last to go: what its processes said is shown when they end.
    folder: Folder,
}

/// What an agent may be told; the default is as `up` tells its own.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Another program than the command that the tests build.
    pub program: Option<PathBuf>,
    /// Another address of the broker.
    pub server: Option<String>,
    /// Another authority.
    pub ca: Option<PathBuf>,
    /// The tools it is granted.
    pub tools: Vec<&'static str>,
    /// The labels it is granted.
    pub labels: Vec<(&'static str, &'static str)>,
    /// The rate that all its callers share.
    pub rate: Option<&'static str>,
    /// How many runs all its callers may have at once.
    pub at_once: Option<&'static str>,
    /// Name servers.
    pub resolvers: Option<String>,
    /// Light slots.
    pub slots_light: Option<usize>,
    /// Probe slots.
    pub slots_probe: Option<usize>,
    /// Whether its policy allows loopback.
    pub allow_loopback: bool,
    /// Whether to wait until it is ready.
    pub wait_ready: bool,
}

impl Default for AgentOptions {
    fn default() -> Self {
        let tools = ToolName::ALL.iter().map(|tool| tool.as_str()).collect();
        Self {
            program: None,
            server: None,
            ca: None,
            tools,
            labels: Vec::new(),
            rate: None,
            at_once: None,
            resolvers: None,
            slots_light: None,
            slots_probe: None,
            allow_loopback: true,
            wait_ready: true,
        }
    }
}

/// What an API may be told.
#[derive(Clone, Debug, Default)]
pub struct ApiOptions {
    /// Another address of the broker.
    pub server: Option<String>,
    /// Who checks JWTs.
    pub jwks: Option<PathBuf>,
    /// Who publishes them at a URL.
    pub jwks_url: Option<String>,
    /// Where what was fetched from there is kept.
    pub jwks_cache: Option<PathBuf>,
    /// Their issuer.
    pub jwt_issuer: Option<String>,
    /// Their audience.
    pub jwt_audience: Option<String>,
    /// A shared secret that checks them instead.
    pub jwt_secret: Option<PathBuf>,
    /// Where callbacks may go beyond the public internet.
    pub callback_allow: Option<String>,
    /// Its own time zones, as zic(8) compiles them.
    pub zoneinfo: Option<PathBuf>,
    /// Certificate and key for HTTPS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether jobs run of which the audit trail has no record.
    pub audit: Option<String>,
    /// How many connections it takes at once.
    pub connections_max: Option<usize>,
    /// The collector that spans go to, and the share of traces that is kept.
    pub collector: Option<(String, f64)>,
}

/// A service's credential.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its `.creds` file.
    pub creds: PathBuf,
}

/// An API.
#[derive(Debug)]
pub struct Api {
    process: RefCell<Process>,
    url: String,
    /// Who signed its certificate, where it has one.
    ca: Option<PathBuf>,
    admin_key: String,
}

/// A sentry.
#[derive(Debug)]
pub struct Sentry {
    process: RefCell<Process>,
}

impl Sentry {
    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.process.borrow().id()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.borrow().log()
    }

    /// Waits until it has logged this.
    pub fn wait_for_log(&self, words: &str) {
        self.process.borrow_mut().wait_for_log(words);
    }
}

/// An agent.
#[derive(Debug)]
pub struct Agent {
    process: RefCell<Process>,
}

impl Fabric {
    /// Starts a broker with everything in it, and nobody on it.
    pub fn start() -> Self {
        Self::start_logging(None)
    }

    /// The same, and all that is started on it logs so much (`PROBEOPS_LOG`).
    pub fn start_logging(log: Option<&'static str>) -> Self {
        Self::begin(log, |home| vec![Server::alone(home)])
    }

    /// The same with a broker of three servers, `s1`, `s2` and `s3`, which keep everything three times.
    pub fn start_three() -> Self {
        Self::begin(None, |home| Server::cluster(["s1", "s2", "s3"], home))
    }

    fn begin(log: Option<&'static str>, broker: impl FnOnce(&Home<'_>) -> Vec<Server>) -> Self {
        process::install_tls_provider();
        let folder = Folder::new();
        let layout = Layout::new(folder.0.join("data"));
        let vault = Vault::open_or_create(&layout).expect("keys");
        let certificate = tls::ensure(&layout, &[]).expect("a certificate");
        let nats_server = find_nats_server(&layout);
        let home = Home { layout: &layout, vault: &vault, certificate: &certificate, program: &nats_server, folder: &folder.0 };
        let servers = broker(&home);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let mut fabric = Self {
            layout,
            vault,
            runtime,
            servers,
            keymaster: RefCell::default(),
            nats_server,
            admin_key: String::new(),
            log,
            apis: RefCell::default(),
            agents: RefCell::default(),
            folder,
        };
        fabric.servers.iter_mut().for_each(Server::start);
        fabric.wait_for_routes();
        let (urls, ca) = (fabric.urls(), fabric.ca());
        let started = Instant::now();
        loop {
            let provisioned = streams::provision(&fabric.layout, &fabric.vault, &urls, Some(&ca));
            let provisioned = fabric.runtime.block_on(provisioned).unwrap_or_else(|error| panic!("cannot provision: {error:#}"));
            if provisioned.servers.len() == urls.len() {
                break;
            }
            // What one server says may reach the others a moment after the route is there.
            assert!(started.elapsed() < HANG, "only {:?} answer", provisioned.servers);
        }
        fabric.start_keymaster();
        fabric.admin_key = fabric.first_key();
        fabric
    }

    /// Waits until every server of the broker has a route to all others.
    pub fn wait_for_routes(&self) {
        let started = Instant::now();
        for server in self.servers.iter().filter(|_| self.servers.len() > 1) {
            while server.routes().len() + 1 < self.servers.len() {
                assert!(started.elapsed() < HANG, "{} has routes to {:?} only", server.name(), server.routes());
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }

    /// Starts the keymaster; whoever needs it waits for it ([`Self::wait_for_keymaster`]), as the first API does.
    pub fn start_keymaster(&self) {
        let mut command = self.subcommand("keymaster");
        command.arg("--data").arg(self.data()).args(["--servers", &self.urls().join(",")]);
        *self.keymaster.borrow_mut() = Some(Process::start("keymaster", &self.folder.0, command));
    }

    /// Starts a sentry and waits until it watches.
    pub fn sentry(&self) -> Sentry {
        probeops_nats::sentry::mint(&self.layout, &self.vault, LIFETIME).expect("credentials");
        let mut command = self.subcommand("sentry");
        command.arg("--data").arg(self.data()).args(["--servers", &self.url(), "--last-words-s", "3"]);
        let mut process = Process::start("sentry", &self.folder.0, command);
        process.wait_for_log("the sentry is ready");
        Sentry { process: RefCell::new(process) }
    }

    fn subcommand(&self, name: &str) -> Command {
        let mut command = program();
        command.arg(name).envs(self.log.map(|log| ("PROBEOPS_LOG", log)));
        command
    }

    /// Ends the keymaster at once; what it has logged is forgotten.
    pub fn kill_keymaster(&self) {
        *self.keymaster.borrow_mut() = None;
        std::fs::remove_file(self.folder.0.join("keymaster.log")).expect("its log");
    }

    /// Holds the keymaster still.
    pub fn pause_keymaster(&self) {
        self.keymaster.borrow().as_ref().expect("the keymaster runs").signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume_keymaster(&self) {
        self.keymaster.borrow().as_ref().expect("the keymaster runs").signal(Signal::SIGCONT);
    }

    /// The keymaster's process id.
    pub fn keymaster_process_id(&self) -> u32 {
        self.keymaster.borrow().as_ref().expect("the keymaster runs").id()
    }

    /// What the keymaster has logged.
    pub fn keymaster_log(&self) -> String {
        self.keymaster.borrow().as_ref().map(Process::log).unwrap_or_default()
    }

    /// Waits until the keymaster can be asked.
    pub fn wait_for_keymaster(&self) {
        if let Some(keymaster) = self.keymaster.borrow_mut().as_mut() {
            keymaster.wait_for_log("the keymaster is ready");
        }
    }

    /// Kills the broker and starts it again on the same data and ports.
    pub fn restart_broker(&mut self) {
        self.restart_broker_after(Duration::ZERO);
    }

    /// Kills the broker and starts it again after a while.
    pub fn restart_broker_after(&mut self, away: Duration) {
        self.servers.iter_mut().for_each(Server::kill);
        std::thread::sleep(away);
        self.servers.iter_mut().for_each(Server::start);
    }

    /// What the broker has printed; it logs to a file of its own.
    pub fn broker_log(&self) -> String {
        self.first().log()
    }

    /// How many connections the broker counts.
    #[track_caller]
    pub fn broker_connections(&self) -> u64 {
        self.first().connections()
    }

    /// How many bytes of its memory the broker uses.
    pub fn broker_heap_bytes(&self) -> u64 {
        self.first().heap_bytes()
    }

    /// How many bytes the broker's streams have on the disk.
    pub fn broker_stored_bytes(&self) -> u64 {
        self.first().stored_bytes()
    }

    /// The broker's process id.
    pub fn broker_process_id(&self) -> u32 {
        self.first().process_id()
    }

    /// The servers of the broker.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// One of them, to be stopped and started.
    pub fn server(&mut self, index: usize) -> &mut Server {
        self.servers.get_mut(index).expect("a server")
    }

    fn first(&self) -> &Server {
        self.servers.first().expect("a broker has servers")
    }

    /// The broker's address; of several servers that of the first.
    pub fn url(&self) -> String {
        self.first().url()
    }

    /// The addresses of all its servers.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(Server::url).collect()
    }

    /// Where it listens.
    pub fn listen(&self) -> SocketAddr {
        self.first().listen()
    }

    /// Where it listens for WebSocket connections.
    pub fn websocket(&self) -> SocketAddr {
        self.first().websocket()
    }

    /// The broker's WebSocket address.
    pub fn wss_url(&self) -> String {
        self.first().wss_url()
    }

    /// The broker's authority.
    pub fn ca(&self) -> PathBuf {
        self.layout.ca_certificate()
    }

    /// The server program that is used.
    pub fn nats_server(&self) -> &Path {
        &self.nats_server
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        self.layout.root()
    }

    /// Writes a file for a test.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.0.join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    /// Starts an API of its own name and waits until it is ready.
    pub fn api(&self) -> Api {
        self.api_with(&ApiOptions::default())
    }

    /// Starts an API with these options.
    pub fn api_with(&self, options: &ApiOptions) -> Api {
        let number = self.apis.replace_with(|count| *count + 1);
        let address = free_port();
        let command = self.api_command(address, options);
        let process = RefCell::new(Process::start(&format!("api-{number}"), &self.folder.0, command));
        let (scheme, ca) = if options.tls.is_some() { ("https", Some(self.ca())) } else { ("http", None) };
        self.ready(Api { process, url: format!("{scheme}://{address}"), ca, admin_key: self.admin_key.clone() })
    }

    /// Starts an API that was told more ([`Self::api_command`]) and waits until it is ready.
    pub fn api_of(&self, address: SocketAddr, command: Command) -> Api {
        let number = self.apis.replace_with(|count| *count + 1);
        let process = RefCell::new(Process::start(&format!("api-{number}"), &self.folder.0, command));
        self.ready(Api { process, url: format!("http://{address}"), ca: None, admin_key: self.admin_key.clone() })
    }

    fn ready(&self, api: Api) -> Api {
        self.wait_for_keymaster();
        api.wait_until("it is ready", || api.nobody().try_get("/readyz").is_ok_and(|answer| answer.status == 200));
        api.wait_until("it knows the first key", || api.admin().get("/v1/tools").status == 200);
        api
    }

    /// The command that starts an API, with credentials of its own.
    pub fn api_command(&self, address: SocketAddr, options: &ApiOptions) -> Command {
        let caller = CallerName::new_api();
        let creds = self.folder.0.join(caller.as_str());
        std::fs::create_dir_all(&creds).expect("a folder");
        let collector: CallerName = caller.as_str().replace("api-", "collector-").parse().expect("a name");
        for (file, role) in [
            ("api", Role::Api { caller: caller.clone() }),
            ("store", Role::Store { caller }),
            ("collector", Role::Collector { name: collector }),
            ("acknowledger", Role::Acknowledger),
            ("frontdoor", Role::FrontDoor),
            ("auditor", Role::Auditor),
        ] {
            self.vault.mint_to(&creds.join(format!("{file}.creds")), &role, LIFETIME).expect("a credential");
        }
        let mut command = self.subcommand("api");
        command.args(["--http", &address.to_string(), "--servers", options.server.as_ref().unwrap_or(&self.url())]);
        command.arg("--ca").arg(self.ca()).arg("--creds").arg(&creds);
        for (flag, value) in [
            ("--jwks-url", &options.jwks_url),
            ("--jwt-issuer", &options.jwt_issuer),
            ("--jwt-audience", &options.jwt_audience),
            ("--callback-allow", &options.callback_allow),
            ("--audit", &options.audit),
        ] {
            command.args(value.iter().flat_map(|value| [flag, value]));
        }
        command.args(options.connections_max.iter().flat_map(|count| ["--connections-max".to_owned(), count.to_string()]));
        command.envs(options.zoneinfo.iter().map(|folder| ("TZDIR", folder)));
        if let Some((collector, ratio)) = &options.collector {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector).args(["--otlp-ratio", &ratio.to_string()]);
        }
        let (cert, key) = options.tls.clone().unzip();
        let files = [
            ("--jwks", &options.jwks),
            ("--jwks-cache", &options.jwks_cache),
            ("--jwt-hs256-secret-file", &options.jwt_secret),
            ("--tls-cert", &cert),
            ("--tls-key", &key),
        ];
        for (flag, path) in files {
            if let Some(path) = path {
                command.arg(flag).arg(path);
            }
        }
        command
    }

    /// A certificate for this machine, and its key.
    pub fn certificate(&self) -> (PathBuf, PathBuf) {
        (self.layout.server_certificate(), self.layout.server_key())
    }

    /// Grants and starts an agent that may run every tool, on loopback too, and waits until it is ready.
    pub fn agent(&self, id: &str, region: &str) -> Rc<Agent> {
        self.agent_with(id, region, &AgentOptions::default())
    }

    /// Grants and starts an agent.
    pub fn agent_with(&self, id: &str, region: &str, options: &AgentOptions) -> Rc<Agent> {
        let (node, region): (NodeId, Region) = (id.parse().expect("an id"), region.parse().expect("a region"));
        let tools: Vec<ToolName> = options.tools.iter().map(|tool| tool.parse().expect("a tool")).collect();
        let role = Role::Node { node: node.clone(), region: region.clone(), tools: tools.clone() };
        let minted = self.vault.mint_to(&self.layout.node_creds(&node), &role, LIFETIME).expect("a credential");
        let labels = options.labels.iter().map(|(key, value)| (key.parse().expect("a label"), value.parse().expect("a value"))).collect();
        let grant = NodeGrant {
            labels,
            rate: options.rate.map(|rate| rate.parse().expect("a rate")),
            at_once: options.at_once.map(|at_once| at_once.parse().expect("a number")),
            ..NodeGrant::new(node, region, tools, minted.public_key, minted.expires_at)
        };
        self.put(storage::NODES, id, &serde_json::to_value(grant).expect("JSON"));
        self.start_agent(id, options)
    }

    /// Grants so many nodes of a region, none of which is there yet, every tool; their credentials.
    pub fn enrol(&self, prefix: &str, count: usize, region: &str) -> Vec<PathBuf> {
        let region: Region = region.parse().expect("a region");
        let tools = ToolName::ALL.to_vec();
        let enrolled = (1..=count).map(|number| {
            let id: NodeId = format!("{prefix}-{number}").parse().expect("an id");
            let role = Role::Node { node: id.clone(), region: region.clone(), tools: tools.clone() };
            let creds = self.layout.node_creds(&id);
            let minted = self.vault.mint_to(&creds, &role, LIFETIME).expect("a credential");
            (creds, NodeGrant::new(id, region.clone(), tools.clone(), minted.public_key, minted.expires_at))
        });
        let (creds, grants): (Vec<PathBuf>, Vec<NodeGrant>) = enrolled.unzip();
        self.grant_all(&grants);
        creds
    }

    /// Grants these nodes, none of which is there.
    pub fn grant_all(&self, grants: &[NodeGrant]) {
        let entries = grants.iter().map(|grant| (grant.id.to_string(), serde_json::to_vec(grant).expect("JSON")));
        self.put_all(&Role::Store { caller: CallerName::new_api() }, storage::NODES, entries.collect());
    }

    /// Says of these nodes what they would say themselves. They count as online until they have been silent for three beats.
    pub fn announce_all(&self, beats: &[Beat]) {
        let key = |beat: &Beat| subjects::presence_key(&beat.region, &beat.node);
        let entries = beats.iter().map(|beat| (key(beat), serde_json::to_vec(beat).expect("JSON")));
        self.put_all(&Role::Collector { name: "collector-crowd".parse().expect("a name") }, storage::PRESENCE, entries.collect());
    }

    fn put_all(&self, role: &Role, bucket: &str, entries: Vec<(String, Vec<u8>)>) {
        let link = Link { servers: vec![self.url()], ca: Some(self.ca()), creds: self.credential(role) };
        self.runtime.block_on(async {
            let (client, _events) = connect(&link, "test", &role.inbox_prefix()).await.expect("the broker");
            let context = async_nats::jetstream::with_prefix(client, subjects::broker::LENT);
            let bucket = context.get_key_value(bucket).await.expect("the bucket");
            let bucket = &bucket;
            let puts = futures_util::stream::iter(entries).map(async |(key, value)| bucket.put(key, value.into()).await.expect("an entry"));
            puts.buffer_unordered(PUTS_AT_ONCE).for_each(async |_| {}).await;
        });
    }

    /// Starts an agent again that ended.
    pub fn agent_again(&self, id: &str) -> Rc<Agent> {
        self.start_agent(id, &AgentOptions::default())
    }

    /// Starts an agent with the credential that was made for it before.
    pub fn agent_with_credential(&self, id: &str, options: &AgentOptions) -> Rc<Agent> {
        self.start_agent(id, options)
    }

    /// Starts an agent that is told by the caller who it is, and waits until it is ready. Its policy allows loopback.
    pub fn agent_of(&self, name: &str, told: &[&str]) -> Rc<Agent> {
        let policy = self.file(&format!("{name}-policy.toml"), "allow_loopback = true\n");
        let mut command = self.subcommand("agent");
        command.arg("--policy").arg(policy).args(told);
        let number = self.agents.borrow().len();
        let mut process = Process::start(&format!("agent-{name}-{number}"), &self.folder.0, command);
        process.wait_for_log("the agent is ready");
        let agent = Rc::new(Agent { process: RefCell::new(process) });
        self.agents.borrow_mut().push(Rc::clone(&agent));
        agent
    }

    fn start_agent(&self, id: &str, options: &AgentOptions) -> Rc<Agent> {
        let creds = self.node_creds(id);
        let policy = self.file(&format!("{id}-policy.toml"), if options.allow_loopback { "allow_loopback = true\n" } else { "" });
        let mut command = options.program.as_ref().map_or_else(|| self.subcommand("agent"), Command::new);
        command.arg("--servers").arg(options.server.clone().unwrap_or_else(|| self.url()));
        command.arg("--ca").arg(options.ca.clone().unwrap_or_else(|| self.ca())).arg("--creds").arg(creds).arg("--policy").arg(policy);
        command.args(options.resolvers.iter().flat_map(|resolvers| ["--resolvers", resolvers]));
        for (flag, slots) in [("--slots-light", options.slots_light), ("--slots-probe", options.slots_probe)] {
            command.args(slots.iter().flat_map(|slots| [flag.to_owned(), slots.to_string()]));
        }
        let mut process = Process::start(&format!("agent-{id}"), &self.folder.0, command);
        if options.wait_ready {
            process.wait_for_log("the agent is ready");
        }
        let agent = Rc::new(Agent { process: RefCell::new(process) });
        self.agents.borrow_mut().push(Rc::clone(&agent));
        agent
    }

    /// Grants a service and makes its credential.
    pub fn service(&self, name: &str, regions: &[&str], tools: &[&str], nodes: &[&str]) -> Service {
        self.service_with_rate(name, regions, tools, nodes, None)
    }

    /// The same with a rate.
    pub fn service_with_rate(&self, name: &str, regions: &[&str], tools: &[&str], nodes: &[&str], rate: Option<&str>) -> Service {
        let caller: CallerName = name.parse().expect("a name");
        let creds = self.layout.service_creds(&caller);
        let regions: Vec<Region> = regions.iter().map(|region| region.parse().expect("a region")).collect();
        let tools: Vec<ToolName> = tools.iter().map(|tool| tool.parse().expect("a tool")).collect();
        let nodes: Vec<NodeId> = nodes.iter().map(|node| node.parse().expect("a node")).collect();
        let role =
            Role::Service { name: caller.clone(), regions: regions.clone(), tools: tools.clone(), nodes: nodes.clone(), direct: true };
        let minted = self.vault.mint_to(&creds, &role, LIFETIME).expect("a credential");
        let grant = ServiceGrant {
            name: caller,
            regions,
            tools,
            nodes,
            labels: None,
            targets: None,
            rate: rate.map(|rate| rate.parse().expect("a rate")),
            at_once: None,
            public_key: minted.public_key,
            created_at: Timestamp::now(),
            created_by: "command".to_owned(),
            expires_at: minted.expires_at,
            revoked_at: None,
        };
        let registrar = Role::Registrar { name: "command-test".parse().expect("a name") };
        let value = serde_json::to_vec(&grant).expect("JSON");
        self.put_all(&registrar, storage::SERVICES, vec![(name.to_owned(), value)]);
        Service { name: name.to_owned(), creds }
    }

    /// Where the credential of a node is.
    pub fn node_creds(&self, id: &str) -> PathBuf {
        self.layout.node_creds(&id.parse().expect("an id"))
    }

    /// Makes a credential for a role.
    pub fn credential(&self, role: &Role) -> PathBuf {
        let path = self.folder.0.join(format!("{:016x}.creds", rand::random::<u64>()));
        self.vault.mint_to(&path, role, LIFETIME).expect("a credential");
        path
    }

    /// A connection with a credential, as any client makes it.
    pub fn connect(&self, creds: &Path) -> async_nats::Client {
        self.block_on(async {
            let options = async_nats::ConnectOptions::with_credentials_file(creds).await.expect("a credential");
            options.add_root_certificates(self.ca()).require_tls(true).connect(self.url()).await.expect("the broker")
        })
    }

    /// The same, with the inbox of its own that the credential has.
    pub fn connect_in(&self, creds: &Path, inbox_prefix: &str) -> async_nats::Client {
        self.block_on(async {
            let options = async_nats::ConnectOptions::with_credentials_file(creds).await.expect("a credential");
            let options = options.custom_inbox_prefix(inbox_prefix).add_root_certificates(self.ca()).require_tls(true);
            options.connect(self.url()).await.expect("the broker")
        })
    }

    /// Begins what is asynchronous; it goes on by itself.
    pub fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(future)
    }

    /// Runs what is asynchronous to its end.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Revokes a node's credential on the broker.
    pub fn revoke(&self, public_key: &str) {
        let servers = [self.url()];
        let claims = self.vault.revoke_anywhere(public_key).expect("a revocation");
        let told = probeops_nats::revoke::tell(&self.layout, &servers, Some(self.ca()), &claims);
        self.runtime.block_on(told).unwrap_or_else(|error| panic!("cannot revoke: {error:#}"));
    }

    /// The first key, as `up` makes it.
    fn first_key(&self) -> String {
        let scopes = vec![Scope::Admin];
        let minted = mint(NewKey { name: "test".to_owned(), scopes, created_by: "test".to_owned(), ..NewKey::default() });
        self.put(storage::KEYS, &minted.record.id, &serde_json::to_value(&minted.record).expect("JSON"));
        minted.key
    }

    /// Writes an entry of a bucket, as a replica does.
    pub fn put(&self, bucket: &str, key: &str, value: &Value) {
        let _revision = self.in_bucket(bucket, async |bucket| bucket.put(key, value.to_string().into()).await.expect("an entry"));
    }

    /// Takes an entry out of a bucket, as only whoever holds its disk or an API that is taken over would.
    pub fn lose(&self, bucket: &str, key: &str) {
        self.in_bucket(bucket, async |bucket| bucket.delete(key).await.expect("a bucket"));
    }

    /// Writes into a bucket until it takes no more.
    pub fn fill(&self, bucket: &str) {
        let value = vec![b'x'; 60 * 1024];
        self.in_bucket(bucket, async |bucket| {
            let mut number = 0;
            while bucket.put(format!("fill.{number}"), value.clone().into()).await.is_ok() {
                number += 1;
                assert!(number < 100_000, "it has no bound");
            }
            // What is left takes no small entry either.
            while bucket.put(format!("rest.{number}"), vec![b'x'; 16].into()).await.is_ok() {
                number += 1;
            }
        });
    }

    /// Which server leads a bucket now, of several.
    pub fn leader_of(&self, bucket: &str) -> String {
        let cluster = self.in_bucket(bucket, async |bucket| bucket.stream.cached_info().cluster.clone());
        cluster.and_then(|cluster| cluster.leader).expect("a bucket with a leader")
    }

    /// The oldest entry of a bucket: its key and its value. A replica reads without following, which is all that it may with some buckets.
    pub fn oldest_entry(&self, bucket: &str) -> (String, Value) {
        self.in_bucket(bucket, async |bucket| {
            let entry = bucket.stream.direct_get_next_for_subject(format!("{}>", bucket.prefix), Some(1)).await.expect("an entry");
            let key = entry.subject.strip_prefix(&bucket.prefix).expect("a key of the bucket").to_owned();
            (key, serde_json::from_slice(&entry.payload).expect("JSON"))
        })
    }

    /// The value of an entry of a bucket.
    pub fn entry(&self, bucket: &str, key: &str) -> Value {
        self.in_bucket(bucket, async |bucket| {
            let value = bucket.get(key).await.expect("an entry").expect("a value");
            serde_json::from_slice(&value).expect("JSON")
        })
    }

    /// Puts a message into a stream.
    pub fn store(&self, subject: &str, value: &Value) {
        self.with_jetstream(async |jetstream| {
            let stored = jetstream.publish(subject.to_owned(), value.to_string().into()).await.expect("a connection");
            stored.await.expect("a stream that takes it");
        });
    }

    /// Bounds the audit trail to so many bytes, as only whoever provisions may; what it was bounded to before.
    pub fn bound_the_trail(&self, bytes_max: u64) -> u64 {
        let role = Role::AuditProvisioner;
        let client = self.connect_in(&self.credential(&role), &role.inbox_prefix());
        let ask = async |subject: String, body: Value| {
            let answer = client.request(subject, body.to_string().into()).await.expect("an answer");
            let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
            assert!(answer.get("error").is_none(), "{answer}");
            answer["config"].clone()
        };
        self.block_on(async {
            let mut config = ask(subjects::broker::stream_info(storage::AUDIT), Value::Null).await;
            let before = config["max_bytes"].as_u64().expect("a bound");
            config["max_bytes"] = bytes_max.into();
            ask(subjects::broker::stream_update(storage::AUDIT), config).await;
            before
        })
    }

    /// Does something with a bucket, with a replica's rights.
    fn in_bucket<T>(&self, bucket: &str, work: impl AsyncFnOnce(async_nats::jetstream::kv::Store) -> T) -> T {
        self.with_jetstream(async |jetstream| work(jetstream.get_key_value(bucket).await.expect("the bucket")).await)
    }

    fn with_jetstream<T>(&self, work: impl AsyncFnOnce(async_nats::jetstream::Context) -> T) -> T {
        let caller = CallerName::new_api();
        let role = Role::Store { caller: caller.clone() };
        let creds = self.folder.0.join(format!("{caller}.creds"));
        self.vault.mint_to(&creds, &role, LIFETIME).expect("a credential");
        let link = Link { servers: vec![self.url()], ca: Some(self.ca()), creds };
        self.runtime.block_on(async {
            let (client, _events) = connect(&link, "test", &role.inbox_prefix()).await.expect("the broker");
            work(async_nats::jetstream::with_prefix(client, subjects::broker::LENT)).await
        })
    }
}

impl Api {
    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.process.borrow().id()
    }

    /// Who signed its certificate, where it has one.
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.url.rsplit('/').next().and_then(|address| address.parse().ok()).expect("an address")
    }

    /// Somebody with the first key.
    pub fn admin(&self) -> Caller {
        self.caller(&self.admin_key)
    }

    /// The first key.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// Somebody with this token.
    pub fn caller(&self, token: &str) -> Caller {
        Caller::new(&self.url, Some(token), self.ca.as_deref())
    }

    /// Somebody without a token.
    pub fn nobody(&self) -> Caller {
        Caller::new(&self.url, None, self.ca.as_deref())
    }

    /// Makes a key.
    #[track_caller]
    pub fn key(&self, request: &Value) -> String {
        let made = self.admin().post("/v1/keys", request).expect(201);
        let key = made["key"].as_str().expect("the key").to_owned();
        self.wait_until("the new key is known", || self.caller(&key).get("/v1/tools").status != 401);
        key
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.process.borrow().signal(Signal::SIGKILL);
        self.process.borrow_mut().wait();
    }

    /// Holds it still.
    pub fn pause(&self) {
        self.process.borrow().signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.borrow().signal(Signal::SIGCONT);
    }

    /// Asks it to stop, and returns its exit code.
    pub fn stop(&self) -> Option<i32> {
        self.process.borrow().signal(Signal::SIGTERM);
        self.process.borrow_mut().wait().code()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.borrow().log()
    }

    /// Waits until so many nodes are online.
    #[track_caller]
    pub fn wait_for_nodes(&self, count: usize) {
        self.wait_until(&format!("{count} nodes are online"), || {
            let nodes = self.admin().get("/v1/nodes").expect(200);
            nodes["nodes"].as_array().is_some_and(|nodes| nodes.iter().filter(|node| node["online"] == json!(true)).count() >= count)
        });
    }

    /// Waits until it is so.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut so: impl FnMut() -> bool) {
        let started = Instant::now();
        while !so() {
            assert!(started.elapsed() < HANG, "not after {HANG:?}: {what}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The records of the trail for a filter, once there are at least so many.
    #[track_caller]
    pub fn wait_for_audit(&self, filter: &str, count: usize) -> Vec<Value> {
        let found = RefCell::new(Vec::new());
        self.wait_until(&format!("{count} audit records with {filter}"), || {
            *found.borrow_mut() = self.audit(filter);
            found.borrow().len() >= count
        });
        found.into_inner()
    }

    /// One record of the trail for each of these requests, once they are all there.
    #[track_caller]
    pub fn wait_for_audit_of(&self, request_ids: &BTreeSet<&str>, filter: &str) -> Vec<Value> {
        let found = RefCell::new(Vec::new());
        self.wait_until(&format!("audit records of {} requests", request_ids.len()), || {
            let mut records = self.audit(filter);
            records.retain(|record| record["request_id"].as_str().is_some_and(|id| request_ids.contains(id)));
            let seen: BTreeSet<&str> = records.iter().filter_map(|record| record["request_id"].as_str()).collect();
            let complete = seen.len() == request_ids.len();
            *found.borrow_mut() = records;
            complete
        });
        found.into_inner()
    }

    /// All records of the trail for a filter, page by page.
    #[track_caller]
    pub fn audit(&self, filter: &str) -> Vec<Value> {
        let mut records = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.admin().get(&format!("/v1/audit?limit=1000&{filter}{cursor}")).expect(200);
            records.extend(page["records"].as_array().cloned().unwrap_or_default());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return records,
            }
        }
    }
}

impl Agent {
    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.process.borrow().id()
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.process.borrow().signal(Signal::SIGKILL);
        self.process.borrow_mut().wait();
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        self.process.borrow().signal(Signal::SIGTERM);
    }

    /// Waits until it ends by itself, and returns its exit code.
    pub fn wait(&self) -> Option<i32> {
        self.process.borrow_mut().wait().code()
    }

    /// Holds it still.
    pub fn pause(&self) {
        self.process.borrow().signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.borrow().signal(Signal::SIGCONT);
    }

    /// Lets it open no more files and sockets (`RLIMIT_NOFILE`), what it holds apart. Returns the limit there was.
    pub fn open_no_more(&self) -> Rlimit {
        // It has inherited ours.
        let limit = getrlimit(Resource::Nofile);
        self.limit_files(Rlimit { current: Some(0), ..limit })
    }

    /// Sets that limit, and returns the one there was.
    pub fn limit_files(&self, limit: Rlimit) -> Rlimit {
        let process = i32::try_from(self.process_id()).ok().and_then(Pid::from_raw).expect("a process id");
        prlimit(Some(process), Resource::Nofile, limit).expect("a process of ours")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.borrow().log()
    }

    /// Waits until it has logged this.
    pub fn wait_for_log(&self, words: &str) {
        self.process.borrow_mut().wait_for_log(words);
    }
}

/// The `probeops` program: beside the test that runs, or as named by `PROBEOPS_PROGRAM`. A benchmark is that program, too.
pub fn program() -> Command {
    let named = std::env::var_os("PROBEOPS_PROGRAM").map(PathBuf::from);
    let path = named.unwrap_or_else(|| {
        let own = std::env::current_exe().expect("our own path");
        if own.file_stem().is_some_and(|name| name == "bench") {
            return own;
        }
        let beside = own.ancestors().map(|folder| folder.join("fabric")).find(|program| program.is_file());
        beside.unwrap_or_else(|| panic!("no program `fabric` beside {}; build it with `cargo build -p probeops-tests`", own.display()))
    });
    let mut command = Command::new(path);
    // Settings of whoever runs the tests are not the test's.
    let is_setting = |name: &str| name.starts_with("PROBEOPS_") || name.starts_with("OTEL_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

/// The server program, found or fetched.
pub fn find_nats_server(layout: &Layout) -> PathBuf {
    let search = Search::usual(std::env::var_os("NATS_SERVER").map(PathBuf::from), layout);
    search.find_or_fetch(&|_progress| ()).unwrap_or_else(|error| panic!("{error}")).path
}

/// A port that is free now.
pub fn free_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ports::free_port().expect("a free port")))
}

/// A folder that goes with its owner.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("probeops-test-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
