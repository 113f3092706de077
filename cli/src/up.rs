//! `probeops up`: a broker, an API and two agents on this machine, from nothing, with one command.

mod child;
mod first_jobs;
mod ping_groups;
mod settings;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use probeops_nats::config::{ServerSettings, TlsEnd, WebSocket};
use probeops_nats::layout::Layout;
use probeops_nats::layout::files::{self, Secrecy};
use probeops_nats::process;
use probeops_nats::server::supervise::{self, Running};
use probeops_nats::server::{Search, free_port};
use probeops_nats::tls;
use probeops_nats::vault::Vault;
use probeops_shared::ids::{NodeId, Region};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub(crate) use settings::UpArgs;

use crate::client::{Client, URL_FILE};
use crate::control::{Control, write_servers};
use crate::exit::{Exit, Failed};
use crate::provision;
use crate::terminal::{note, say};
use crate::up::child::Child;
use crate::up::settings::Settings;

/// The two demo nodes and their regions.
const DEMO_NODES: [(&str, &str); 2] = [("demo-eu-1", "demo-eu"), ("demo-us-1", "demo-us")];
/// What the demo nodes' owner allows.
const DEMO_POLICY: &str =
    "# The policy of the two demo agents. It allows loopback, so that the first run works without a network.\nallow_loopback = true\n";
/// Where the broker's ports are kept for the next start.
const PORTS_FILE: &str = "ports.json";
/// How long everything may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often to look whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long one look may take.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long the agents may take to end what runs.
const AGENT_PATIENCE: Duration = Duration::from_secs(70);
/// How long the API may take to end.
const API_PATIENCE: Duration = Duration::from_secs(90);

/// Runs `up`.
pub(crate) fn run(args: UpArgs) -> Result<(), Failed> {
    process::install_tls_provider();
    let Some(settings) = args.settings()? else { return Ok(()) };
    process::start_log(settings.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| Failed::work(format!("cannot start threads: {error}")))?.block_on(up(settings))
}

async fn up(settings: Settings) -> Result<(), Failed> {
    let stop = process::stop_signal().map_err(|error| Failed::work(format!("cannot listen to signals: {error}")))?;
    if settings.allow_ping {
        ping_groups::allow()?;
    }
    let layout = Layout::new(&settings.data);
    layout.create().map_err(unusable)?;
    let _lock = layout.lock().map_err(unusable)?;
    let mut fabric = tokio::select! {
        started = Fabric::start(&settings, layout) => started?,
        () = stop.cancelled() => return Ok(()),
    };
    let done = fabric.live(&settings, &stop).await;
    fabric.stop().await;
    done
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err calls")]
fn unusable(error: anyhow::Error) -> Failed {
    Failed::work(format!("{error:#}"))
}

/// Everything that runs.
struct Fabric {
    control: Control,
    broker: Option<Running>,
    api: Option<Child>,
    agents: Vec<Child>,
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
    /// Starts the broker and fills it, then the rest.
    async fn start(settings: &Settings, layout: Layout) -> Result<Self, Failed> {
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
        let broker = supervise::start(&program, &layout.server_conf(), &server, &layout.server_stderr()).await.map_err(unusable)?;
        let servers = vec![format!("tls://127.0.0.1:{}", ports.broker)];
        write_servers(&layout, &servers)?;
        let control = Control { layout, vault, servers };
        let mut fabric = Self { control, broker: Some(broker), api: None, agents: Vec::new(), url: String::new() };
        match fabric.start_programs(settings).await {
            Ok(()) => Ok(fabric),
            Err(error) => {
                fabric.stop().await;
                Err(error)
            }
        }
    }

    async fn start_programs(&mut self, settings: &Settings) -> Result<(), Failed> {
        provision::everything(&self.control, &demo_nodes()?, settings.credential_lifetime).await?;
        let layout = &self.control.layout;
        let logs = layout.root().join("log");
        files::make_dir(&logs).map_err(unusable)?;
        let policy = layout.root().join("demo-policy.toml");
        files::write(&policy, DEMO_POLICY.as_bytes(), Secrecy::Public).map_err(unusable)?;
        let http = settings.listen()?;
        self.url = format!("http://{http}");
        files::write(&layout.root().join(URL_FILE), self.url.as_bytes(), Secrecy::Public).map_err(unusable)?;
        let common = |program: &str| -> Vec<OsString> {
            let servers = self.control.servers.join(",");
            vec![
                program.into(),
                "--servers".into(),
                servers.into(),
                "--ca".into(),
                layout.ca_certificate().into(),
                "--log-format".into(),
                "json".into(),
            ]
        };
        let mut api = common("api");
        api.extend([
            "--http".into(),
            http.to_string().into(),
            "--creds".into(),
            layout.creds_dir().into(),
            "--vault".into(),
            layout.root().into(),
        ]);
        self.api = Some(Child::start("api", &api, &logs)?);
        for (id, _) in demo_nodes()? {
            let mut agent = common("agent");
            agent.extend(["--creds".into(), layout.node_creds(&id).into(), "--policy".into(), policy.clone().into()]);
            self.agents.push(Child::start(id.as_str(), &agent, &logs)?);
        }
        Ok(())
    }

    /// Waits until it is ready, says so, and stays until told to stop or something ends by itself.
    async fn live(&mut self, settings: &Settings, stop: &CancellationToken) -> Result<(), Failed> {
        let nodes = tokio::select! {
            ready = self.ready() => ready?,
            () = stop.cancelled() => return Ok(()),
        };
        if settings.once {
            return tokio::select! {
                done = first_jobs::run(&self.control, &self.url, &nodes) => done,
                () = stop.cancelled() => Err(Failed::work("told to stop before both jobs were done")),
            };
        }
        self.announce(&nodes);
        let mut renewal = tokio::time::interval(settings.credential_lifetime / 2);
        renewal.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                failed = self.ended() => return Err(failed),
                _ = renewal.tick() => {
                    provision::everything(&self.control, &demo_nodes()?, settings.credential_lifetime).await?;
                    tracing::info!("the credentials of this fabric were renewed");
                }
            }
        }
    }

    /// Waits until every node is online; what the API says of them.
    async fn ready(&mut self) -> Result<Vec<Value>, Failed> {
        let key = files::read_if_exists(&self.control.layout.admin_key()).map_err(unusable)?.unwrap_or_default();
        let client = std::sync::Arc::new(Client::new(&self.url, key.trim().to_owned(), None)?);
        let started = Instant::now();
        loop {
            let asked = std::sync::Arc::clone(&client);
            let asking = tokio::task::spawn_blocking(move || asked.get("/v1/nodes", &[], LOOK_MAX));
            let answer = tokio::select! {
                answer = asking => answer.map_err(Failed::work)?,
                failed = self.ended() => return Err(failed),
            };
            let nodes = answer.ok().and_then(|mut answer| answer.body.get_mut("nodes").map(Value::take));
            let nodes: Vec<Value> = nodes.and_then(|nodes| nodes.as_array().cloned()).unwrap_or_default();
            let online = |id: &str| nodes.iter().any(|node| node["id"] == id && node["online"] == true);
            if DEMO_NODES.iter().all(|(id, _)| online(id)) {
                return Ok(nodes);
            }
            if started.elapsed() > READY_WITHIN {
                let logs = self.control.layout.root().join("log");
                return Err(Failed::work(format!(
                    "not ready after {} s; what the programs say is in {}",
                    READY_WITHIN.as_secs(),
                    logs.display()
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn announce(&self, nodes: &[Value]) {
        let key_file = self.control.layout.admin_key();
        say(format!("ready {}", self.url));
        say(format!("key   {}", key_file.display()));
        say("Try it:");
        say(format!("  {}", first_jobs::curl(&self.url, &key_file, nodes)));
        say(format!(
            "The two demo agents ({}) allow loopback as a target, so that this works without a network; other agents do not.",
            demo_ids()
        ));
        for lacks in nodes.iter().filter_map(|node| node["beat"]["unavailable"].as_array()).flatten().take(1) {
            let text = |name: &str| lacks[name].as_str().unwrap_or_default().to_owned();
            say(format!("{} is not possible here: {}. To allow it: {}", text("tool"), text("missing"), text("grant")));
        }
        say("Ctrl-C stops all of it; started again it keeps its state.");
    }

    /// Waits until something ends that nobody told to.
    async fn ended(&mut self) -> Failed {
        let broker = async {
            match &mut self.broker {
                Some(broker) => broker.ended().await,
                None => std::future::pending().await,
            }
        };
        let programs = self.api.iter_mut().chain(&mut self.agents).map(|program| Box::pin(program.ended()));
        tokio::select! {
            error = broker => Failed::work(format!("{error:#}")),
            (ended, _, _) = futures_util::future::select_all(programs) => Failed::new(Exit::Failed, ended.to_string()),
        }
    }

    /// Ends everything: agents first, so that what runs is answered; the broker last.
    async fn stop(&mut self) {
        let stopping = self.agents.drain(..).map(|agent| agent.stop(AGENT_PATIENCE));
        futures_util::future::join_all(stopping).await;
        if let Some(api) = self.api.take() {
            api.stop(API_PATIENCE).await;
        }
        // Gone already or never there: nothing to remove.
        drop(std::fs::remove_file(self.control.layout.root().join(URL_FILE)));
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

fn demo_ids() -> String {
    DEMO_NODES.map(|(id, _)| id).join(", ")
}

/// The broker's ports: as given, else those of the last start, else any that are free.
fn ports(layout: &Layout, settings: &Settings) -> Result<Ports, Failed> {
    let path = layout.root().join(PORTS_FILE);
    let held: Option<Ports> = files::read_if_exists(&path).map_err(unusable)?.and_then(|text| serde_json::from_str(&text).ok());
    let free = || free_port().map_err(|error| Failed::work(format!("no port is free: {error}")));
    let mut ports = match held {
        Some(ports) => ports,
        None => Ports { broker: free()?, websocket: free()?, monitoring: free()? },
    };
    if settings.broker.port() != 0 {
        ports.broker = settings.broker.port();
    }
    let text = serde_json::to_string(&ports).map_err(Failed::work)?;
    files::write(&path, text.as_bytes(), Secrecy::Public).map_err(unusable)?;
    Ok(ports)
}

/// Shows a path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
