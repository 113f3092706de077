//! Network namespaces that go with the benchmark: a node's, that of whom it asks, and a path of routers between.
//!
//! ```text
//! node eth0 10.79.0.1 ── 10.79.0.2 peer          the peer answers for all of 10.78.0.0/16 and is silent for all of 10.77.0.0/16
//! node path 10.80.0.1 ── wire ── router 1 ── … ── router 5 ── host 10.80.5.2
//! ```

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whom the node asks.
pub(crate) const PEER: &str = "10.79.0.2";
/// The host behind the routers.
pub(crate) const HOST: &str = "10.80.5.2";
/// How many routers there are.
const ROUTERS: usize = 5;
/// The router that says nothing.
pub(crate) const SILENT: usize = 3;
/// How much later a packet leaves the wire than it came, in each direction: half of a round trip.
const DELAY_US: u64 = 12_500;
/// How long whatever is started may take to be there.
const STARTED_WITHIN: Duration = Duration::from_secs(20);

/// The namespaces. Dropping it ends what runs in them, by its ids, and removes them.
pub(crate) struct Yard {
    prefix: String,
    names: Vec<String>,
}

impl Yard {
    /// Makes node and peer. What a packet costs its receiver is done by whoever sends it, at once, as on loopback; or by a processor of the
    /// receiver's, if `answers_by_kernel`: an echo is all the peer's work and none of the node's. That is no choice for a peer that is a
    /// process: to wake another processor for each packet costs a virtual machine more than the packet.
    pub(crate) fn new(answers_by_kernel: bool) -> anyhow::Result<Self> {
        let mut yard = Self { prefix: format!("po-{:08x}", rand::random::<u32>()), names: Vec::new() };
        let (node, peer) = (yard.add("node")?, yard.add("peer")?);
        ip(&format!("-n {node} link add eth0 txqueuelen 10000 type veth peer name eth0 netns {peer}"))?;
        for (name, address) in [(&node, "10.79.0.1/24"), (&peer, "10.79.0.2/24")] {
            ip(&format!("-n {name} addr add {address} dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
        }
        for network in ["10.77.0.0/16", "10.78.0.0/16"] {
            ip(&format!("-n {node} route add {network} via {PEER}"))?;
        }
        ip(&format!("-n {peer} route add local 10.78.0.0/16 dev lo"))?;
        ip(&format!("-n {peer} route add blackhole 10.77.0.0/16"))?;
        for (name, processors) in [(&node, "1"), (&peer, "2")].into_iter().filter(|_| answers_by_kernel) {
            let queue = format!("echo {processors} >/sys/class/net/eth0/queues/rx-0/rps_cpus");
            must(inside(name, "sh").args(["-c", &queue]))?;
        }
        Ok(yard)
    }

    /// Makes the path.
    pub(crate) fn add_path(&mut self) -> anyhow::Result<Held> {
        let (node, wire) = (self.name("node"), self.add("wire")?);
        let places: Vec<String> = (1..=ROUTERS + 1).map(|place| self.add(&format!("r{place}"))).collect::<anyhow::Result<_>>()?;
        let first = places.first().context("a path has a first router")?;
        for (name, device, end) in [(&node, "path", "left"), (first, "left", "right")] {
            ip(&format!("-n {name} link add {device} type veth peer name {end} netns {wire}"))?;
            ip(&format!("-n {wire} link set {end} up"))?;
        }
        for (link, pair) in places.windows(2).enumerate() {
            let [near, far] = pair else { continue };
            ip(&format!("-n {near} link add right type veth peer name left netns {far}"))?;
            ip(&format!("-n {near} addr add 10.80.{}.1/24 dev right", link + 1))?;
            ip(&format!("-n {near} link set right up"))?;
        }
        ip(&format!("-n {node} addr add 10.80.0.1/24 dev path"))?;
        ip(&format!("-n {node} link set path up"))?;
        ip(&format!("-n {node} route add 10.80.0.0/16 via 10.80.0.2"))?;
        for (link, name) in places.iter().enumerate() {
            ip(&format!("-n {name} addr add 10.80.{link}.2/24 dev left"))?;
            ip(&format!("-n {name} link set left up"))?;
            for back in 0..link {
                ip(&format!("-n {name} route add 10.80.{back}.0/24 via 10.80.{link}.1"))?;
            }
            if link < ROUTERS {
                ip(&format!("-n {name} route replace 10.80.0.0/16 via 10.80.{}.2", link + 1))?;
            }
            if link + 1 == SILENT {
                must(inside(name, "nft").args(["add", "table", "ip", "t"]))?;
                must(inside(name, "nft").arg("add chain ip t output { type filter hook output priority 0 ; }"))?;
                must(inside(name, "nft").arg("add rule ip t output icmp type time-exceeded drop"))?;
            }
        }
        let mut command = inside(&wire, &std::env::current_exe()?.to_string_lossy());
        command.args(["part", "wire", "left", "right", &DELAY_US.to_string()]);
        let held = Held::start(command)?;
        must(inside(&node, "ping").args(["-n", "-c", "1", "-W", "10", HOST]))?;
        Ok(held)
    }

    /// A program of the node's.
    pub(crate) fn node(&self, program: &str) -> Command {
        inside(&self.name("node"), program)
    }

    /// The name of the peer's namespace.
    pub(crate) fn peer(&self) -> String {
        self.name("peer")
    }

    fn name(&self, part: &str) -> String {
        format!("{}-{part}", self.prefix)
    }

    fn add(&mut self, part: &str) -> anyhow::Result<String> {
        let name = self.name(part);
        ip(&format!("netns add {name}"))?;
        self.names.push(name.clone());
        ip(&format!("-n {name} link set lo up"))?;
        must(inside(&name, "sysctl").args([
            "-qw",
            "net.ipv4.ping_group_range=0 2147483647",
            "net.ipv4.ip_local_port_range=1024 65535",
            "net.ipv4.tcp_tw_reuse=1",
            "net.ipv4.ip_forward=1",
            // A Linux router tells a sender once a second that it drops its packets: one of a provider's does so without such a limit.
            "net.ipv4.icmp_ratelimit=0",
        ]))?;
        // Kernels that keep these for each namespace; for others they are those of the machine, which stay as they are.
        drop(inside(&name, "sysctl").args(["-qw", "net.ipv4.icmp_msgs_per_sec=1000000", "net.ipv4.icmp_msgs_burst=100000"]).output());
        Ok(name)
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for name in &self.names {
            // Whatever runs in a namespace of ours is ours.
            let ids = Command::new("ip").args(["netns", "pids", name]).output().map(|output| output.stdout).unwrap_or_default();
            for id in String::from_utf8_lossy(&ids).split_whitespace().filter_map(|id| id.parse().ok()) {
                let _ended_already = kill(Pid::from_raw(id), Signal::SIGKILL).is_err();
            }
            drop(Command::new("ip").args(["netns", "del", name]).status());
        }
    }
}

/// A process that ends with its owner.
pub(crate) struct Held(Child);

impl Held {
    /// Starts it. What it prints is of no interest.
    pub(crate) fn start(mut command: Command) -> anyhow::Result<Self> {
        command.stderr(Stdio::null());
        Self::keeping_its_words(command)
    }

    /// Starts it; what it complains about goes where the command says.
    pub(crate) fn keeping_its_words(mut command: Command) -> anyhow::Result<Self> {
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        started.map(Self).with_context(|| format!("cannot start {command:?}; {PACKAGES}"))
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGTERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts something that stays on the first processor, and knows of no other.
pub(crate) fn on_first_processor<T>(start: impl FnOnce() -> T) -> anyhow::Result<T> {
    let (this_thread, before) = (Pid::from_raw(0), sched_getaffinity(Pid::from_raw(0))?);
    let mut first = CpuSet::new();
    first.set(0)?;
    sched_setaffinity(this_thread, &first)?;
    let started = start();
    sched_setaffinity(this_thread, &before)?;
    Ok(started)
}

/// Leaves the first processor to what is measured, where there is another.
pub(crate) fn leave_first_processor() -> anyhow::Result<()> {
    let mut others = sched_getaffinity(Pid::from_raw(0))?;
    others.unset(0)?;
    if (0..CpuSet::count()).any(|processor| others.is_set(processor) == Ok(true)) {
        sched_setaffinity(Pid::from_raw(0), &others)?;
    }
    Ok(())
}

/// Waits until it is so.
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    while !so() {
        ensure!(started.elapsed() < STARTED_WITHIN, "not after {STARTED_WITHIN:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A program in a namespace.
pub(crate) fn inside(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]).env("LC_ALL", "C");
    command
}

/// Runs a program that must do well; what it has printed on both streams.
pub(crate) fn must(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}; {PACKAGES}"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {said} (this needs root; {PACKAGES})");
    Ok(said)
}

/// Where everything comes from that is started here.
pub(crate) const PACKAGES: &str =
    "apt-get install iproute2 nftables iputils-ping traceroute tcpdump fping bind9 dnsperf nginx-light prometheus-blackbox-exporter";

fn ip(arguments: &str) -> anyhow::Result<()> {
    must(Command::new("ip").args(arguments.split(' '))).map(drop)
}
