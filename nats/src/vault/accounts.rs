//! What each account may use, takes from others and offers to others.

use std::collections::{BTreeMap, BTreeSet};

use probeops_shared::subjects::{self, broker};

use crate::claims::{Account, AccountLimits, Export, Import, UNLIMITED};
use crate::permissions::AccountName;
use crate::permissions::lists::{kept_by_api, kept_by_command, presence_keeping, revocations_told, trail_reading};

const MIB: i64 = 1024 * 1024;
/// What streams and buckets may take on disk, in bytes. What each reserves counts once for each of its replicas.
const STORE_DISK_BYTES_MAX: i64 = 12 * 1024 * MIB;
/// What the trail may take on disk, in bytes. With the store's share it is what a server has unless told otherwise: a trail that
/// grows without measure stops itself, and not the presence of nodes.
const AUDIT_DISK_BYTES_MAX: i64 = 12 * 1024 * MIB;
/// What its readers may take in memory, in bytes.
const MEMORY_BYTES_MAX: i64 = 256 * MIB;
/// How many streams and buckets there may be.
const STORE_STREAMS_MAX: i64 = 32;
/// How many servers may copy the trail at once.
const MIRRORS_MAX: i64 = 4;
/// How many may follow one stream at once.
const CONSUMERS_MAX: i64 = 4096;

/// What is offered or taken: questions that are answered, or messages.
const SERVICE: &str = "service";
const STREAM: &str = "stream";
/// How many answers a question has: one, or any number.
const ONE_ANSWER: &str = "Singleton";
const ANSWERS: &str = "Stream";
/// How long after an answer there may be another, in nanoseconds: longer than the broker is asked to wait for one. Until then it remembers where
/// answers go, if whoever asked is still there.
const ANSWERS_WITHIN_NS: i64 = 30_000_000_000;

/// The claims of an account, without revocations.
pub fn claims<'a>(name: AccountName, signing_key: &str, key_of: impl Fn(AccountName) -> &'a str) -> Account {
    let mut account = Account {
        limits: limits(),
        signing_keys: vec![signing_key.to_owned()],
        imports: Vec::new(),
        exports: Vec::new(),
        revocations: BTreeMap::new(),
    };
    let taken = |subject: String, of: AccountName, local_subject: String, kind: &str| Import {
        name: subject.clone(),
        subject,
        account: key_of(of).to_owned(),
        local_subject,
        kind: kind.to_owned(),
    };
    let lent = |subject: String, of: AccountName| {
        let here = broker::lent(&subject);
        taken(subject, of, here, SERVICE)
    };
    let offered = |subject: String, kind: &str| {
        let (response_type, response_threshold_ns) = match kind {
            STREAM => ("", 0),
            _ if broker::has_answers(&subject) => (ANSWERS, ANSWERS_WITHIN_NS),
            _ => (ONE_ANSWER, 0),
        };
        let (kind, response_type) = (kind.to_owned(), response_type.to_owned());
        Export { name: subject.clone(), subject, kind, response_type, response_threshold_ns }
    };
    match name {
        AccountName::System => {}
        AccountName::Application => {
            account.imports = vec![
                taken(broker::AUDIT_ALL.to_owned(), AccountName::Audit, String::new(), SERVICE),
                lent(revocations_told(), AccountName::Store),
            ];
            account.exports = vec![offered(subjects::events(), STREAM)];
        }
        AccountName::Store => {
            account.limits.mem_storage = MEMORY_BYTES_MAX;
            account.limits.disk_storage = STORE_DISK_BYTES_MAX;
            account.limits.streams = STORE_STREAMS_MAX;
            account.limits.consumer = CONSUMERS_MAX;
            let kept = kept_by_api(subjects::ANY).into_iter().chain(kept_by_command());
            let asked: BTreeSet<String> = kept.chain(presence_keeping()).chain([revocations_told()]).collect();
            account.exports = asked.into_iter().map(|subject| offered(subject, SERVICE)).collect();
            // Where consumers deliver.
            account.exports.push(offered(subjects::client_inbox(subjects::ANY) + ".>", STREAM));
        }
        AccountName::Keepers | AccountName::Commands => {
            let asked = if name == AccountName::Keepers { kept_by_api(subjects::ANY) } else { kept_by_command() };
            let taken_here = |subject: String| {
                let here = broker::said_by_keepers(&subject);
                let here = if here == subject { String::new() } else { here };
                taken(subject, AccountName::Store, here, SERVICE)
            };
            account.imports = asked.into_iter().map(taken_here).collect();
            account.imports.push(taken(subjects::client_inbox(subjects::ANY) + ".>", AccountName::Store, String::new(), STREAM));
        }
        AccountName::Audit => {
            account.limits.leaf = MIRRORS_MAX;
            account.limits.mem_storage = MEMORY_BYTES_MAX;
            account.limits.disk_storage = AUDIT_DISK_BYTES_MAX;
            account.limits.streams = 1;
            account.limits.consumer = CONSUMERS_MAX;
            let asked = [broker::AUDIT_ALL.to_owned()].into_iter().chain(trail_reading());
            account.exports = asked.map(|subject| offered(subject, SERVICE)).collect();
        }
        AccountName::Readers => account.imports = trail_reading().map(|subject| lent(subject, AccountName::Audit)).to_vec(),
        AccountName::Collectors => {
            account.imports = presence_keeping().map(|subject| lent(subject, AccountName::Store)).to_vec();
            let records = subjects::audit(subjects::AUDIT_NODE, subjects::ANY);
            account.imports.push(taken(records, AccountName::Audit, String::new(), SERVICE));
            account.imports.push(taken(subjects::events(), AccountName::Application, String::new(), STREAM));
        }
    }
    let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    (account.limits.imports, account.limits.exports) = (count(account.imports.len()), count(account.exports.len()));
    account
}

fn limits() -> AccountLimits {
    AccountLimits {
        subs: UNLIMITED,
        data: UNLIMITED,
        payload: UNLIMITED,
        imports: 0,
        exports: 0,
        wildcards: true,
        disallow_bearer: true,
        conn: UNLIMITED,
        leaf: 0,
        mem_storage: 0,
        disk_storage: 0,
        streams: 0,
        consumer: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FILE_BYTES_MAX;

    #[test]
    fn the_trail_cannot_take_the_stores_share_of_the_disk() {
        let disk = |name| claims(name, "", |_| "").limits.disk_storage;
        let (store, audit) = (disk(AccountName::Store), disk(AccountName::Audit));
        assert!(store > 0 && audit > 0, "neither is unlimited");
        assert!(u64::try_from(store + audit).unwrap() <= FILE_BYTES_MAX);
    }
}
