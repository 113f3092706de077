//! API keys.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use probeops_shared::access::{Limits, Scope};
use probeops_shared::bounded::{Bounded, shown};
use probeops_shared::ids::Caller;
use probeops_shared::invalid::Invalid;
use probeops_shared::json;
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::App;
use crate::access::keys::{KeyRecord, KeyView, NAME_LENGTH_MAX, NewKey, check_name, mint};
use crate::access::{Identity, Principal};
use crate::limits::changes::counted_as;
use crate::problem::{Asked, Problem, success};
use crate::revocation::{Told, revoke_made_by};
use crate::routes::body::{JsonBody, NoBody};
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::{Changing, Who};
use crate::routes::nodes::PAGING;
use crate::routes::operation::{Answer, Needs, Operation, Route, schema};
use crate::routes::path_id::PathId;
use crate::routes::query::{Query, page};

const NEEDS: Needs = Needs::Scope(&[Scope::KeysWrite]);
/// The fields of a request for a key.
const FIELDS: [&str; 4] = ["name", "scopes", "limits", "expires_in_ms"];

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation {
            route: Route::post("/v1/keys", create),
            needs: NEEDS,
            id: "createKey".into(),
            summary: "Make an API key".into(),
            description: "The key is shown in this answer and never again; only a hash of it is kept. It gets no scope that your own credential \
                          lacks, and what its limits leave open is limited as you are. Who is limited by `rate` or `at_once` makes no keys that run \
                          jobs, and a credential that ends makes no key that ends later.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: Some(schema::<KeyRequest>),
            answers: vec![Answer::json(success::CREATED, "The key.", schema::<KeyCreated>)],
            problems: &[Code::Conflict, Code::RateLimited, Code::Unavailable],
        },
        Operation {
            route: Route::get("/v1/keys", list),
            needs: NEEDS,
            id: "listKeys".into(),
            summary: "List the API keys".into(),
            description: "All keys, revoked ones too, without their secrets. Who is limited to regions, nodes or labels is not shown those that reach others.",
            query: Cow::Borrowed(&PAGING),
            headers: &[],
            body: None,
            answers: vec![Answer::json(success::DONE, "The keys, by id.", schema::<KeyList>)],
            problems: &[],
        },
        Operation {
            route: Route::delete("/v1/keys/{id}", revoke),
            needs: NEEDS,
            id: "revokeKey".into(),
            summary: "Revoke an API key".into(),
            description: "From now on every replica refuses it, and the services that it has made are revoked with it; the answer names them, and \
                          the keys that it has made, which stay. Its record stays, for the audit trail. A key that may more than you can be \
                          revoked only by an admin.",
            query: Cow::Borrowed(&[]),
            headers: &[],
            body: None,
            answers: vec![
                Answer::json(success::DONE, "The key, revoked, and its services on every server.", schema::<KeyRevoked>),
                Answer::json(success::ACCEPTED, "The key, revoked; some servers have yet to cut its services off.", schema::<KeyRevoked>),
            ],
            problems: &[Code::NotFound, Code::Conflict, Code::RateLimited, Code::Unavailable],
        },
    ]
}

/// A key to be made.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({"name": "n8n", "scopes": ["jobs:write"], "limits": {"regions": ["eu-*"], "rate": "60/m"}}))]
struct KeyRequest {
    /// What it is for.
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    name: String,
    /// What it may do.
    #[schemars(length(min = 1))]
    scopes: Vec<Scope>,
    /// What narrows that.
    #[serde(default)]
    limits: Limits,
    /// How long it can be used, in milliseconds; without an end unless said.
    #[serde(default)]
    #[schemars(range(min = 1_000, max = 2_592_000_000_u64))]
    expires_in_ms: Option<ExpiresIn>,
}

/// How long a key can be used that ends, in milliseconds: at most 30 days.
type ExpiresIn = Bounded<1_000, 2_592_000_000, 2_592_000_000>;

/// A key that was made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct KeyCreated {
    /// The key itself; it is shown only here.
    key: String,
    /// What is kept of it.
    #[serde(flatten)]
    record: KeyView,
}

/// A key that was revoked, and what went with it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct KeyRevoked {
    /// The key.
    #[serde(flatten)]
    record: KeyView,
    /// The services that it had made, by name: they are revoked, too.
    services: Vec<Caller>,
    /// The keys that it had made, by id: they stay until they are revoked themselves.
    keys: Vec<String>,
    /// Where the services are revoked.
    #[serde(flatten)]
    told: Told,
}

/// A page of keys.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct KeyList {
    /// The keys, by id.
    keys: Vec<KeyView>,
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
    let about = Asked { target: format!("key {}", request.name), ..Asked::default() };
    let granted = granted(&principal, request).map_err(|problem| problem.asked(about))?;
    let minted = mint(NewKey { counts_with: counted_as(&principal, app.access.keyring()), ..granted });
    let KeyRecord { id, name, scopes, expires_at, .. } = &minted.record;
    let words: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    let until = expires_at.map_or_else(String::new, |at| format!(", until {at}"));
    let detail = format!("key made: {name}, {}{until}", words.join(" "));
    app.audit.changing(&principal.name, &current.0, format!("key:{id}"), detail).await?;
    app.access.keyring().add(&minted.record).await?;
    let headers = [(LOCATION, format!("/v1/keys/{id}"))];
    let created = KeyCreated { record: KeyView::from(&minted.record), key: minted.key };
    Ok((success::CREATED, headers, Json(created)).into_response())
}

async fn list(State(app): State<App>, Who(principal): Who, current: CurrentRequest, query: Query) -> Result<Json<KeyList>, Problem> {
    let keys: Vec<KeyView> = app.access.keyring().list().iter().filter(|key| sees(&principal, key)).map(KeyView::from).collect();
    let cursor = query.value::<String>("cursor")?;
    let (keys, next) = page(keys, |key| key.id.as_str(), cursor.as_deref(), query.limit()?);
    app.audit.read(&principal.name, &current.0, "keys".to_owned(), "listed");
    Ok(Json(KeyList { keys, next }))
}

async fn revoke(
    State(app): State<App>,
    Changing(principal): Changing,
    current: CurrentRequest,
    PathId(id): PathId,
    NoBody: NoBody,
) -> Result<(StatusCode, Json<KeyRevoked>), Problem> {
    let shown: String = id.chars().take(64).collect();
    let missing = || Problem::new(Code::NotFound, format!("there is no key `{shown}`; /v1/keys lists the keys by their ids"));
    let about = Asked { target: format!("key:{shown}"), ..Asked::default() };
    let keyring = app.access.keyring();
    let record = keyring.find(&id).await?.filter(|record| sees(&principal, record)).ok_or_else(missing)?;
    if !may_revoke(&principal, &record) {
        let detail = format!("the key `{shown}` has scopes or limits beyond your own; only an admin can revoke it");
        return Err(Problem::new(Code::Forbidden, detail).asked(about));
    }
    let revoked = keyring.revoke(&record.id).await?.ok_or_else(missing)?;
    let name = format!("key:{}", record.id);
    if record.revoked_at.is_none() {
        app.audit.changed(&principal.name, &current.0, name.clone(), format!("key revoked: {}", record.name));
    }
    let keys: Vec<String> =
        keyring.list().into_iter().filter(|key| key.created_by == name && key.revoked_at.is_none()).map(|key| key.id).collect();
    let what = "the key is revoked, but a service that it made is not; revoke the key again, or the service by itself";
    let (services, told) = revoke_made_by(&app, &name).await.map_err(|problem| problem.of(what).asked(about))?;
    for service in &services {
        let detail = format!("service revoked with the key that made it, {}", told.said());
        app.audit.changed(&principal.name, &current.0, format!("service:{service}"), detail);
    }
    Ok((success::of(&told), Json(KeyRevoked { record: KeyView::from(&revoked), services, keys, told })))
}

fn parse(body: &[u8]) -> Result<KeyRequest, Problem> {
    let fields = json::parse_object(body, &FIELDS).map_err(Problem::invalid)?;
    match fields.get("limits") {
        None => {}
        Some(Value::Object(limits)) => {
            json::refuse_unknown(limits, "limit", &Limits::NAMES).map_err(|invalid| Problem::invalid(invalid.under("/limits")))?;
        }
        // Serde would read a list as the fields in their order.
        Some(other) => {
            let detail = format!("must be an object with {}, not {}", Limits::NAMES.join(", "), shown(other));
            return Err(Problem::invalid(Invalid::new("/limits", detail)));
        }
    }
    let mut request: KeyRequest = json::typed(Value::Object(fields)).map_err(Problem::invalid)?;
    check_name(&request.name).map_err(|detail| Problem::invalid(Invalid::new("/name", detail)))?;
    request.limits.check().map_err(|invalid| Problem::invalid(invalid.under("/limits")))?;
    request.scopes.sort_unstable();
    request.scopes.dedup();
    if request.scopes.is_empty() {
        let all: Vec<&str> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
        return Err(Problem::invalid(Invalid::new(
            "/scopes",
            format!("is empty, so the key could do nothing; the scopes are {}", all.join(", ")),
        )));
    }
    Ok(request)
}

/// What the maker may give: no scope he lacks, and nothing beyond his own limits and his own end, admin or not.
fn granted(maker: &Principal, request: KeyRequest) -> Result<NewKey, Problem> {
    let KeyRequest { name, scopes, limits, expires_in_ms } = request;
    if let Some(lacking) = scopes.iter().find(|scope| !maker.has(**scope)) {
        let problem = Problem::new(Code::Forbidden, format!("you cannot give the scope `{lacking}`, because your own credential lacks it"));
        return Err(problem.at(Invalid::new("/scopes", format!("`{lacking}` goes beyond your own scopes"))));
    }
    let runs_jobs = scopes.iter().any(|scope| matches!(scope, Scope::JobsWrite | Scope::Admin));
    if let (Some(rate), true) = (maker.limits.rate, runs_jobs) {
        let detail = format!("your credential is limited by `rate` to {rate} runs; keys that run jobs would each have that much once more");
        return Err(Problem::new(Code::Forbidden, detail).at(Invalid::new("/scopes", "outside the limit `rate`")));
    }
    if let (Some(at_once), true) = (maker.limits.at_once, runs_jobs) {
        let detail =
            format!("your credential is limited to {at_once} runs at once; keys that run jobs would each have that many once more");
        return Err(Problem::new(Code::Forbidden, detail).at(Invalid::new("/scopes", "outside the limit `at_once`")));
    }
    let limits = limits.under(&maker.limits).map_err(|invalid| {
        let invalid = invalid.under("/limits");
        Problem::new(Code::Forbidden, invalid.to_string()).at(invalid)
    })?;
    let wanted = expires_in_ms.map(|expires_in| Timestamp::now().plus(expires_in.ms()));
    let expires_at = wanted.into_iter().chain(maker.expires_at).min();
    Ok(NewKey { name, scopes, limits, created_by: maker.name.clone(), expires_at, counts_with: None })
}

/// Who is limited to regions, nodes or labels sees the keys that reach no others.
fn sees(principal: &Identity, record: &KeyRecord) -> bool {
    let Limits { regions, nodes, labels, .. } = principal.limits.clone();
    let places = Limits { regions, nodes, labels, ..Limits::default() };
    is_own(principal, record) || record.limits.clone().under(&places).is_ok_and(|narrowed| narrowed == record.limits)
}

/// Whether it is his own, or one that he made.
fn is_own(principal: &Identity, record: &KeyRecord) -> bool {
    principal.name == format!("key:{}", record.id) || principal.name == record.created_by
}

/// Whoever may make a key may revoke it, and everybody his own.
fn may_revoke(principal: &Identity, record: &KeyRecord) -> bool {
    let within = record.scopes.iter().all(|scope| principal.has(*scope))
        && record.limits.clone().under(&principal.limits).is_ok_and(|narrowed| narrowed == record.limits);
    principal.is_admin() || is_own(principal, record) || within
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn maker(scopes: &[Scope], limits: &str) -> Principal {
        let identity = Identity {
            name: "key:maker".to_owned(),
            scopes: scopes.to_vec(),
            limits: serde_json::from_str(limits).unwrap(),
            nodes: Vec::new(),
            expires_at: None,
        };
        Principal::of(Arc::new(identity))
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
        refuses(r#"{"name":"n"}"#, "scopes");
        refuses(r#"{"name":"n","scopes":[]}"#, "/scopes: is empty");
        refuses(r#"{"name":"n","scopes":["jobs:wirte"]}"#, "did you mean `jobs:write`?");
        refuses(r#"{"name":"","scopes":["admin"]}"#, "/name: a key's name must be");
        refuses(
            r#"{"name":"n","scopes":["admin"],"limits":{"regoins":["eu"]}}"#,
            "/limits/regoins: unknown limit `regoins`; did you mean `regions`?",
        );
        refuses(r#"{"name":"n","scopes":["admin"],"limits":[null]}"#, "/limits: must be an object with tools");
        refuses(r#"{"name":"n","scopes":["admin"],"limits":{"targets":[]}}"#, "/limits/targets: is an empty list");
        refuses(r#"{"name":"n","scopes":["admin"],"limits":{"rate":"fast"}}"#, "/limits/rate");
        assert_eq!(parse(br#"{"name":"n","scopes":["admin","admin"]}"#).unwrap().scopes, [Scope::Admin]);
    }

    #[test]
    fn nobody_gives_what_he_has_not() {
        let request = |body: &str| parse(body.as_bytes()).unwrap();
        let job_key = || request(r#"{"name":"n","scopes":["jobs:write"]}"#);
        let both = [Scope::KeysWrite, Scope::JobsWrite];
        assert_eq!(granted(&maker(&[Scope::KeysWrite], "{}"), job_key()).unwrap_err().code(), Code::Forbidden);
        assert_eq!(granted(&maker(&both, "{}"), request(r#"{"name":"n","scopes":["admin"]}"#)).unwrap_err().code(), Code::Forbidden);
        let wider = request(r#"{"name":"n","scopes":["jobs:write"],"limits":{"regions":["us-east"],"rate":"9/s"}}"#);
        for scopes in [&both[..], &[Scope::Admin]] {
            let limited = maker(scopes, r#"{"regions":["eu-*"]}"#);
            let given = granted(&limited, job_key()).unwrap();
            assert_eq!(given.limits, limited.limits, "what is left open is limited as the maker is");
            let problem = granted(&limited, wider.clone()).unwrap_err();
            assert!(problem.code() == Code::Forbidden && problem.detail().starts_with("/limits/regions: goes beyond"), "{problem}");
        }
        let anything = granted(&maker(&[Scope::Admin], "{}"), wider).unwrap();
        assert_eq!(anything.limits.rate, Some("9/s".parse().unwrap()));
    }

    #[test]
    fn a_key_ends_no_later_than_who_made_it() {
        let ask = |ends: Option<Timestamp>, expires_in: &str| {
            let maker = Identity { expires_at: ends, ..(*maker(&[Scope::Admin], "{}")).clone() };
            let request = parse(format!(r#"{{"name":"n","scopes":["admin"]{expires_in}}}"#).as_bytes()).unwrap();
            granted(&Principal::of(Arc::new(maker)), request).unwrap().expires_at
        };
        let in_a_minute = Timestamp::now().plus(Duration::from_mins(1));
        assert_eq!(ask(None, ""), None);
        assert_eq!(ask(Some(in_a_minute), ""), Some(in_a_minute));
        assert_eq!(ask(Some(in_a_minute), r#","expires_in_ms":3600000"#), Some(in_a_minute));
        assert!(ask(Some(in_a_minute), r#","expires_in_ms":1000"#).is_some_and(|ends| ends < in_a_minute));
        assert!(ask(None, r#","expires_in_ms":3600000"#).is_some_and(|ends| ends > in_a_minute));
        refuses(r#"{"name":"n","scopes":["admin"],"expires_in_ms":999}"#, "/expires_in_ms");
    }

    #[test]
    fn a_rate_is_not_multiplied_by_making_keys() {
        let limited = maker(&[Scope::KeysWrite, Scope::JobsWrite, Scope::JobsRead], r#"{"rate":"10/m"}"#);
        let ask = |scope: &str| granted(&limited, parse(format!(r#"{{"name":"n","scopes":["{scope}"]}}"#).as_bytes()).unwrap());
        let problem = ask("jobs:write").unwrap_err();
        assert!(problem.code() == Code::Forbidden && problem.detail().contains("limited by `rate` to 10/m"), "{problem}");
        assert!(ask("jobs:read").is_ok(), "a key that runs nothing has no rate to multiply");
    }

    #[test]
    fn a_key_is_revoked_by_its_owner_its_maker_or_who_may_as_much() {
        let record = mint(NewKey { name: "n".to_owned(), scopes: vec![Scope::JobsWrite, Scope::KeysWrite], ..NewKey::default() }).record;
        let identity = |name: &str, scopes: &[Scope]| Identity {
            name: name.to_owned(),
            scopes: scopes.to_vec(),
            limits: Limits::default(),
            nodes: Vec::new(),
            expires_at: None,
        };
        assert!(may_revoke(&identity(&format!("key:{}", record.id), &[Scope::KeysWrite]), &record));
        assert!(may_revoke(&identity("key:other", &[Scope::KeysWrite, Scope::JobsWrite]), &record));
        assert!(may_revoke(&identity("key:other", &[Scope::Admin]), &record));
        assert!(!may_revoke(&identity("key:other", &[Scope::KeysWrite]), &record));
        let limited = Identity {
            limits: serde_json::from_str(r#"{"rate":"1/s"}"#).unwrap(),
            ..identity("key:other", &[Scope::KeysWrite, Scope::JobsWrite])
        };
        assert!(!may_revoke(&limited, &record), "the key has no such limit");
    }
}
