//! `tls` beside `openssl s_client`: the same chains, the same verdicts.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::reference::{both, says};
use super::super::table::Row;
use super::super::web::WEB_NAME;
use super::super::{Asker, Testnet};
use super::{HOST, entries, text};

/// A port, what openssl's numbers for it mean to us, how many certificates it sends, and what is stapled.
const SERVERS: [(u16, &[&str], usize, &str); 8] = [
    (443, &[], 2, "good"),
    (8443, &["self_signed"], 1, ""),
    (8444, &["expired"], 2, ""),
    (8445, &["name_mismatch"], 2, ""),
    (8446, &[], 2, ""),
    (8447, &["unknown_issuer"], 1, ""),
    (8448, &["not_yet_valid"], 2, ""),
    (8449, &["revoked"], 2, "revoked"),
];

/// What is said of a server.
#[derive(Debug, PartialEq)]
struct Said {
    problems: BTreeSet<String>,
    chain: Vec<String>,
    version: String,
    cipher: String,
    staple: String,
}

/// The certificates in a text.
fn certificates(text: &str) -> Vec<String> {
    let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    blocks.map(|block| block.split("-----END").next().unwrap_or_default().replace('\n', "")).collect()
}

/// What stands behind these words in their line.
fn after<'a>(text: &'a str, words: &str) -> &'a str {
    text.split_once(words).and_then(|(_, rest)| rest.split([',', '\n']).next()).unwrap_or_default().trim()
}

fn ours(report: &Value, output: &str) -> Said {
    let field = |field: &str| text(&report[field]);
    Said {
        problems: entries(report, "problems").iter().map(|problem| text(&problem["code"])).collect(),
        chain: entries(report, "chain").iter().flat_map(|link| certificates(&text(&link["pem"]))).collect(),
        version: field("version"),
        // In openssl's words, which for 1.2 are others than those of the standard.
        cipher: after(output, "Ciphersuite:").to_owned(),
        staple: text(&report["ocsp"]["status"]),
    }
}

fn theirs(said: &str) -> Said {
    let staple = after(said, "Cert Status:").to_owned();
    let number = |line: &str| line.split_once("verify error:num=")?.1.split(':').next()?.parse::<u32>().ok();
    let meaning = |number| match number {
        9 => "not_yet_valid".to_owned(),
        10 => "expired".to_owned(),
        18 => "self_signed".to_owned(),
        // The second says of the first certificate what the first says of the chain.
        20 | 21 => "unknown_issuer".to_owned(),
        62 => "name_mismatch".to_owned(),
        other => other.to_string(),
    };
    let mut problems: BTreeSet<String> = said.lines().filter_map(number).map(meaning).collect();
    // openssl shows what is stapled, and leaves the verdict to whoever reads it.
    if staple == "revoked" {
        problems.insert(staple.clone());
    }
    // Those of whoever signed the staple stand before.
    let chain = certificates(said.split_once("Certificate chain").unwrap_or_default().1);
    Said { problems, chain, version: after(said, "New, TLSv").to_owned(), cipher: after(said, "Cipher is ").to_owned(), staple }
}

/// Every server.
pub(super) fn chains(net: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("chains, why they are not trusted, staples, versions, ciphers", "openssl s_client");
    let root = net.root().display().to_string();
    let pem = std::fs::read_to_string(net.root()).unwrap_or_default();
    let mut agreed = 0;
    for (port, problems, sent, staple) in SERVERS {
        let connect = format!("{HOST}:{port}");
        let named = ["-servername", WEB_NAME, "-verify_hostname", WEB_NAME];
        let arguments = [&["s_client", "-connect", &connect, "-CAfile", &root, "-no-CApath", "-showcerts", "-status"], &named[..]].concat();
        let options = json!({"port": port, "server_name": WEB_NAME, "ca_certificates": pem, "pem": true});
        let ((report, output), said) = both(|| asker.ask("tls", HOST, &options), || says("openssl", &arguments));
        let (ours, theirs) = (ours(&report, &output), theirs(&said));
        row.same(format!("port {port}"), &ours, &theirs);
        let built = ours.problems.iter().eq(problems) && ours.chain.len() == sent && ours.staple == staple;
        row.check(built && report["verified"] == json!(problems.is_empty()), || format!("port {port} is built otherwise: {report}"));
        agreed += usize::from(ours == theirs);
    }
    row.found(format!("{agreed} of {}", SERVERS.len()), SERVERS.len())
}
