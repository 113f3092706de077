//! Everything that `up` runs: a broker, a keymaster, a sentry, an API, and an agent for each demo node.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::{join_all, select_all};
use probeops_nats::config::{ServerSettings, TlsEnd, WebSocket};
use probeops_nats::layout::Layout;
use probeops_nats::layout::files::{self, Secrecy};
use probeops_nats::server::Search;
use probeops_nats::server::ports::free_port;
use probeops_nats::server::supervise::{self, Running};
use probeops_nats::tls;
use probeops_nats::vault::Vault;
use probeops_shared::ids::{NodeId, Region};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{Client, URL_FILE};
use crate::control::{Control, servers_elsewhere, write_servers, write_servers_elsewhere};
use crate::exit::Failed;
use crate::provision::{self, Granted, TOKEN_FILE};
use crate::terminal::note;
use crate::up::child::{Child, Ended};
use crate::up::settings::Settings;
use crate::up::{LOOK_EVERY, unusable};

/// The two demo nodes and their regions.
const DEMO_NODES: [(&str, &str); 2] = [("demo-eu-1", "demo-eu"), ("demo-us-1", "demo-us")];
/// What the demo nodes' owner allows.
const DEMO_POLICY: &str = "\
# The policy of the two demo agents. It allows loopback, so that the first run works without a network, but neither the API nor the broker.
# The broker's figures (127.0.0.1:{monitoring}) may be touched: that is the open port of the first run.
allow_loopback = true
[deny]
endpoints = [\"{api}\", \"{websocket}\"]
";
/// Where the broker's ports are kept for the next start.
const PORTS_FILE: &str = "ports.json";
/// Where the programs log.
const LOG_DIR: &str = "log";
/// How long everything may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long one look at the API may take.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long the agents may take to end what runs.
const AGENT_PATIENCE: Duration = Duration::from_secs(70);
/// How long the API may take to end.
const API_PATIENCE: Duration = Duration::from_secs(90);
/// How long the credentials of nodes last at most.
const NODE_VALID_FOR_MAX: Duration = Duration::from_hours(24);
/// How long the keymaster and the sentry may take to end.
const KEEPER_PATIENCE: Duration = Duration::from_secs(10);
/// So often in their lifetime credentials are renewed: one renewal may fail.
const RENEWALS: u32 = 3;

/// Everything that runs.
pub(super) struct Fabric {
    layout: Layout,
    /// The broker's addresses.
    servers: Vec<String>,
    server: ServerSettings,
    broker: Option<Running>,
    keymaster: Option<Child>,
    sentry: Option<Child>,
    api: Option<Child>,
    agents: Vec<Child>,
    nodes: Vec<Granted>,
    url: String,
}

/// The broker's ports.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Ports {
    broker: u16,
    websocket: u16,
    monitoring: u16,
}

impl Fabric {
    /// Starts the broker; the rest comes when it can be used.
    pub(super) async fn start(settings: &Settings, layout: Layout) -> Result<Self, Failed> {
        let vault = Vault::open_or_create(&layout).map_err(unusable)?;
        let certificate = tls::ensure(&layout, &settings.names).map_err(unusable)?;
        let search = Search::usual(settings.nats_server.clone(), &layout);
        let found = tokio::task::spawn_blocking(move || search.find_or_fetch(&|line| note(line))).await;
        let program = found.map_err(Failed::work)?.map_err(|error| Failed::work(error.to_string()))?;
        let ports = ports(&layout, settings)?;
        let ip = settings.broker.ip();
        let mut server = ServerSettings::in_layout(&layout, &certificate, SocketAddr::new(ip, ports.broker));
        server.websocket = Some(WebSocket { listen: SocketAddr::new(ip, ports.websocket), tls: TlsEnd::Server });
        server.monitoring_port = Some(ports.monitoring);
        server.write(&vault, &layout.server_conf()).map_err(unusable)?;
        let broker = supervise::spawn(&program, &layout.server_conf(), &server, &layout.server_stderr()).map_err(unusable)?;
        let servers = vec![format!("tls://127.0.0.1:{}", ports.broker)];
        write_servers(&layout, &servers)?;
        let elsewhere: Vec<String> = settings.names.iter().map(|name| format!("tls://{}:{}", bracketed(name), ports.broker)).collect();
        write_servers_elsewhere(&layout, &elsewhere)?;
        let (keymaster, sentry, api, agents, nodes, url) = (None, None, None, Vec::new(), Vec::new(), String::new());
        Ok(Self { layout, servers, server, broker: Some(broker), keymaster, sentry, api, agents, nodes, url })
    }

    /// The data folder.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The keys, and the broker they are for; to be held no longer than it takes, since of what stays only the keymaster has them.
    pub(super) fn control(&self) -> Result<Control, Failed> {
        let vault = Vault::open(&self.layout).map_err(unusable)?;
        Ok(Control { layout: self.layout.clone(), vault, servers: self.servers.clone() })
    }

    /// A port of this machine that something listens on and that the demo agents may touch: the broker's figures.
    pub(super) fn open_port(&self) -> u16 {
        self.server.monitoring_port.unwrap_or_default()
    }

    fn demo_policy(&self, http: SocketAddr) -> String {
        let port = self.server.websocket.map_or(0, |websocket| websocket.listen.port());
        let ip = Some(self.server.listen.ip()).filter(|ip| !ip.is_unspecified()).unwrap_or(Ipv4Addr::LOCALHOST.into());
        let websocket = SocketAddr::new(ip, port);
        DEMO_POLICY
            .replace("{api}", &http.to_string())
            .replace("{websocket}", &websocket.to_string())
            .replace("{monitoring}", &self.open_port().to_string())
    }

    /// Where the API answers.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Waits for the broker, fills it, and starts the programs.
    pub(super) async fn start_programs(&mut self, settings: &Settings) -> Result<(), Failed> {
        if let Some(broker) = &mut self.broker {
            broker.ready(&self.server).await.map_err(unusable)?;
        }
        self.nodes = self.provision(settings.credential_lifetime).await?;
        let layout = &self.layout;
        let logs = layout.root().join(LOG_DIR);
        files::make_dir(&logs).map_err(unusable)?;
        let policy = layout.root().join("demo-policy.toml");
        let http = settings.listen()?;
        files::write(&policy, self.demo_policy(http).as_bytes(), Secrecy::Public).map_err(unusable)?;
        self.url = format!("http://{http}");
        files::write(&layout.root().join(URL_FILE), self.url.as_bytes(), Secrecy::Public).map_err(unusable)?;
        // It knows the authority by the folder.
        let servers = self.servers.join(",");
        let told = words([("--data", layout.root()), ("--servers", Path::new(&servers)), ("--log-format", Path::new("json"))]);
        let told: Vec<OsString> = told.collect();
        let keeper = |name: &str| Child::start(name, &[&[name.into()], told.as_slice()].concat(), &logs);
        self.keymaster = Some(keeper("keymaster")?);
        self.sentry = Some(keeper("sentry")?);
        let mut api = self.common("api");
        api.extend(words([("--http", Path::new(&http.to_string())), ("--creds", &layout.creds_dir())]));
        // They renew their own; the rest of the fabric's credentials are renewed here.
        let valid_for = format!("{}s", settings.credential_lifetime.min(NODE_VALID_FOR_MAX).as_secs().max(1));
        api.extend(words([
            ("--node-servers", Path::new(&servers_elsewhere(&self.layout, &self.servers)?.join(","))),
            ("--node-valid-for", Path::new(&valid_for)),
        ]));
        if !settings.callback_allow.is_empty() {
            let places: Vec<String> = settings.callback_allow.iter().map(ToString::to_string).collect();
            api.extend(words([("--callback-allow", Path::new(&places.join(",")))]));
        }
        self.api = Some(Child::start("api", &api, &logs)?);
        for Granted { id, carried } in &self.nodes {
            let mut agent = self.common("agent");
            agent.extend(words([("--policy", policy.as_path())]));
            if *carried {
                agent.extend(words([("--creds", layout.node_creds(id).as_path())]));
            } else {
                let state = layout.node_state(id);
                let (url, token) = (Path::new(&self.url), state.join(TOKEN_FILE));
                agent.extend(words([("--state", state.as_path()), ("--enroll", url), ("--enroll-token-file", &token)]));
            }
            self.agents.push(Child::start(id.as_str(), &agent, &logs)?);
        }
        Ok(())
    }

    async fn provision(&self, lifetime: Duration) -> Result<Vec<Granted>, Failed> {
        let layout = &self.layout;
        Box::pin(provision::everything(&self.control()?, &demo_nodes()?, &|id| layout.node_state(id), lifetime)).await
    }

    /// What every program of ours is told.
    fn common(&self, program: &str) -> Vec<OsString> {
        let (servers, ca) = (self.servers.join(","), self.layout.ca_certificate());
        let told = words([("--servers", Path::new(&servers)), ("--ca", &ca), ("--log-format", Path::new("json"))]);
        [program.into()].into_iter().chain(told).collect()
    }

    /// Waits until every demo node is online; what the API says of them.
    pub(super) async fn ready(&mut self) -> Result<Vec<Value>, Failed> {
        let key = files::read_if_exists(&self.layout.admin_key()).map_err(unusable)?.unwrap_or_default();
        let client = std::sync::Arc::new(Client::new(&self.url, key.trim().to_owned(), None)?);
        let started = Instant::now();
        loop {
            let asked = std::sync::Arc::clone(&client);
            let asking = tokio::task::spawn_blocking(move || asked.get("/v1/nodes", &[], LOOK_MAX));
            let answer = tokio::select! {
                answer = asking => answer.map_err(Failed::work)?,
                ended = self.ended() => return Err(Failed::work(ended)),
            };
            let lacks = match answer {
                Ok(answer) => {
                    let nodes: Vec<Value> = answer.body["nodes"].as_array().cloned().unwrap_or_default();
                    let ours = |node: &Value| self.nodes.iter().any(|granted| node["id"] == granted.id.as_str()) && node["online"] == true;
                    // Others may be online too; what the demo agents allow, they need not.
                    let online: Vec<Value> = nodes.into_iter().filter(ours).collect();
                    if online.len() == self.nodes.len() {
                        return Ok(online);
                    }
                    format!("{} of {} demo agents are online", online.len(), self.nodes.len())
                }
                Err(error) => error.to_string(),
            };
            if started.elapsed() > READY_WITHIN {
                let logs = self.layout.root().join(LOG_DIR);
                let waited = READY_WITHIN.as_secs();
                return Err(Failed::work(format!("not ready after {waited} s: {lacks}; what the programs say is in {}", logs.display())));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Renews credentials until something ends that must not.
    pub(super) async fn stay(&mut self, credential_lifetime: Duration) -> Result<(), Failed> {
        let mut renewal = tokio::time::interval(credential_lifetime / RENEWALS);
        renewal.tick().await;
        loop {
            tokio::select! {
                ended = self.ended() => self.survive(ended)?,
                _ = renewal.tick() => match self.provision(credential_lifetime).await {
                    Ok(_) => tracing::info!("the credentials of this fabric were renewed"),
                    Err(error) => tracing::warn!("the credentials of this fabric could not be renewed and are tried again: {error}"),
                },
            }
        }
    }

    /// The fabric goes on without an agent that was revoked, and without nothing else.
    fn survive(&mut self, ended: Ended) -> Result<(), Failed> {
        if !ended.revoked() {
            return Err(Failed::work(ended));
        }
        note(format!("probeops: {ended}; the rest goes on"));
        self.agents.retain(|agent| agent.name() != ended.name());
        Ok(())
    }

    /// Waits until something ends that nobody told to.
    async fn ended(&mut self) -> Ended {
        let broker = async {
            match &mut self.broker {
                Some(broker) => Ended::broker(&broker.ended().await),
                None => std::future::pending().await,
            }
        };
        let programs = self
            .keymaster
            .iter_mut()
            .chain(&mut self.sentry)
            .chain(&mut self.api)
            .chain(&mut self.agents)
            .map(|program| Box::pin(program.ended()));
        let programs: Vec<_> = programs.collect();
        tokio::select! {
            ended = broker => ended,
            (ended, _, _) = select_all(programs) => ended,
        }
    }

    /// Ends everything: agents first, so that what runs is answered; the broker last.
    pub(super) async fn stop(&mut self) {
        join_all(self.agents.drain(..).map(|agent| agent.stop(AGENT_PATIENCE))).await;
        if let Some(api) = self.api.take() {
            api.stop(API_PATIENCE).await;
        }
        for keeper in [self.keymaster.take(), self.sentry.take()].into_iter().flatten() {
            keeper.stop(KEEPER_PATIENCE).await;
        }
        // Gone already or never there: nothing to remove.
        drop(std::fs::remove_file(self.layout.root().join(URL_FILE)));
        if let Some(broker) = self.broker.take()
            && let Err(error) = broker.stop().await
        {
            tracing::error!("the broker did not stop cleanly: {error:#}");
        }
    }
}

fn demo_nodes() -> Result<Vec<(NodeId, Region)>, Failed> {
    DEMO_NODES.iter().map(|(id, region)| Ok((id.parse().map_err(Failed::work)?, region.parse().map_err(Failed::work)?))).collect()
}

fn words<'a, const PAIRS: usize>(pairs: [(&'a str, &'a Path); PAIRS]) -> impl Iterator<Item = OsString> + 'a {
    pairs.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()])
}

/// A name as it stands in an address.
fn bracketed(name: &str) -> String {
    if name.contains(':') { format!("[{name}]") } else { name.to_owned() }
}

/// The broker's ports: as given, else those of the last start, else any that are free.
fn ports(layout: &Layout, settings: &Settings) -> Result<Ports, Failed> {
    let path = layout.root().join(PORTS_FILE);
    let held: Option<Ports> = files::read_if_exists(&path).map_err(unusable)?.and_then(|text| serde_json::from_str(&text).ok());
    let any = || free_port().map_err(|error| Failed::work(format!("no port is free: {error}")));
    let (broker, websocket, monitoring) = (any()?, any()?, any()?);
    let is_free = |ip: IpAddr, port: u16| TcpListener::bind((ip, port)).is_ok();
    let ip = settings.broker.ip();
    let mut ports = held.unwrap_or(Ports { broker, websocket, monitoring });
    // Nobody was told these two.
    if !is_free(ip, ports.websocket) {
        ports.websocket = websocket;
    }
    if !is_free(Ipv4Addr::LOCALHOST.into(), ports.monitoring) {
        ports.monitoring = monitoring;
    }
    if settings.broker.port() != 0 {
        ports.broker = settings.broker.port();
    } else if !is_free(ip, ports.broker) {
        return Err(Failed::work(format!(
            "the broker cannot listen on port {} of {ip}, which it had before; stop what has it now, or choose another with --broker",
            ports.broker
        )));
    }
    let text = serde_json::to_string(&ports).map_err(Failed::work)?;
    files::write(&path, text.as_bytes(), Secrecy::Public).map_err(unusable)?;
    Ok(ports)
}
