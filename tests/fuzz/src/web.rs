//! What web servers, proxies and registries say.

use probeops_agent::fuzzing as agent;
use probeops_shared::tools::whois::registered::Registered;

use crate::chosen;

/// How much of a body is read and kept here: less than most inputs have.
const READ: usize = 4_096;
const KEEP: usize = 64;

pub(crate) fn whois(input: &[u8]) {
    let (which, rest) = chosen(input);
    match which % 5 {
        3 => {
            let Ok((_, record)) = agent::rdap(rest) else { return };
            assert!(record.name_servers.len() * 2 <= rest.len() && record.prefixes.len() * 2 <= rest.len());
            let texts = [record.name, record.handle, record.registrar, record.organization, record.country, record.abuse_email];
            assert!(texts.iter().flatten().all(|text| !text.is_empty() && text.trim() == text), "{texts:?}");
        }
        4 => {
            if let Ok((status, body, truncated)) = agent::fetched(rest, KEEP) {
                assert!((100..=999).contains(&status) && body.len() <= KEEP && (!truncated || body.len() == KEEP));
            }
        }
        kind => {
            let target: Registered = ["example.com", "192.0.2.1", "AS64500"][usize::from(kind)].parse().expect("a target");
            let read = agent::whois(&target, rest);
            assert!(!(read.missing && read.record.is_some()), "there is one and there is none");
            if let Some((host, port)) = read.referral {
                assert!(port > 0 && host.to_string().parse() == Ok(host));
            }
            if let Some(record) = read.record {
                assert!(record.name_servers.len() <= rest.len() && record.statuses.len() <= rest.len());
                let texts = [record.name, record.handle, record.registrar, record.organization, record.created];
                assert!(texts.into_iter().flatten().all(|text| !text.contains('\n') && text.len() <= 2 * rest.len()));
            }
        }
    }
}

/// The first byte chooses: an answer in HTTP/1, in HTTP/2, or that of a proxy.
pub(crate) fn http(input: &[u8]) {
    let (which, said) = chosen(input);
    if which % 3 == 2 {
        if let Err(why) = agent::tunnel(said) {
            assert!(!why.is_empty() && !why.chars().any(char::is_control), "{why:?}");
        }
        return;
    }
    let answer = agent::http(said, which % 3 == 1, (READ, KEEP));
    assert!(answer.status == 0 || (100..=999).contains(&answer.status), "{}", answer.status);
    assert!(answer.status != 0 || answer.failure.is_some(), "neither an answer nor why there is none");
    assert!(answer.kept.len() <= KEEP && answer.headers.len() <= 256, "{} bytes, {} fields", answer.kept.len(), answer.headers.len());
    let texts = answer.headers.iter().flat_map(|(name, value)| [name, value]).chain(&answer.reason);
    assert!(texts.into_iter().all(|text| !text.chars().any(|c| c.is_control() && c != '\t')), "{answer:?}");
    if let Some(body) = answer.body {
        assert!(body.size_bytes <= READ, "{} bytes", body.size_bytes);
        assert_eq!(body.sha256.len(), 64);
    }
}
