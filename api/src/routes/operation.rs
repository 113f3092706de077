//! What is said of an operation, beside what answers it.

use std::borrow::Cow;

use axum::handler::Handler;
use axum::http::{Method, StatusCode};
use axum::routing::{MethodRouter, delete, get, post};
use probeops_shared::access::Scope;
use probeops_shared::problem::Code;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use crate::App;

/// One operation.
pub(crate) struct Operation {
    /// What answers it.
    pub(crate) route: Route,
    /// Who may ask.
    pub(crate) needs: Needs,
    /// Its name in generated clients.
    pub(crate) id: Cow<'static, str>,
    /// What it does, in a line.
    pub(crate) summary: Cow<'static, str>,
    /// What else there is to say.
    pub(crate) description: &'static str,
    /// Its query parameters; any other is an error.
    pub(crate) query: Cow<'static, [Parameter]>,
    /// Headers that change what it does.
    pub(crate) headers: &'static [Parameter],
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
    pub(crate) path: Cow<'static, str>,
    /// What answers.
    pub(crate) handler: MethodRouter<App>,
}

impl Route {
    pub(crate) fn get<H: Handler<T, App>, T: 'static>(path: impl Into<Cow<'static, str>>, handler: H) -> Self {
        Self { method: Method::GET, path: path.into(), handler: get(handler) }
    }

    pub(crate) fn post<H: Handler<T, App>, T: 'static>(path: impl Into<Cow<'static, str>>, handler: H) -> Self {
        Self { method: Method::POST, path: path.into(), handler: post(handler) }
    }

    pub(crate) fn delete<H: Handler<T, App>, T: 'static>(path: impl Into<Cow<'static, str>>, handler: H) -> Self {
        Self { method: Method::DELETE, path: path.into(), handler: delete(handler) }
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
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    /// Its name.
    pub(crate) name: Cow<'static, str>,
    /// What it means.
    pub(crate) description: Cow<'static, str>,
    /// What it may be.
    pub(crate) shape: Shape,
    /// Whether it must be given.
    pub(crate) required: bool,
    /// Whether it may be given several times.
    pub(crate) repeats: bool,
}

/// What a query parameter may be.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// A type of ours.
    Made(MakeSchema),
    /// This JSON Schema.
    Given(Value),
}

impl Parameter {
    /// One that may be given, once.
    pub(crate) const fn new(name: &'static str, description: &'static str, schema: MakeSchema) -> Self {
        let (name, description) = (Cow::Borrowed(name), Cow::Borrowed(description));
        Self { name, description, shape: Shape::Made(schema), required: false, repeats: false }
    }
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// What it means.
    pub(crate) description: &'static str,
    /// Its body; none where it has none.
    pub(crate) schema: Option<MakeSchema>,
    /// The other forms that its body may have, by what the caller accepts: content type, and what it is.
    pub(crate) also: &'static [(&'static str, &'static str)],
}

impl Answer {
    /// An answer in JSON.
    pub(crate) const fn json(status: StatusCode, description: &'static str, schema: MakeSchema) -> Self {
        Self { status, description, schema: Some(schema), also: &[] }
    }
}

/// Makes a schema, defining on the way what it refers to.
pub(crate) type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// The schema of a type.
pub(crate) fn schema<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}
