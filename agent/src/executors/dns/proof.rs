//! The proof of an answer, of the same server as the answer itself.

use std::time::Instant;

use probeops_shared::host::DnsName;
use probeops_shared::tools::dns::validation::{DnsValidation, DnsValidationQuery, VALIDATION_MAX};
use probeops_shared::tools::dns::{Dns, DnsProgress};
use probeops_shared::tools::network::ms;

use super::asking::Asking;
use crate::executors::Live;
use crate::net::dnssec::{self, Source, Verdict};

/// What is proven of the answer.
pub(super) async fn prove(asking: &Asking<'_>, target: &DnsName, options: &Dns, live: &Live) -> DnsValidation {
    let started = Instant::now();
    let mut queries = Vec::new();
    let verdict = match (&asking.response, &asking.last) {
        (Some(_), Some(last)) => {
            let (source, mut heard) = Source::new(last.server, asking.way.clone(), options);
            let query = asking.query;
            let proof = dnssec::validate(&source, query.name(), query.kind(), options.trust_anchor.as_ref());
            let mut proof = std::pin::pin!(tokio::time::timeout(VALIDATION_MAX, proof));
            let mut tell = |query: DnsValidationQuery| {
                live.tell(options, target, &DnsProgress::Proof(query.clone()));
                queries.push(query);
            };
            let verdict = loop {
                tokio::select! {
                    Some(query) = heard.recv() => tell(query),
                    verdict = &mut proof => break verdict,
                }
            };
            // What was answered at the very end.
            std::iter::from_fn(|| heard.try_recv().ok()).for_each(tell);
            verdict.unwrap_or_else(|_| Verdict::indeterminate(format!("the proof was not done within {} s", VALIDATION_MAX.as_secs())))
        }
        _ => Verdict::indeterminate("there is no answer to prove"),
    };
    DnsValidation {
        state: verdict.state,
        reason: verdict.reason,
        negative: verdict.negative,
        resolver_says_secure: asking.response.as_ref().is_some_and(|response| response.flags.ad),
        trust_anchors: match &options.trust_anchor {
            Some(anchor) => vec![anchor.to_string()],
            None => dnssec::ROOT_ANCHORS.map(str::to_owned).to_vec(),
        },
        queries,
        elapsed_ms: ms(started.elapsed()),
    }
}
