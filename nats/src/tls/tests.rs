use std::os::unix::fs::PermissionsExt;

use async_nats::rustls::pki_types::PrivateKeyDer;
use async_nats::rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::*;
use crate::testing::Scratch;

fn folder() -> (Scratch, Layout) {
    let scratch = Scratch::new();
    let layout = Layout::new(scratch.path());
    (scratch, layout)
}

/// A handshake in memory: a client that trusts `authority` asks for `name`.
fn handshake(server: &ServerCertificate, authority: &Path, name: &str) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_file(&server.key).unwrap();
    let server_config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates(&server.certificate).unwrap(), key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(authority).unwrap());
    let client_config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(client_config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::new(server_config)).unwrap();
    while client.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut bytes = Vec::new();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn clients_that_trust_our_authority_and_no_others_accept_the_broker() {
    let (_scratch, layout) = folder();
    let (_other_scratch, other_layout) = folder();
    let server = ensure(&layout, &["broker.example".to_owned()]).unwrap();
    let other = ensure(&other_layout, &[]).unwrap();
    let trusted = server.authority.clone().unwrap();
    for name in ["localhost", "127.0.0.1", "::1", "broker.example"] {
        handshake(&server, &trusted, name).unwrap();
    }
    let refused = handshake(&server, &trusted, "other.example").unwrap_err();
    assert!(matches!(refused, rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForNameContext { .. })), "{refused}");
    let refused = handshake(&server, &other.authority.unwrap(), "localhost").unwrap_err();
    assert!(matches!(refused, rustls::Error::InvalidCertificate(_)), "{refused}");
}

#[test]
fn a_certificate_is_kept_until_it_lacks_a_name_or_ends_soon() {
    let (_scratch, layout) = folder();
    let text = || std::fs::read_to_string(layout.server_certificate()).unwrap();
    ensure(&layout, &[]).unwrap();
    let (first, authority) = (text(), std::fs::read_to_string(layout.ca_certificate()).unwrap());
    ensure(&layout, &["127.0.0.1".to_owned()]).unwrap();
    assert_eq!(text(), first);
    ensure(&layout, &["broker.example".to_owned()]).unwrap();
    let second = text();
    assert_ne!(second, first);

    let (certificate, issuer, _) = ensure_authority(&layout).unwrap();
    let mut params = server_params(&all_names(&[]).unwrap()).unwrap();
    params.not_after = OffsetDateTime::now_utc() + RENEW_BEFORE - Duration::from_mins(1);
    let key = new_key().unwrap();
    let ending = params.signed_by(&key, &issuer).unwrap().pem();
    assert!(!is_good(&certificate, &ending, &all_names(&[]).unwrap()));
    std::fs::write(layout.server_certificate(), &ending).unwrap();
    ensure(&layout, &[]).unwrap();
    assert_ne!(text(), ending);
    assert_eq!(std::fs::read_to_string(layout.ca_certificate()).unwrap(), authority, "the authority stays");
    for secret in [layout.ca_key(), layout.server_key()] {
        assert_eq!(std::fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn damage_is_one_message_that_names_the_file_and_the_cure() {
    type Damage = fn(&Layout);
    let damages: [(Damage, &str); 4] = [
        (|layout| std::fs::remove_file(layout.ca_key()).unwrap(), "ca.key is missing"),
        (|layout| std::fs::write(layout.ca_key(), "x").unwrap(), "ca.key holds no whole private key"),
        (|layout| std::fs::write(layout.ca_certificate(), "").unwrap(), "ca.pem holds no whole certificate"),
        (
            |layout| {
                std::fs::write(layout.ca_key(), new_key().unwrap().serialize_pem()).unwrap();
                std::fs::remove_file(layout.server_certificate()).unwrap();
            },
            "ca.key does not belong to",
        ),
    ];
    for (damage, what) in damages {
        let (_scratch, layout) = folder();
        ensure(&layout, &[]).unwrap();
        damage(&layout);
        let refused = format!("{:#}", ensure(&layout, &[]).unwrap_err());
        assert!(refused.contains(what), "{refused}");
        assert!(refused.contains(&format!("or remove the folder {}", layout.tls_dir().display())), "{refused}");
    }
}

#[test]
fn an_interrupted_renewal_is_completed() {
    let (_scratch, layout) = folder();
    let server = ensure(&layout, &[]).unwrap();
    // The new key was written, and the certificate is still the old one.
    std::fs::write(layout.server_key(), new_key().unwrap().serialize_pem()).unwrap();
    ensure(&layout, &[]).unwrap();
    handshake(&server, &layout.ca_certificate(), "localhost").unwrap();
}

#[test]
fn an_interrupted_first_start_is_completed() {
    let (_scratch, layout) = folder();
    let server = ensure(&layout, &[]).unwrap();
    std::fs::remove_file(layout.ca_certificate()).unwrap();
    std::fs::write(layout.server_key(), "half").unwrap();
    ensure(&layout, &[]).unwrap();
    handshake(&server, &layout.ca_certificate(), "localhost").unwrap();
}

#[test]
fn names_and_files_that_cannot_be_right_are_refused() {
    let (scratch, layout) = folder();
    for bad in ["", "a b", "broker.example:4222", "https://x"] {
        let refused = ensure(&layout, &[bad.to_owned()]).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("`{bad}` cannot be in the broker's certificate")), "{refused}");
    }
    let server = ensure(&layout, &[]).unwrap();
    ServerCertificate::from_files(&server.certificate, &server.key, server.authority.as_deref()).unwrap();
    let none = scratch.path().join("none.pem");
    let refused = ServerCertificate::from_files(&none, &server.key, None).unwrap_err().to_string();
    assert_eq!(refused, format!("there is no file {}", none.display()));
    let swapped = ServerCertificate::from_files(&server.certificate, &server.certificate, None).unwrap_err().to_string();
    assert!(swapped.contains("holds no whole private key in PEM form"), "{swapped}");
}

#[test]
fn an_authority_is_replaced_and_no_client_that_reads_it_again_is_left_outside() {
    let (scratch, layout) = folder();
    let server = ensure(&layout, &["broker.example".to_owned(), "192.0.2.7".to_owned()]).unwrap();
    let copy = |name: &str| {
        let path = scratch.path().join(name);
        std::fs::copy(layout.ca_certificate(), &path).unwrap();
        path
    };
    let old = copy("old.pem");
    assert_eq!(rotation::stage(&layout).unwrap(), rotation::Stage::Settled);
    rotation::add(&layout).unwrap();
    let both = copy("both.pem");
    assert!(matches!(rotation::stage(&layout).unwrap(), rotation::Stage::Added { .. }));
    // A start in between changes nothing.
    ensure(&layout, &["broker.example".to_owned()]).unwrap();
    handshake(&server, &old, "broker.example").unwrap();

    rotation::switch(&layout).unwrap();
    assert_eq!(rotation::stage(&layout).unwrap(), rotation::Stage::Switched);
    for name in ["broker.example", "192.0.2.7", "localhost"] {
        handshake(&server, &both, name).unwrap();
    }
    handshake(&server, &old, "broker.example").unwrap_err();
    let certificate = std::fs::read_to_string(layout.server_certificate()).unwrap();
    rotation::remove(&layout).unwrap();
    assert_eq!(rotation::stage(&layout).unwrap(), rotation::Stage::Settled);
    assert_eq!(certificates(&layout.ca_certificate()).unwrap().len(), 1);
    handshake(&server, &layout.ca_certificate(), "broker.example").unwrap();
    ensure(&layout, &[]).unwrap();
    assert_eq!(std::fs::read_to_string(layout.server_certificate()).unwrap(), certificate, "the next start keeps it");
}

#[test]
fn authorities_from_elsewhere_are_not_ours_to_replace() {
    let (_scratch, layout) = folder();
    ensure(&layout, &[]).unwrap();
    std::fs::remove_file(layout.ca_key()).unwrap();
    assert!(rotation::stage(&layout).unwrap_err().to_string().contains("was made elsewhere"));
}
