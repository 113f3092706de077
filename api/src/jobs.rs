//! Jobs: from a request to a document, and back from stream JOBS.

mod store;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::host::{DnsName, Host};
use probeops_shared::ids::{JobId, NodeId, Region, RequestId};
use probeops_shared::invalid::Invalid;
use probeops_shared::job::{GRACE, Job};
use probeops_shared::outcome::Outcome;
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::Spec;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Principal;
use crate::audit::Audit;
use crate::broker::{Broker, Destination, Run};
use crate::jobs::store::Store;
use crate::problem::Problem;

/// The longest a call waits for its job.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How many runs this API has going on at once; each holds a task and a token.
const RUNS_MAX: usize = 20_000;
/// When a full API may have room again.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Which node or nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// Any one node of a region.
    Region(Region),
    /// This node.
    Node(NodeId),
}

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("node", id)) => id.parse().map(Self::Node),
            Some((kind, _)) => Err(format!(
                "`{}:` selects nothing; write a region such as eu-central, or node: and a node's id",
                kind.chars().take(64).collect::<String>()
            )),
            None => text.parse().map(Self::Region),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(region) => region.fmt(f),
            Self::Node(node) => write!(f, "node:{node}"),
        }
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Selector {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Selector".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(node:)?[a-z0-9][a-z0-9-]{0,62}$",
            "description": "A region (any one node of it), or `node:` and a node's id.",
            "examples": ["eu-central", "node:fra-1"],
        })
    }
}

/// What a caller wants run.
#[derive(Clone, Debug)]
pub struct JobRequest {
    /// The tool, target and options.
    pub spec: Spec,
    /// From where: one run for each.
    pub from: Vec<Selector>,
    /// What grace and budget together may take.
    pub timeout: Option<Duration>,
    /// W3C trace context of the call.
    pub traceparent: Option<String>,
}

/// A job, whether one node ran it or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobDocument {
    /// Its id.
    pub id: JobId,
    /// The tool.
    pub tool: String,
    /// The target in its normal form.
    pub target: String,
    /// The options, defaults included.
    pub parameters: Map<String, Value>,
    /// From where.
    pub from: Vec<Selector>,
    /// On whose behalf.
    pub caller: String,
    /// Whether it goes on.
    pub status: JobStatus,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its last run ended; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// One outcome for each selector, in their order; while it goes on, those there are.
    pub results: Vec<Outcome>,
}

/// Whether a job goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Not every run has its outcome yet.
    Running,
    /// Every run has its outcome.
    Finished,
}

/// A job that was accepted.
#[derive(Clone, Debug)]
pub enum Submitted {
    /// It is over.
    Finished(Box<JobDocument>),
    /// It goes on; ask for it later.
    Running(Box<JobDocument>),
}

/// What takes jobs.
#[derive(Clone, Debug)]
pub struct Jobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    broker: Broker,
    audit: Audit,
    store: Store,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Jobs {
    /// Takes jobs for this broker. What it writes goes on in `tasks` until `stop`.
    pub(crate) fn new(broker: Broker, audit: Audit, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let store = Store::start(broker.jetstream(), tasks, stop);
        Self(Arc::new(Inner { broker, audit, store, room: Arc::new(Semaphore::new(RUNS_MAX)), tasks: TaskTracker::new() }))
    }

    /// Waits until every job accepted has its outcome.
    pub(crate) async fn finish(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Checks a request against what the principal may do and what there is, runs it, and waits for it.
    pub async fn submit(&self, principal: &Principal, request: JobRequest) -> Result<Submitted, Problem> {
        let destinations = self.destinations(principal, &request)?;
        check_target(principal, &request.spec)?;
        let budget = request.spec.budget();
        let start_within = start_within(request.timeout, budget)?;
        principal.take(destinations.len())?;
        let runs_count = u32::try_from(destinations.len()).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.0.room).try_acquire_many_owned(runs_count) else {
            let full = Problem::new(Code::Unavailable, format!("this API has {RUNS_MAX} runs going on and takes no more for the moment"));
            return Err(full.retry_after(FULL_RETRY_AFTER));
        };
        let document = document(principal, &request);
        let runs = runs(principal, &request, &document, destinations, start_within);
        let patience = start_within + budget + GRACE;
        if runs.len() > 1 || patience > WAIT_MAX {
            self.0
                .store
                .put_now(&document)
                .await
                .map_err(|error| Problem::new(Code::Unavailable, format!("the job could not be kept: {error}")))?;
        }
        self.0.audit.record(accepted(&document));
        let (sender, finished) = oneshot::channel();
        let (jobs, running) = (self.clone(), document.clone());
        // The job outlives the call: a caller that hangs up finds it under its id.
        drop(self.0.tasks.spawn(async move {
            let outcomes = join_all(runs.iter().map(|run| jobs.0.broker.dispatch(run))).await;
            drop(room);
            let finished_at = Some(Timestamp::now());
            let document = JobDocument { status: JobStatus::Finished, finished_at, results: outcomes, ..document };
            jobs.0.store.put(&document);
            // The caller may be gone.
            drop(sender.send(document));
        }));
        match tokio::time::timeout(WAIT_MAX, finished).await {
            Ok(Ok(document)) => Ok(Submitted::Finished(Box::new(document))),
            Ok(Err(_gone)) => Err(Problem::new(Code::Internal, "the job ended without an outcome")),
            Err(_elapsed) => Ok(Submitted::Running(Box::new(running))),
        }
    }

    /// A job of this principal.
    pub async fn get(&self, principal: &Principal, id: JobId) -> Result<JobDocument, Problem> {
        let found =
            self.0.store.get(id).await.map_err(|error| Problem::new(Code::Unavailable, format!("jobs cannot be read now: {error}")))?;
        let own = found.filter(|document| document.caller == principal.name || principal.is_admin());
        own.ok_or_else(|| Problem::new(Code::NotFound, format!("there is no job `{id}` of yours; jobs are kept for 24 hours")))
    }

    /// Where each run goes, if the principal may and somebody is there.
    fn destinations(&self, principal: &Principal, request: &JobRequest) -> Result<Vec<Destination>, Problem> {
        let tool = request.spec.tool();
        principal.check_tool(tool)?;
        request
            .from
            .iter()
            .enumerate()
            .map(|(index, selector)| {
                let pointer = if request.from.len() == 1 { "/from".to_owned() } else { format!("/from/{index}") };
                match selector {
                    Selector::Region(region) => {
                        principal.check_region(region)?;
                        self.region_has(region, tool, &pointer)?;
                        Ok(Destination::Region(region.clone()))
                    }
                    Selector::Node(id) => {
                        let node = self.0.broker.roster().node(id).filter(|node| !node.revoked);
                        let known = || {
                            self.0
                                .broker
                                .roster()
                                .nodes()
                                .iter()
                                .filter(|node| !node.revoked)
                                .map(|node| node.id.to_string())
                                .collect::<Vec<_>>()
                        };
                        let missing =
                            || Problem::new(Code::NoSuchNode, format!("there is no node `{id}`; {}", listed("the nodes are", &known())));
                        let node = node.ok_or_else(|| missing().at(Invalid::new(&pointer, "no such node")))?;
                        principal.check_region(&node.region)?;
                        if !node.online {
                            return Err(
                                Problem::new(Code::NoNodeAvailable, format!("node {id} is not online")).retry_after(FULL_RETRY_AFTER)
                            );
                        }
                        Ok(Destination::Node(id.clone()))
                    }
                }
            })
            .collect()
    }

    fn region_has(&self, region: &Region, tool: probeops_shared::tools::ToolName, pointer: &str) -> Result<(), Problem> {
        let roster = self.0.broker.roster();
        if !roster.candidates(region, tool).is_empty() {
            return Ok(());
        }
        let regions = roster.regions();
        if !roster.knows_region(region) {
            let names: Vec<String> = regions.iter().map(|summary| summary.region.to_string()).collect();
            let detail = format!("there is no region `{region}`; {}", listed("the regions are", &names));
            return Err(Problem::new(Code::NoSuchRegion, detail).at(Invalid::new(pointer, "no such region")));
        }
        let there = regions.iter().find(|summary| summary.region == *region);
        let tools = there.map(|summary| summary.tools.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap_or_default();
        let online = there.map_or(0, |summary| summary.online);
        let detail = format!(
            "no node of region {region} that can run {tool} is online; {online} of its nodes are, and {}",
            listed("they can run", &tools)
        );
        Err(Problem::new(Code::NoNodeAvailable, detail).retry_after(FULL_RETRY_AFTER))
    }
}

fn listed(words: &str, names: &[String]) -> String {
    if names.is_empty() { format!("{words}: none") } else { format!("{words}: {}", names.join(", ")) }
}

/// The name or literal address is judged here, so that a caller learns at once; the node judges again, with every address.
fn check_target(principal: &Principal, spec: &Spec) -> Result<(), Problem> {
    let Some(targets) = &principal.limits.targets else { return Ok(()) };
    let target = spec.target();
    let allowed = match (target.parse::<Host>(), target.parse::<DnsName>()) {
        (Ok(Host::Address(address)), _) | (Err(_), Ok(DnsName::Address(address))) => targets.allow_literal(address),
        (Ok(Host::Name(name)), _) | (Err(_), Ok(DnsName::Name(name))) => targets.allow_name(&name),
        (Err(_), Err(_)) => true,
    };
    if allowed {
        return Ok(());
    }
    let detail = format!("your credential is limited to the targets {targets}; `{target}` is none of them");
    Err(Problem::new(Code::Forbidden, detail).at(Invalid::new("/target", "outside the limit `targets`")))
}

/// How long a node may wait with starting: grace, or what `timeout_ms` leaves for it beside the budget.
fn start_within(timeout: Option<Duration>, budget: Duration) -> Result<Duration, Problem> {
    let Some(timeout) = timeout else { return Ok(GRACE) };
    if let Some(left) = timeout.checked_sub(budget).filter(|left| !left.is_zero()) {
        return Ok(left.min(GRACE));
    }
    let (timeout_ms, budget_ms) = (timeout.as_millis(), budget.as_millis());
    let detail = format!(
        "{timeout_ms} ms is too short: this tool with these parameters may take {budget_ms} ms (lower `timeout`, `count` or `interval_ms`, or allow more than {budget_ms})"
    );
    Err(Problem::new(Code::Invalid, "timeout_ms is smaller than the tool's budget").at(Invalid::new("/timeout_ms", detail)))
}

fn document(principal: &Principal, request: &JobRequest) -> JobDocument {
    JobDocument {
        id: JobId::new(),
        tool: request.spec.tool().as_str().to_owned(),
        target: request.spec.target(),
        parameters: request.spec.parameters(),
        from: request.from.clone(),
        caller: principal.name.clone(),
        status: JobStatus::Running,
        created_at: Timestamp::now(),
        finished_at: None,
        results: Vec::new(),
    }
}

fn runs(
    principal: &Principal,
    request: &JobRequest,
    document: &JobDocument,
    destinations: Vec<Destination>,
    start_within: Duration,
) -> Vec<Run> {
    let several = destinations.len() > 1;
    destinations
        .into_iter()
        .enumerate()
        .map(|(index, to)| {
            let request_id = if several { RequestId::of_run(document.id, index) } else { document.id.into() };
            Run {
                message: Job { request_id: request_id.clone(), spec: request.spec.clone() }.to_bytes().into(),
                request_id,
                tool: request.spec.tool(),
                target: document.target.clone(),
                to,
                principal: principal.name.clone(),
                targets: principal.limits.targets.as_ref().map(ToString::to_string),
                traceparent: request.traceparent.clone(),
                deadline: document.created_at.plus(start_within),
                budget: request.spec.budget(),
            }
        })
        .collect()
}

fn accepted(document: &JobDocument) -> Record {
    let from: Vec<String> = document.from.iter().map(ToString::to_string).collect();
    Record {
        time: document.created_at,
        verdict: Verdict::Accepted,
        principal: document.caller.clone(),
        caller: None,
        node: None,
        region: None,
        tool: document.tool.clone(),
        target: document.target.clone(),
        request_id: document.id.to_string(),
        detail: format!("from {}", from.join(", ")),
        duration_ms: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_a_region_or_a_node() {
        assert_eq!("eu-central".parse::<Selector>().unwrap().to_string(), "eu-central");
        assert_eq!("node:fra-1".parse::<Selector>().unwrap(), Selector::Node("fra-1".parse().unwrap()));
        for bad in ["", "eu.central", "*", ">", "eu central", "node:", "node:a.b", "label:x", "eu:all"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_timeout_caps_grace_but_not_the_budget() {
        let budget = Duration::from_secs(8);
        assert_eq!(start_within(None, budget).unwrap(), GRACE);
        assert_eq!(start_within(Some(Duration::from_secs(10)), budget).unwrap(), Duration::from_secs(2));
        assert_eq!(start_within(Some(Duration::from_secs(60)), budget).unwrap(), GRACE);
        assert!(start_within(Some(budget), budget).is_err());
    }
}
