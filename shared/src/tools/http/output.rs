//! What `curl -v` would print, and after each request the times of its phases.

use std::fmt::Write as _;

use crate::tls::TlsSession;
use crate::tools::tcp::report::PortState;
use crate::tools::tls::openssl_cipher;

use super::assertion::Verdict;
use super::report::{HttpPhase, HttpProgress, HttpReport, HttpRequest, HttpTimings};

/// The whole of a run.
pub(super) fn whole(report: &HttpReport) -> String {
    let mut text: String =
        report.requests.iter().map(|request| connected(request) + &secured(request) + &answered(request) + &finished(request)).collect();
    if let Some(why) = &report.redirect_not_followed {
        let _ = writeln!(text, "* Redirect not followed: {why}");
    }
    text + &report.assertions.iter().map(asserted).collect::<String>()
}

/// What is printed as it happens.
pub(super) fn of_progress(progress: &HttpProgress) -> String {
    match progress {
        HttpProgress::Phase { phase: HttpPhase::Connected, request } => connected(request),
        HttpProgress::Phase { phase: HttpPhase::Secured, request } => secured(request),
        HttpProgress::Phase { phase: HttpPhase::Answered, request } => answered(request),
        HttpProgress::Phase { phase: HttpPhase::Finished, request } => finished(request),
        HttpProgress::Assertion { verdict } => asserted(verdict),
    }
}

/// As far as the connection.
fn connected(request: &HttpRequest) -> String {
    let (address, port) = (request.address, request.port);
    let shown = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    let mut text = format!("*   Trying {shown}:{port}...\n");
    let via = request.proxy.as_ref().map_or_else(|| request.url.host().to_string(), |proxy| proxy.url.host().to_string());
    match request.state {
        PortState::Open => {
            let _ = writeln!(text, "* Connected to {via} ({address}) port {port}");
        }
        PortState::Refused | PortState::Filtered | PortState::Unreachable => {
            let why = request.failure.as_ref().map_or(request.state.as_str(), |failure| failure.detail.as_str());
            let _ = writeln!(text, "* connect to {shown} port {port} failed: {why}");
        }
    }
    if let Some(proxy) = request.proxy.as_ref().filter(|proxy| proxy.tunnel && request.timings.proxy_ms.is_some()) {
        let _ = writeln!(text, "* CONNECT tunnel established to {} (for {})", proxy.address, request.url.host_and_port());
    }
    text
}

/// What TLS showed.
fn secured(request: &HttpRequest) -> String {
    let Some(session) = &request.tls else { return String::new() };
    let mut text = String::new();
    if let Some(version) = session.version {
        let cipher = session.cipher.as_deref().map_or_else(String::new, openssl_cipher);
        let _ = writeln!(text, "* SSL connection using {} / {cipher}", version.printed());
        let alpn =
            session.alpn.as_ref().map_or_else(|| "server did not agree on a protocol".to_owned(), |alpn| format!("server accepted {alpn}"));
        let _ = writeln!(text, "* ALPN: {alpn}");
    }
    text + &certificate(session)
}

fn certificate(session: &TlsSession) -> String {
    let Some(own) = session.chain.first() else { return String::new() };
    let mut text = format!("* Server certificate:\n*  subject: {}\n", own.subject);
    let _ = writeln!(text, "*  start date: {}\n*  expire date: {}", own.not_before.calendar_gmt(), own.not_after.calendar_gmt());
    if !own.san.is_empty() {
        let _ = writeln!(text, "*  subjectAltName: {}", own.san.join(", "));
    }
    let _ = writeln!(text, "*  issuer: {}", own.issuer);
    for problem in &session.problems {
        let _ = writeln!(text, "*  SSL certificate problem: {}", problem.detail);
    }
    if session.verified == Some(true) {
        text += "*  SSL certificate verify ok.\n";
    }
    text
}

/// The request, and the head of its answer.
fn answered(request: &HttpRequest) -> String {
    let Some(status) = request.status else { return String::new() };
    let protocol = request.protocol.as_deref().unwrap_or("HTTP");
    let reason = request.reason.as_deref().map_or_else(|| " ".to_owned(), |reason| format!(" {reason}"));
    let mut text = format!("{}< {protocol} {status}{reason}\n", asked(request));
    for field in &request.headers {
        let _ = writeln!(text, "< {}: {}", field.name, field.value);
    }
    text + "<\n"
}

/// The request.
fn asked(request: &HttpRequest) -> String {
    let asked = match &request.proxy {
        Some(proxy) if !proxy.tunnel => request.url.to_string(),
        Some(_) | None => request.url.path_and_query().to_owned(),
    };
    let version = if request.request_headers.iter().any(|field| field.name == "Host") { "HTTP/1.1" } else { "HTTP/2" };
    let mut text = format!("> {} {asked} {version}\n", request.method);
    for field in &request.request_headers {
        let _ = writeln!(text, "> {}: {}", field.name, field.value);
    }
    text + ">\n"
}

/// The body, what went wrong, and the times.
fn finished(request: &HttpRequest) -> String {
    let unanswered = request.status.is_none() && !request.request_headers.is_empty();
    let mut text = if unanswered { asked(request) } else { String::new() };
    if let Some(body) = &request.body {
        text += &body.text;
        if !(body.text.is_empty() || body.text.ends_with('\n')) {
            text.push('\n');
        }
        let cut = if body.truncated { ", and there is more" } else { "" };
        let _ = writeln!(text, "* Body: {} bytes{cut}, SHA-256 {}", body.size_bytes, body.sha256);
    }
    if let Some(failure) = request.failure.as_ref().filter(|_| request.state == PortState::Open) {
        let _ = writeln!(text, "* {}", failure.detail);
    }
    text + &times(request.timings)
}

fn times(timings: HttpTimings) -> String {
    let phases = [
        ("dns", timings.dns_ms),
        ("connect", timings.connect_ms),
        ("proxy", timings.proxy_ms),
        ("tls", timings.tls_ms),
        ("first byte", timings.first_byte_ms),
        ("download", timings.download_ms),
        ("total", timings.total_ms),
    ];
    let known: Vec<String> = phases.iter().filter_map(|(name, ms)| ms.map(|ms| format!("{name} {ms:.3} ms"))).collect();
    if known.is_empty() { String::new() } else { format!("* Times: {}\n", known.join(", ")) }
}

fn asserted(verdict: &Verdict) -> String {
    let word = if verdict.passed { "holds" } else { "FAILS" };
    format!("* Assertion {} ({}) {word}: {}\n", verdict.assertion, verdict.kind, verdict.detail)
}
