//! Before every handler: who asks, whether he may, and whether he asks for something that exists.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use probeops_shared::problem::Code;

use crate::App;
use crate::access::Principal;
use crate::problem::{Problem, Raised};
use crate::routes::fit::Fit;
use crate::routes::operation::{Needs, Parameter};
use crate::routes::query::Query;

/// What one operation asks of a request.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) app: App,
    pub(super) needs: Needs,
    pub(super) query: Cow<'static, [Parameter]>,
    pub(super) fit: Fit,
}

/// Who asks: in the request for handlers, and in the answer for the audit trail.
#[derive(Clone, Debug)]
pub(super) struct Who(pub(super) Principal);

impl<S: Sync> FromRequestParts<S> for Who {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Problem::new(Code::Internal, "the request names nobody"))
    }
}

/// Who changes something: within his allowance of changes, or refused.
#[derive(Clone, Debug)]
pub(super) struct Changing(pub(super) Principal);

impl FromRequestParts<App> for Changing {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Who(principal) = Who::from_request_parts(parts, app).await?;
        app.changes.check(&principal, app.access.keyring())?;
        Ok(Self(principal))
    }
}

pub(super) async fn guard(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let who = match gate.needs {
        Needs::Nothing => None,
        Needs::Credential | Needs::Scope(_) => match gate.app.access.principal(request.headers()).await {
            Ok(principal) => Some(Who(principal)),
            Err(problem) => return problem.into_response(),
        },
    };
    let looked_at = gate.fit.look_at(&mut request);
    let mut response = match admit(&gate, who.as_ref(), &mut request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    if let Some(Raised(problem)) = response.extensions().get::<Raised>().filter(|Raised(problem)| problem.code() == Code::Invalid) {
        response = gate.fit.judged(Problem::clone(problem), &looked_at).into_response();
    }
    if let Some(who) = who {
        response.extensions_mut().insert(who);
    }
    response
}

fn admit(gate: &Gate, who: Option<&Who>, request: &mut Request) -> Result<(), Problem> {
    if let (Some(Who(principal)), Needs::Scope(scopes)) = (who, gate.needs)
        && !scopes.iter().any(|scope| principal.has(*scope))
    {
        return scopes.first().map_or(Ok(()), |scope| principal.check_scope(*scope));
    }
    let query = Query::parse(request.uri(), &gate.query)?;
    let extensions = request.extensions_mut();
    extensions.insert(query);
    if let Some(who) = who {
        extensions.insert(who.clone());
    }
    Ok(())
}
