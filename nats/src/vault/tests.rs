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
    for entry in std::fs::read_dir(layout.keys_dir()).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != "lock") {
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
fn revocations_are_kept_until_the_credential_would_have_expired() {
    let (_scratch, layout, vault) = vault();
    let name = AccountName::Application;
    let mut account = vault.read_account(name, &vault.account_jwt(name).unwrap()).unwrap();
    let now = Timestamp::now().unix_s();
    let lifetime_s = i64::try_from(CREDENTIAL_LIFETIME.as_secs()).unwrap();
    account.revocations.insert("old".to_owned(), now - lifetime_s - 10);
    account.revocations.insert("recent".to_owned(), now - lifetime_s + 10);
    vault.write_account(name, account).unwrap();
    let key = KeyPair::new_user().public_key();
    let pushed = vault.revoke(&key).unwrap();
    let reopened = Vault::open_or_create(&layout).unwrap();
    assert_eq!(reopened.account_jwt(name).unwrap(), pushed);
    let revoked: Vec<String> = reopened.read_account(name, &pushed).unwrap().revocations.into_keys().collect();
    let mut wanted = vec![key, "recent".to_owned()];
    wanted.sort();
    assert_eq!(revoked, wanted);
    for bad in ["", "n1", &KeyPair::new_account().public_key()] {
        assert!(vault.revoke(bad).unwrap_err().to_string().ends_with("is not the public key of a user (U…)"), "{bad}");
    }
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
