//! What `tls` refuses and prints.

use serde_json::{Value, json};

use super::*;
use crate::tools::Spec;

fn check(parameters: Value) -> Result<Spec, Invalid> {
    let Value::Object(parameters) = parameters else { panic!("{parameters}") };
    Spec::parse("tls".parse().unwrap(), "example.com", parameters)
}

#[track_caller]
fn refuses(parameters: Value, pointer: &str, part: &str) {
    let invalid = check(parameters).unwrap_err();
    assert!(invalid.pointer == pointer && invalid.detail.contains(part), "{invalid}");
}

#[test]
fn what_means_nothing_is_refused() {
    refuses(json!({"min_version": "1.3", "max_version": "1.2"}), "/parameters/min_version", "1.3 is newer than `max_version`");
    refuses(json!({"max_version": "1.4"}), "/parameters/max_version", "must be one of");
    refuses(json!({"client_key": "-----BEGIN PRIVATE KEY-----"}), "/parameters/client_key", "without `client_certificate`");
    refuses(json!({"client_certificate": "-----BEGIN CERTIFICATE-----"}), "/parameters/client_certificate", "without `client_key`");
    refuses(json!({"alpn": ["a b"]}), "/parameters/alpn", "such as [\"h2\"");
    refuses(json!({"source": "192.0.2.9", "family": "6"}), "/parameters/source", "192.0.2.9 is an IPv4 address");
    refuses(json!({"alpn": "h2"}), "/parameters/alpn", "must be a list");
    assert!(check(json!({"alpn": ["h2"], "starttls": "smtp", "versions": true})).is_ok());
}

#[test]
fn the_port_follows_the_protocol_unless_it_is_given() {
    let of = |parameters: Value| serde_json::from_value::<Tls>(parameters).unwrap().port();
    assert_eq!((of(json!({})), of(json!({"starttls": "postgres"})), of(json!({"starttls": "smtp", "port": 587}))), (443, 5432, 587));
}

#[test]
fn ciphers_have_the_names_of_openssl() {
    for (iana, openssl) in [
        ("TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
        ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
        ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("TLS_RSA_WITH_AES_128_CBC_SHA", "AES128-SHA"),
        ("TLS_RSA_WITH_AES_256_CBC_SHA256", "AES256-SHA256"),
        ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", "DES-CBC3-SHA"),
        ("TLS_DHE_RSA_WITH_CAMELLIA_128_CBC_SHA", "DHE-RSA-CAMELLIA128-SHA"),
    ] {
        assert_eq!(openssl_cipher(iana), openssl);
    }
}
