//! The executors without a broker: what a benchmark measures to know what the tools themselves cost.

use std::io;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use probeops_shared::tools::Spec;

use crate::executors::{self, Context, Live};
use crate::policy::Policy;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// How many runs there were.
    pub runs: usize,
    /// How many of them failed, or found something else than was expected.
    pub bad: usize,
}

/// Keeps so many runs under way for a while, each as a job's: the policy asked, the report and the output made. `next` says what to run,
/// `is_right` whether a report, in JSON, is what is to be found.
pub async fn repeat(
    next: impl Fn(usize) -> Spec,
    under_way: usize,
    duration: Duration,
    is_right: impl Fn(&str) -> bool,
) -> io::Result<Tried> {
    let context = Context::new(Policy::load(None, &[]).map_err(io::Error::other)?, &[])?;
    let run = async |spec: Spec| {
        executors::execute(&context, &spec, &Live::default())
            .await
            .is_ok_and(|found| found.report.is_some_and(|report| is_right(report.get())))
    };
    let ends = Instant::now() + duration;
    let mut running: FuturesUnordered<_> = (0..under_way).map(|index| run(next(index))).collect();
    let mut tried = Tried::default();
    while let Some(right) = running.next().await {
        tried.runs += 1;
        tried.bad += usize::from(!right);
        if Instant::now() < ends {
            running.push(run(next(under_way + tried.runs)));
        }
    }
    Ok(tried)
}
