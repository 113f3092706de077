//! The way to every address of the broker, and the broker itself, step by step.

use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::Client;
use futures_util::StreamExt;
use probeops_nats::connect::Credential;
use probeops_shared::outcome::NodeRef;
use probeops_shared::presence::{EventAck, EventKind};
use probeops_shared::subjects;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tls::TlsSession;
use probeops_shared::tools::ToolName;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Finding, Verdict, link_to, refusal};
use crate::config::Settings;
use crate::net::tls::Trust;
use crate::way::Way;
use crate::way::dial::{self, Obstacle};
use crate::way::proxy::{Proxies, Proxy};
use crate::way::server::{Scheme, Server};
use crate::{health, here};

/// How long the control plane may take to say its time.
const TIME_WITHIN: Duration = Duration::from_secs(5);
/// How far clocks may be apart before it is said, in milliseconds.
const APART_NOTED_MS: i64 = 2_000;
/// From then on dates of certificates and credentials are misjudged.
const APART_FAILED_MS: i64 = 60_000;
/// A certificate that ends within so many days is said.
const DAYS_LEFT_NOTED: i64 = 14;
/// Where the agent of the package says how it is.
const PACKAGED_HEALTH_FILE: &str = "/run/probeops-agent/health";

/// Every server, each by itself; the control plane over the first that lets us in.
pub(super) async fn examine(settings: &Settings, who: Option<(&NodeRef, &[ToolName])>) -> Vec<Finding> {
    let proxies = match settings.proxies() {
        Ok(proxies) => proxies,
        // Settings with such a proxy are not completed.
        Err(detail) => return vec![Finding::failed("proxy", detail, "edit the setting `proxy`")],
    };
    let mut found = Vec::new();
    let mut time_asked = false;
    for text in &settings.servers {
        let server: Server = match text.parse() {
            Ok(server) => server,
            Err(detail) => {
                found.push(Finding::failed("configuration", detail, "edit `servers`: tls://HOST:4222 or wss://HOST/PATH"));
                continue;
            }
        };
        let steps = steps(&server, proxies.of(&server.endpoint).as_ref(), settings.ca.as_deref()).await;
        let reached = steps.iter().all(|finding| finding.verdict != Verdict::Failed);
        found.extend(steps);
        let Some(who) = who.filter(|_| reached) else { continue };
        if let Some(how) = running_agent(settings) {
            found.push(Finding::ok("broker", format!("{text}: not tried, as an agent runs here with this credential; {how}")));
            continue;
        }
        match enter(settings, text, &proxies, who).await {
            Ok((way, client)) => {
                found.push(Finding::ok("broker", format!("{text} accepts the credential")));
                if !time_asked {
                    found.extend(control_plane(&client, who.0).await);
                    time_asked = true;
                }
                drop(client);
                way.close().await;
            }
            Err(finding) => found.push(Finding { detail: format!("{text}: {}", finding.detail), ..*finding }),
        }
    }
    found
}

/// From here to TLS, each step that worked and the first that did not.
async fn steps(server: &Server, proxy: Option<&Proxy>, ca: Option<&Path>) -> Vec<Finding> {
    let mut found = Vec::new();
    let connected = if let Some(proxy) = proxy {
        let connected = dial::through(proxy, server).await;
        found.push(match &connected {
            Ok(_) => Finding::ok("proxy", format!("{proxy}, of {}, connects to {}", proxy.known_from(), server.endpoint)),
            Err(obstacle) => Finding::of("proxy", obstacle.clone()),
        });
        connected
    } else {
        let connected = dial::tcp(&server.endpoint).await;
        found.push(match &connected {
            Ok(stream) => {
                let at = stream.peer_addr().map_or_else(|_| server.endpoint.to_string(), |at| at.to_string());
                Finding::ok("network", format!("{server} is reached at {at}"))
            }
            Err(obstacle) => Finding::of("network", obstacle.clone()),
        });
        connected
    };
    let Ok(mut stream) = connected else { return found };
    let greeted = match server.scheme {
        Scheme::Tls => dial::greeting(&mut stream, server).await.map(drop),
        Scheme::Wss => Ok(()),
    };
    match greeted {
        Ok(()) => found.extend(certificate(stream, server, ca).await),
        Err(obstacle) => found.push(Finding::of("network", obstacle)),
    }
    found
}

/// Who the other side is, with every reason not to believe it.
async fn certificate(stream: impl AsyncRead + AsyncWrite + Unpin + Send, server: &Server, ca: Option<&Path>) -> Vec<Finding> {
    match dial::encrypt(stream, server, ca, Trust::Inspect).await {
        Err(obstacle) => vec![Finding::of("tls", obstacle)],
        Ok((_, session)) if session.problems.is_empty() => trusted(server, &session),
        Ok((_, session)) => {
            let cure = dial::tls_cure(server, ca, &session);
            let problem = |detail: &str| Finding::of("tls", Obstacle { detail: format!("{server}: {detail}"), cure: cure.clone() });
            session.problems.iter().map(|found| problem(&found.detail)).collect()
        }
    }
}

fn trusted(server: &Server, session: &TlsSession) -> Vec<Finding> {
    let own = session.chain.first();
    let (issuer, until) = own.map_or_else(Default::default, |own| (own.issuer.clone(), own.not_after.calendar()));
    let detail = format!("{server}: the certificate is for {}, by {issuer}, until {until}", server.endpoint.host);
    match session.days_left {
        Some(days) if days < DAYS_LEFT_NOTED => {
            vec![Finding::note("tls", format!("{detail}: {days} days"), "have the broker's operator renew its certificate")]
        }
        Some(_) | None => vec![Finding::ok("tls", detail)],
    }
}

/// How the agent is that runs here with this credential, if one does: a second connection with it would look like a stolen one.
fn running_agent(settings: &Settings) -> Option<String> {
    let credential = Credential::read(&settings.creds).ok().filter(here::is_taken);
    credential.map(|_| {
        let path = settings.health_file.as_deref().unwrap_or_else(|| Path::new(PACKAGED_HEALTH_FILE));
        match health::check(path) {
            Ok(()) => "the control plane has acknowledged it lately".to_owned(),
            Err(why) => format!("how it is, is not known: {why}"),
        }
    })
}

async fn enter(settings: &Settings, server: &str, proxies: &Proxies, who: (&NodeRef, &[ToolName])) -> Result<(Way, Client), Box<Finding>> {
    let way = Way::open(link_to(settings, server), proxies).await;
    let way = way.map_err(|detail| Finding::failed("broker", detail, "ip link set lo up"))?;
    let connected = way.connect(&format!("doctor {}", who.0.id), &subjects::node_inbox(&who.0.id)).await;
    let (client, _events) = connected.map_err(|error| refusal(error, settings, who))?;
    Ok((way, client))
}

/// Whether an API hears the node, and how far the clocks are apart.
async fn control_plane(client: &Client, node: &NodeRef) -> Vec<Finding> {
    let unheard = |why: &str| {
        let cure = "have the operator see that an API runs: curl -s https://API/readyz";
        vec![Finding::failed("control plane", format!("nobody acknowledges what this node says: {why}"), cure)]
    };
    let inbox = format!("{}.doctor{:032x}", subjects::node_inbox(&node.id), rand::random::<u128>());
    let Ok(mut answers) = client.subscribe(inbox.clone()).await else { return unheard("no subscription") };
    let (sent, started) = (Timestamp::now(), Instant::now());
    let subject = subjects::event(&node.region, &node.id, EventKind::Time);
    if let Err(error) = client.publish_with_reply(subject, inbox, Vec::new().into()).await {
        return unheard(&error.to_string());
    }
    let answer = match tokio::time::timeout(TIME_WITHIN, answers.next()).await {
        Ok(Some(answer)) if answer.status.is_none() => answer,
        Ok(Some(_)) => return unheard("no API is connected to the broker"),
        Ok(None) => return unheard("the connection ended"),
        Err(_) => return unheard(&format!("no answer within {} s", TIME_WITHIN.as_secs())),
    };
    let Ok(ack) = serde_json::from_slice::<EventAck>(&answer.payload) else { return unheard("its answer cannot be read") };
    let rtt_ms = started.elapsed().as_millis();
    let half = i64::try_from(rtt_ms / 2).unwrap_or(i64::MAX);
    let ahead_ms = sent.unix_ms().saturating_add(half).saturating_sub(ack.time_unix_ms);
    vec![Finding::ok("control plane", format!("it answers within {rtt_ms} ms")), clock(ahead_ms)]
}

fn clock(ahead_ms: i64) -> Finding {
    const CURE: &str = "timedatectl set-ntp true   # and `timedatectl timesync-status`; in a container, on its host";
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    let detail = format!("{} ms {side} the control plane's", ahead_ms.abs());
    match ahead_ms.abs() {
        APART_FAILED_MS.. => Finding::failed("clock", format!("{detail}: dates of certificates and credentials are misjudged"), CURE),
        APART_NOTED_MS.. => Finding::note("clock", detail, CURE),
        _ => Finding::ok("clock", detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_judged_by_how_far_it_is_off() {
        for (ahead_ms, verdict, words) in
            [(-3, Verdict::Ok, "3 ms behind"), (2_500, Verdict::Note, "2500 ms ahead of"), (-3_600_000, Verdict::Failed, "misjudged")]
        {
            let finding = clock(ahead_ms);
            assert!(finding.verdict == verdict && finding.detail.contains(words), "{finding:?}");
        }
    }
}
