//! Services that ask straight over NATS: their credentials.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use probeops_nats::vault::credentials::UserKey;
use probeops_shared::access::{AtOnce, Limits, Rate, RegionPattern, Scope, Targets};
use probeops_shared::ids::{Caller, NodeId, Region};
use probeops_shared::invalid::Invalid;
use probeops_shared::json;
use probeops_shared::keymaster::ServiceRights;
use probeops_shared::problem::Code;
use probeops_shared::registry::{NodeGrant, ServiceGrant, ValidFor};
use probeops_shared::selector::Term;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::App;
use crate::access::Principal;
use crate::limits::changes::{counted_as, counted_by_name};
use crate::problem::{Asked, Problem, success};
use crate::revocation::{Told, revoke_service};
use crate::routes::body::{JsonBody, NoBody};
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::{Changing, Who};
use crate::routes::nodes::PAGING;
use crate::routes::operation::{Answer, Needs, Operation, Route, schema};
use crate::routes::path_id::PathId;
use crate::routes::query::{Query, page};

const NEEDS: Needs = Needs::Scope(&[Scope::ServicesWrite]);
/// The fields of a request for a service.
const FIELDS: [&str; 9] = ["name", "regions", "tools", "nodes", "labels", "targets", "rate", "at_once", "valid_for"];
/// How many regions, tools or nodes a service may be granted.
const ENTRIES_MAX: usize = 100;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation {
            route: Route::post("/v1/services", create),
            needs: NEEDS,
            id: "createService".into(),
            summary: "Make the credential of a service".into(),
            description: "With it a program asks over NATS: nodes directly (job.v1.<region>.<tool>.<name>) and at the front door \
                          (api.v1.run.<name>); with `labels` or `targets` at the front door only. The credential is shown in this answer and never again. It \
                          gets nothing beyond your own limits, and what it leaves open is limited as you are. You need the scope jobs:write, and no \
                          limit of `rate` or `at_once`. The name of a service that was revoked or has expired can be granted anew.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: Some(schema::<ServiceRequest>),
            answers: vec![Answer::json(success::CREATED, "The service with its credential.", schema::<ServiceCreated>)],
            problems: &[Code::NoSuchNode, Code::Conflict, Code::RateLimited, Code::Unavailable],
        },
        Operation {
            route: Route::get("/v1/services", list),
            needs: NEEDS,
            id: "listServices".into(),
            summary: "List the services".into(),
            description: "All services, revoked ones too, without their credentials. Those that may ask beyond your own regions are not shown.",
            query: Cow::Borrowed(&PAGING),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The services, by name.", schema::<ServiceList>)],
            problems: &[],
        },
        Operation {
            route: Route::delete("/v1/services/{name}", revoke),
            needs: NEEDS,
            id: "revokeService".into(),
            summary: "Take a service's credential back".into(),
            description: "Every server of the broker cuts its connections and accepts it no more; the answer names the servers that have said so. \
                          Its record stays, for the audit trail. A service that may more than you can be revoked only by an admin.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![
                Answer::json(success::DONE, "The service, revoked on every server.", schema::<ServiceRevoked>),
                Answer::json(
                    success::ACCEPTED,
                    "The service, revoked; some servers have yet to say that they know.",
                    schema::<ServiceRevoked>,
                ),
            ],
            problems: &[Code::NotFound, Code::Conflict, Code::RateLimited, Code::Unavailable],
        },
    ]
}

/// A service to be made.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({"name": "billing", "regions": ["eu-central"], "tools": ["tcp"], "rate": "60/m", "valid_for": "30d"}))]
struct ServiceRequest {
    /// Its name, the last token of the subjects it publishes.
    name: Caller,
    /// The regions it may ask; none where it may only ask `nodes` by id.
    #[serde(default)]
    #[schemars(length(max = ENTRIES_MAX))]
    regions: Vec<Region>,
    /// The tools it may ask for.
    #[schemars(length(min = 1, max = ENTRIES_MAX))]
    tools: Vec<ToolName>,
    /// The nodes it may ask by id, in other regions, too.
    #[serde(default)]
    #[schemars(length(max = ENTRIES_MAX))]
    nodes: Vec<NodeId>,
    /// Of all of these only nodes of whose labels this holds: `site=fra`, `env!=lab`, `role in (edge,core)`. Such a service has its jobs run at the
    /// front door, and publishes none itself.
    #[serde(default)]
    #[schemars(length(min = 1, max = ENTRIES_MAX))]
    labels: Option<Vec<Term>>,
    /// Only these targets. Such a service has its jobs run at the front door, and publishes none itself.
    #[serde(default)]
    targets: Option<Targets>,
    /// At most so many runs in so long, over all nodes: `10/s`, `60/m`, `1000/h`.
    #[serde(default)]
    rate: Option<Rate>,
    /// At most so many runs at the same time.
    #[serde(default)]
    at_once: Option<AtOnce>,
    /// How long its credential lasts: `90m`, `12h`, at most (and unless said) `30d`.
    #[serde(default)]
    valid_for: Option<ValidFor>,
}

/// A service that was made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct ServiceCreated {
    /// Its credential, as any NATS client reads it from a `.creds` file; it is shown only here.
    creds: String,
    /// What was granted.
    #[serde(flatten)]
    grant: ServiceGrant,
}

/// A service whose credential was taken back.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct ServiceRevoked {
    /// The service.
    #[serde(flatten)]
    grant: ServiceGrant,
    /// Where.
    #[serde(flatten)]
    told: Told,
}

/// A page of services.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct ServiceList {
    /// The services, by name.
    services: Vec<ServiceGrant>,
    /// Give this as `cursor` to read on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

async fn create(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let request = parse(&body)?;
    let about = Asked { target: target(request.name.as_str()), ..Asked::default() };
    let made = async {
        let request = granted(&principal, request, |node| app.roster.grant(node))?;
        make(&app, (&principal, &current.0), request).await
    };
    let ServiceCreated { creds, grant } = made.await.map_err(|problem: Problem| problem.asked(about))?;
    let headers = [(LOCATION, format!("/v1/services/{}", grant.name))];
    Ok((success::CREATED, headers, Json(ServiceCreated { creds, grant })).into_response())
}

/// Makes a service, that does not outlive a maker whose credential says when it ends.
async fn make(app: &App, (maker, request_id): (&Principal, &str), request: ServiceRequest) -> Result<ServiceCreated, Problem> {
    let services = app.access.services();
    let held = services.find(&request.name).await?;
    let now = Timestamp::now();
    if held.as_ref().is_some_and(|held| held.grant.revoked_at.is_none() && held.grant.expires_at > now) {
        let name = &request.name;
        let detail = format!("service `{name}` has a credential already; DELETE /v1/services/{name} takes it back");
        return Err(Problem::new(Code::Conflict, detail).at(Invalid::new("/name", "is taken")));
    }
    let keyring = app.access.keyring();
    if let (None, Some(counted)) = (&held, counted_as(maker, keyring)) {
        services.check_room(|grant| counted_by_name(&grant.created_by, keyring) == counted)?;
    }
    let ServiceRequest { name, regions, tools, nodes, labels, targets, rate, at_once, valid_for } = request;
    let rights = ServiceRights {
        name: name.clone(),
        regions: regions.clone(),
        tools: tools.clone(),
        nodes: nodes.clone(),
        direct: targets.is_none() && labels.is_none(),
    };
    let wanted = valid_for.unwrap_or(ValidFor::MAX).duration();
    let valid_for = maker.expires_at.map_or(wanted, |ends| wanted.min(ends.since(now)));
    let key = UserKey::new();
    let minted = app.keymaster.mint_service(&key.public_key(), rights, valid_for).await?;
    let unusable = |error| Problem::new(Code::Internal, format!("what the keymaster signed cannot be used: {error:#}"));
    let credentials = key.credentials(minted.jwt).map_err(unusable)?;
    let grant = ServiceGrant {
        name,
        regions,
        tools,
        nodes,
        labels,
        targets,
        rate,
        at_once,
        public_key: credentials.public_key.clone(),
        created_at: now,
        created_by: maker.name.clone(),
        expires_at: credentials.expires_at,
        revoked_at: None,
    };
    app.audit.changing(&maker.name, request_id, target(grant.name.as_str()), said(&grant)).await?;
    services.keep(&grant, held.as_ref()).await?;
    // Its maker may have been revoked at this very moment, and his services with him, all but this one.
    if app.access.is_revoked(maker).await? {
        let made = services.find(&grant.name).await?;
        if let Some(made) = made.filter(|made| made.grant.public_key == grant.public_key) {
            revoke_service(app, &made).await?;
        }
        return Err(Problem::bad_credential("your key was revoked just now; the service is, too"));
    }
    Ok(ServiceCreated { creds: credentials.to_creds_file(), grant })
}

async fn list(State(app): State<App>, Who(principal): Who, current: CurrentRequest, query: Query) -> Result<Json<ServiceList>, Problem> {
    let cursor = query.value::<String>("cursor")?;
    let seen = app.access.services().list().into_iter().filter(|grant| sees(&principal, grant, |node| app.roster.grant(node)));
    let (services, next) = page(seen.collect(), |grant| grant.name.as_str(), cursor.as_deref(), query.limit()?);
    app.audit.read(&principal.name, &current.0, "services".to_owned(), "listed");
    Ok(Json(ServiceList { services, next }))
}

async fn revoke(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(name): PathId,
    NoBody: NoBody,
) -> Result<(StatusCode, Json<ServiceRevoked>), Problem> {
    let shown: String = name.chars().take(64).collect();
    let missing = || Problem::new(Code::NotFound, format!("there is no service `{shown}`; /v1/services lists the services by their names"));
    let about = Asked { target: target(&shown), ..Asked::default() };
    let revoked = async {
        let name: Caller = name.parse().map_err(|_detail: String| missing())?;
        let held = app.access.services().find(&name).await?;
        let held = held.filter(|held| sees(&principal, &held.grant, |node| app.roster.grant(node))).ok_or_else(missing)?;
        if !may_revoke(&principal, &held.grant, |node| app.roster.grant(node)) {
            let detail = format!("the service `{shown}` may more than your own limits allow; only an admin can revoke it");
            return Err(Problem::new(Code::Forbidden, detail));
        }
        let (grant, told) = revoke_service(&app, &held).await?;
        app.audit.changed(&principal.name, &current.0, target(name.as_str()), format!("service revoked, {}", told.said()));
        Ok((success::of(&told), Json(ServiceRevoked { grant, told })))
    };
    revoked.await.map_err(|problem: Problem| problem.asked(about))
}

/// A service as the audit trail names it.
fn target(name: &str) -> String {
    format!("service:{name}")
}

/// What was granted, for the audit trail.
fn said(grant: &ServiceGrant) -> String {
    let mut said = format!("service granted: regions {}, tools {}", listed(&grant.regions), listed(&grant.tools));
    if !grant.nodes.is_empty() {
        said.push_str(&format!(", nodes {}", listed(&grant.nodes)));
    }
    let limits = [
        ("labels", grant.labels.as_deref().map(listed)),
        ("targets", grant.targets.as_ref().map(ToString::to_string)),
        ("rate", grant.rate.map(|rate| rate.to_string())),
        ("at_once", grant.at_once.map(|at_once| at_once.to_string())),
    ];
    for (name, limit) in limits {
        said.extend(limit.map(|limit| format!(", {name} {limit}")));
    }
    said
}

fn listed<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn parse(body: &[u8]) -> Result<ServiceRequest, Problem> {
    let fields = json::parse_object(body, &FIELDS).map_err(Problem::invalid)?;
    let mut request: ServiceRequest = json::typed(Value::Object(fields)).map_err(Problem::invalid)?;
    let invalid = |pointer: &str, detail: String| Err(Problem::invalid(Invalid::new(pointer, detail)));
    if let Err(detail) = request.name.check_service() {
        return invalid("/name", detail);
    }
    let regions_min = usize::from(request.nodes.is_empty());
    let lists = [("/regions", request.regions.len(), regions_min), ("/tools", request.tools.len(), 1), ("/nodes", request.nodes.len(), 0)];
    for (pointer, length, least) in lists {
        if !(least..=ENTRIES_MAX).contains(&length) {
            return invalid(pointer, format!("must list {least} to {ENTRIES_MAX}, not {length}"));
        }
    }
    Limits { targets: request.targets.clone(), labels: request.labels.clone(), ..Limits::default() }.check().map_err(Problem::invalid)?;
    request.regions.sort_unstable();
    request.regions.dedup();
    request.nodes.sort_unstable();
    request.nodes.dedup();
    // In the order of the catalogue, each once.
    request.tools = ToolName::ALL.iter().copied().filter(|tool| request.tools.contains(tool)).collect();
    Ok(request)
}

/// What a service's regions and tools come to, as limits; the rest is none yet.
fn limits(regions: &[Region], tools: &[ToolName]) -> Limits {
    // A region's name is a pattern that means itself.
    let regions: Vec<RegionPattern> = regions.iter().filter_map(|region| region.as_str().parse().ok()).collect();
    Limits { tools: Some(tools.to_vec()), regions: Some(regions), ..Limits::default() }
}

/// What the maker may give: nothing beyond his own limits, admin or not.
fn granted(maker: &Principal, request: ServiceRequest, grant_of: impl Fn(&NodeId) -> Option<NodeGrant>) -> Result<ServiceRequest, Problem> {
    if !maker.has(Scope::JobsWrite) {
        return Err(Problem::missing_scope(Scope::JobsWrite, &maker.scopes));
    }
    let forbidden = |detail: String, invalid: Invalid| Err(Problem::new(Code::Forbidden, detail).at(invalid));
    if let Some(rate) = maker.limits.rate {
        let detail = format!("your credential is limited by `rate` to {rate} runs; services would each have that much once more");
        return forbidden(detail, Invalid::new("/rate", "outside the limit `rate`"));
    }
    if let Some(at_once) = maker.limits.at_once {
        let detail = format!("your credential is limited to {at_once} runs at once; services would each have that many once more");
        return forbidden(detail, Invalid::new("/at_once", "outside the limit `at_once`"));
    }
    if let (Some(nodes), false) = (&maker.limits.nodes, request.regions.is_empty()) {
        let detail =
            format!("your credential is limited to the nodes {}; name those of them that it may ask, and no regions", listed(nodes));
        return forbidden(detail, Invalid::new("/regions", "outside the limit `nodes`"));
    }
    for (index, node) in request.nodes.iter().enumerate() {
        if !grant_of(node).is_some_and(|grant| maker.sees_node(&grant)) {
            let detail = format!("there is no node `{node}`; /v1/nodes lists the nodes");
            return Err(Problem::new(Code::NoSuchNode, detail).at(Invalid::new(format!("/nodes/{index}"), "no such node")));
        }
    }
    let ServiceRequest { name, regions, tools, nodes, labels, targets, rate, at_once, valid_for } = request;
    let wanted = Limits { labels, targets, rate, at_once, ..limits(&regions, &tools) };
    let Limits { labels, targets, rate, at_once, .. } =
        wanted.under(&maker.limits).map_err(|invalid| Problem::new(Code::Forbidden, invalid.to_string()).at(invalid))?;
    Ok(ServiceRequest { name, regions, tools, nodes, labels, targets, rate, at_once, valid_for })
}

/// Who is limited to regions, nodes or labels sees the services that ask nobody else.
fn sees(principal: &Principal, grant: &ServiceGrant, grant_of: impl Fn(&NodeId) -> Option<NodeGrant>) -> bool {
    let Limits { regions, nodes, labels, .. } = &principal.limits;
    let node = |node: &NodeId| grant_of(node).is_some_and(|grant| principal.sees_node(&grant));
    let said = |term: &Term| grant.labels.iter().flatten().any(|said| said.implies(term));
    (regions.is_none() || grant.regions.iter().all(|region| principal.sees_region(region)))
        && (nodes.is_none() || grant.regions.is_empty())
        && (regions.is_none() && nodes.is_none() && labels.is_none() || grant.nodes.iter().all(node))
        && labels.iter().flatten().all(said)
}

/// An admin may revoke any service, and whoever may all that it may.
fn may_revoke(principal: &Principal, grant: &ServiceGrant, grant_of: impl Fn(&NodeId) -> Option<NodeGrant>) -> bool {
    let (labels, targets) = (grant.labels.clone(), grant.targets.clone());
    let nodes = principal.limits.nodes.as_ref().map(|_| grant.nodes.clone());
    let held = Limits { nodes, labels, targets, rate: grant.rate, at_once: grant.at_once, ..limits(&grant.regions, &grant.tools) };
    let within = held.clone().under(&principal.limits).is_ok_and(|narrowed| narrowed == held)
        && (principal.limits.nodes.is_none() || grant.regions.is_empty());
    let sees = |node: &NodeId| principal.limits.regions.is_none() || grant_of(node).is_some_and(|grant| principal.sees_node(&grant));
    principal.is_admin() || within && principal.has(Scope::JobsWrite) && grant.nodes.iter().all(sees)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::access::Identity;

    fn maker(scopes: &[Scope], limits: &str) -> Principal {
        let limits = serde_json::from_str(limits).unwrap();
        Principal::of(Arc::new(Identity {
            name: "key:maker".to_owned(),
            scopes: scopes.to_vec(),
            limits,
            nodes: Vec::new(),
            expires_at: None,
        }))
    }

    fn request(rest: &str) -> ServiceRequest {
        parse(format!(r#"{{"name":"billing","regions":["eu-a"],"tools":["tcp","echo"]{rest}}}"#).as_bytes()).unwrap()
    }

    fn grant_of(node: &NodeId) -> Option<NodeGrant> {
        let nodes = [("eu-1", "eu-a", "fra"), ("us-1", "us-a", "nyc")];
        nodes.iter().find(|(id, ..)| *id == node.as_str()).map(|(_, region, site)| NodeGrant {
            labels: [("site".parse().unwrap(), site.parse().unwrap())].into(),
            ..NodeGrant::new(node.clone(), region.parse().unwrap(), vec![ToolName::Tcp], "U", Timestamp::now())
        })
    }

    fn give(limits: &str, rest: &str) -> Result<ServiceRequest, Problem> {
        granted(&maker(&[Scope::ServicesWrite, Scope::JobsWrite], limits), request(rest), grant_of)
    }

    fn stored(made: ServiceRequest) -> ServiceGrant {
        ServiceGrant {
            name: made.name,
            regions: made.regions,
            tools: made.tools,
            nodes: made.nodes,
            labels: made.labels,
            targets: made.targets,
            rate: None,
            at_once: None,
            public_key: "U".to_owned(),
            created_at: Timestamp::now(),
            created_by: "key:maker".to_owned(),
            expires_at: Timestamp::now(),
            revoked_at: None,
        }
    }

    #[track_caller]
    fn refuses(body: &str, part: &str) {
        let problem = parse(body.as_bytes()).unwrap_err();
        assert_eq!(problem.code(), Code::Invalid);
        assert!(problem.detail().contains(part), "{problem}");
    }

    #[test]
    fn a_request_that_is_not_clear_is_refused() {
        refuses("{}", "name");
        refuses(r#"{"name":"billing","regions":[],"tools":["tcp"]}"#, "/regions: must list 1 to 100, not 0");
        refuses(r#"{"name":"billing","regions":["eu"],"tools":[]}"#, "/tools: must list 1 to 100, not 0");
        refuses(r#"{"name":"api-1","regions":["eu"],"tools":["tcp"]}"#, "/name: a service cannot be called `api-1`");
        refuses(r#"{"name":"observer","regions":["eu"],"tools":["tcp"]}"#, "/name: a service cannot be called `observer`");
        refuses(r#"{"name":"a.b","regions":["eu"],"tools":["tcp"]}"#, "/name");
        refuses(r#"{"name":"b","regions":["eu-*"],"tools":["tcp"]}"#, "/regions/0");
        refuses(r#"{"name":"b","regions":["eu"],"tools":["tcp"],"targets":[]}"#, "/targets: is an empty list");
        refuses(r#"{"name":"b","regions":["eu"],"tools":["tcp"],"valid_for":"31d"}"#, "/valid_for");
        refuses(r#"{"name":"b","regions":["eu"],"tools":["tcp"],"node":["n"]}"#, "did you mean `nodes`?");
        assert_eq!(request("").tools, [ToolName::Echo, ToolName::Tcp]);
    }

    #[test]
    fn nobody_gives_what_he_has_not() {
        assert!(give("{}", "").is_ok());
        let problem = granted(&maker(&[Scope::ServicesWrite], "{}"), request(""), grant_of).unwrap_err();
        assert!(problem.detail().contains("needs the scope `jobs:write`"), "{problem}");
        for (limits, pointer) in [
            (r#"{"regions":["us-*"]}"#, "/regions: goes beyond"),
            (r#"{"tools":["ping"]}"#, "/tools: goes beyond"),
            (r#"{"rate":"1/s"}"#, "limited by `rate`"),
            (r#"{"at_once":3}"#, "limited to 3 runs at once"),
        ] {
            let problem = give(limits, "").unwrap_err();
            assert!(problem.code() == Code::Forbidden && problem.detail().contains(pointer), "{limits}: {problem}");
        }
        let inherits = give(r#"{"targets":["10.0.0.0/8"]}"#, "").unwrap();
        assert_eq!(inherits.targets.unwrap().to_string(), "10.0.0.0/8", "what is left open is limited as the maker is");
        assert!(give(r#"{"targets":["10.0.0.0/8"]}"#, r#","targets":["10.1.0.0/16"]"#).is_ok());
        assert!(
            give(r#"{"targets":["10.0.0.0/8"]}"#, r#","targets":["11.0.0.0/8"]"#).unwrap_err().detail().contains("/targets: goes beyond")
        );
        assert!(give("{}", r#","nodes":["us-1"]"#).is_ok());
        let unseen = give(r#"{"regions":["eu-*"]}"#, r#","nodes":["eu-1","us-1"]"#).unwrap_err();
        assert_eq!((unseen.code(), unseen.detail()), (Code::NoSuchNode, "there is no node `us-1`; /v1/nodes lists the nodes"));
    }

    #[test]
    fn limits_of_nodes_and_labels_go_on_to_services() {
        let nodes = r#"{"nodes":["eu-1"]}"#;
        let problem = give(nodes, "").unwrap_err();
        assert!(problem.code() == Code::Forbidden && problem.detail().contains("limited to the nodes eu-1; name those"), "{problem}");
        let only = |node: &str| {
            let body = format!(r#"{{"name":"billing","tools":["tcp"],"nodes":["{node}"]}}"#);
            granted(&maker(&[Scope::ServicesWrite, Scope::JobsWrite], nodes), parse(body.as_bytes()).unwrap(), grant_of)
        };
        assert!(only("eu-1").unwrap().regions.is_empty(), "a service that may only ask a node by id");
        let unseen = ["us-1", "no-1"].map(|node| only(node).unwrap_err());
        assert!(unseen.iter().all(|problem| problem.code() == Code::NoSuchNode), "one that may not be known is one that is not there");
        refuses(r#"{"name":"b","tools":["tcp"]}"#, "/regions: must list 1 to 100");
        let labelled = give(r#"{"labels":["site=fra"]}"#, r#","nodes":["eu-1"]"#).unwrap();
        assert_eq!(labelled.labels.unwrap(), ["site=fra".parse().unwrap()]);
        assert_eq!(give(r#"{"labels":["site=fra"]}"#, r#","nodes":["us-1"]"#).unwrap_err().code(), Code::NoSuchNode);
        assert!(
            said(&ServiceGrant { labels: Some(vec!["site=fra".parse().unwrap()]), ..stored(request("")) }).contains(", labels site=fra")
        );
    }

    #[test]
    fn a_service_is_revoked_by_an_admin_or_who_may_as_much() {
        let grant = stored(request(r#","nodes":["us-1"],"targets":["10.0.0.0/8"]"#));
        let seen = |limits: &str| sees(&maker(&[Scope::ServicesWrite], limits), &grant, grant_of);
        assert!(seen("{}") && seen(r#"{"regions":["eu-*","us-*"],"targets":["11.0.0.0/8"]}"#));
        assert!(!seen(r#"{"regions":["eu-*"]}"#), "it asks a node elsewhere, of which this one may not know");
        assert!(!seen(r#"{"nodes":["us-1"]}"#) && !seen(r#"{"labels":["site=nyc"]}"#), "it asks nodes of which this one may not know");
        let may = |scopes: &[Scope], limits: &str| may_revoke(&maker(scopes, limits), &grant, grant_of);
        let both = [Scope::ServicesWrite, Scope::JobsWrite];
        assert!(may(&both, "{}") && may(&[Scope::Admin], r#"{"regions":["x"]}"#));
        assert!(!may(&[Scope::ServicesWrite], "{}"));
        assert!(!may(&both, r#"{"regions":["eu-*"]}"#), "it may ask a node in another region");
        assert!(may(&both, r#"{"regions":["eu-*","us-*"],"targets":["10.0.0.0/7"]}"#));
        assert!(!may(&both, r#"{"targets":["10.1.0.0/16"]}"#));
        assert!(!may(&both, r#"{"nodes":["us-1"]}"#) && !may(&both, r#"{"labels":["site=nyc"]}"#), "it may ask all of a region");
    }
}
