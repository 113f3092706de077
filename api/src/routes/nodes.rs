//! Regions and nodes: who there is, and taking nodes out of service.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use probeops_shared::access::Scope;
use probeops_shared::ids::NodeId;
use probeops_shared::problem::Code;
use schemars::JsonSchema;
use serde::Serialize;

use crate::App;
use crate::access::Principal;
use crate::problem::{Asked, Problem, success};
use crate::roster::{Node, RegionSummary};
use crate::routes::body::NoBody;
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::Who;
use crate::routes::operation::{Answer, Needs, Operation, Parameter, Route, schema};
use crate::routes::path_id::PathId;
use crate::routes::query::{PageLimit, Query, page};

/// Query parameters of lists that are read in pages.
pub(super) static PAGING: [Parameter; 2] = [
    Parameter::new("limit", "How many entries at most.", schema::<PageLimit>),
    Parameter::new("cursor", "Where to go on: `next` of the page before.", schema::<String>),
];

pub(super) fn operations() -> Vec<Operation> {
    let reads = Needs::Scope(&[Scope::NodesRead]);
    let writes = Needs::Scope(&[Scope::NodesWrite]);
    vec![
        Operation {
            route: Route::get("/v1/regions", list_regions),
            needs: reads,
            id: "listRegions".into(),
            summary: "List the regions".into(),
            description: "Every region that a node was granted, how many nodes it has, how many are online, and what they can run. Who is limited to \
                          some regions, nodes or labels sees no others.",
            query: Cow::Borrowed(&PAGING),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The regions, by name.", schema::<RegionList>)],
            problems: &[],
        },
        Operation {
            route: Route::get("/v1/nodes", list_nodes),
            needs: reads,
            id: "listNodes".into(),
            summary: "List the nodes".into(),
            description: "Every node that was granted a credential, and what those that are online last said of themselves. Who is limited to some \
                          regions, nodes or labels sees no others.",
            query: Cow::Borrowed(&PAGING),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The nodes, by id.", schema::<NodeList>)],
            problems: &[],
        },
        Operation {
            route: Route::get("/v1/nodes/{id}", read_node),
            needs: reads,
            id: "readNode".into(),
            summary: "Read a node".into(),
            description: "What the node was granted, and what it last said of itself if it is online.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The node.", schema::<Node>)],
            problems: &[Code::NoSuchNode],
        },
        Operation {
            route: Route::post("/v1/nodes/{id}/drain", drain),
            needs: writes,
            id: "drainNode".into(),
            summary: "Let a node take no more jobs".into(),
            description: "The node finishes what it runs and takes nothing new until its agent is started again. Answers when the node has heard it.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The node drains.", schema::<NodeChanged>)],
            problems: &[Code::NoSuchNode, Code::NoNodeAvailable, Code::Unavailable],
        },
        Operation {
            route: Route::post("/v1/nodes/{id}/revoke", revoke),
            needs: writes,
            id: "revokeNode".into(),
            summary: "Take a node's credential back".into(),
            description: "The broker cuts the node's connection and accepts it no more. To bring the machine back, grant it a new credential.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The node is revoked.", schema::<NodeChanged>)],
            problems: &[Code::NoSuchNode, Code::Unavailable],
        },
    ]
}

/// A page of regions.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct RegionList {
    /// The regions, by name.
    regions: Vec<RegionSummary>,
    /// Give this as `cursor` to read on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A page of nodes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct NodeList {
    /// The nodes, by id.
    nodes: Vec<Node>,
    /// Give this as `cursor` to read on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// What was done to a node.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct NodeChanged {
    /// The node.
    node: NodeId,
    /// What was done.
    change: NodeChange,
}

/// What can be done to a node.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum NodeChange {
    /// It takes no new jobs.
    Draining,
    /// Its credential is worth nothing.
    Revoked,
}

impl NodeChange {
    fn sentence(self) -> &'static str {
        match self {
            Self::Draining => "node drained",
            Self::Revoked => "node revoked",
        }
    }
}

async fn list_regions(State(app): State<App>, Who(principal): Who, query: Query) -> Result<Json<RegionList>, Problem> {
    let seen = app.roster.look(|nodes| nodes.summaries(|region| principal.sees_region(region), |node| principal.sees_node(node)));
    let cursor = query.value::<String>("cursor")?;
    let (regions, next) = page(seen, |summary| summary.region.as_str(), cursor.as_deref(), query.limit()?);
    Ok(Json(RegionList { regions, next }))
}

async fn list_nodes(State(app): State<App>, Who(principal): Who, query: Query) -> Result<Json<NodeList>, Problem> {
    let seen = app.roster.nodes_of(|node| principal.sees_node(node));
    let cursor = query.value::<String>("cursor")?;
    let (nodes, next) = page(seen, |node| node.id.as_str(), cursor.as_deref(), query.limit()?);
    Ok(Json(NodeList { nodes, next }))
}

async fn read_node(State(app): State<App>, Who(principal): Who, PathId(id): PathId) -> Result<Json<Node>, Problem> {
    find(&app, &principal, &id).map(Json)
}

async fn drain(
    State(app): State<App>,
    Who(principal): Who,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<NodeChanged>, Problem> {
    let about = Asked { target: target(&id), ..Asked::default() };
    let drained = async {
        let node = find(&app, &principal, &id)?;
        app.broker.drain(&node.id).await?;
        Ok(changed(&app, &principal, &current, node.id, NodeChange::Draining))
    };
    drained.await.map_err(|problem: Problem| problem.asked(about))
}

async fn revoke(
    State(app): State<App>,
    Who(principal): Who,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<NodeChanged>, Problem> {
    let about = Asked { target: target(&id), ..Asked::default() };
    let revoked = async {
        let node = find(&app, &principal, &id)?;
        app.broker.revoke_node(&node.id).await?;
        Ok(changed(&app, &principal, &current, node.id, NodeChange::Revoked))
    };
    revoked.await.map_err(|problem: Problem| problem.asked(about))
}

/// A node that the principal may know of.
fn find(app: &App, principal: &Principal, id: &str) -> Result<Node, Problem> {
    let node = id.parse::<NodeId>().ok().and_then(|id| app.roster.node_of(&id, |node| principal.sees_node(node)));
    let shown: String = id.chars().take(64).collect();
    node.ok_or_else(|| Problem::new(Code::NoSuchNode, format!("there is no node `{shown}`; /v1/nodes lists the nodes")))
}

fn changed(app: &App, principal: &Principal, current: &CurrentRequest, node: NodeId, change: NodeChange) -> Json<NodeChanged> {
    app.audit.changed(&principal.name, &current.0, target(node.as_str()), change.sentence().to_owned());
    Json(NodeChanged { node, change })
}

/// A node as the audit trail names it.
fn target(id: &str) -> String {
    format!("node:{}", id.chars().take(64).collect::<String>())
}
