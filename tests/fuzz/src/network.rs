//! What comes from networks as bytes: DNS, ICMP, TLS.

use std::net::{IpAddr, Ipv4Addr};

use probeops_agent::fuzzing as agent;
use probeops_shared::host::Host;
use probeops_shared::tools::network::Family;
use probeops_shared::tools::tls::StartTls;

use crate::chosen;

/// The least that a record takes: the root's name, type, class, time to live, and no data.
const RECORD_BYTES_MIN: usize = 11;

pub(crate) fn dns(input: &[u8]) {
    let Ok(response) = agent::dns(input) else { return };
    let records = || [&response.answer, &response.authority, &response.additional].into_iter().flatten();
    assert_eq!(response.size_bytes, input.len());
    assert!(records().count() * RECORD_BYTES_MIN <= input.len(), "more records than there is room for");
    for record in records() {
        for text in [&record.name, &record.kind, &record.class, &record.value] {
            assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
        }
        // `\\# 65535` and two digits a byte, in groups; every byte of a name as `\\255`.
        assert!(record.value.len() <= 1_024 * 8 + 8 * input.len(), "{} bytes of text", record.value.len());
    }
    for option in response.edns.iter().flat_map(|edns| &edns.options) {
        assert!(!option.value.chars().any(char::is_control), "{:?}", option.value);
    }
    let origins = agent::origins(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), &response.answer);
    assert!(origins.len() <= 16 && origins.len() * 2 <= input.len());
}

pub(crate) fn icmp(input: &[u8]) {
    let (which, rest) = chosen(input);
    let inner = agent::icmp_without_header(rest);
    assert!(rest.ends_with(inner), "what is without its header is the end of it");
    if let Some((kind, identifier, number, payload)) = agent::icmp(inner) {
        assert_eq!((kind, payload.len()), (inner[0], inner.len() - 8));
        assert_eq!((identifier.to_be_bytes(), number.to_be_bytes()), ([inner[4], inner[5]], [inner[6], inner[7]]));
        let nonce = [which; 8];
        let carries = agent::icmp_carries(payload, nonce);
        assert!(!carries || payload.iter().take(8).all(|byte| *byte == which), "an answer that carries nothing of the request");
    }
    if let Some((nonce, after)) = rest.split_first_chunk::<8>() {
        let family = if which & 1 == 0 { Family::V4 } else { Family::V6 };
        let (identifier, number) = (u16::from(which), u16::from(nonce[0]) << 8 | u16::from(nonce[7]));
        let request = agent::icmp_request(family, identifier, number, *nonce, after.len());
        let read = agent::icmp(&request).expect("our own request");
        assert_eq!((read.1, read.2, read.3.len()), (identifier, number, after.len()));
        assert!(agent::icmp_carries(read.3, *nonce));
    }
    let labels = agent::mpls(rest);
    assert!(labels.len() * 4 <= rest.len(), "more labels than there is room for");
    assert!(labels.iter().all(|label| label.label < 1 << 20 && label.traffic_class < 8), "{labels:?}");
}

/// The first byte chooses: a certificate, a staple for the certificate after it, a greeting, or a dialogue before one.
pub(crate) fn tls(input: &[u8]) {
    let (which, rest) = chosen(input);
    match which % 4 {
        0 => {
            let Some(read) = agent::certificate(rest, 1_800_000_000) else { return };
            certificate(&read);
            let pem = read.pem.expect("as was asked for");
            assert!(pem.starts_with("-----BEGIN CERTIFICATE-----\n") && pem.lines().all(|line| line.len() <= 64), "{pem}");
        }
        1 => {
            // Certificate and staple, the length of the first before it.
            let Some((head, after)) = rest.split_first_chunk::<2>() else { return };
            let (own, staple) = after.split_at(usize::from(u16::from_be_bytes(*head)).min(after.len()));
            let told = agent::ocsp(staple, &[own.to_vec(), own.to_vec()]);
            assert_eq!(told.size_bytes, staple.len());
        }
        2 => {
            let name: Host = "a.example".parse().expect("a name");
            let (whole, session) = agent::greeting(rest, &name);
            assert!(!whole || session.version.is_some() || session.chain.len() * 3 <= rest.len());
            assert_eq!(session.server_name, "a.example");
            session.chain.iter().for_each(certificate);
        }
        _ => {
            let (protocol, said) = chosen(rest);
            let protocol = match protocol % 6 {
                0 => StartTls::Smtp,
                1 => StartTls::Imap,
                2 => StartTls::Pop3,
                3 => StartTls::Ftp,
                4 => StartTls::Postgres,
                _ => StartTls::Mysql,
            };
            if let Err(why) = agent::start_tls(protocol, said) {
                assert!(!why.is_empty() && why.len() <= 64 * 1024 && !why.chars().any(char::is_control), "{why:?}");
            }
        }
    }
}

fn certificate(certificate: &probeops_shared::tls::Certificate) {
    for text in [&certificate.subject, &certificate.issuer, &certificate.signature_algorithm].into_iter().chain(&certificate.san) {
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
    assert!(certificate.sha256.len() == 64 && certificate.spki_sha256.len() == 64);
}
