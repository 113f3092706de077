//! Enrolment tokens: what lets a machine become a node.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use probeops_shared::access::{Limits, RegionPattern, Scope};
use probeops_shared::bounded::Bounded;
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::invalid::Invalid;
use probeops_shared::json;
use probeops_shared::problem::Code;
use probeops_shared::registry::{LABELS_MAX, Labels};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::App;
use crate::access::Identity;
use crate::enroll::tokens::{NewToken, TokenView, mint};
use crate::limits::changes::{counted_as, counted_by_name};
use crate::problem::{Asked, Problem, success};
use crate::routes::body::{JsonBody, NoBody};
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::{Changing, Who};
use crate::routes::nodes::PAGING;
use crate::routes::operation::{Answer, Needs, Operation, Route, schema};
use crate::routes::path_id::PathId;
use crate::routes::query::{Query, page};

const NEEDS: Needs = Needs::Scope(&[Scope::NodesEnroll]);
/// The fields of a request for a token.
const FIELDS: [&str; 7] = ["region", "tools", "labels", "node", "uses", "expires_in_ms", "ephemeral"];
/// How many tools a token may name.
const TOOLS_MAX: usize = 100;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation {
            route: Route::post("/v1/enroll-tokens", create),
            needs: NEEDS,
            id: "createEnrollToken".into(),
            summary: "Make an enrolment token".into(),
            description: "Whoever has it makes a machine a node of this region, with these tools and labels: `probeops-agent enroll`. It is shown \
                          in this answer and never again; only a hash of it is kept. It gives nothing beyond your own limits, and ends no later than your credential.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: Some(schema::<TokenRequest>),
            answers: vec![Answer::json(success::CREATED, "The token.", schema::<TokenCreated>)],
            problems: &[Code::Conflict, Code::RateLimited, Code::Unavailable],
        },
        Operation {
            route: Route::get("/v1/enroll-tokens", list),
            needs: NEEDS,
            id: "listEnrollTokens".into(),
            summary: "List the enrolment tokens".into(),
            description: "Those that have not expired and give nothing beyond your own limits, without their secrets. What expires is forgotten.",
            query: Cow::Borrowed(&PAGING),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The tokens, by id.", schema::<TokenList>)],
            problems: &[Code::Unavailable],
        },
        Operation {
            route: Route::delete("/v1/enroll-tokens/{id}", revoke),
            needs: NEEDS,
            id: "revokeEnrollToken".into(),
            summary: "Revoke an enrolment token".into(),
            description: "No machine enrols with it any more; it is shown for an hour. Nodes that did stay nodes; `/v1/nodes/{id}/revoke` takes them back.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The token, revoked.", schema::<TokenView>)],
            problems: &[Code::NotFound, Code::RateLimited, Code::Unavailable],
        },
    ]
}

/// A token to be made.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({"region": "eu-central", "tools": ["ping", "dns"], "labels": {"site": "fra"}, "expires_in_ms": 3_600_000}))]
struct TokenRequest {
    /// The region of nodes that enrol with it.
    region: Region,
    /// The tools they may serve.
    #[schemars(length(min = 1, max = TOOLS_MAX))]
    tools: Vec<ToolName>,
    /// Their labels.
    #[serde(default)]
    #[schemars(length(max = LABELS_MAX))]
    labels: Labels,
    /// The name of the one node that it is for; nodes choose their own where it is absent.
    #[serde(default)]
    node: Option<NodeId>,
    /// How many nodes may enrol with it.
    #[serde(default)]
    uses: Bounded<1, 10_000, 1>,
    /// How long it can be used, in milliseconds; an hour unless said, at most 30 days.
    #[serde(default)]
    expires_in_ms: Bounded<1_000, 2_592_000_000, 3_600_000>,
    /// Whether nodes that enrol with it are forgotten once they were away for some minutes.
    #[serde(default)]
    ephemeral: bool,
}

/// A token that was made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct TokenCreated {
    /// The token itself; it is shown only here.
    token: String,
    /// What it grants.
    #[serde(flatten)]
    view: TokenView,
}

/// A page of tokens.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct TokenList {
    /// The tokens, by id.
    enroll_tokens: Vec<TokenView>,
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
    let about = Asked { target: format!("region:{}", request.region), ..Asked::default() };
    let (token, record) = mint(granted(&principal, request).map_err(|problem| problem.asked(about))?);
    let TokenView { id, region, tools, uses, expires_at, .. } = &record.view;
    let tools: Vec<&str> = tools.iter().map(|tool| tool.as_str()).collect();
    let detail = format!("enrolment token made: region {region}, tools {}, uses {uses}, until {expires_at}", tools.join(","));
    let keyring = app.access.keyring();
    let counted = counted_as(&principal, keyring);
    let is_of_him = |view: &TokenView| counted.as_ref().is_some_and(|counted| counted_by_name(&view.created_by, keyring) == *counted);
    app.enroll.tokens().check_room(is_of_him).await?;
    app.audit.changing(&principal.name, &current.0, target(id), detail).await?;
    app.enroll.tokens().add(&record).await?;
    let headers = [(LOCATION, format!("/v1/enroll-tokens/{id}"))];
    Ok((success::CREATED, headers, Json(TokenCreated { token, view: record.view })).into_response())
}

async fn list(State(app): State<App>, Who(principal): Who, query: Query) -> Result<Json<TokenList>, Problem> {
    let cursor = query.value::<String>("cursor")?;
    let limit = query.limit()?;
    let seen: Vec<TokenView> = app.enroll.tokens().list().await?.into_iter().filter(|view| sees(&principal, view)).collect();
    let (enroll_tokens, next) = page(seen, |view| view.id.as_str(), cursor.as_deref(), limit);
    Ok(Json(TokenList { enroll_tokens, next }))
}

async fn revoke(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<Json<TokenView>, Problem> {
    let shown: String = id.chars().take(64).collect();
    let missing = || {
        let detail = format!("there is no enrolment token `{shown}`; /v1/enroll-tokens lists those that have not expired by their ids");
        Problem::new(Code::NotFound, detail).asked(Asked { target: target(&shown), ..Asked::default() })
    };
    let tokens = app.enroll.tokens();
    let held = tokens.find(&id).await?.filter(|view| sees(&principal, view)).ok_or_else(missing)?;
    let revoked = tokens.revoke(&held.id).await?.ok_or_else(missing)?;
    if held.revoked_at.is_none() {
        app.audit.changed(&principal.name, &current.0, target(&held.id), "enrolment token revoked".to_owned());
    }
    Ok(Json(revoked))
}

/// A token as the audit trail names it.
fn target(id: &str) -> String {
    format!("token:{id}")
}

fn parse(body: &[u8]) -> Result<TokenRequest, Problem> {
    let fields = json::parse_object(body, &FIELDS).map_err(Problem::invalid)?;
    let mut request: TokenRequest = json::typed(Value::Object(fields)).map_err(Problem::invalid)?;
    let invalid = |pointer: &str, detail: String| Err(Problem::invalid(Invalid::new(pointer, detail)));
    if !(1..=TOOLS_MAX).contains(&request.tools.len()) {
        return invalid("/tools", format!("must list 1 to {TOOLS_MAX}, not {}", request.tools.len()));
    }
    if request.labels.len() > LABELS_MAX {
        return invalid("/labels", format!("a node has at most {LABELS_MAX} labels, not {}", request.labels.len()));
    }
    if request.node.is_some() && request.uses.get() > 1 {
        return invalid("/uses", "must be 1 where `node` is given: a name is that of one node".to_owned());
    }
    // In the order of the catalogue, each once.
    request.tools = ToolName::ALL.iter().copied().filter(|tool| request.tools.contains(tool)).collect();
    Ok(request)
}

/// What the maker may give: nothing beyond his own limits and his own end, admin or not.
fn granted(maker: &Identity, request: TokenRequest) -> Result<NewToken, Problem> {
    let TokenRequest { region, tools, labels, node, uses, expires_in_ms, ephemeral } = request;
    within(&maker.limits, (&region, &tools, &labels, node.as_ref()))
        .map_err(|invalid| Problem::new(Code::Forbidden, invalid.to_string()).at(invalid))?;
    let wanted = Duration::from_millis(expires_in_ms.get());
    Ok(NewToken {
        region,
        tools,
        labels,
        node,
        uses: u32::try_from(uses.get()).unwrap_or(u32::MAX),
        ephemeral,
        valid_for: maker.expires_at.map_or(wanted, |ends| wanted.min(ends.since(Timestamp::now()))),
        created_by: maker.name.clone(),
    })
}

/// Whether he may know of a token, and revoke it: who could have made it may.
fn sees(who: &Identity, token: &TokenView) -> bool {
    within(&who.limits, (&token.region, &token.tools, &token.labels, token.node.as_ref())).is_ok()
}

/// Refuses what a token gives beyond these limits.
fn within(limits: &Limits, (region, tools, labels, node): (&Region, &[ToolName], &Labels, Option<&NodeId>)) -> Result<(), Invalid> {
    // A region's name is a pattern that means itself.
    let regions: Vec<RegionPattern> = region.as_str().parse().into_iter().collect();
    let wanted = Limits { tools: Some(tools.to_vec()), regions: Some(regions), ..Limits::default() };
    wanted.under(limits).map_err(|invalid| {
        let pointer = if invalid.pointer == "/regions" { "/region" } else { invalid.pointer.as_str() };
        Invalid::new(pointer, invalid.detail)
    })?;
    if limits.nodes.as_ref().is_some_and(|nodes| !node.is_some_and(|node| nodes.contains(node))) {
        return Err(Invalid::new("/node", "goes beyond your own limit `nodes`; name one of those"));
    }
    if limits.labels.iter().flatten().any(|term| !term.holds(labels)) {
        return Err(Invalid::new("/labels", "goes beyond your own limit `labels`; nodes that you enrol must have those labels"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(body: &str, part: &str) {
        let problem = parse(body.as_bytes()).unwrap_err();
        assert_eq!(problem.code(), Code::Invalid);
        assert!(problem.detail().contains(part), "{problem}");
    }

    #[test]
    fn a_request_that_is_not_clear_is_refused() {
        refuses("{}", "region");
        refuses(r#"{"region":"eu","tools":[]}"#, "/tools: must list 1 to 100");
        refuses(r#"{"region":"eu-*","tools":["echo"]}"#, "/region");
        refuses(r#"{"region":"eu","tools":["echo"],"uses":0}"#, "/uses");
        refuses(r#"{"region":"eu","tools":["echo"],"expires_in_ms":999}"#, "/expires_in_ms");
        refuses(r#"{"region":"eu","tools":["echo"],"node":"a.b"}"#, "/node");
        refuses(r#"{"region":"eu","tools":["echo"],"node":"n","uses":2}"#, "/uses: must be 1 where `node` is given");
        refuses(r#"{"region":"eu","tools":["echo"],"use":2}"#, "did you mean `uses`?");
        let request = parse(br#"{"region":"eu","tools":["tcp","echo","tcp"]}"#).unwrap();
        assert_eq!((request.tools.as_slice(), request.uses.get()), (&[ToolName::Echo, ToolName::Tcp][..], 1));
    }

    #[test]
    fn nobody_gives_what_he_has_not() {
        let maker = |limits: &str| Identity {
            name: "key:k".to_owned(),
            scopes: vec![Scope::NodesEnroll],
            limits: serde_json::from_str(limits).unwrap(),
            nodes: Vec::new(),
            expires_at: None,
        };
        let request = || parse(br#"{"region":"eu-a","tools":["echo","tcp"]}"#).unwrap();
        let give = |limits: &str| granted(&maker(limits), request());
        let ends = Identity { expires_at: Some(Timestamp::now().plus(Duration::from_mins(1))), ..maker("{}") };
        assert!(granted(&ends, request()).unwrap().valid_for <= Duration::from_mins(1), "it ends with its maker's credential");
        assert!(give("{}").is_ok() && give(r#"{"regions":["eu-*"],"tools":["tcp","echo"]}"#).is_ok());
        for (limits, part) in [(r#"{"regions":["us-*"]}"#, "/region: goes beyond"), (r#"{"tools":["echo"]}"#, "/tools: goes beyond")] {
            let problem = give(limits).unwrap_err();
            assert!(problem.code() == Code::Forbidden && problem.detail().contains(part), "{problem}");
        }
    }

    #[test]
    fn a_token_beyond_ones_limits_is_not_there() {
        let who = |limits: &str| Identity {
            name: "key:k".to_owned(),
            scopes: vec![Scope::NodesEnroll],
            limits: serde_json::from_str(limits).unwrap(),
            nodes: Vec::new(),
            expires_at: None,
        };
        let body = br#"{"region":"eu","tools":["echo"],"labels":{"site":"fra"},"node":"n1"}"#;
        let token = mint(granted(&who("{}"), parse(body).unwrap()).unwrap()).1.view;
        let within = [r#"{"nodes":["n1","n2"]}"#, r#"{"labels":["site=fra"]}"#, r#"{"regions":["eu"],"tools":["echo","tcp"]}"#];
        assert!(within.into_iter().all(|limits| sees(&who(limits), &token)));
        for beyond in [r#"{"nodes":["n2"]}"#, r#"{"labels":["site=ber"]}"#, r#"{"regions":["us"]}"#, r#"{"tools":["tcp"]}"#] {
            assert!(!sees(&who(beyond), &token), "{beyond}");
        }
    }
}
