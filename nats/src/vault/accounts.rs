//! What each account may use, takes from others and offers to others.

use std::collections::BTreeMap;

use probeops_shared::subjects::broker;

use crate::claims::{Account, AccountLimits, Export, Import, UNLIMITED};
use crate::permissions::AccountName;

const MIB: i64 = 1024 * 1024;
/// What the application's streams and buckets may take on disk, in bytes. What each reserves counts once for each of its replicas.
const APPLICATION_DISK_BYTES_MAX: i64 = 12 * 1024 * MIB;
/// What the trail may take on disk, in bytes. With the application's share it is what a server has unless told otherwise: a trail that
/// grows without measure stops itself, and not the presence of nodes.
const AUDIT_DISK_BYTES_MAX: i64 = 12 * 1024 * MIB;
/// What its readers may take in memory, in bytes.
const MEMORY_BYTES_MAX: i64 = 256 * MIB;
/// How many streams and buckets there may be.
const APPLICATION_STREAMS_MAX: i64 = 32;
/// How many servers may copy the trail at once.
const MIRRORS_MAX: i64 = 4;
/// How many readers of streams and buckets there may be at once.
const CONSUMERS_MAX: i64 = 4096;

/// The claims of an account, without revocations.
pub fn claims(name: AccountName, signing_key: &str, audit_account: &str) -> Account {
    let mut account = Account {
        limits: limits(),
        signing_keys: vec![signing_key.to_owned()],
        imports: Vec::new(),
        exports: Vec::new(),
        revocations: BTreeMap::new(),
    };
    match name {
        AccountName::System => {}
        AccountName::Application => {
            account.limits.imports = 1;
            account.limits.mem_storage = MEMORY_BYTES_MAX;
            account.limits.disk_storage = APPLICATION_DISK_BYTES_MAX;
            account.limits.streams = APPLICATION_STREAMS_MAX;
            account.limits.consumer = CONSUMERS_MAX;
            account.imports.push(Import {
                name: "audit".to_owned(),
                subject: broker::AUDIT_ALL.to_owned(),
                account: audit_account.to_owned(),
                kind: "service".to_owned(),
            });
        }
        AccountName::Audit => {
            account.limits.exports = 1;
            account.limits.leaf = MIRRORS_MAX;
            account.limits.mem_storage = MEMORY_BYTES_MAX;
            account.limits.disk_storage = AUDIT_DISK_BYTES_MAX;
            account.limits.streams = 1;
            account.limits.consumer = CONSUMERS_MAX;
            account.exports.push(Export {
                name: "audit".to_owned(),
                subject: broker::AUDIT_ALL.to_owned(),
                kind: "service".to_owned(),
                response_type: "Singleton".to_owned(),
            });
        }
    }
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
    fn the_trail_cannot_take_the_applications_share_of_the_disk() {
        let disk = |name| claims(name, "", "").limits.disk_storage;
        let (application, audit) = (disk(AccountName::Application), disk(AccountName::Audit));
        assert!(application > 0 && audit > 0, "neither is unlimited");
        assert!(u64::try_from(application + audit).unwrap() <= FILE_BYTES_MAX);
    }
}
