//! What an answer costs in processor time: steadier than answers per second on a machine that others use too.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// Processor time of some processes, and what was done with it.
#[derive(Clone, Debug)]
pub(crate) struct Spent {
    processes: Vec<(&'static str, u32)>,
    ticks: Vec<u64>,
    answers: usize,
}

impl Spent {
    /// Nothing yet, by these processes and this one, which asks.
    pub(crate) fn by(mut processes: Vec<(&'static str, u32)>) -> Self {
        processes.push(("asker", std::process::id()));
        Self { ticks: vec![0; processes.len()], processes, answers: 0 }
    }

    /// The clocks before a round.
    pub(crate) fn begin(&self) -> anyhow::Result<Vec<u64>> {
        self.processes.iter().map(|(_, id)| ticks(*id)).collect()
    }

    /// Adds a round that began at these clocks and had so many answers.
    pub(crate) fn end(&mut self, before: &[u64], answers: usize) -> anyhow::Result<()> {
        let after = self.begin()?;
        for ((spent, after), before) in self.ticks.iter_mut().zip(after).zip(before) {
            *spent += after - before;
        }
        self.answers += answers;
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
    fn micros(&self, ticks: u64) -> f64 {
        ticks as f64 * 1e6 / TICKS_PER_SECOND / self.answers.max(1) as f64
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {:.0} \u{b5}s a job (", self.micros(self.ticks.iter().sum()))?;
        for (index, ((name, _), ticks)) in self.processes.iter().zip(&self.ticks).enumerate() {
            write!(f, "{}{name} {:.0}", if index == 0 { "" } else { ", " }, self.micros(*ticks))?;
        }
        f.write_str(")")
    }
}

/// The kernel's clock for processor time ticks so often (`getconf CLK_TCK`; proc(5): the same on every Linux).
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time of a process until now, by the clock that ticks finest (`clock_getcpuclockid(3)`).
pub(crate) fn used(process_id: u32) -> anyhow::Result<Duration> {
    Ok(clock_getcpuclockid(Pid::from_raw(i32::try_from(process_id)?))?.now()?.into())
}

/// The same in ticks, user and system (proc(5), fields 14 and 15).
fn ticks(process_id: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(process_id.to_string()).join("stat"))?;
    let after_name = stat.rsplit_once(')').context("no name in /proc/PID/stat")?.1;
    let field =
        |index: usize| -> anyhow::Result<u64> { Ok(after_name.split_whitespace().nth(index).context("a short /proc/PID/stat")?.parse()?) };
    Ok(field(11)? + field(12)?)
}
