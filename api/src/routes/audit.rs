//! The audit trail.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use probeops_shared::access::Scope;
use probeops_shared::audit::Verdict;
use probeops_shared::ids::NodeId;
use probeops_shared::problem::Code;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;

use crate::App;
use crate::audit::reader::{Cursor, Export, ExportPage, Filter, Page};
use crate::audit::sight::Sight;
use crate::problem::{Problem, success};
use crate::routes::frame::CurrentRequest;
use crate::routes::guard::Who;
use crate::routes::operation::{Answer, Needs, Operation, Parameter, Route, schema};
use crate::routes::query::{PageLimit, Query};

/// What `since` and `until` must be.
const A_TIME: &str = "a time such as 2026-01-31T12:00:00Z";

static QUERY: [Parameter; 10] = [
    Parameter::new("since", "Only what happened then or later (RFC 3339).", schema::<Timestamp>),
    Parameter::new("until", "Only what happened then or earlier (RFC 3339).", schema::<Timestamp>),
    Parameter::new("principal", "Only on behalf of: `key:<id>`, `jwt:<subject>`, or a service's name.", schema::<String>),
    Parameter::new("node", "Only at this node.", schema::<NodeId>),
    Parameter::new("tool", "Only with this tool.", schema::<ToolName>),
    Parameter::new(
        "target",
        "Only of this target: a job's, or what was changed or read, such as `key:<id>` or `node:<id>`.",
        schema::<String>,
    ),
    Parameter::new("verdict", "Only what ended so.", schema::<Verdict>),
    Parameter::new("request_id", "Only of this request or job; the runs of a job belong to it.", schema::<String>),
    Parameter::new("limit", "How many records at most.", schema::<PageLimit>),
    Parameter::new("cursor", "Where to go on: `next` of the page before.", schema::<Cursor>),
];

static EXPORT_QUERY: [Parameter; 4] = [
    Parameter::new("since", "Only what was stored then or later (RFC 3339); without meaning beside `cursor`.", schema::<Timestamp>),
    Parameter::new("until", "Only what was stored then or earlier (RFC 3339).", schema::<Timestamp>),
    Parameter::new("limit", "How many records at most.", schema::<PageLimit>),
    Parameter::new("cursor", "Where to go on: `next` of the page before, or the `cursor` of any record.", schema::<Cursor>),
];

pub(super) fn operations() -> Vec<Operation> {
    let operation = |route, id: &'static str, summary: &'static str| Operation {
        route,
        needs: Needs::Scope(&[Scope::AuditRead]),
        id: id.into(),
        summary: summary.into(),
        description: "Who asked what, and what was done: one record for each accepted job, refused request, started, finished or denied run, \
                      change, and reading of what is somebody else's. Jobs that services publish straight to the broker are in it too. A page \
                      that looked at much and found little is short or empty and still says `next`. A credential with limits of tools, regions, nodes, \
                      labels or targets is told of what was done at nodes, with tools and targets within them, and of what it asked itself. \
                      Reading it is recorded.",
        query: Cow::Borrowed(&QUERY),
        headers: &[],
        body: None,
        answers: vec![Answer::json(success::DONE, "The records, newest first.", schema::<Page>)],
        problems: &[Code::Unavailable],
    };
    vec![
        operation(Route::get("/v1/audit", read), "readAudit", "Read the audit trail, newest first"),
        Operation {
            description: "Every record since a time or a place, oldest first and as it was written, with its chain: each record has the hash of \
                          the one before it of the same writer, so that `probeops audit verify` finds one that was changed, left out or swapped. \
                          Follow `next` until `end`; asked again later, it goes on with what has come since. With limits of tools, regions, nodes, labels or \
                          targets it leaves out what is beyond them, and says `narrowed`: what is left cannot be verified as a whole. Reading it is \
                          recorded.",
            query: Cow::Borrowed(&EXPORT_QUERY),
            answers: vec![Answer::json(success::DONE, "The records, oldest first.", schema::<ExportPage>)],
            ..operation(Route::get("/v1/audit/export", export), "exportAudit", "Export the audit trail, oldest first")
        },
    ]
}

async fn read(State(app): State<App>, Who(principal): Who, current: CurrentRequest, query: Query) -> Result<Json<Page>, Problem> {
    let filter = filter(&query)?;
    let page = app.audit.page(&filter, Sight::new(&principal, &app.roster)).await?;
    app.audit.read(&principal.name, &current.0, "audit".to_owned(), &asked_for(&filter));
    Ok(Json(page))
}

async fn export(State(app): State<App>, Who(principal): Who, current: CurrentRequest, query: Query) -> Result<Json<ExportPage>, Problem> {
    let time = |name| query.read(name, A_TIME, Timestamp::parse);
    let export = Export { since: time("since")?, until: time("until")?, limit: query.limit()?, cursor: query.value("cursor")? };
    let page = app.audit.export(&export, Sight::new(&principal, &app.roster)).await?;
    app.audit.read(&principal.name, &current.0, "audit".to_owned(), "exported");
    Ok(Json(page))
}

/// What somebody looked for, for the trail itself; not how far he has read.
fn asked_for(filter: &Filter) -> String {
    let Filter { since: _, until: _, principal, node, tool, target, verdict, request_id, limit: _, cursor: _ } = filter;
    let named = [
        ("principal", principal.clone()),
        ("node", node.as_ref().map(ToString::to_string)),
        ("tool", tool.clone()),
        ("target", target.clone()),
        ("verdict", verdict.map(|verdict| verdict.as_str().to_owned())),
        ("request_id", request_id.clone()),
    ];
    let words: Vec<String> = named.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect();
    if words.is_empty() { "read".to_owned() } else { format!("read: {}", words.join(" ")) }
}

fn filter(query: &Query) -> Result<Filter, Problem> {
    let time = |name| query.read(name, A_TIME, Timestamp::parse);
    let verdicts: Vec<&str> = Verdict::ALL.iter().map(|verdict| verdict.as_str()).collect();
    let verdict = |text: &str| Verdict::ALL.into_iter().find(|verdict| verdict.as_str() == text);
    Ok(Filter {
        since: time("since")?,
        until: time("until")?,
        principal: query.value("principal")?,
        node: query.value("node")?,
        tool: query.value::<ToolName>("tool")?.map(|tool| tool.as_str().to_owned()),
        target: query.value("target")?,
        verdict: query.read("verdict", &format!("one of {}", verdicts.join(", ")), verdict)?,
        request_id: query.value("request_id")?,
        limit: query.limit()?,
        cursor: query.value("cursor")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Filter, Problem> {
        Query::parse(&format!("/v1/audit?{query}").parse().unwrap(), &QUERY).and_then(|query| filter(&query))
    }

    #[test]
    fn filters_are_read_and_what_is_wrong_is_named() {
        let all = parse("since=2026-01-31T12:00:00Z&principal=key%3Aa&node=fra-1&tool=echo&verdict=denied&request_id=r&limit=5&cursor=7.1")
            .unwrap();
        assert_eq!((all.limit, all.verdict, all.principal.as_deref()), (5, Some(Verdict::Denied), Some("key:a")));
        for (query, part) in [
            ("since=yesterday", "?since: must be a time such as"),
            (
                "verdict=ok",
                "?verdict: must be one of accepted, refused, changed, signed, read, started, finished, denied, reported, lost, violation, not the string \"ok\"",
            ),
            ("node=a.b", "?node: a node id must be"),
            ("tool=ehco", "?tool: unknown tool `ehco`; did you mean `echo`?"),
            ("cursor=x", "?cursor: must be a cursor"),
            ("verdit=denied", "did you mean `verdict`?"),
        ] {
            let problem = parse(query).unwrap_err();
            assert!(problem.detail().contains(part), "{problem}");
        }
    }
}
