//! What one agent can do, beside the program that does the same, on networks of our own.
//!
//! What is measured is the agent as it is shipped, a process of its own on one core: a job comes in over the broker, is admitted, run by its
//! executor, put into an outcome and published. The processor time is all that the process took for all of that. Where it says *executor*, it
//! is a process that does the same without broker and outcome.

mod accuracy;
mod asker;
mod burst;
mod dns;
mod executors;
mod memory;
mod ping;
mod traceroute;
mod web;
mod yard;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use probeops_nats::layout::Layout;
use probeops_nats::server::Search;
use probeops_tests::fabric::{Agent, AgentOptions, Fabric};
use probeops_tests::wire_delay;

use self::asker::{Asker, NODE};
use self::yard::Yard;
use crate::cpu;

/// What can be measured.
pub(crate) const NAMES: [&str; 6] = ["ping", "traceroute", "http", "https", "dns", "jobs"];
/// Each takes at most this long.
const ENDS_WITHIN: Duration = Duration::from_mins(10);
/// More than any benchmark asks for at once.
const SLOTS: usize = 32_768;

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Enough for figures.
    Full,
    /// Enough to see that it works and nothing is lost.
    Smoke,
}

impl Scale {
    /// One of two.
    fn of<T>(self, full: T, smoke: T) -> T {
        match self {
            Self::Full => full,
            Self::Smoke => smoke,
        }
    }
}

/// Measures it on networks made for it. `agent` is the program as shipped; this one, which is that too, if none.
pub(crate) fn run(name: &str, scale: Scale, agent: Option<&Path>) -> anyhow::Result<()> {
    let nats_server =
        Search::usual(std::env::var_os("NATS_SERVER").map(PathBuf::from), &Layout::new(std::env::temp_dir().join("probeops-bench")));
    let nats_server = nats_server.find_or_fetch(&|_progress| ()).map_err(|error| anyhow::anyhow!("{error}"))?.path;
    let mut yard = Yard::new(name == "ping").context("the networks for the benchmark")?;
    let _path = (name == "traceroute").then(|| yard.add_path()).transpose()?;
    let mut command = yard.node(&std::env::current_exe()?.to_string_lossy());
    command.args(["in-yard", name, scale.of("full", "smoke"), &yard.peer()]).args(agent).env("NATS_SERVER", nats_server);
    let (started, mut child) = (Instant::now(), command.spawn()?);
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "the benchmark {name} failed");
            return Ok(());
        }
        if started.elapsed() > ENDS_WITHIN {
            child.kill()?;
            child.wait()?;
            bail!("the benchmark {name} did not end within {ENDS_WITHIN:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The other half of it, in the node's namespace.
pub(crate) fn in_yard(arguments: &[&str]) -> anyhow::Result<()> {
    let [name, scale, peer, agent @ ..] = arguments else { bail!("this is started by the benchmark itself") };
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
    let scale = if *scale == "full" { Scale::Full } else { Scale::Smoke };
    let mut site = Site::new(peer, scale, agent.first().map(PathBuf::from))?;
    match *name {
        "ping" => ping::measure(&mut site),
        "traceroute" => traceroute::measure(&mut site),
        "http" => web::measure(&mut site, web::Scheme::Http),
        "https" => web::measure(&mut site, web::Scheme::Https),
        "dns" => dns::measure(&mut site),
        "jobs" => memory::measure(&mut site),
        other => bail!("there is no benchmark {other}"),
    }
}

/// What a benchmark starts of this program in another namespace.
pub(crate) fn part(arguments: &[&str]) -> anyhow::Result<()> {
    match arguments {
        ["wire", left, right, delay_us] => {
            yard::leave_first_processor()?;
            Ok(wire_delay::carry(left, right, Duration::from_micros(delay_us.parse()?))?)
        }
        ["repeat", arguments @ ..] => executors::repeat(arguments),
        ["burst", count] => burst::answer(count.parse()?),
        _ => bail!("this is started by the benchmark itself"),
    }
}

/// A broker, an agent on it, somebody who asks it, and whom it asks.
struct Site {
    fabric: Fabric,
    agent: Rc<Agent>,
    asker: Asker,
    peer: String,
    scale: Scale,
}

impl Site {
    fn new(peer: &str, scale: Scale, program: Option<PathBuf>) -> anyhow::Result<Self> {
        let fabric = Fabric::start();
        let (slots_light, slots_probe) = (Some(SLOTS), Some(SLOTS));
        let options = AgentOptions { program, slots_light, slots_probe, ..AgentOptions::default() };
        let agent = yard::on_first_processor(|| fabric.agent_with(NODE, "eu", &options))?;
        let asker = Asker::new(&fabric)?;
        Ok(Self { fabric, agent, asker, peer: peer.to_owned(), scale })
    }

    /// The agent's processor time until now.
    fn spent(&self) -> anyhow::Result<Duration> {
        cpu::used(self.agent.process_id())
    }

    /// A program of the peer's.
    fn peer(&self, program: &str) -> Command {
        yard::inside(&self.peer, program)
    }

    /// A file for a program that is started.
    fn file(&self, name: &str, content: &str) -> String {
        self.fabric.file(name, content).to_string_lossy().into_owned()
    }
}

/// Runs a program to its end: what it has printed on both streams, how long it took, and its processor time.
fn timed(command: &mut Command) -> anyhow::Result<(String, Duration, Duration)> {
    let used = || -> anyhow::Result<Duration> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let micros = |time: nix::sys::time::TimeVal| u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or_default();
        Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
    };
    let (before, started) = (used()?, Instant::now());
    let output = command.output().with_context(|| format!("cannot start {command:?}; {}", yard::PACKAGES))?;
    let (took, spent) = (started.elapsed(), used()?.saturating_sub(before));
    Ok((format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)), took, spent))
}

/// A program on the first processor.
fn on_one_core(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", "0", program]);
    command
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
fn micros_each(spent: Duration, count: usize) -> f64 {
    spent.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// Prints what one costs by whole agent, executor and peer.
fn print_costs(agent: f64, executor: f64, (peer, theirs): (&str, f64)) {
    for (who, cost) in [("whole agent", agent), ("executor", executor), (peer, theirs)] {
        println!("  {who:<29} CPU {cost:>6.1} \u{b5}s each, {:>7.0} a CPU second, {:.2} times {peer}", 1e6 / cost, theirs / cost);
    }
}

/// The middle one.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
