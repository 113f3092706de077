use std::os::unix::fs::PermissionsExt;

use probeops_shared::tools::ToolName;

use super::*;
use crate::testing::Scratch;

fn node(id: &str) -> Role {
    Role::Node { node: id.parse().unwrap(), region: "eu".parse().unwrap(), tools: vec![ToolName::Echo] }
}

fn vault() -> (Scratch, Layout, Vault) {
    let scratch = Scratch::new();
    let layout = Layout::new(scratch.path().join("data"));
    let vault = Vault::open_or_create(&layout).unwrap();
    (scratch, layout, vault)
}

#[test]
fn a_vault_opened_again_is_the_same() {
    let (_scratch, layout, first) = vault();
    let jwts = || AccountName::ALL.map(|name| first.account_jwt(name).unwrap());
    let before = jwts();
    let again = Vault::open_or_create(&layout).unwrap();
    assert_eq!(before, AccountName::ALL.map(|name| again.account_jwt(name).unwrap()));
    for name in AccountName::ALL {
        assert_eq!(first.account_key(name), again.account_key(name));
    }
    first.mint(&node("n1"), CREDENTIAL_LIFETIME).unwrap();
    let files = [layout.keys_dir(), layout.ledger_dir()].map(|dir| std::fs::read_dir(dir).unwrap().map(Result::unwrap));
    let secret = |entry: &std::fs::DirEntry| entry.file_name() != "lock" && entry.path() != layout.ledger_dir();
    for entry in files.into_iter().flatten().filter(secret) {
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
}

#[test]
fn a_credential_names_its_node_and_is_signed_by_its_account() {
    let (_scratch, _, vault) = vault();
    let minted = vault.mint(&node("n1"), CREDENTIAL_LIFETIME).unwrap();
    let claims = Claims::verify(&minted.jwt, &[vault.application.signing.public_key()]).unwrap();
    assert_eq!((claims.name.as_str(), claims.subject.as_str()), ("n1", minted.public_key.as_str()));
    assert_eq!(claims.expires_at_unix_s, Some(minted.expires_at.unix_s()));
    let read = Credentials::parse(&minted.to_creds_file()).unwrap();
    assert_eq!((read.jwt, read.seed, read.name), (minted.jwt, minted.seed, minted.name));
}

#[test]
fn a_credential_written_again_keeps_its_key_unless_that_was_revoked() {
    let (_scratch, layout, vault) = vault();
    let path = layout.node_creds(&"n1".parse().unwrap());
    let first = vault.mint_to(&path, &node("n1"), Duration::from_mins(1)).unwrap();
    let second = vault.mint_to(&path, &node("n1"), Duration::from_mins(10)).unwrap();
    assert_eq!(first.public_key, second.public_key);
    assert!(second.expires_at > first.expires_at);
    vault.revoke(&first.public_key).unwrap();
    assert!(vault.is_revoked(AccountName::Application, &first.public_key).unwrap());
    assert_ne!(vault.mint_to(&path, &node("n1"), Duration::from_mins(1)).unwrap().public_key, first.public_key);
}

#[test]
fn revocations_are_kept_until_the_last_credential_has_ended_and_the_key_is_signed_nothing_more() {
    let (_scratch, layout, vault) = vault();
    let name = AccountName::Application;
    let now = Timestamp::now();
    let ago = |duration: Duration| Timestamp::from_unix_ms(now.unix_ms() - i64::try_from(duration.as_millis()).unwrap()).unwrap();
    let key = || KeyPair::new_user().public_key();
    let signed = |expires_at: Timestamp| Signed {
        account: AccountName::Application,
        kind: Kind::Node,
        name: "n1".to_owned(),
        signed_at: ago(CREDENTIAL_LIFETIME),
        expires_at,
        revoked: false,
    };
    let (ended, ending, long, unknown_old, unknown) = (key(), key(), key(), key(), key());
    vault.ledger.write(&ended, &signed(ago(CLOCK_MARGIN + Duration::from_secs(1)))).unwrap();
    vault.ledger.write(&ending, &signed(ago(CLOCK_MARGIN.saturating_sub(Duration::from_mins(1))))).unwrap();
    vault.ledger.write(&long, &signed(now.plus(Duration::from_hours(29 * 24)))).unwrap();
    let mut account = vault.read_account(name, &vault.account_jwt(name).unwrap()).unwrap();
    let at = |duration: Duration| ago(duration).unix_s();
    let forgotten = CREDENTIAL_LIFETIME + CLOCK_MARGIN;
    account.revocations.extend([
        (ended.clone(), at(Duration::from_mins(1))),
        (ending.clone(), at(Duration::from_hours(48))),
        (long.clone(), at(Duration::from_hours(48))),
        (unknown_old, at(forgotten + Duration::from_secs(10))),
        (unknown.clone(), at(forgotten.saturating_sub(Duration::from_secs(10)))),
    ]);
    vault.write_account(name, account).unwrap();
    vault.tidy().unwrap();
    let reopened = Vault::open_or_create(&layout).unwrap();
    let revoked =
        || -> Vec<String> { reopened.read_account(name, &reopened.account_jwt(name).unwrap()).unwrap().revocations.into_keys().collect() };
    let mut wanted = vec![ending, long, unknown];
    wanted.sort();
    assert_eq!(revoked(), wanted);
    // The broker need not know of it; nobody gets a credential of it all the same, and asked for again it takes no place.
    let again = reopened.sign(&node("n1"), Duration::from_mins(1), &ended).unwrap_err();
    assert!(matches!(&again, Unsigned::Revoked(key) if *key == ended), "{again}");
    reopened.revoke(&ended).unwrap();
    // Nor does one that has ended before it was revoked.
    let never = key();
    reopened.ledger.write(&never, &signed(ago(CLOCK_MARGIN * 2))).unwrap();
    for anew in [true, false] {
        assert_eq!(reopened.revoke_all(std::slice::from_ref(&never)).unwrap().1.contains(&never), anew);
    }
    assert!(reopened.is_revoked(name, &never).unwrap());
    let fresh = key();
    let both = [fresh.clone(), never.clone()];
    assert_eq!(vec![fresh.clone()], reopened.revoke_all(&both).unwrap().1.into_iter().collect::<Vec<_>>());
    assert!(reopened.revoke_all(&both).unwrap().1.is_empty());
    wanted.push(fresh);
    wanted.sort();
    assert_eq!(revoked(), wanted);
    for bad in ["", "n1", "../APP-signing.nk", &KeyPair::new_account().public_key()] {
        assert!(vault.revoke(bad).unwrap_err().to_string().ends_with("is not the public key of a user (U…)"), "{bad}");
    }
}

#[test]
fn a_key_is_remembered_as_long_as_its_longest_credential_and_is_of_one_kind() {
    let (_scratch, _, vault) = vault();
    let key = KeyPair::new_user().public_key();
    let (_, long) = vault.sign(&node("n1"), CREDENTIAL_LIFETIME, &key).unwrap();
    vault.sign(&node("n2"), Duration::from_mins(5), &key).unwrap();
    let signed = vault.signed(&key).unwrap().unwrap();
    assert_eq!((signed.kind, signed.name.as_str(), signed.expires_at.unix_ms()), (Kind::Node, "n2", long.unix_ms()));
    let other = vault.sign(&Role::Auditor, Duration::from_mins(5), &key).unwrap_err().to_string();
    assert_eq!(other, format!("the key {key} is one of a node, and cannot be one of the control plane too; make another"));

    // Of a clock that was set back: what was signed by it before is void all the same.
    let later = Timestamp::now().plus(Duration::from_mins(3));
    vault.ledger.write(&key, &Signed { signed_at: later, ..signed }).unwrap();
    let account = vault.read_account(AccountName::Application, &vault.revoke(&key).unwrap()).unwrap();
    assert_eq!(account.revocations.get(&key), Some(&later.unix_s()));
    vault.ledger.forget(long.plus(CREDENTIAL_LIFETIME / 2)).unwrap();
    assert!(vault.signed(&key).unwrap().is_some());
    assert_eq!(vault.ledger.forget(long.plus(CREDENTIAL_LIFETIME)).unwrap(), 1);
    assert!(vault.signed(&key).unwrap().is_none());
}

#[test]
fn the_broker_is_told_of_more_only_when_others_have_ended() {
    let (_scratch, _, vault) = vault();
    let name = AccountName::Application;
    let mut account = vault.read_account(name, &vault.account_jwt(name).unwrap()).unwrap();
    let keys: Vec<String> = (0..REVOCATIONS_MAX).map(|index| format!("U{index}")).collect();
    let revoked = |count: usize| keys.iter().take(count).map(|key| (key.clone(), Timestamp::now().unix_s()));
    account.revocations.extend(revoked(REVOCATIONS_OF_APIS_MAX - 1));
    vault.write_account(name, account.clone()).unwrap();
    assert!(vault.has_room_for_apis().unwrap());
    account.revocations.extend(revoked(REVOCATIONS_OF_APIS_MAX));
    vault.write_account(name, account.clone()).unwrap();
    assert!(!vault.has_room_for_apis().unwrap());
    account.revocations.extend(revoked(REVOCATIONS_MAX));
    vault.write_account(name, account).unwrap();
    let minted = vault.mint(&node("n1"), CREDENTIAL_LIFETIME).unwrap();
    let full = vault.revoke(&minted.public_key).unwrap_err().to_string();
    assert!(full.starts_with("8000 credentials are revoked already"), "{full}");
    let ended = Signed {
        account: AccountName::Application,
        kind: Kind::Node,
        name: "n2".to_owned(),
        signed_at: Timestamp::now(),
        expires_at: Timestamp::from_unix_ms(0).unwrap(),
        revoked: false,
    };
    vault.ledger.write(&keys[17], &ended).unwrap();
    vault.revoke(&minted.public_key).unwrap();
    assert!(vault.is_revoked(name, &minted.public_key).unwrap());
    assert!(vault.ledger.read(&keys[17]).unwrap().unwrap().revoked);
}

#[test]
fn what_would_allow_too_much_or_last_too_long_is_not_signed() {
    let (_scratch, _, vault) = vault();
    for (lifetime, right) in [(Duration::ZERO, false), (CREDENTIAL_LIFETIME + Duration::from_secs(1), false), (CREDENTIAL_LIFETIME, true)] {
        assert_eq!(vault.mint(&node("n1"), lifetime).is_ok(), right, "{lifetime:?}");
    }
    let regions = (0..400).map(|index| format!("a-rather-long-name-of-region-{index}").parse().unwrap()).collect();
    let service = Role::Service { name: "svc".parse().unwrap(), regions, tools: vec![ToolName::Echo], nodes: Vec::new(), direct: true };
    let refused = vault.mint(&service, CREDENTIAL_LIFETIME).unwrap_err().to_string();
    assert!(refused.contains("grant fewer regions, tools or nodes"), "{refused}");
}

#[test]
fn an_interrupted_first_start_is_completed() {
    let (_scratch, layout, vault) = vault();
    std::fs::remove_file(layout.jwt(OPERATOR)).unwrap();
    std::fs::remove_file(layout.jwt("AUDIT")).unwrap();
    std::fs::remove_file(layout.key("AUDIT-signing")).unwrap();
    let reopened = Vault::open_or_create(&layout).unwrap();
    assert_eq!(reopened.account_key(AccountName::Application), vault.account_key(AccountName::Application));
    reopened.mint(&Role::Auditor, CREDENTIAL_LIFETIME).unwrap();
}

#[test]
fn damage_is_one_message_that_names_the_file_and_the_cure() {
    type Damage = fn(&Layout) -> std::path::PathBuf;
    let damages: [(Damage, Option<&str>, &str); 6] = [
        (|layout| layout.key("APP-signing"), None, "it is missing"),
        (|layout| layout.key("APP-signing"), Some("SAABC"), "it is not a seed"),
        (|layout| layout.key("APP-signing"), Some(""), "it is not a seed"),
        (|layout| layout.jwt("APP"), None, "it is missing"),
        (|layout| layout.jwt("APP"), Some("eyJ"), "it is not a NATS JWT"),
        (|layout| layout.jwt("operator"), Some("a.b.c"), "it is not a NATS JWT"),
    ];
    for (path, content, what) in damages {
        let (_scratch, layout, _) = vault();
        let path = path(&layout);
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let refused = Vault::open_or_create(&layout).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("{} cannot be used: {what}", path.display())), "{refused}");
        assert!(refused.contains("restore it from a backup, or remove the data folder"), "{refused}");
    }
}

#[test]
fn a_damaged_credential_is_not_replaced_in_silence() {
    let (_scratch, layout, vault) = vault();
    let path = layout.creds("api");
    std::fs::write(&path, "-----BEGIN NATS USER JWT-----\nx").unwrap();
    let refused = vault.mint_to(&path, &node("n1"), CREDENTIAL_LIFETIME).unwrap_err().to_string();
    assert_eq!(
        refused,
        format!(
            "{} is not a usable credential: it has no part `NATS USER JWT`; remove it and start again, which writes a new one",
            path.display()
        )
    );
}
