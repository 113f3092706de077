//! The benchmarks: ProbeOps beside what it is compared with, in one run, as ratios.
//!
//! `cargo run --release -p probeops-tests --bin bench -- NAME`, where NAME is `throughput`, `latency`, `roster`, `memory`, `size`, `streams`,
//! `callbacks`, `fanout`, `failover`, `smoke` or `all`; or, as root and with programs to compare with, `testnet` (the tools beside the programs that everybody knows, with their times),
//! `ping`, `traceroute`, `http`, `https`, `dns`, `jobs`, `capacity` for all of these from `ping` on, or `capacity-smoke`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod capacity;
mod cpu;
mod failover;
mod fanout;
mod load;
mod relay;
mod roster;
mod streams;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use probeops_tests::crash::{self, Survived};
use probeops_tests::fabric::{Agent, AgentOptions, Api, ApiOptions, Fabric, free_port};
use probeops_tests::testnet::compare::COMPARISONS;
use probeops_tests::testnet::rtt;
use probeops_tests::testnet::run::run;

use crate::capacity::Scale;
use crate::load::{Measured, Question};

/// That of the program, for both sides.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How many connections ask at once when throughput is measured.
const CONNECTIONS: usize = 64;
/// How often both sides are measured, one after the other.
const ROUNDS: usize = 5;
/// How long one side is measured in one round.
const ROUND: Duration = Duration::from_secs(4);
/// The same, when only to see that it works.
const SMOKE_ROUND: Duration = Duration::from_millis(500);
/// How long a process is left alone before its memory is read.
const SETTLED: Duration = Duration::from_secs(12);
/// How many callbacks wait when everything is killed.
const CALLBACKS: usize = 1_000;
/// The longest that the comparison on a network of our own may take.
const TESTNET_MOST: Duration = Duration::from_mins(5);

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["throughput"] => throughput(ROUNDS, ROUND),
        ["audit"] => audit(ROUNDS, ROUND),
        ["latency"] => latency(ROUNDS, ROUND),
        ["roster"] => roster::run(ROUND),
        ["memory"] => memory(),
        ["size"] => size(),
        ["streams"] => streams::run(),
        ["callbacks"] => callbacks(),
        ["fanout"] => fanout::run(),
        ["failover"] => failover::run(),
        ["smoke"] => {
            throughput(1, SMOKE_ROUND)?;
            audit(1, SMOKE_ROUND)?;
            latency(1, SMOKE_ROUND)?;
            roster::run(SMOKE_ROUND)
        }
        ["all"] => {
            throughput(ROUNDS, ROUND)?;
            audit(ROUNDS, ROUND)?;
            latency(ROUNDS, ROUND)?;
            memory()?;
            size()?;
            streams::run()
        }
        ["testnet"] => return Ok(run(TESTNET_MOST, &[&rtt::COMPARISONS[..], &COMPARISONS].concat())),
        [name] if capacity::NAMES.contains(name) => capacity::run(name, Scale::Full, Some(&shipped_agent()?)),
        // The same of another build of the agent.
        [name, agent] if capacity::NAMES.contains(name) => capacity::run(name, Scale::Full, Some(Path::new(agent))),
        ["capacity"] => {
            let agent = shipped_agent()?;
            capacity::NAMES.iter().try_for_each(|name| capacity::run(name, Scale::Full, Some(&agent)))
        }
        ["capacity-smoke"] => capacity::NAMES.iter().try_for_each(|name| capacity::run(name, Scale::Smoke, None)),
        ["in-yard", arguments @ ..] => capacity::in_yard(arguments),
        ["part", arguments @ ..] => capacity::part(arguments),
        // ProbeOps itself, as processes of its own; then the other side.
        ["api" | "agent" | "keymaster" | "sentry", ..] => return Ok(probeops::main()),
        ["nodes", servers, ca] => fanout::nodes(servers, ca),
        ["respond-each", broker] => runtime()?.block_on(fanout::respond_each(broker)),
        ["respond", broker] => runtime()?.block_on(relay::respond(broker)),
        ["relay", broker, listen] => runtime()?.block_on(relay::serve(broker, listen.parse()?)),
        _ => bail!(
            "name a benchmark: throughput, audit, latency, roster, memory, size, streams, callbacks, fanout, failover, smoke, all, testnet, capacity, capacity-smoke or one of {:?}",
            capacity::NAMES
        ),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Jobs per second through the whole path: HTTP, key, limits, TLS to the broker, an agent, job state, audit.
fn throughput(rounds: usize, round: Duration) -> anyhow::Result<()> {
    let (ours, bare) = compare(CONNECTIONS, rounds, round)?;
    let (ours_median, bare_median) =
        (median(&ours.rounds, |measured| measured.per_second), median(&bare.rounds, |measured| measured.per_second));
    println!("throughput, {CONNECTIONS} connections, median of {rounds} interleaved rounds of {} s", round.as_secs_f64());
    for (name, side, per_second) in [("ProbeOps", &ours, ours_median), ("bare", &bare, bare_median)] {
        println!("  {name:<8} {per_second:>8.0} jobs/s   p50 {:.2} ms   {}", median(&side.rounds, |measured| measured.p50_ms), side.cpu);
    }
    println!("  ratio    {:>8.2}", ours_median / bare_median);
    Ok(())
}

/// What it costs that no job runs before the trail has its record: two APIs on the same broker and agent, one that waits for it and one that does not.
fn audit(rounds: usize, round: Duration) -> anyhow::Result<()> {
    let required = Ours::start();
    let options = ApiOptions { audit: Some("best_effort".to_owned()), ..ApiOptions::default() };
    let best_effort = required.fabric.api_with(&options);
    best_effort.wait_for_nodes(1);
    let runtime = runtime()?;
    println!("audit, median of {rounds} interleaved rounds of {} s", round.as_secs_f64());
    for connections in [CONNECTIONS, 1] {
        let side = |api: &Api| Side { rounds: Vec::new(), cpu: cpu::Spent::by(required.processes_with(api)) };
        let mut sides = [("required", &required.api, side(&required.api)), ("best_effort", &best_effort, side(&best_effort))];
        for _ in 0..rounds {
            for (_, api, side) in &mut sides {
                let before = side.cpu.begin()?;
                let measured = runtime.block_on(load::run(&question(api)?, connections, round))?;
                side.cpu.end(&before, measured.answers)?;
                side.rounds.push(measured);
            }
        }
        for (name, _, side) in &sides {
            let (per_second, p50_ms) =
                (median(&side.rounds, |measured| measured.per_second), median(&side.rounds, |measured| measured.p50_ms));
            println!("  {connections:>2} connections  {name:<11} {per_second:>8.0} jobs/s   p50 {p50_ms:.2} ms   {}", side.cpu);
        }
        let per_second = sides.each_ref().map(|(_, _, side)| median(&side.rounds, |measured| measured.per_second));
        let [required, best_effort] = per_second;
        println!("  ratio {:.2}", required / best_effort);
    }
    Ok(())
}

/// What the path adds for one who asks one question after the other.
fn latency(rounds: usize, round: Duration) -> anyhow::Result<()> {
    let (ours, bare) = compare(1, rounds, round)?;
    let (ours_ms, bare_ms) = (median(&ours.rounds, |measured| measured.p50_ms), median(&bare.rounds, |measured| measured.p50_ms));
    println!("latency, 1 connection, median of {rounds} interleaved rounds of {} s", round.as_secs_f64());
    println!("  ProbeOps p50 {ours_ms:.3} ms   p99 {:.3} ms", median(&ours.rounds, |measured| measured.p99_ms));
    println!("  bare     p50 {bare_ms:.3} ms   p99 {:.3} ms", median(&bare.rounds, |measured| measured.p99_ms));
    println!("  added    p50 {:.3} ms", ours_ms - bare_ms);
    Ok(())
}

/// What one side did in all rounds.
struct Side {
    rounds: Vec<Measured>,
    cpu: cpu::Spent,
}

fn compare(connections: usize, rounds: usize, round: Duration) -> anyhow::Result<(Side, Side)> {
    let ours = Ours::start();
    let bare = Bare::start(&ours)?;
    let runtime = runtime()?;
    let side = |processes| Side { rounds: Vec::new(), cpu: cpu::Spent::by(processes) };
    let (mut of_ours, mut of_bare) = (side(ours.processes()), side(bare.processes()));
    let measure = |side: &mut Side, question: &Question| {
        let before = side.cpu.begin()?;
        let measured = runtime.block_on(load::run(question, connections, round))?;
        side.cpu.end(&before, measured.answers)?;
        side.rounds.push(measured);
        anyhow::Ok(())
    };
    for _ in 0..rounds {
        measure(&mut of_bare, &bare.question()).context("the bare relay")?;
        measure(&mut of_ours, &ours.question()?).context("ProbeOps")?;
    }
    Ok((of_ours, of_bare))
}

/// What an agent and an API hold when nobody asks anything.
fn memory() -> anyhow::Result<()> {
    let ours = Ours::start_with(&AgentOptions { program: Some(shipped_agent()?), ..AgentOptions::default() });
    std::thread::sleep(SETTLED);
    let (agent, api) = (resident_mib(ours.agent.process_id())?, resident_mib(ours.api.process_id())?);
    println!("memory, idle, resident\n  agent {agent:.1} MiB (as shipped)\n  API   {api:.1} MiB (the command with everything in it)");
    Ok(())
}

/// What is left of callbacks when every process is killed.
fn callbacks() -> anyhow::Result<()> {
    let Survived { delivered, ids, told: _, requests, took } = crash::callbacks(CALLBACKS);
    println!("callbacks, {CALLBACKS} jobs; API, agent, broker, API and API killed with SIGKILL one after the other");
    println!("  delivered {delivered}, under {ids} ids in {requests} requests, {:.0} s after the first kill", took.as_secs_f64());
    ensure!(delivered == CALLBACKS && ids == CALLBACKS, "some were lost, or had more than one id");
    Ok(())
}

/// How large the agent is as it is shipped.
fn size() -> anyhow::Result<()> {
    let bytes = std::fs::metadata(shipped_agent()?)?.len();
    println!("size, profile dist\n  probeops-agent {bytes} bytes");
    Ok(())
}

/// The agent as it is shipped.
fn shipped_agent() -> anyhow::Result<PathBuf> {
    let built = Command::new(env!("CARGO")).args(["build", "--profile", "dist", "-p", "probeops-agent"]).status()?;
    ensure!(built.success(), "the agent cannot be built");
    let own = std::env::current_exe()?;
    Ok(own.ancestors().nth(2).context("no target folder")?.join("dist/probeops-agent"))
}

fn resident_mib(process_id: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(process_id.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// One API, one agent, one broker with everything on.
struct Ours {
    agent: Rc<Agent>,
    api: Api,
    fabric: Fabric,
}

impl Ours {
    fn start() -> Self {
        Self::start_with(&AgentOptions::default())
    }

    fn start_with(options: &AgentOptions) -> Self {
        let fabric = Fabric::start();
        let api = fabric.api();
        let agent = fabric.agent_with("bench-1", "eu", options);
        api.wait_for_nodes(1);
        Self { agent, api, fabric }
    }

    fn processes(&self) -> Vec<(&'static str, u32)> {
        self.processes_with(&self.api)
    }

    fn processes_with(&self, api: &Api) -> Vec<(&'static str, u32)> {
        vec![("api", api.process_id()), ("broker", self.fabric.broker_process_id()), ("agent", self.agent.process_id())]
    }

    fn question(&self) -> anyhow::Result<Question> {
        question(&self.api)
    }
}

fn question(api: &Api) -> anyhow::Result<Question> {
    let address: SocketAddr = api.url().trim_start_matches("http://").parse()?;
    let body = br#"{"tool":"echo","target":"bench","from":"eu"}"#;
    let token = Some(api.admin_key().to_owned());
    Ok(Question { address, path: "/v1/jobs", body: body.as_slice().into(), token, expect: "\"status\":\"success\"" })
}

/// A bare server, a bare relay, a bare responder.
struct Bare {
    listen: SocketAddr,
    /// Broker, responder, relay.
    children: [Child; 3],
}

impl Bare {
    fn start(ours: &Ours) -> anyhow::Result<Self> {
        let (broker, listen) = (free_port(), free_port());
        let url = format!("nats://{broker}");
        let own = std::env::current_exe()?;
        let mut server = Command::new(ours.fabric.nats_server());
        let server = server.args(["-a", "127.0.0.1", "-p", &broker.port().to_string(), "-l", "/dev/null"]).spawn()?;
        wait_for(broker)?;
        let responder = Command::new(&own).args(["respond", &url]).spawn()?;
        let relay = Command::new(&own).args(["relay", &url, &listen.to_string()]).spawn()?;
        let bare = Self { listen, children: [server, responder, relay] };
        wait_for(listen)?;
        Ok(bare)
    }

    fn processes(&self) -> Vec<(&'static str, u32)> {
        let [broker, responder, relay] = self.children.each_ref().map(Child::id);
        vec![("relay", relay), ("broker", broker), ("responder", responder)]
    }

    fn question(&self) -> Question {
        let body = br#"{"tool":"echo","target":"bench","from":"eu"}"#;
        Question { address: self.listen, path: "/relay", body: body.as_slice().into(), token: None, expect: "echo" }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Ours, by its own id; it may have ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn wait_for(address: SocketAddr) -> anyhow::Result<()> {
    const TRIES: u32 = 400;
    for _ in 0..TRIES {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    bail!("nobody listens on {address}")
}

fn median(rounds: &[Measured], of: impl Fn(&Measured) -> f64) -> f64 {
    let mut figures: Vec<f64> = rounds.iter().map(of).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new()
}
