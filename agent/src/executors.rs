//! What runs a tool: one file each, all of them below one function.
//!
//! An executor owns all it needs and spawns nothing, so dropping its future ends the run. It waits only as long as the tool's own options
//! say; the budget of the run is the worker's. What it has measured so far it leaves in [`Live`], and tells it there.

mod dial;
mod dns;
mod echo;
mod http;
mod mtr;
mod ping;
mod pmtu;
mod reach;
mod tcp;
mod tls;
mod trace;
mod traceroute;
pub(crate) mod whois;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use probeops_shared::access::Targets;
use probeops_shared::host::Host;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tools::ping::report::IcmpEngine;
use probeops_shared::tools::{Spec, Tool, ToolName};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::net::arrival;
use crate::net::icmp::Icmp;
use crate::net::pacer::Pacer;
use crate::net::words;
use crate::policy::Policy;
use crate::policy::keeper::Keeper;
use crate::policy::surroundings::Lookout;
use crate::resolve::Resolver;

/// How many pieces of progress wait for a slow connection.
const NEWS_WAITING_MAX: usize = 256;

/// What executors work with; cheap to make for each run.
#[derive(Debug)]
pub(crate) struct Context {
    node: Arc<Equipment>,
    /// What speaks ICMP for `ping`; all else speaks it by the node's own.
    icmp_engine: IcmpEngine,
    /// What the principal may be pointed at, beyond the node's policy.
    targets: Option<Targets>,
    /// What `echo` reports of the run's way here.
    dispatch_ms: Option<f64>,
    clock_offset_ms: Option<f64>,
    /// The zone that the operator has set for the origins of addresses.
    asn_zone: Option<Arc<str>>,
    /// Whom the run was let touch, to be judged again when the policy changes.
    touched: Mutex<Vec<Touched>>,
}

/// Whom a run was let touch.
#[derive(Debug, PartialEq, Eq)]
struct Touched {
    /// As it was asked for.
    host: Host,
    /// What else its name led to.
    aliases: Vec<String>,
    /// None of a name that is only asked for, or not found yet.
    address: Option<IpAddr>,
    ports: Vec<Option<u16>>,
}

/// What all runs of a node share.
#[derive(Debug)]
struct Equipment {
    policy: Keeper,
    resolver: Resolver,
    lookout: Lookout,
    icmp: Icmp,
    pacer: Pacer,
    /// Held, so that the first packets are stamped, too.
    _stamping: UdpSocket,
}

impl Context {
    /// The node's equipment, before any run. Fails where the machine does not show its network interfaces.
    pub(crate) fn new(policy: impl Into<Keeper>, resolvers: &[SocketAddr]) -> io::Result<Self> {
        let node = Equipment {
            policy: policy.into(),
            resolver: Resolver::new(resolvers),
            lookout: Lookout::new()?,
            icmp: Icmp::default(),
            pacer: Pacer::default(),
            _stamping: arrival::stamping()?,
        };
        Ok(Self {
            node: Arc::new(node),
            icmp_engine: IcmpEngine::default(),
            targets: None,
            dispatch_ms: None,
            clock_offset_ms: None,
            asn_zone: None,
            touched: Mutex::default(),
        })
    }

    /// The same with this engine.
    pub(crate) fn with_engine(self, icmp_engine: IcmpEngine) -> Self {
        Self { icmp_engine, ..self }
    }

    /// The same with this zone for the origins of addresses.
    pub(crate) fn with_asn_zone(self, zone: Option<&str>) -> Self {
        Self { asn_zone: zone.map(Arc::from), ..self }
    }

    /// The same for one run.
    pub(crate) fn for_run(&self, targets: Option<Targets>, dispatch_ms: Option<f64>, clock_offset_ms: Option<f64>) -> Self {
        let (node, asn_zone) = (Arc::clone(&self.node), self.asn_zone.clone());
        Self { node, icmp_engine: self.icmp_engine, targets, dispatch_ms, clock_offset_ms, asn_zone, touched: Mutex::default() }
    }

    /// The owner's policy.
    pub(crate) fn policy(&self) -> &Keeper {
        &self.node.policy
    }
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The tool's report, in JSON.
    pub(crate) report: Option<Box<RawValue>>,
    /// What the tool that everybody knows would print.
    pub(crate) output: String,
}

impl Found {
    fn of<T: Tool>(options: &T, target: &T::Target, report: &T::Report) -> Result<Self, Failure> {
        Ok(Self { report: Some(written::<T, _>(to_raw_value(report))?), output: options.output(target, report) })
    }
}

/// What a tool found, in JSON. It is plain data with words for keys, which cannot fail to be written; if ever it does, that is a fault of ours,
/// and not to be taken for a run that had nothing to say.
fn written<T, V>(found: serde_json::Result<V>) -> Result<V, Failure> {
    found.map_err(|error| {
        let incident = format!("{:016x}", rand::random::<u64>());
        tracing::error!(incident, tool = std::any::type_name::<T>(), %error, "what was found could not be written as JSON");
        Failure::new(
            FailureKind::Internal,
            format!("what was found could not be written as JSON; the agent's log has it as incident {incident}"),
        )
    })
}

/// Puts into words what was found.
type Wording = dyn FnOnce() -> Result<Found, Failure> + Send;

/// A run while it goes on: what it has found so far, for when it is cut short, and who is told of what it finds.
#[derive(Default)]
pub(crate) struct Live {
    /// Put into words only when somebody wants them, which is seldom.
    found: Mutex<Option<Box<Wording>>>,
    listener: Option<Listener>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Where progress goes. Nobody waits for a listener: what it has no room for gives way to the next, which says how many are missing.
#[derive(Debug)]
struct Listener {
    began: Instant,
    news: mpsc::Sender<News>,
    last: Arc<Mutex<Option<News>>>,
}

/// What a listener hears.
#[derive(Debug)]
pub(crate) struct Heard {
    news: mpsc::Receiver<News>,
    /// What comes after all of them: the newest that had no room.
    last: Arc<Mutex<Option<News>>>,
}

/// A piece of progress on its way to the caller.
#[derive(Debug)]
pub(crate) struct News {
    /// How long after the run began.
    pub(crate) elapsed: Duration,
    /// In the tool's own shape.
    pub(crate) progress: Value,
    /// What the tool would print of it.
    pub(crate) output: String,
    /// How many were missed before it.
    pub(crate) missed: u64,
}

impl Live {
    /// A run whose progress somebody wants to hear.
    pub(crate) fn heard() -> (Self, Heard) {
        let (tell, news) = mpsc::channel(NEWS_WAITING_MAX);
        let last = Arc::default();
        let listener = Listener { began: Instant::now(), news: tell, last: Arc::clone(&last) };
        (Self { found: Mutex::default(), listener: Some(listener) }, Heard { news, last })
    }

    /// What was found until now.
    pub(crate) fn take(&self) -> Option<Found> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).take();
        // What cannot be written is in the log; the run that asks for it has failed already.
        found.and_then(|found| found().ok())
    }

    /// What is there if the run ends now.
    fn set<T: Tool>(&self, options: &T, target: &T::Target, report: T::Report) {
        let (options, target) = (options.clone(), target.clone());
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(move || Found::of(&options, &target, &report)));
    }

    /// Whether anybody wants to hear of progress; for tools to whom telling it is work.
    fn is_heard(&self) -> bool {
        self.listener.is_some()
    }

    /// Tells what was just found.
    fn tell<T: Tool>(&self, options: &T, target: &T::Target, progress: &T::Progress) {
        let Some(listener) = &self.listener else { return };
        let (elapsed, output) = (listener.began.elapsed(), options.progress_output(target, progress));
        let Ok(progress) = written::<T, _>(serde_json::to_value(progress)) else { return };
        let mut last = listener.last.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = if let Some(unsaid) = last.take()
            && let Err(TrySendError::Full(unsaid)) = listener.news.try_send(unsaid)
        {
            unsaid.missed + 1
        } else {
            0
        };
        if let Err(TrySendError::Full(unsaid)) = listener.news.try_send(News { elapsed, progress, output, missed }) {
            *last = Some(unsaid);
        }
    }
}

impl Heard {
    /// The next piece, if there is one now.
    pub(crate) fn try_recv(&mut self) -> Option<News> {
        self.news.try_recv().ok().or_else(|| self.last.lock().unwrap_or_else(PoisonError::into_inner).take())
    }

    /// The next piece; none when the run is over and all is heard.
    pub(crate) async fn recv(&mut self) -> Option<News> {
        match self.try_recv() {
            Some(news) => Some(news),
            None => self.news.recv().await,
        }
    }
}

/// Runs a tool to its end. Dropping the future stops it and frees all it holds.
pub(crate) async fn execute(context: &Context, spec: &Spec, live: &Live) -> Result<Found, Failure> {
    let permit = |policy: &Policy| policy.check_tool(spec.tool()).map_err(|rule| denied(&format!("this node's policy: {rule}")));
    if let Spec::Echo { target, options } = spec {
        permit(&context.node.policy.current())?;
        return Found::of(options, target, &echo::run(context, options));
    }
    let mut changes = context.node.policy.changes();
    permit(&context.node.policy.current())?;
    let mut running = pin!(execute_spec(context, spec, live));
    loop {
        // A change first: what it denies is not touched any more, not even by what was about to.
        let policy = tokio::select! {
            biased;
            policy = changes.next() => policy,
            done = &mut running => return done,
        };
        // What the owner does not allow any more ends, however it was when it began: packets that still come, and connections that are open.
        permit(&policy).and(context.judge_again(&policy).await).map_err(|failure| Failure {
            detail: format!("the node's owner has changed its policy while this ran: {}", failure.detail),
            ..failure
        })?;
    }
}

async fn execute_spec(context: &Context, spec: &Spec, live: &Live) -> Result<Found, Failure> {
    // Boxed, so that a run is not as large as the largest of them while it runs the smallest.
    match spec {
        Spec::Echo { target, options } => Found::of(options, target, &echo::run(context, options)),
        Spec::Ping { target, options } => {
            let report = Box::pin(ping::run(context, target, options, live)).await?;
            Found::of(options, target, &report)
        }
        Spec::Dns { target, options } => {
            let report = Box::pin(dns::run(context, target, options, live)).await?;
            Found::of(options, target, &report)
        }
        Spec::Traceroute { target, options } => {
            let report = Box::pin(traceroute::run(context, target, options, live)).await?;
            Found::of(options, target, &report)
        }
        Spec::Mtr { target, options } => {
            let report = Box::pin(mtr::run(context, target, options, live)).await?;
            Found::of(options, target, &report)
        }
        Spec::Tcp { target, options } => {
            let report = Box::pin(tcp::run(context, target, options, live)).await?;
            Found::of(options, target, &report)
        }
        Spec::Tls { target, options } => {
            let report = Box::pin(tls::run(context, target, options, live)).await?;
            Found::of(options, target, &report)
        }
        Spec::Http { target, options } => {
            let report = Box::pin(http::run(context, target, options, live)).await?;
            Found::of(options, target, &report)
        }
        Spec::Pmtu { target, options } => {
            let report = Box::pin(pmtu::run(context, target, options, live)).await?;
            Found::of(options, target, &report)
        }
        Spec::Whois { target, options } => {
            let report = Box::pin(whois::run(context, target, options, live)).await?;
            Found::of(options, target, &report)
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
