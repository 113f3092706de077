//! Aliases in an answer. The library proves every set of records by itself, and takes two things for bogus that are not: a CNAME that a DNAME
//! record makes, which cannot be signed (RFC 6672, 5.3.1), and an alias that leads to nothing in another zone.

use hickory_proto::dnssec::Proof;
use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

/// Gives each CNAME that a DNAME record makes the proof of that record.
pub(super) fn settle(message: &mut Message) {
    let proofs: Vec<Option<Proof>> = message.answers.iter().map(|record| maker(message, record).map(|made| made.proof)).collect();
    for (record, proof) in message.answers.iter_mut().zip(proofs) {
        record.proof = proof.unwrap_or(record.proof);
    }
}

/// The DNAME record that makes this CNAME.
pub(super) fn maker<'a>(message: &'a Message, record: &Record) -> Option<&'a Record> {
    let target = cname(record)?.to_lowercase();
    message.answers.iter().find(|other| {
        let Some(renamed) = dname(other) else { return false };
        let below = record.name.num_labels().checked_sub(other.name.num_labels()).filter(|labels| *labels > 0);
        let prefix = below.filter(|_| other.name.zone_of(&record.name)).map(|labels| record.name.iter().take(usize::from(labels)));
        let made = prefix.and_then(|labels| Name::from_labels(labels).ok()?.append_domain(&renamed).ok());
        made.is_some_and(|made| made.to_lowercase() == target)
    })
}

/// Where the aliases of an answer lead.
#[derive(Debug, PartialEq)]
pub(super) enum Chain {
    /// To what was asked for.
    Answered,
    /// To another name, of which the answer has nothing.
    Open(Name),
    /// Nowhere: there is nothing of the name that was asked for, or they go round in a circle.
    Nowhere,
}

/// Follows the aliases of an answer.
pub(super) fn chain(message: &Message, name: &Name, kind: RecordType) -> Chain {
    let mut at = name.to_lowercase();
    for _ in 0..=message.answers.len() {
        let mut of_name = message.answers.iter().filter(|record| record.name == at && record.record_type() != RecordType::RRSIG);
        if of_name.clone().any(|record| record.record_type() == kind || kind == RecordType::ANY) {
            return Chain::Answered;
        }
        match of_name.find_map(cname) {
            Some(target) => at = target.to_lowercase(),
            None if at == name.to_lowercase() => return Chain::Nowhere,
            None => return Chain::Open(at),
        }
    }
    Chain::Nowhere
}

fn cname(record: &Record) -> Option<&Name> {
    match &record.data {
        RData::CNAME(target) => Some(&target.0),
        _ => None,
    }
}

/// The library does not read DNAME records.
fn dname(record: &Record) -> Option<Name> {
    match &record.data {
        RData::Unknown { code: RecordType::DNAME, rdata } => Name::read(&mut BinDecoder::new(&rdata.anything)).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{CNAME, NULL};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn answer(aliases: &[(&str, &str)]) -> Message {
        let mut message = Message::query();
        let mut renamed = Record::from_rdata(
            name("old.test."),
            60,
            RData::Unknown { code: RecordType::DNAME, rdata: NULL::with(b"\x03new\x04test\0".to_vec()) },
        );
        renamed.proof = Proof::Secure;
        message.add_answer(renamed);
        message.add_answers(aliases.iter().map(|(owner, target)| Record::from_rdata(name(owner), 60, RData::CNAME(CNAME(name(target))))));
        message
    }

    #[test]
    fn only_what_a_dname_really_makes_has_its_proof() {
        for (owner, target, proof) in [
            ("a.OLD.test.", "a.new.test.", Proof::Secure),
            ("a.b.old.test.", "a.b.new.test.", Proof::Secure),
            ("a.old.test.", "b.new.test.", Proof::Indeterminate),
            ("a.old.test.", "a.evil.test.", Proof::Indeterminate),
            ("old.test.", "new.test.", Proof::Indeterminate),
            ("a.other.test.", "a.new.test.", Proof::Indeterminate),
        ] {
            let mut message = answer(&[(owner, target)]);
            settle(&mut message);
            assert_eq!(message.answers[1].proof, proof, "{owner} to {target}");
        }
    }

    #[test]
    fn the_end_of_a_chain_is_where_nothing_is_known() {
        let links = answer(&[("a.test.", "B.test."), ("b.test.", "c.test.")]);
        assert_eq!(chain(&links, &name("A.test."), RecordType::A), Chain::Open(name("c.test.")));
        assert_eq!(chain(&links, &name("a.test."), RecordType::CNAME), Chain::Answered);
        assert_eq!(chain(&links, &name("x.test."), RecordType::A), Chain::Nowhere);
        assert_eq!(chain(&answer(&[("a.test.", "a.test.")]), &name("a.test."), RecordType::A), Chain::Nowhere, "a circle has no end");
    }
}
