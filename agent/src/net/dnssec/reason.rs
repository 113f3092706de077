//! Why a proof fails, in words: what was asked for it is gone through again, from the trust anchor down.

use std::cell::Cell;
use std::sync::Arc;

use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData, DS, RRSIG};
use hickory_proto::dnssec::{TrustAnchors, Verifier as _};
use hickory_proto::op::Message;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, SerialNumber};
use time::OffsetDateTime;
use time::macros::format_description;

use super::alias::{self, Chain};
use super::key;
use super::source::Exchange;
use crate::net::dns::message::name_of;

/// How many signatures are looked at, and how many keys for each: a zone can be made so that there would be no end to it (CVE-2023-50387).
const SIGNATURES_MAX: u32 = 64;
const KEYS_MAX: usize = 4;
/// How many DS records of a zone are looked at.
const DIGESTS_MAX: usize = 16;

/// What a proof rests on.
pub(super) struct Facts<'a> {
    exchanges: &'a [Arc<Exchange>],
    anchors: &'a TrustAnchors,
    /// Seconds since 1970, in the 32 bits of a signature.
    now: u32,
    signatures_left: Cell<u32>,
}

/// The records of one name and type, and their signatures.
struct Set<'a> {
    name: &'a Name,
    kind: RecordType,
    records: Vec<&'a Record>,
    signatures: Vec<&'a RRSIG>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(exchanges: &'a [Arc<Exchange>], anchors: &'a TrustAnchors, now: u32) -> Self {
        Self { exchanges, anchors, now, signatures_left: Cell::new(SIGNATURES_MAX) }
    }

    /// The answer to a question.
    pub(super) fn answer(&self, name: &Name, kind: RecordType) -> Option<&'a Message> {
        let asked = self.exchanges.iter().find(|exchange| exchange.kind == kind && exchange.name == *name)?;
        asked.answer.as_deref().ok()
    }

    /// A question that got no answer, or none of use.
    pub(super) fn unanswered(&self) -> Option<String> {
        self.exchanges.iter().find_map(|exchange| exchange.failure())
    }

    /// Where the proven part ends.
    pub(super) fn why_insecure(&self) -> String {
        let undelegated = |exchange: &&Arc<Exchange>| {
            exchange.kind == RecordType::DS && exchange.answer.as_ref().is_ok_and(|answer| !has(answer, RecordType::DS))
        };
        let highest = self.exchanges.iter().filter(undelegated).min_by_key(|exchange| exchange.name.num_labels());
        match highest {
            Some(exchange) => {
                format!(
                    "it is proven that {} has no DS record at its parent: from there on nothing need be signed",
                    name_of(&exchange.name)
                )
            }
            None => "the keys on the way use only algorithms, or so many iterations, that need not be understood".to_owned(),
        }
    }

    /// The first link that does not hold.
    pub(super) fn why_bogus(&self, name: &Name, kind: RecordType) -> String {
        let mut zones: Vec<&Name> =
            self.exchanges.iter().filter(|exchange| exchange.kind == RecordType::DNSKEY).map(|exchange| &exchange.name).collect();
        zones.sort_by_key(|zone| zone.num_labels());
        let keys = zones.into_iter().find_map(|zone| self.zone(zone));
        let records = || self.answer(name, kind).map(|message| self.records(message, name, kind));
        keys.or_else(records).unwrap_or_else(|| "the chain of keys and signatures does not hold".to_owned())
    }

    /// What is wrong with the keys of a zone.
    fn zone(&self, zone: &Name) -> Option<String> {
        let keys = self.keys(zone);
        let zone_text = name_of(zone);
        let tags = tags(keys.iter().filter_map(|key| key.calculate_key_tag().ok()));
        let trusted: Vec<&DNSKEY> = if zone.is_root() {
            keys.iter().copied().filter(|key| self.anchors.contains(key.public_key())).collect()
        } else {
            let delegation = set(self.answer(zone, RecordType::DS)?, zone, RecordType::DS);
            if let Some(wrong) = self.signature(&delegation, &self.keys_of_signer(&delegation)) {
                return Some(wrong);
            }
            let digests: Vec<&DS> = delegation.records.iter().filter_map(|record| digest(&record.data)).take(DIGESTS_MAX).collect();
            if digests.is_empty() {
                return None;
            }
            let named = |key: &&DNSKEY| digests.iter().any(|digest| digest.covers(zone, key).unwrap_or(false));
            let trusted: Vec<&DNSKEY> = keys.iter().copied().filter(named).collect();
            if !keys.is_empty() && trusted.is_empty() {
                let named = self::tags(digests.iter().map(|digest| digest.key_tag()));
                return Some(format!(
                    "no key of {zone_text} (key tags {tags}) is the one that its parent's DS record names (key tag {named})"
                ));
            }
            trusted
        };
        match (keys.is_empty(), trusted.is_empty()) {
            (true, _) if zone.is_root() => Some("the root has no keys (DNSKEY)".to_owned()),
            (true, _) => Some(format!("{zone_text} has a DS record at its parent, and no keys (DNSKEY)")),
            (false, true) => Some(format!("no key of the root (key tags {tags}) is the trust anchor")),
            (false, false) => self.signature(&set(self.answer(zone, RecordType::DNSKEY)?, zone, RecordType::DNSKEY), &trusted),
        }
    }

    /// What is wrong with the records of an answer, or with what it has instead of some.
    fn records(&self, message: &Message, name: &Name, kind: RecordType) -> String {
        if !message.answers.is_empty() && alias::chain(message, name, kind) == Chain::Nowhere {
            return "the answer is not about what was asked for".to_owned();
        }
        let section = if message.answers.is_empty() { &message.authorities } else { &message.answers };
        let mut seen: Vec<(&Name, RecordType)> = Vec::new();
        let signed = |record: &&Record| record.record_type() != RecordType::RRSIG && alias::maker(message, record).is_none();
        for record in section.iter().filter(signed) {
            if seen.contains(&(&record.name, record.record_type())) {
                continue;
            }
            seen.push((&record.name, record.record_type()));
            let set = set(message, &record.name, record.record_type());
            if let Some(wrong) = self.signature(&set, &self.keys_of_signer(&set)) {
                return wrong;
            }
        }
        let denials = seen.iter().filter(|(_, kind)| matches!(kind, RecordType::NSEC | RecordType::NSEC3)).count();
        if !message.answers.is_empty() {
            return "the name is made by a wildcard, and it is not proven that there is no nearer one (NSEC or NSEC3)".to_owned();
        }
        match denials {
            0 => "it is not proven that there is nothing: the answer has no NSEC or NSEC3 records".to_owned(),
            _ => "the NSEC or NSEC3 records of the answer do not prove that there is nothing".to_owned(),
        }
    }

    /// Why none of a set's signatures counts; nothing where one does.
    fn signature(&self, set: &Set<'_>, keys: &[&DNSKEY]) -> Option<String> {
        let what = format!("the {} records of {}", set.kind, name_of(set.name));
        if set.records.is_empty() {
            return None;
        }
        let mut wrong = None;
        for signature in &set.signatures {
            match self.signature_fails(set, signature, keys) {
                None => return None,
                Some(why) => wrong = wrong.or(Some(format!("the signature of {what} (key tag {}) {why}", signature.input().key_tag))),
            }
        }
        Some(wrong.unwrap_or_else(|| format!("{what} are not signed, and should be")))
    }

    fn signature_fails(&self, set: &Set<'_>, signature: &RRSIG, keys: &[&DNSKEY]) -> Option<String> {
        let input = signature.input();
        let now = SerialNumber::from(self.now);
        if input.sig_expiration < now {
            return Some(format!("expired on {}", date(input.sig_expiration.get())));
        }
        if now < input.sig_inception {
            return Some(format!("counts only from {} on", date(input.sig_inception.get())));
        }
        if !input.algorithm.is_supported() {
            return Some(format!("is made with an algorithm that is not understood ({})", u8::from(input.algorithm)));
        }
        let mut tagged = keys.iter().filter(|key| key.calculate_key_tag().is_ok_and(|tag| tag == input.key_tag)).peekable();
        if tagged.peek().is_none() {
            return Some(format!("is made with a key that {} does not have, or that is not trusted", name_of(&input.signer_name)));
        }
        let fits = |key: &&&DNSKEY| key.verify_rrsig(set.name, DNSClass::IN, signature, set.records.iter().copied()).is_ok();
        let Some(left) = self.signatures_left.get().checked_sub(1) else {
            return Some("was not looked at: there are too many".to_owned());
        };
        self.signatures_left.set(left);
        if tagged.take(KEYS_MAX).any(|key| fits(&key)) { None } else { Some("does not fit them: they are not what was signed".to_owned()) }
    }

    fn keys_of_signer(&self, set: &Set<'_>) -> Vec<&'a DNSKEY> {
        set.signatures.first().map_or_else(Vec::new, |signature| self.keys(&signature.input().signer_name))
    }

    fn keys(&self, zone: &Name) -> Vec<&'a DNSKEY> {
        let answer = self.answer(zone, RecordType::DNSKEY).map(|message| message.answers.as_slice()).unwrap_or_default();
        answer.iter().filter_map(|record| key(&record.data)).collect()
    }
}

fn set<'a>(message: &'a Message, name: &'a Name, kind: RecordType) -> Set<'a> {
    let all = || message.answers.iter().chain(&message.authorities).filter(|record| record.name == *name);
    let signatures = all().filter_map(|record| signature(&record.data)).filter(|signature| signature.input().type_covered == kind);
    Set { name, kind, records: all().filter(|record| record.record_type() == kind).collect(), signatures: signatures.collect() }
}

fn has(message: &Message, kind: RecordType) -> bool {
    message.answers.iter().any(|record| record.record_type() == kind)
}

fn digest(data: &RData) -> Option<&DS> {
    match data {
        RData::DNSSEC(DNSSECRData::DS(digest)) => Some(digest),
        _ => None,
    }
}

fn signature(data: &RData) -> Option<&RRSIG> {
    match data {
        RData::DNSSEC(DNSSECRData::RRSIG(signature)) => Some(signature),
        _ => None,
    }
}

fn tags(tags: impl Iterator<Item = u16>) -> String {
    tags.map(|tag| tag.to_string()).collect::<Vec<_>>().join(", ")
}

fn date(seconds: u32) -> String {
    let at = OffsetDateTime::from_unix_timestamp(i64::from(seconds)).ok();
    let text = at.and_then(|at| at.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC")).ok());
    text.unwrap_or_else(|| seconds.to_string())
}
