//! Proof of an answer by DNSSEC (RFC 4033 to 4035, 5155). The library proves; what it needs is asked through our own transports, of the one
//! server that was judged, and kept, so that [`reason`] can say in words why a proof fails.

mod alias;
mod reason;
mod source;
mod wildcard;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use hickory_net::dnssec::DnssecDnsHandle;
use hickory_net::xfer::DnsHandle as _;
use hickory_net::{DnsError, NetError};
use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData, DS};
use hickory_proto::dnssec::{Algorithm, DigestType, Proof, PublicKeyBuf, TrustAnchors};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Message, Query as Asked, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use probeops_shared::tools::dns::validation::{TrustAnchor, ValidationState};

use alias::Chain;
use reason::Facts;
pub(crate) use source::Source;

/// The keys of the Internet's root, as IANA publishes them; the library has them built in.
pub(crate) const ROOT_ANCHORS: [&str; 2] = [
    ". IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D",
    ". IN DS 38696 8 2 683D2D0ACB8C9B712A1948B27F741219298D0A450D612C483AF444A4C0FB2B16",
];

/// How many aliases are followed from answer to answer.
const ALIASES_MAX: usize = 8;

/// What is proven of an answer.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) state: ValidationState,
    /// Why it is not secure.
    pub(crate) reason: Option<String>,
    /// Whether the answer is that there is no such name, or that it has no such records.
    pub(crate) negative: bool,
}

impl Verdict {
    pub(crate) fn indeterminate(reason: impl Into<String>) -> Self {
        Self { state: ValidationState::Indeterminate, reason: Some(reason.into()), negative: false }
    }
}

/// Proves what the source says to a question.
pub(crate) async fn validate(source: &Source, name: &Name, kind: u16, anchor: Option<&TrustAnchor>) -> Verdict {
    let kind = RecordType::from(kind);
    if kind == RecordType::RRSIG {
        return Verdict::indeterminate("signatures are not themselves signed");
    }
    let anchors = match anchors(source, anchor).await {
        Ok(anchors) => Arc::new(anchors),
        Err(verdict) => return verdict,
    };
    let client = DnssecDnsHandle::with_trust_anchor(source.clone(), Arc::clone(&anchors));
    let mut name = name.to_lowercase();
    let mut worst = Judged { state: ValidationState::Secure, opted_out: false, end: None };
    // What an alias leads to is proven by a question of its own.
    for _ in 0..ALIASES_MAX {
        let request = DnsRequest::from_query(Asked::query(name.clone(), kind), DnsRequestOptions::default());
        let answer = client.send(request).next().await.unwrap_or(Err(NetError::Timeout));
        let judged = match judge(answer, &name, kind) {
            Ok(judged) => judged,
            Err(why) => {
                let exchanges = source.exchanges();
                return Verdict::indeterminate(Facts::new(&exchanges, &anchors, now()).unanswered().unwrap_or(why));
            }
        };
        let (end, failed) = (judged.end.clone(), judged.state == ValidationState::Bogus);
        if strength(judged.state) <= strength(worst.state) {
            worst = judged;
        }
        match end {
            Some(end) if !failed => name = end,
            Some(_) | None => break,
        }
    }
    let exchanges = source.exchanges();
    let facts = Facts::new(&exchanges, &anchors, now());
    if let Some(why) = facts.unanswered().filter(|_| worst.state != ValidationState::Secure) {
        return Verdict::indeterminate(why);
    }
    let positive = |record: &Record| record.record_type() == kind || kind == RecordType::ANY;
    let negative = facts.answer(&name, kind).is_some_and(|message| !message.answers.iter().any(positive));
    let reason = match worst.state {
        ValidationState::Secure => None,
        ValidationState::Insecure if worst.opted_out => Some(
            "a wildcard made the name, and it is not proven that there is no nearer one: it need not be signed (NSEC3 opt-out)".to_owned(),
        ),
        ValidationState::Insecure => Some(facts.why_insecure()),
        ValidationState::Bogus => Some(facts.why_bogus(&name, kind)),
        ValidationState::Indeterminate => Some("the server does not say what a proof needs".to_owned()),
    };
    Verdict { state: worst.state, reason, negative }
}

/// What is to be thought of one answer.
struct Judged {
    state: ValidationState,
    /// Whether it is not secure only because a wildcard made it where names need not be signed.
    opted_out: bool,
    /// Where its aliases lead, if it has nothing of that.
    end: Option<Name>,
}

/// Reads what the library thinks of an answer, and corrects it where it is too strict or too lax.
fn judge(answer: Result<DnsResponse, NetError>, name: &Name, kind: RecordType) -> Result<Judged, String> {
    let (mut message, denial) = match answer {
        Ok(response) => (response.into_message(), None),
        Err(NetError::Dns(DnsError::Nsec { response, proof, .. })) => (response.into_message(), Some(proof)),
        Err(error) => return Err(error.to_string()),
    };
    alias::settle(&mut message);
    let chain = alias::chain(&message, name, kind);
    let nothing = message.answers.is_empty();
    let state = match denial {
        // Whatever else is proven: what is there must be about what was asked (the library lets it pass beside records of an unsigned zone).
        None | Some(_) if !nothing && chain == Chain::Nowhere => ValidationState::Bogus,
        None if nothing && !is_of_its_zones(&message, name) => ValidationState::Bogus,
        Some(_) if wildcard::is_proven(&message) => ValidationState::Secure,
        // Its aliases may be good, whatever they lead to.
        Some(_) if matches!(chain, Chain::Open(_)) && !wildcard::is_used(&message) => state(&message),
        Some(proof) => state_of(proof),
        None => state(&message),
    };
    let end = if let Chain::Open(end) = chain { Some(end) } else { None };
    let opted_out = state == ValidationState::Secure && wildcard::may_have_nearer(&message);
    Ok(Judged { state: if opted_out { ValidationState::Insecure } else { state }, opted_out, end })
}

/// Whether what is said instead of an answer is said by a zone that the name is in.
fn is_of_its_zones(message: &Message, name: &Name) -> bool {
    message.authorities.is_empty() || message.authorities.iter().any(|record| record.name.zone_of(name))
}

/// The weakest decides.
fn strength(state: ValidationState) -> u8 {
    match state {
        ValidationState::Bogus => 0,
        ValidationState::Indeterminate => 1,
        ValidationState::Insecure => 2,
        ValidationState::Secure => 3,
    }
}

/// The keys that are trusted from the start. Of a digest, the key is asked for.
async fn anchors(source: &Source, anchor: Option<&TrustAnchor>) -> Result<TrustAnchors, Verdict> {
    let mut anchors = TrustAnchors::empty();
    match anchor {
        None => return Ok(TrustAnchors::default()),
        Some(TrustAnchor::Key { algorithm, key, .. }) => {
            anchors.insert(&PublicKeyBuf::new(key.clone(), Algorithm::from_u8(*algorithm)));
        }
        Some(TrustAnchor::Digest { key_tag, algorithm, digest_type, digest }) => {
            let digest = DS::new(*key_tag, Algorithm::from_u8(*algorithm), DigestType::from(*digest_type), digest.clone());
            let answer = source.ask(Name::root(), RecordType::DNSKEY).await.map_err(|error| {
                let detail = source.exchanges().iter().find_map(|exchange| exchange.failure()).unwrap_or_else(|| error.to_string());
                Verdict::indeterminate(detail)
            })?;
            for key in answer.answers.iter().filter_map(|record| key(&record.data)) {
                if digest.covers(&Name::root(), key).unwrap_or(false) {
                    anchors.insert(key.public_key());
                }
            }
        }
    }
    Ok(anchors)
}

fn key(data: &RData) -> Option<&DNSKEY> {
    match data {
        RData::DNSSEC(DNSSECRData::DNSKEY(key)) => Some(key),
        _ => None,
    }
}

/// An answer is as good as the weakest of its records; one without records as what its authority section has of a proof.
fn state(message: &Message) -> ValidationState {
    let unsigned = |kind: RecordType| kind != RecordType::RRSIG;
    let of = |records: &[Record]| {
        let proofs = records.iter().filter(|record| unsigned(record.record_type())).map(|record| record.proof);
        proofs.min_by_key(|proof| strength(state_of(*proof)))
    };
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        _ => return ValidationState::Indeterminate,
    }
    // Without any record the library has looked for a proof that the zone is not signed, and found it.
    state_of(of(&message.answers).or_else(|| of(&message.authorities)).unwrap_or(Proof::Insecure))
}

fn state_of(proof: Proof) -> ValidationState {
    match proof {
        Proof::Secure => ValidationState::Secure,
        Proof::Insecure => ValidationState::Insecure,
        Proof::Bogus => ValidationState::Bogus,
        Proof::Indeterminate => ValidationState::Indeterminate,
    }
}

/// Seconds since 1970, in the 32 bits of a signature.
fn now() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::A;

    use super::*;

    #[test]
    fn the_roots_keys_are_those_that_iana_publishes() {
        let built_in = TrustAnchors::default();
        for (index, anchor) in ROOT_ANCHORS.iter().enumerate() {
            let Ok(TrustAnchor::Digest { key_tag, algorithm, digest_type, digest }) = anchor.parse() else { panic!("{anchor}") };
            let digest = DS::new(key_tag, Algorithm::from_u8(algorithm), DigestType::from(digest_type), digest);
            let key = DNSKEY::with_flags(257, built_in.get(index).unwrap().clone());
            assert!(digest.covers(&Name::root(), &key).unwrap(), "{anchor}");
        }
        assert_eq!(built_in.len(), ROOT_ANCHORS.len());
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    /// What the library makes of an answer with an address of `answered` that is proven, beside one of `beside` that need not be signed.
    fn judged(answered: Option<&str>, beside: Option<&str>) -> ValidationState {
        let record = |owner: &str, proof| {
            let mut record = Record::from_rdata(name(owner), 60, RData::A(A::new(192, 0, 2, 1)));
            record.proof = proof;
            record
        };
        let mut message = Message::query().into_response();
        message.add_answers(answered.map(|owner| record(owner, Proof::Secure)));
        message.add_authorities(beside.map(|owner| record(owner, Proof::Insecure)));
        judge(DnsResponse::from_message(message).map_err(NetError::from), &name("www.signed.test."), RecordType::A).unwrap().state
    }

    #[test]
    fn what_is_true_of_other_names_proves_nothing_of_this_one() {
        assert_eq!(judged(Some("WWW.signed.test."), None), ValidationState::Secure);
        assert_eq!(judged(Some("other.signed.test."), None), ValidationState::Bogus);
        assert_eq!(judged(Some("other.signed.test."), Some("unsigned.test.")), ValidationState::Bogus);
        assert_eq!(judged(None, Some("unsigned.test.")), ValidationState::Bogus);
        assert_eq!(judged(None, Some("signed.test.")), ValidationState::Insecure);
    }
}
