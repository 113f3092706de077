//! What is said of an operation, beside what answers it.

use axum::handler::Handler;
use axum::http::{Method, StatusCode};
use axum::routing::{MethodRouter, delete, get, post};
use probeops_shared::access::Scope;
use probeops_shared::problem::Code;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::App;

/// One operation.
pub(crate) struct Operation {
    /// What answers it.
    pub(crate) route: Route,
    /// Who may ask.
    pub(crate) needs: Needs,
    /// Its name in generated clients.
    pub(crate) id: &'static str,
    /// What it does, in a line.
    pub(crate) summary: &'static str,
    /// What else there is to say.
    pub(crate) description: &'static str,
    /// Its query parameters; any other is an error.
    pub(crate) query: &'static [Parameter],
    /// Its body; none where it takes none.
    pub(crate) body: Option<MakeSchema>,
    /// Its answers when all is well.
    pub(crate) answers: Vec<Answer>,
    /// Its own kinds of problem, beside those that come with its needs, query and body.
    pub(crate) problems: &'static [Code],
}

/// A method, a path and what answers there.
pub(crate) struct Route {
    /// The method.
    pub(crate) method: Method,
    /// The path, with `{names}`.
    pub(crate) path: &'static str,
    /// What answers.
    pub(crate) handler: MethodRouter<App>,
}

impl Route {
    pub(crate) fn get<H: Handler<T, App>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self { method: Method::GET, path, handler: get(handler) }
    }

    pub(crate) fn post<H: Handler<T, App>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self { method: Method::POST, path, handler: post(handler) }
    }

    pub(crate) fn delete<H: Handler<T, App>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self { method: Method::DELETE, path, handler: delete(handler) }
    }
}

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Anybody.
    Nothing,
    /// Anybody with a credential.
    Credential,
    /// Who has one of these scopes.
    Scope(&'static [Scope]),
}

/// A query parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it means.
    pub(crate) description: &'static str,
    /// What it may be.
    pub(crate) schema: MakeSchema,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// What it means.
    pub(crate) description: &'static str,
    /// Its body.
    pub(crate) schema: MakeSchema,
}

/// Makes a schema, defining on the way what it refers to.
pub(crate) type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// The schema of a type.
pub(crate) fn schema<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}
