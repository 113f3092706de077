//! A server of a fabric's broker: a real nats-server, alone or one of a cluster.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::Signal;
use probeops_nats::config::{ServerSettings, TlsEnd, WebSocket};
use probeops_nats::layout::Layout;
use probeops_nats::tls::ServerCertificate;
use probeops_nats::vault::Vault;
use serde_json::Value;

use crate::fabric::free_port;
use crate::http::Caller;
use crate::process::{HANG, LOOK_EVERY, Process};

/// A server, running or not.
#[derive(Debug)]
pub struct Server {
    settings: ServerSettings,
    program: PathBuf,
    conf: PathBuf,
    folder: PathBuf,
    /// Where its runtime tells what it holds.
    profiling: SocketAddr,
    process: Option<Process>,
}

/// What the servers of a broker have in common.
#[derive(Debug)]
pub(crate) struct Home<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) vault: &'a Vault,
    pub(crate) certificate: &'a ServerCertificate,
    pub(crate) program: &'a Path,
    pub(crate) folder: &'a Path,
}

impl Home<'_> {
    fn settings(&self) -> ServerSettings {
        let mut settings = ServerSettings::in_layout(self.layout, self.certificate, free_port());
        settings.websocket = Some(WebSocket { listen: free_port(), tls: TlsEnd::Server });
        settings.monitoring_port = Some(free_port().port());
        settings
    }
}

/// What a server finds of its own when it is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// What it had.
    Kept,
    /// Nothing: no claims of accounts, no streams.
    Wiped,
}

impl Server {
    /// The one server of a broker, not started.
    pub(crate) fn alone(home: &Home<'_>) -> Self {
        let server = Self::of(home.settings(), home.layout.server_conf(), home);
        server.settings.write(home.vault, &server.conf).expect("server.conf");
        server
    }

    /// Servers of these names that are one broker, not started. Each has files of its own.
    pub(crate) fn cluster<const N: usize>(names: [&str; N], home: &Home<'_>) -> Vec<Self> {
        let routes = names.map(|_| free_port());
        let all = routes.map(|route| format!("\"nats://{route}\"")).join(", ");
        let server = |(name, route): (&str, SocketAddr)| {
            let own = home.folder.join(name);
            std::fs::create_dir_all(&own).expect("a folder");
            let mut settings = home.settings();
            name.clone_into(&mut settings.server_name);
            (settings.jetstream_dir, settings.resolver_dir) = (own.join("jetstream"), own.join("resolver"));
            // It goes into the log of the process.
            settings.log_file = None;
            let server = Self::of(settings, own.join("server.conf"), home);
            let cluster = format!("cluster {{ name: \"fabric\", listen: \"{route}\", routes: [{all}] }}\n");
            let text = server.settings.render(home.vault).expect("server.conf") + &cluster;
            std::fs::write(&server.conf, text).expect("server.conf");
            server
        };
        names.into_iter().zip(routes).map(server).collect()
    }

    fn of(settings: ServerSettings, conf: PathBuf, home: &Home<'_>) -> Self {
        Self { settings, program: home.program.to_owned(), conf, folder: home.folder.to_owned(), profiling: free_port(), process: None }
    }

    /// Starts it, and waits until it listens.
    pub(crate) fn start(&mut self) {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&self.conf).args(["--profile", &self.profiling.port().to_string()]);
        let process = self.process.insert(Process::start(&format!("broker-{}", self.settings.server_name), &self.folder, command));
        let started = Instant::now();
        while std::net::TcpStream::connect(self.settings.listen).is_err() {
            assert!(started.elapsed() < HANG, "the broker does not listen: {}", process.log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills it and starts it again on the same ports.
    pub fn restart(&mut self, disk: Disk) {
        self.kill();
        if disk == Disk::Wiped {
            for folder in [&self.settings.jetstream_dir, &self.settings.resolver_dir] {
                std::fs::remove_dir_all(folder).expect("a folder that it made");
            }
        }
        self.start();
    }

    /// Holds it still.
    pub fn pause(&self) {
        self.running().signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.running().signal(Signal::SIGCONT);
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("the server runs")
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.running().id()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.server_name
    }

    /// Where it listens.
    pub fn listen(&self) -> SocketAddr {
        self.settings.listen
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("tls://{}", self.listen())
    }

    /// Where it listens for WebSocket connections.
    pub(crate) fn websocket(&self) -> SocketAddr {
        self.settings.websocket.expect("it has one").listen
    }

    /// Its WebSocket address.
    pub(crate) fn wss_url(&self) -> String {
        format!("wss://{}", self.websocket())
    }

    /// What it has printed.
    pub(crate) fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// How many bytes of its memory are in use, once its runtime has collected what is not.
    #[track_caller]
    pub(crate) fn heap_bytes(&self) -> u64 {
        let profile = Caller::new(&format!("http://{}", self.profiling), None, None).get("/debug/pprof/heap?gc=1&debug=1");
        let line = profile.text.lines().find_map(|line| line.strip_prefix("# HeapAlloc = "));
        line.and_then(|bytes| bytes.parse().ok()).unwrap_or_else(|| panic!("no `HeapAlloc`: {}", profile.text))
    }

    /// How many bytes its streams have on the disk.
    #[track_caller]
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.figures().get("/jsz").expect(200)["bytes"].as_u64().expect("a number")
    }

    /// How many connections it counts.
    #[track_caller]
    pub(crate) fn connections(&self) -> u64 {
        self.figures().get("/varz").expect(200)["connections"].as_u64().expect("a number")
    }

    /// Whether all that it keeps is there and as others have it.
    pub fn is_well(&self) -> bool {
        self.figures().try_get("/healthz").is_ok_and(|answer| answer.status == 200)
    }

    /// Who is connected to it, by name.
    pub fn connected(&self) -> Vec<String> {
        self.names("/connz?limit=1000", "connections", "name").collect()
    }

    /// The servers it has a route to, by name.
    pub(crate) fn routes(&self) -> BTreeSet<String> {
        self.names("/routez", "routes", "remote_name").collect()
    }

    fn figures(&self) -> Caller {
        Caller::new(&format!("http://{}", self.settings.monitoring().expect("it has one")), None, None)
    }

    fn names(&self, path: &str, list: &str, field: &'static str) -> impl Iterator<Item = String> {
        let mut told = self.figures().get(path).expect(200);
        let listed = match told[list].take() {
            Value::Array(listed) => listed,
            other => panic!("no {list}: {other}"),
        };
        listed.into_iter().map(move |each| each[field].as_str().unwrap_or_default().to_owned())
    }
}
