//! `http` beside curl(1): the same status, headers, body, redirects and verdict.

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::reference::{both, says};
use super::super::table::Row;
use super::super::{Asker, Testnet};
use super::{entries, text};

/// What an answer is compared by.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Of each request its status and its header lines.
    heads: Vec<String>,
    url: String,
    /// Of the body.
    sha256: String,
    /// What curl's exit status means (curl(1), EXIT CODES).
    failure: String,
}

/// An address, what curl is told besides, and the same for us.
type Request = (&'static str, &'static [&'static str], fn() -> Value);

const REQUESTS: [Request; 21] = [
    ("http://web.probe.test/", &[], || json!({})),
    ("http://web.probe.test/page", &["-6"], || json!({"family": "6"})),
    ("http://web.probe.test/page", &["-I"], || json!({"method": "HEAD"})),
    ("http://web.probe.test/large", &[], || json!({})),
    ("http://web.probe.test/nothing", &[], || json!({})),
    ("http://web.probe.test/empty", &[], || json!({})),
    ("http://web.probe.test/gone", &[], || json!({})),
    ("http://web.probe.test/gzip/page", &["--compressed"], || json!({"compression": true})),
    ("http://web.probe.test/1", &[], || json!({})),
    ("http://web.probe.test/1", &["-L"], || json!({"redirects_max": 10})),
    ("http://web.probe.test/hang-up", &[], || json!({})),
    ("http://web.probe.test:81/", &[], || json!({})),
    ("http://web.probe.test:4444/", &[], || json!({})),
    ("https://web.probe.test/large", &[], || json!({})),
    ("https://web.probe.test/page", &["--http1.1"], || json!({"http_version": "1.1"})),
    ("https://web.probe.test:8443/", &[], || json!({})),
    ("https://web.probe.test:8444/", &[], || json!({})),
    ("https://web.probe.test:8445/", &[], || json!({})),
    ("https://web.probe.test:8446/", &[], || json!({})),
    ("https://web.probe.test:8447/", &[], || json!({})),
    ("https://web.probe.test:8448/", &[], || json!({})),
];

/// Sorts the header lines of a head below its first line; the date apart.
fn head<'a>(first: &str, lines: impl Iterator<Item = &'a str>) -> String {
    let mut lines: Vec<String> = lines.filter(|line| !line.to_ascii_lowercase().starts_with("date:")).map(str::to_lowercase).collect();
    lines.sort_unstable();
    format!("{first}\n{}", lines.join("\n"))
}

fn ours(report: &Value) -> Seen {
    let requests = entries(report, "requests");
    let heads = requests.iter().filter(|request| request["status"].is_number()).map(|request| {
        let lines: Vec<String> =
            entries(request, "headers").iter().map(|field| format!("{}: {}", text(&field["name"]), text(&field["value"]))).collect();
        head(&request["status"].to_string(), lines.iter().map(String::as_str))
    });
    let last = requests.last().cloned().unwrap_or_default();
    Seen {
        heads: heads.collect(),
        url: text(&last["url"]),
        sha256: last["body"]["sha256"].as_str().map_or_else(|| hash(b""), str::to_owned),
        failure: text(&report["failure"]["code"]),
    }
}

fn theirs(said: &str, body: &[u8]) -> Seen {
    let said = said.replace('\r', "");
    let (heads, written) = said.rsplit_once("#written ").unwrap_or((&said, ""));
    let words: Vec<&str> = written.split_whitespace().collect();
    let failure = match words.first() {
        Some(&"0") => "",
        Some(&"7") => "connect",
        Some(&"28") => "timed_out",
        Some(&"52") => "closed",
        Some(&"60") => "tls",
        other => other.unwrap_or(&"nothing"),
    };
    let heads = heads.split("\n\n").filter(|head| !head.trim().is_empty()).map(|one| {
        let mut lines = one.trim().lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
        head(&status, lines)
    });
    Seen {
        heads: heads.collect(),
        url: words.get(1).copied().unwrap_or_default().to_owned(),
        sha256: hash(body),
        failure: failure.to_owned(),
    }
}

fn hash(body: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(body))
}

/// Every request.
pub(super) fn answers(net: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("status, headers, body, redirects, verdict; HTTP/1.1 and 2", "curl");
    let root = net.root().display().to_string();
    let pem = std::fs::read_to_string(net.root()).unwrap_or_default();
    let body = net.folder().join("body");
    let file = body.display().to_string();
    let mut agreed = 0;
    for (url, curl, options) in REQUESTS {
        let mut options = options();
        (options["ca_certificates"], options["timeout"]) = (json!(pem), json!(5));
        let base = ["-s", "--max-time", "5", "--cacert", &root, "-D", "-", "-o", &file];
        let written = ["-w", "#written %{exitcode} %{url_effective}"];
        let arguments = [&base[..], &written, curl, &[url]].concat();
        std::fs::write(&body, "").expect("a file of ours");
        let ((report, _), said) = both(|| asker.ask("http", url, &options), || says("curl", &arguments));
        // curl writes the head for a body with -I.
        let body = if curl.contains(&"-I") { Vec::new() } else { std::fs::read(&body).unwrap_or_default() };
        let (ours, theirs) = (ours(&report), theirs(&said, &body));
        row.same(format!("{url} {curl:?}"), &ours, &theirs);
        agreed += usize::from(ours == theirs);
    }
    row.found(format!("{agreed} of {}", REQUESTS.len()), REQUESTS.len())
}
