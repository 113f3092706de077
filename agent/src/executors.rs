//! What runs a tool: one file each, all of them below one function.
//!
//! An executor owns all it needs and spawns nothing, so dropping its future ends the run. It waits only as long as the tool's own options
//! say; the budget of the run is the worker's. What it has measured so far it leaves in [`Partial`].

mod dns;
mod echo;
mod ping;
mod reach;
mod tcp;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use probeops_shared::access::Targets;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tools::{Spec, Tool, ToolName};
use serde_json::Value;

use crate::net::icmp::Icmp;
use crate::net::words;
use crate::policy::Policy;
use crate::policy::surroundings::Lookout;
use crate::resolve::Resolver;

/// What executors work with; cheap to make for each run.
#[derive(Debug)]
pub(crate) struct Context {
    node: Arc<Equipment>,
    /// What the principal may be pointed at, beyond the node's policy.
    targets: Option<Targets>,
    /// What `echo` reports of the run's way here.
    dispatch_ms: Option<f64>,
    clock_offset_ms: Option<f64>,
}

/// What all runs of a node share.
#[derive(Debug)]
struct Equipment {
    policy: Policy,
    resolver: Resolver,
    lookout: Lookout,
    icmp: Icmp,
}

impl Context {
    /// The node's equipment, before any run. Fails where the machine does not show its network interfaces.
    pub(crate) fn new(policy: Policy, resolvers: &[SocketAddr]) -> io::Result<Self> {
        let node = Equipment { policy, resolver: Resolver::new(resolvers), lookout: Lookout::new()?, icmp: Icmp::default() };
        Ok(Self { node: Arc::new(node), targets: None, dispatch_ms: None, clock_offset_ms: None })
    }

    /// The same for one run.
    pub(crate) fn for_run(&self, targets: Option<Targets>, dispatch_ms: Option<f64>, clock_offset_ms: Option<f64>) -> Self {
        Self { node: Arc::clone(&self.node), targets, dispatch_ms, clock_offset_ms }
    }

    /// The policy in one line.
    pub(crate) fn policy_summary(&self) -> String {
        self.node.policy.summary()
    }
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The tool's report.
    pub(crate) report: Value,
    /// What the tool that everybody knows would print.
    pub(crate) output: String,
}

impl Found {
    fn of<T: Tool>(options: &T, target: &T::Target, report: &T::Report) -> Self {
        // Serialising plain data cannot fail.
        Self { report: serde_json::to_value(report).unwrap_or_default(), output: options.output(target, report) }
    }
}

/// What a run has found so far, for when it is cut short.
#[derive(Debug, Default)]
pub(crate) struct Partial(Mutex<Option<Found>>);

impl Partial {
    /// What was found until now.
    pub(crate) fn take(&self) -> Option<Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, found: Found) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }
}

/// Runs a tool to its end. Dropping the future stops it and frees all it holds.
pub(crate) async fn execute(context: &Context, spec: Spec, partial: &Partial) -> Result<Found, Failure> {
    context.node.policy.check_tool(spec.tool()).map_err(|rule| denied(&format!("this node's policy: {rule}")))?;
    // Boxed, so that a run is not as large as the largest of them while it runs the smallest.
    match spec {
        Spec::Echo { target, options } => Ok(Found::of(&options, &target, &echo::run(context, &options))),
        Spec::Ping { target, options } => {
            let report = Box::pin(ping::run(context, &target, &options, partial)).await?;
            Ok(Found::of(&options, &target, &report))
        }
        Spec::Dns { target, options } => {
            let report = Box::pin(dns::run(context, &target, &options, partial)).await?;
            Ok(Found::of(&options, &target, &report))
        }
        Spec::Tcp { target, options } => {
            let report = Box::pin(tcp::run(context, &target, &options, partial)).await?;
            Ok(Found::of(&options, &target, &report))
        }
    }
}

fn denied(detail: &str) -> Failure {
    Failure::new(FailureKind::Denied, detail)
}

/// The machine does not do what it should. What it lacks or does not permit is `unsupported`; anything else is a fault, and the log has more.
fn broken(tool: ToolName, doing: &str, error: &io::Error) -> Failure {
    let why = words(error);
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EAFNOSUPPORT) => return Failure::new(FailureKind::Unsupported, format!("this node could not {doing}: it has no IPv6")),
        Some(Errno::EPERM | Errno::EACCES) => return Failure::new(FailureKind::Unsupported, format!("this node could not {doing}: {why}")),
        Some(_) | None => {}
    }
    let incident = format!("{:016x}", rand::random::<u64>());
    tracing::error!(incident, %tool, %error, "could not {doing}");
    Failure::new(FailureKind::Internal, format!("this node could not {doing}: {why}; its log has it as incident {incident}"))
}

#[cfg(test)]
mod tests;
