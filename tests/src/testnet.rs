//! One network of our own, in namespaces, with everything on it that the tools are asked about; and ProbeOps on its client.
//!
//! It is built by root in a mount and a process namespace of its own ([`alone`]), so that nothing of it outlives the program, however that ends.

pub mod alone;
pub mod breakages;
pub mod compare;
pub mod names;
pub mod path;
pub mod place;
pub mod reference;
pub mod registry;
pub mod rtt;
pub mod run;
pub mod self_checks;
pub mod table;
pub mod web;
pub mod wire;

use std::path::{Path as FilePath, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use probeops_nats::layout::Layout;
use serde_json::{Value, json};

use self::path::Path;
use crate::fabric::{Agent, AgentOptions, Api, Fabric, Folder, find_nats_server};
use crate::http::Caller;
use crate::process::{HANG, LOOK_EVERY, Process};

/// So many probes run at once: those of the largest comparison.
const SLOTS: usize = 1024;

/// The network, its servers, and ProbeOps on its client.
#[derive(Debug)]
pub struct Testnet {
    path: Path,
    servers: Vec<Process>,
    folder: Folder,
}

/// ProbeOps on the client.
#[derive(Debug)]
pub struct Ours {
    api: Api,
    _agent: Rc<Agent>,
    _fabric: Fabric,
}

/// Sees to what needs the Internet, which the network is without.
pub fn prepare() {
    drop(find_nats_server(&Layout::new(Folder::new().0.clone())));
}

impl Testnet {
    /// Builds it. Whatever this thread starts afterwards is on the client.
    pub fn new() -> Self {
        let (path, folder) = (Path::new(), Folder::new());
        web::write(&folder.0);
        names::write(&folder.0);
        registry::start(path.server());
        let mut net = Self { path, servers: Vec::new(), folder };
        for (program, arguments) in [
            ("named", &["-g", "-c", "named.conf"][..]),
            ("unbound", &["-d", "-p", "-c", "unbound.conf"]),
            ("nginx", &["-c", "FOLDER/nginx.conf"]),
        ] {
            let mut command = net.path.server().command(program);
            command.current_dir(&net.folder.0);
            command.args(arguments.iter().map(|argument| argument.replace("FOLDER", &net.folder.0.display().to_string())));
            net.servers.push(Process::start(program, &net.folder.0, command));
        }
        net.path.client().enter();
        net.wait("named and unbound", || {
            reference::says("dig", &["+tries=1", "+time=1", "+short", "@10.77.100.53", web::WEB_NAME]).contains(web::WEB)
        });
        net.wait("nginx", || std::net::TcpStream::connect((web::WEB, 8449)).is_ok());
        net
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the certificates and the keys are.
    pub fn folder(&self) -> &FilePath {
        &self.folder.0
    }

    /// The authority of the certificates.
    pub fn root(&self) -> PathBuf {
        self.folder.0.join("root.pem")
    }

    fn wait(&self, what: &str, so: impl Fn() -> bool) {
        let started = Instant::now();
        while !so() {
            let logs = || self.servers.iter().map(Process::log).collect::<Vec<_>>().join("\n");
            assert!(started.elapsed() < HANG, "not after {HANG:?}: {what}\n{}", logs());
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Default for Testnet {
    fn default() -> Self {
        Self::new()
    }
}

impl Ours {
    /// Starts a broker, an API and an agent that looks names up at the network's resolver.
    pub fn start() -> Self {
        let fabric = Fabric::start();
        let api = fabric.api();
        let resolvers = Some(format!("{}:53", names::RESOLVER));
        let agent = fabric.agent_with("testnet-1", "eu", &AgentOptions { resolvers, slots_probe: Some(SLOTS), ..AgentOptions::default() });
        api.wait_for_nodes(1);
        Self { api, _agent: agent, _fabric: fabric }
    }

    /// Somebody who asks it.
    pub fn asker(&self) -> Asker {
        Asker(self.api.admin())
    }
}

/// Somebody who asks ProbeOps, from any thread.
#[derive(Clone, Debug)]
pub struct Asker(Caller);

impl Asker {
    /// What a job finds: its report, and what it prints.
    #[track_caller]
    pub fn ask(&self, tool: &str, target: &str, parameters: &Value) -> (Value, String) {
        let mut outcome = self.0.job(tool, target, "eu", parameters).outcome();
        assert_eq!(outcome["status"], json!("success"), "{tool} {target} {parameters}: {outcome}");
        let output = outcome["output"].as_str().unwrap_or_default().to_owned();
        (outcome["report"].take(), output)
    }
}
