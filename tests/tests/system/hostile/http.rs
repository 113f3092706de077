//! Callers that mean harm, over HTTP and HTTPS.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use futures_util::StreamExt;
use probeops_tests::hostile::door::{Door, cut_client_hello};
use serde_json::Value;

/// How many connections are slow in each way.
const SLOW: usize = 100;
/// How many say nothing at all.
const SILENT: usize = 500;
/// How many send a slow body without a key, to each path and in each way.
const UNKNOWN: usize = 20;

/// How a request is answered that is none: as the caller's mistake, or by the end of the connection.
const REFUSED: [&str; 2] = ["4", ""];

/// What is too large, too deep, cut off, repeated, or by chance.
pub(super) async fn broken_requests(door: &Door, cases: Vec<Case>) {
    let asked = futures_util::stream::iter(&cases).map(|(what, words, wanted)| async move {
        let answer = door.said(words).await;
        let begins = String::from_utf8_lossy(answer.get(..12).unwrap_or(&answer)).into_owned();
        let status = begins.split(' ').nth(1).unwrap_or(&begins);
        let as_wanted = |wanted: &&str| status == *wanted || !wanted.is_empty() && status.starts_with(wanted);
        assert!(wanted.iter().any(as_wanted), "{what}: {begins:?}, {wanted:?}");
    });
    asked.buffer_unordered(4).for_each(async |()| ()).await;
}

/// A head that says how long the body is, of which a byte comes now and then, or no more than one: the caller is told that it took too long, and
/// his connection ends. With and without a key, in pieces too. Who needs a key for it and has none is told so at once instead.
pub(super) async fn slow_bodies(door: &Door, key: &str) {
    let head = |path: &str, key: Option<&str>| {
        let key = key.map_or_else(String::new, |key| format!("Authorization: Bearer {key}\r\n"));
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{key}")
    };
    let heads = [
        (head("/v1/jobs", Some(key)), "408", SLOW),
        (head("/v1/jobs", None), "401", UNKNOWN),
        (head("/v1/enroll/challenge", None), "408", UNKNOWN),
        (head("/v1/enroll", None), "408", UNKNOWN),
        (head("/v1/enroll/confirm", None), "408", UNKNOWN),
    ];
    let (length, pieces) = ("Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n00");
    let all = heads.iter().flat_map(|(head, status, count)| (0..*count).map(move |_| (head, *status)));
    let all = all.flat_map(|case| [(case, length, false), (case, length, true), (case, pieces, false), (case, pieces, true)]);
    let answered = all.map(|((head, status), body, trickles)| async move {
        // In pieces a blank would be no number: nothing more comes.
        let trickles = trickles && body == length;
        let (answer, _) = door.until_closed(format!("{head}{body}").as_bytes(), trickles).await.expect("that it is closed");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}, {body:?}, which trickles: {trickles}: {answer:?}");
    });
    drop(futures_util::future::join_all(answered).await);
}

/// Handshakes of TLS that never end, or are none: each such connection is closed.
pub(super) async fn slow_handshakes(address: SocketAddr) {
    let door = Door::bare(address);
    let cases =
        [(SILENT, Vec::new(), false), (SLOW, cut_client_hello(100), false), (SLOW, cut_client_hello(9), true), (SLOW, by_chance(), false)];
    let closed = async |words: &[u8], trickles: bool| drop(door.until_closed(words, trickles).await.expect("that it is closed"));
    let all = cases.iter().flat_map(|(count, words, trickles)| (0..*count).map(|_| closed(words, *trickles)));
    drop(futures_util::future::join_all(all).await);
}

/// One job asked for by many at once, each of whom says that it is the same: one job.
pub(super) async fn repeated(door: &Door, key: &str) {
    let job = r#"{"tool":"echo","target":"again","from":"good"}"#;
    let request = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {key}\r\n\
         Idempotency-Key: again\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{job}",
        job.len()
    );
    let request = request.as_bytes();
    let answers = futures_util::future::join_all((0..SLOW).map(async |_| door.said(request).await)).await;
    let ids: BTreeSet<String> = answers
        .iter()
        .map(|answer| {
            let answer = String::from_utf8_lossy(answer);
            let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
            let document: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
            document["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
        })
        .collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

/// What it is, what is sent, and how the answer may begin: a status, the frame of HTTP/2, nothing.
pub(super) type Case = (&'static str, Vec<u8>, &'static [&'static str]);

/// In HTTP/1.1.
pub(super) fn http1(key: &str) -> Vec<Case> {
    let post = |headers: &str, body: &[u8]| {
        let head = "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        [format!("{head}Authorization: Bearer {key}\r\n{headers}\r\n").as_bytes(), body].concat()
    };
    let sized = |body: &[u8]| post(&format!("Connection: close\r\nContent-Length: {}\r\n", body.len()), body);
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n").into_bytes();
    let job = br#"{"tool":"echo","target":"x","from":"good"}"#;
    vec![
        ("too large", sized(&vec![b' '; 5 * 1024 * 1024]), &["413", ""]),
        ("announced as too large", post("Content-Length: 99999999999\r\n", b"{"), &REFUSED),
        ("a length that is none", post("Content-Length: -1\r\n", b"{}"), &REFUSED),
        ("two lengths", post("Content-Length: 2\r\nContent-Length: 3\r\n", b"{}x"), &REFUSED),
        ("a length and pieces", post("Content-Length: 2\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n", b"0\r\n\r\n"), &REFUSED),
        ("pieces that are none", post("Transfer-Encoding: chunked\r\n", b"zzzz\r\n{}"), &REFUSED),
        ("deep", sized(&[b'['; 60_000]), &["400"]),
        ("deep in a field", sized(format!("{{\"tool\":{}", "{\"a\":".repeat(10_000)).as_bytes()), &["400"]),
        ("cut off", sized(&job[..20]), &["400"]),
        ("by chance", by_chance(), &REFUSED),
        ("headers without end", post(&"X-A: b\r\n".repeat(100_000), b""), &REFUSED),
        ("a long path", get(&format!("/{}", "a".repeat(40_000)), ""), &["414", "431"]),
        ("ten thousand at once", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(10_000), &["200"]),
        ("a NUL", b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &REFUSED),
        ("metrics", get("/metrics", "Authorization: Bearer x\r\n"), &["401"]),
    ]
}

pub(super) fn by_chance() -> Vec<u8> {
    (0..64 * 1024).map(|_| rand::random()).collect()
}
