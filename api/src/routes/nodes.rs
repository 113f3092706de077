//! Regions and nodes: who there is, and taking nodes out of service.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use probeops_shared::access::Scope;
use probeops_shared::ids::NodeId;
use probeops_shared::problem::Code;
use schemars::JsonSchema;
use serde::Serialize;

use crate::App;
use crate::access::Principal;
use crate::problem::{Asked, Problem, success};
use crate::revocation::Told;
use crate::roster::{Node, RegionSummary};
use crate::routes::body::NoBody;
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::{Changing, Who};
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
            problems: &[Code::NoSuchNode, Code::NoNodeAvailable, Code::RateLimited, Code::Unavailable],
        },
        Operation {
            route: Route::post("/v1/nodes/{id}/revoke", revoke),
            needs: writes,
            id: "revokeNode".into(),
            summary: "Take a node's credential back".into(),
            description: "The node is marked as revoked, and gets no more jobs. Then every server of the broker cuts its connection and accepts it no \
                          more; the answer names the servers that have said so. Without a keymaster the node stays marked (`revoking`), and its \
                          key is voided as soon as there is one. To bring the machine back, grant it a new credential.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![
                Answer::json(success::DONE, "The node is revoked, on every server.", schema::<NodeRevoked>),
                Answer::json(
                    success::ACCEPTED,
                    "The node is revoked, and some servers have yet to say that they know.",
                    schema::<NodeRevoked>,
                ),
            ],
            problems: &[Code::NoSuchNode, Code::RateLimited, Code::Unavailable],
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

/// A node whose credential was taken back.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct NodeRevoked {
    /// The node.
    node: NodeId,
    /// What was done.
    change: NodeChange,
    /// Where.
    #[serde(flatten)]
    told: Told,
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
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<NodeChanged>, Problem> {
    let about = Asked { target: target(&id), ..Asked::default() };
    let drained = async {
        let node = find(&app, &principal, &id)?;
        app.broker.drain(&node.id).await?;
        app.audit.changed(&principal.name, &current.0, target(node.id.as_str()), "node drained".to_owned());
        Ok(Json(NodeChanged { node: node.id, change: NodeChange::Draining }))
    };
    drained.await.map_err(|problem: Problem| problem.asked(about))
}

async fn revoke(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<(StatusCode, Json<NodeRevoked>), Problem> {
    let about = Asked { target: target(&id), ..Asked::default() };
    let revoked = async {
        let node = find(&app, &principal, &id)?.id;
        let told = app.enroll.revoke(&node, "by an operator").await?;
        app.audit.changed(&principal.name, &current.0, target(node.as_str()), format!("node revoked, {}", told.said()));
        Ok((success::of(&told), Json(NodeRevoked { node, change: NodeChange::Revoked, told })))
    };
    revoked.await.map_err(|problem: Problem| problem.asked(about))
}

/// A node that the principal may know of.
fn find(app: &App, principal: &Principal, id: &str) -> Result<Node, Problem> {
    let node = id.parse::<NodeId>().ok().and_then(|id| app.roster.node_of(&id, |node| principal.sees_node(node)));
    let shown: String = id.chars().take(64).collect();
    node.ok_or_else(|| Problem::new(Code::NoSuchNode, format!("there is no node `{shown}`; /v1/nodes lists the nodes")))
}

/// A node as the audit trail names it.
fn target(id: &str) -> String {
    format!("node:{}", id.chars().take(64).collect::<String>())
}
