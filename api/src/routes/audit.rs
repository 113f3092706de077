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
use crate::audit::reader::{Cursor, Filter, Page};
use crate::problem::{Problem, success};
use crate::routes::operation::{Answer, Needs, Operation, Parameter, Route, schema};
use crate::routes::query::{PageLimit, Query};

static QUERY: [Parameter; 9] = [
    Parameter::new("since", "Only what happened then or later (RFC 3339).", schema::<Timestamp>),
    Parameter::new("until", "Only what happened then or earlier (RFC 3339).", schema::<Timestamp>),
    Parameter::new("principal", "Only on behalf of: `key:<id>`, `jwt:<subject>`, or a service's name.", schema::<String>),
    Parameter::new("node", "Only at this node.", schema::<NodeId>),
    Parameter::new("tool", "Only with this tool.", schema::<ToolName>),
    Parameter::new("verdict", "Only what ended so.", schema::<Verdict>),
    Parameter::new("request_id", "Only of this request or job; the runs of a job belong to it.", schema::<String>),
    Parameter::new("limit", "How many records at most.", schema::<PageLimit>),
    Parameter::new("cursor", "Where to go on: `next` of the page before.", schema::<Cursor>),
];

pub(super) fn operations() -> Vec<Operation> {
    vec![Operation {
        route: Route::get("/v1/audit", read),
        needs: Needs::Scope(&[Scope::AuditRead]),
        id: "readAudit".into(),
        summary: "Read the audit trail, newest first".into(),
        description: "Who asked what, and what was done: one record for each accepted job, refused request, finished or denied run, and change of \
                      access. Jobs that services publish straight to the broker are in it too. A page that looked at much and found little is \
                      short or empty and still says `next`.",
        query: Cow::Borrowed(&QUERY),
        headers: &[],
        body: None,
        answers: vec![Answer::json(success::DONE, "The records, newest first.", schema::<Page>)],
        problems: &[Code::Unavailable],
    }]
}

async fn read(State(app): State<App>, query: Query) -> Result<Json<Page>, Problem> {
    app.audit.page(&filter(&query)?).await.map(Json)
}

fn filter(query: &Query) -> Result<Filter, Problem> {
    let time = |name| query.read(name, "a time such as 2026-01-31T12:00:00Z", Timestamp::parse);
    let verdicts: Vec<&str> = Verdict::ALL.iter().map(|verdict| verdict.as_str()).collect();
    let verdict = |text: &str| Verdict::ALL.into_iter().find(|verdict| verdict.as_str() == text);
    Ok(Filter {
        since: time("since")?,
        until: time("until")?,
        principal: query.value("principal")?,
        node: query.value("node")?,
        tool: query.value::<ToolName>("tool")?.map(|tool| tool.as_str().to_owned()),
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
            ("verdict=ok", "?verdict: must be one of accepted, refused, changed, finished, denied, not the string \"ok\""),
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
