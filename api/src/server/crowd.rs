//! Which connections make room when others wait for it: those that ask nothing.
//!
//! Of each connection is known how many of its requests are being answered, and since when it has none. A head that arrives byte by byte is no
//! request yet, so whoever sends such is among the first to go.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::service::TowerToHyperService;
use tokio::time::Instant;

use crate::routes::client::CameBy;

/// Nobody who has just come, or was just answered, is sent away: his request may be on its way.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// What a connection is doing.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    answering: usize,
    idle_since: Instant,
}

impl Activity {
    /// That of a connection that has just been made.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { answering: 0, idle_since: Instant::now() })))
    }

    /// Whether it has asked nothing for a while.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        state.answering == 0 && state.idle_since.elapsed() >= FRESH
    }

    /// Whether it is being answered.
    pub(super) fn is_answered(&self) -> bool {
        self.state().answering > 0
    }

    fn begin(&self) -> Answering {
        self.state().answering += 1;
        Answering(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is being answered; dropped with the last of its answer.
#[derive(Debug)]
struct Answering(Activity);

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.answering -= 1;
        state.idle_since = Instant::now();
    }
}

/// Answers the requests of one connection, and knows how many are being answered.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    router: TowerToHyperService<Router>,
    activity: Activity,
    came_by: CameBy,
}

impl Counted {
    /// Answers by this router.
    pub(super) fn new(router: Router, activity: Activity, came_by: CameBy) -> Self {
        Self { router: TowerToHyperService::new(router), activity, came_by }
    }
}

impl Service<Request<Incoming>> for Counted {
    type Response = Response<CountedBody>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.came_by);
        let (answering, answered) = (self.activity.begin(), self.router.call(request));
        Box::pin(async move { Ok(answered.await?.map(|body| CountedBody { body, _answering: answering })) })
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct CountedBody {
    body: Body,
    _answering: Answering,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
