use super::*;

fn user(account: &KeyPair, expires_at_unix_s: Option<i64>) -> (String, Claims) {
    let body = User {
        issuer_account: account.public_key(),
        publish: Allow { allow: vec!["a.>".to_owned()] },
        subscribe: Allow { allow: vec!["b w".to_owned()] },
        subs: 3,
        data: UNLIMITED,
        payload: 1024,
        allowed_connection_types: vec!["STANDARD".to_owned()],
    };
    let claims = Claims { expires_at_unix_s, ..Claims::new(KeyPair::new_user().public_key(), "n1", Body::User(body)) };
    (claims.clone().sign(account).unwrap(), claims)
}

#[track_caller]
fn refuses(token: &str, issuers: &[String], what: &str) {
    let error = Claims::verify(token, issuers).unwrap_err().to_string();
    assert!(error.contains(what), "{error}");
}

#[test]
fn what_was_signed_is_read_back() {
    let account = KeyPair::new_account();
    let (token, claims) = user(&account, None);
    let read = Claims::verify(&token, &[account.public_key()]).unwrap();
    assert_eq!((read.subject, read.name, read.body), (claims.subject, claims.name, claims.body));
    assert_eq!(read.issuer, account.public_key());
}

#[test]
fn a_token_that_was_touched_is_refused() {
    let account = KeyPair::new_account();
    let issuers = [account.public_key()];
    let (token, _) = user(&account, None);
    let (other, _) = user(&account, None);
    let parts: Vec<&str> = token.split('.').collect();
    let foreign: Vec<&str> = other.split('.').collect();
    refuses(&[parts[0], foreign[1], parts[2]].join("."), &issuers, "signature is wrong");
    refuses(&[parts[0], parts[1], foreign[2]].join("."), &issuers, "signature is wrong");
    let widened = String::from_utf8(BASE64URL_NOPAD.decode(parts[1].as_bytes()).unwrap()).unwrap().replace("a.>", ">");
    refuses(&[parts[0], &BASE64URL_NOPAD.encode(widened.as_bytes()), parts[2]].join("."), &issuers, "signature is wrong");
    let unsigned = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"none"}"#);
    refuses(&[&unsigned, parts[1], ""].join("."), &issuers, "unknown header");
}

#[test]
fn a_token_of_somebody_else_is_refused() {
    let account = KeyPair::new_account();
    let (token, _) = user(&KeyPair::new_account(), None);
    refuses(&token, &[account.public_key()], "who may not sign it");
    let (own, claims) = user(&account, None);
    refuses(&own, &[], "who may not sign it");
    let by_user = claims.sign(&KeyPair::new_user()).unwrap();
    refuses(&by_user, &[account.public_key()], "a key of the wrong kind");
}

#[test]
fn an_expired_token_is_refused() {
    let account = KeyPair::new_account();
    let (token, _) = user(&account, Some(1_700_000_000));
    refuses(&token, &[account.public_key()], "it expired at 2023-11-14T22:13:20");
    assert!(Claims::read(&token).is_ok());
    let (later, _) = user(&account, Some(Timestamp::now().unix_s() + 60));
    assert!(Claims::verify(&later, &[account.public_key()]).is_ok());
}

#[test]
fn garbage_is_refused() {
    let account = KeyPair::new_account();
    let (token, _) = user(&account, None);
    let parts: Vec<&str> = token.split('.').collect();
    for (garbage, what) in [
        (String::new(), "not three parts"),
        ("a.b".to_owned(), "not three parts"),
        ("a.b.c".to_owned(), "unknown header"),
        (format!("{token}.x"), "not three parts"),
        (format!("{}.%.{}", parts[0], parts[2]), "damaged payload"),
        (format!("{}.{}.%", parts[0], parts[1]), "damaged signature"),
        (format!("{}.{}.{}", parts[0], BASE64URL_NOPAD.encode(b"{}"), parts[2]), "missing field `sub`"),
        ("x".repeat(TOKEN_BYTES_MAX + 1), "too long"),
    ] {
        refuses(&garbage, &[account.public_key()], what);
    }
}
