//! `http`: a request, and as many more as redirects lead to, each to an address that was judged first.

mod hop;
mod request;

use std::sync::Arc;

use probeops_shared::http_url::{HttpUrl, Scheme};
use probeops_shared::outcome::Failure;
use probeops_shared::tools::http::Http;
use probeops_shared::tools::http::assertion::Evidence;
use probeops_shared::tools::http::report::{HttpPhase, HttpProgress, HttpReport, HttpRequest, HttpTimings};
use probeops_shared::tools::network::ms;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::time::Instant;

use crate::executors::{Context, Live, tls};

use hop::{Done, Hop};

pub(super) async fn run(context: &Context, target: &HttpUrl, options: &Http, live: &Live) -> Result<HttpReport, Failure> {
    let started = Instant::now();
    let run = Run {
        context,
        target,
        options,
        live,
        started,
        authorities: tls::authorities(options.ca_certificates.as_ref())?,
        identity: tls::identity(options.client_certificate.as_ref(), options.client_key.as_ref())?,
    };
    let mut report = HttpReport {
        requests: Vec::new(),
        status: None,
        redirects: 0,
        redirect_not_followed: None,
        failure: None,
        assertions: Vec::new(),
        total_ms: 0.0,
    };
    let mut next = Next { url: target.clone(), method: options.method.as_str().to_owned(), with_body: true };
    loop {
        let Done { mut request, headers, kept } = Hop { run: &run, next: &next, so_far: &report }.run().await?;
        let followed = run.follow(&next, request.status, &headers, report.redirects);
        if let (Ok(Some(_)), Some(body)) = (&followed, &mut request.body) {
            // Nobody reads what a redirect says beside where it leads, and ten of them would not fit into an outcome.
            body.text.clear();
        }
        run.tell(HttpPhase::Finished, &request);
        (report.status, report.failure) = (request.status, request.failure.clone());
        report.requests.push(request);
        report.total_ms = ms(started.elapsed());
        match followed {
            Ok(Some(on)) => {
                report.redirects += 1;
                live.set(options, target, report.clone());
                next = on;
                continue;
            }
            Ok(None) => {}
            Err(why) => report.redirect_not_followed = Some(why),
        }
        if !options.assertions.is_empty() {
            live.set(options, target, report.clone());
        }
        run.judge(&mut report, headers, kept).await;
        return Ok(report);
    }
}

/// What stays the same over all requests of a run.
struct Run<'a> {
    context: &'a Context,
    target: &'a HttpUrl,
    options: &'a Http,
    live: &'a Live,
    started: Instant,
    authorities: Vec<CertificateDer<'static>>,
    identity: Option<Arc<CertifiedKey>>,
}

/// What to ask for.
struct Next {
    url: HttpUrl,
    method: String,
    with_body: bool,
}

impl Run<'_> {
    /// Tells how far a request is, if anybody listens.
    fn tell(&self, phase: HttpPhase, request: &HttpRequest) {
        if self.live.is_heard() {
            self.live.tell(self.options, self.target, &HttpProgress::Phase { phase, request: Box::new(request.clone()) });
        }
    }

    /// Where an answer leads; `None` when it is final, in words why it is not gone there.
    fn follow(&self, asked: &Next, status: Option<u16>, headers: &[(String, String)], followed: usize) -> Result<Option<Next>, String> {
        let max = self.options.redirects_max.get_usize();
        let location = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("location")).map(|(_, value)| value.as_str());
        let (Some(status @ (301 | 302 | 303 | 307 | 308)), Some(location), 1..) = (status, location, max) else { return Ok(None) };
        if followed >= max {
            return Err(format!("{followed} were followed already, which is what `redirects_max` allows"));
        }
        let url = asked.url.join(location)?;
        if asked.url.scheme() == Scheme::Https && url.scheme() == Scheme::Http && !self.options.redirect_to_clear {
            return Err(format!("it leads from https to {url}; set `redirect_to_clear` to follow it"));
        }
        // What browsers and curl do (Fetch, "HTTP-redirect fetch"): after a POST the answer is fetched with GET, unless the status forbids it.
        let to_get = match status {
            303 => !["GET", "HEAD"].contains(&asked.method.as_str()),
            301 | 302 => asked.method == "POST",
            _ => false,
        };
        let method = if to_get { "GET".to_owned() } else { asked.method.clone() };
        Ok(Some(Next { url, method, with_body: asked.with_body && !to_get }))
    }

    /// Judges the assertions, on a thread of their own: a pattern may take a while, and others wait for this one.
    async fn judge(&self, report: &mut HttpReport, headers: Vec<(String, String)>, kept: Vec<u8>) {
        let Some(request) = report.requests.last().filter(|_| !self.options.assertions.is_empty()).cloned() else { return };
        let (assertions, total_ms) = (self.options.assertions.clone(), Some(report.total_ms));
        let judged = tokio::task::spawn_blocking(move || {
            let timings = HttpTimings { total_ms, ..request.timings };
            assertions.judge(&Evidence { request: &request, headers: &headers, body: &kept, timings })
        });
        report.assertions = judged.await.unwrap_or_default();
        for verdict in &report.assertions {
            self.live.tell(self.options, self.target, &HttpProgress::Assertion { verdict: verdict.clone() });
        }
    }
}
