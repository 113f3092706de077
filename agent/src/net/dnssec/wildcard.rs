//! Answers made by a wildcard (RFC 4035, 5.3.4). The library takes them for bogus where the NSEC record that proves that there is no nearer
//! name is the wildcard's own, which is the common case; so what it refuses for want of that proof is looked at once more.

use hickory_proto::dnssec::Proof;
use hickory_proto::dnssec::rdata::{DNSSECRData, NSEC};
use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData, Record};

/// Whether all records of a positive answer are proven, and of those that a wildcard made it is proven too that there is no nearer name.
pub(super) fn is_proven(message: &Message) -> bool {
    let unsigned = |record: &&Record| !matches!(record.data, RData::DNSSEC(DNSSECRData::RRSIG(_)));
    let mut records = message.answers.iter().filter(unsigned).peekable();
    records.peek().is_some()
        && records.all(|record| record.proof == Proof::Secure)
        && message.answers.iter().filter_map(source).all(|(name, above)| nothing_nearer(message, &name, &above))
}

/// Whether a wildcard made any of the answer.
pub(super) fn is_used(message: &Message) -> bool {
    message.answers.iter().find_map(source).is_some()
}

/// Whether a wildcard made any of it where nearer names need not be signed (RFC 5155, 9.2).
pub(super) fn may_have_nearer(message: &Message) -> bool {
    let opts_out = |record: &Record| matches!(&record.data, RData::DNSSEC(DNSSECRData::NSEC3(denial)) if denial.opt_out());
    is_used(message) && message.authorities.iter().any(opts_out)
}

/// Whose name the wildcard made, and the name above the wildcard.
fn source(record: &Record) -> Option<(Name, Name)> {
    let RData::DNSSEC(DNSSECRData::RRSIG(signature)) = &record.data else { return None };
    let labels = signature.input().num_labels;
    (record.proof == Proof::Secure && labels < record.name.num_labels())
        .then(|| (record.name.to_lowercase(), record.name.trim_to(usize::from(labels)).to_lowercase()))
}

/// Whether an NSEC record lies over the name, and between its two names there is none nearer to it than `above`.
fn nothing_nearer(message: &Message, name: &Name, above: &Name) -> bool {
    let denials = message.authorities.iter().filter(|record| record.proof == Proof::Secure).filter_map(|record| match &record.data {
        RData::DNSSEC(DNSSECRData::NSEC(denial)) => Some((record.name.to_lowercase(), denial)),
        _ => None,
    });
    denials.into_iter().any(|(owner, denial): (Name, &NSEC)| {
        let next = denial.next_domain_name().to_lowercase();
        // The last of a zone points back to its apex, which is above all names of the zone.
        // One of the parent's side of a delegation says nothing of what is below it (RFC 6840, 4.1).
        let outside = denial.is_ancestor_delegation() && owner.zone_of(name);
        let covers = owner < *name && (*name < next || (next <= owner && next.zone_of(name))) && !name.zone_of(&next);
        covers && !outside && nearest(name, &owner).max(nearest(name, &next)) == above.num_labels()
    })
}

/// How many labels two names have in common, from the root on.
fn nearest(one: &Name, other: &Name) -> u8 {
    let mut common = one.clone();
    while !common.zone_of(other) {
        common = common.base_name();
    }
    common.num_labels()
}

#[cfg(test)]
mod tests {
    use hickory_proto::dnssec::Algorithm;
    use hickory_proto::dnssec::rdata::RRSIG;
    use hickory_proto::dnssec::rdata::sig::SigInput;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RecordType, SerialNumber};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn proven(name: Name, data: RData) -> Record {
        let mut record = Record::from_rdata(name, 60, data);
        record.proof = Proof::Secure;
        record
    }

    /// An answer for x.wild.test. by *.wild.test., and an NSEC record from one name to another.
    fn answer(owner: &str, next: &str) -> Message {
        let mut message = Message::query();
        let input = SigInput {
            type_covered: RecordType::A,
            algorithm: Algorithm::ECDSAP256SHA256,
            num_labels: 2,
            original_ttl: 60,
            sig_expiration: SerialNumber::from(2),
            sig_inception: SerialNumber::from(1),
            key_tag: 1,
            signer_name: name("test."),
        };
        let signature = RRSIG::from_sig(input, Vec::new());
        message.add_answer(proven(name("x.wild.test."), RData::A(A::new(192, 0, 2, 1))));
        message.add_answer(proven(name("x.wild.test."), RData::DNSSEC(DNSSECRData::RRSIG(signature))));
        let denial = NSEC::new(name(next), [RecordType::A]);
        message.add_authority(proven(name(owner), RData::DNSSEC(DNSSECRData::NSEC(denial))));
        message
    }

    #[test]
    fn only_a_denial_of_every_nearer_name_counts() {
        for (owner, next) in
            [("*.wild.test.", "z.test."), ("*.wild.test.", "test."), ("a.WILD.test.", "z.wild.test."), ("w.wild.test.", "test.")]
        {
            assert!(is_proven(&answer(owner, next)), "{owner} to {next}");
        }
        for (owner, next) in [
            ("a.test.", "b.test."),
            ("y.wild.test.", "test."),
            ("a.wild.test.", "w.wild.test."),
            // There is a name below it, so it is there itself.
            ("a.wild.test.", "a.x.wild.test."),
            ("a.x.wild.test.", "test."),
            // Nothing is there between the two, so neither is wild.test.
            ("a.test.", "z.test."),
        ] {
            assert!(!is_proven(&answer(owner, next)), "{owner} to {next}");
        }
        let mut unproven = answer("*.wild.test.", "test.");
        unproven.authorities.iter_mut().for_each(|record| record.proof = Proof::Insecure);
        assert!(!is_proven(&unproven));
        let mut bogus = answer("*.wild.test.", "test.");
        bogus.answers[0].proof = Proof::Bogus;
        assert!(!is_proven(&bogus));
    }
}
