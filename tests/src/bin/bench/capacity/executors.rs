//! The executors alone, in a process of their own on one core: the tool itself without the broker, for tools that are compared with programs
//! which nobody asks over a broker.

use std::time::Duration;

use anyhow::{Context, ensure};
use probeops_agent::trial;
use probeops_shared::tools::{Spec, ToolName};
use serde_json::{Map, Value};

use super::asker::{Job, address};
use super::{micros_each, on_one_core, timed, traceroute};
use crate::cpu;

/// What stands in a target for an address of the peer's, another one each time.
pub(super) const ADDRESS: &str = "ADDRESS";

/// How many of them there are.
const TARGETS: usize = 1_000;

/// The processor time of a run, in microseconds.
pub(super) fn cost(job: &Job, under_way: usize, round: Duration) -> anyhow::Result<f64> {
    let own = std::env::current_exe()?;
    let mut command = on_one_core(&own.to_string_lossy());
    let (parameters, count) = (job.parameters.to_string(), under_way.to_string());
    command.args(["part", "repeat", job.tool, &job.target, &parameters, &count, &round.as_millis().to_string()]);
    let (said, _, _) = timed(&mut command)?;
    let (runs, nanos) = said.trim().split_once(' ').with_context(|| said.clone())?;
    Ok(micros_each(Duration::from_nanos(nanos.parse()?), runs.parse()?))
}

/// What that process does; it prints how many runs there were, and for how many nanoseconds it computed from the first to the last.
pub(super) fn repeat(arguments: &[&str]) -> anyhow::Result<()> {
    let [tool, target, parameters, under_way, round_ms] = arguments else { anyhow::bail!("this is started by the benchmark itself") };
    probeops_nats::process::install_tls_provider();
    let (tool, parameters): (ToolName, Map<String, Value>) = (tool.parse().map_err(anyhow::Error::msg)?, serde_json::from_str(parameters)?);
    let spec = |index| Spec::parse(tool, &target.replace(ADDRESS, &address(index)), parameters.clone());
    let specs: Vec<Spec> = (0..TARGETS).map(spec).collect::<Result<_, _>>().map_err(|invalid| anyhow::anyhow!("{invalid:?}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let round = Duration::from_millis(round_ms.parse()?);
    let before = cpu::used(std::process::id())?;
    let tried = runtime.block_on(trial::repeat(|run| specs[run % TARGETS].clone(), under_way.parse()?, round, is_right_text))?;
    let spent = cpu::used(std::process::id())?.saturating_sub(before);
    ensure!(tried.bad == 0, "{} of {} runs found something else", tried.bad, tried.runs);
    println!("{} {}", tried.runs, spent.as_nanos());
    Ok(())
}

/// Whether a report of any tool that is measured is what is to be found.
pub(super) fn is_right(report: &Value) -> bool {
    report["status"] == 200 || report["answered"] == true || traceroute::missing(report).is_some_and(|missing| missing == 0)
}

/// The same of a report in JSON; read only where that costs little beside the run.
fn is_right_text(report: &str) -> bool {
    let quickly = report.contains(r#""status":200"#) || report.contains(r#""answered":true"#);
    quickly || (report.contains(r#""hops":"#) && serde_json::from_str(report).is_ok_and(|report| is_right(&report)))
}
