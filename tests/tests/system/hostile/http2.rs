//! Callers that mean harm in HTTP/2, frame by frame, in clear text and over TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use probeops_tests::hostile::door::{Door, cut_client_hello};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::HANG;
use super::http::{Case, by_chance};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Kinds of frames, and flags.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The methods, as the static table has them.
const GET: u8 = 0x82;
const POST: u8 = 0x83;

/// That nobody may send anything: the window of each stream is 0.
const CLOSED_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];

/// How many streams one connection begins without an end: more than it may.
const STREAMS: u32 = 200;
/// How many of them are answered at least.
const STREAMS_ANSWERED: usize = 128;
/// How many connections do so.
const CONNECTIONS: usize = 10;
/// How many connections are slow in each way until they are closed.
const SLOW: usize = 20;

fn frame((kind, flags): (u8, u8), stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The stream that is begun as the so-manieth.
fn stream(number: u32) -> u32 {
    number * 2 + 1
}

/// How a connection begins, and what follows.
fn begun(settings: &[u8], frames: &[u8]) -> Vec<u8> {
    [PREFACE, &frame((SETTINGS, 0), 0, settings), frames].concat()
}

/// The fields of a request.
fn head(method: u8, path: &str, key: Option<&str>) -> Vec<u8> {
    let scheme = 0x87;
    let mut fields = vec![vec![method, scheme], field(4, path), field(1, "x"), field(31, "application/json")];
    fields.extend(key.map(|key| field(23, &format!("Bearer {key}"))));
    fields.concat()
}

/// A field by its place in the static table, with a value of its own.
fn field(index: u8, value: &str) -> Vec<u8> {
    let name = if index < 15 { vec![index] } else { vec![15, index - 15] };
    let length = u8::try_from(value.len()).unwrap();
    let length = if length < 127 { vec![length] } else { vec![127, length - 127] };
    [&name, &length, value.as_bytes()].concat()
}

/// What is broken: it is answered in frames, whatever they say, and not with silence.
pub(super) fn http2() -> Vec<Case> {
    let begins = |number: u32, flags| frame((HEADERS, flags), stream(number), &[GET, 0x84, 0x86]);
    // A stream is begun and reset at once, again and again (CVE-2023-44487).
    let reset = |number: u32| [begins(number, END_STREAM | END_HEADERS), frame((RESET, 0), stream(number), &[0, 0, 0, 8])].concat();
    // A head that goes on in its next frame, and the next (CVE-2024-27316).
    let kind = |number: u32| if number == 0 { HEADERS } else { CONTINUATION };
    let continued = |number: u32| frame((kind(number), 0), 1, &[0; 200]);
    // Of fields that mean something.
    let listed = |number: u32| {
        frame((kind(number), 0), 1, &[head(GET, "/livez", None), [&[0, 3][..], b"x-a", &[100], &[b'a'; 100]].concat().repeat(100)].concat())
    };
    let grown: Vec<u8> = (0..200).flat_map(|_| frame((SETTINGS, 0), 0, &[0, 1, 0xff, 0xff, 0xff, 0xff].repeat(50))).collect();
    vec![
        ("by chance, in HTTP/2", begun(&[], &by_chance()), &["\0\0"]),
        ("reset again and again", begun(&[], &(0..5_000).flat_map(reset).collect::<Vec<u8>>()), &["\0\0"]),
        ("a head without end, in HTTP/2", begun(&[], &(0..2_000).flat_map(continued).collect::<Vec<u8>>()), &["\0\0"]),
        ("fields without end, in HTTP/2", begun(&[], &(0..200).flat_map(listed).collect::<Vec<u8>>()), &["\0\0"]),
        ("settings again and again", begun(&[], &grown), &["\0\0"]),
        ("pings again and again", begun(&[], &frame((6, 0), 0, &[0; 8]).repeat(5_000)), &["\0\0"]),
        ("a frame that is too large", begun(&[], &[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]), &["\0\0"]),
    ]
}

/// Many streams on one connection, each with a body that never ends, with and without a key: each that there was room for is answered.
pub(super) async fn unended_streams(door: &Door, key: &str) {
    let all = (0..CONNECTIONS).map(|number| {
        let head = head(POST, "/v1/jobs", Some(key).filter(|_| number % 2 == 0));
        let unended = |number| [frame((HEADERS, END_HEADERS), stream(number), &head), frame((DATA, 0), stream(number), b"{")].concat();
        answered(door, begun(&[], &(0..STREAMS).flat_map(unended).collect::<Vec<u8>>()), STREAMS_ANSWERED)
    });
    drop(futures_util::future::join_all(all).await);
}

/// Says this, until so many requests have been answered.
async fn answered(door: &Door, words: Vec<u8>, count: usize) {
    let answers = async {
        let mut stream = door.enter_at_last().await.expect("a way in");
        stream.write_all(&words).await.expect("that it is heard");
        stream.flush().await.expect("that it is heard");
        let mut answers = 0;
        while answers < count {
            let mut begin = [0; 9];
            stream.read_exact(&mut begin).await.expect("a frame");
            let length = u32::from_be_bytes([0, begin[0], begin[1], begin[2]]);
            stream.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await.expect("a whole one");
            answers += usize::from(begin[3] == HEADERS);
        }
    };
    tokio::time::timeout(HANG, answers).await.expect("answers");
}

/// Who comes over TLS to stay: how many, by which door, and what is said there.
pub(super) fn crowds(address: SocketAddr, ca: &Path, count: usize) -> Vec<(usize, Door, Vec<u8>)> {
    let bare = Door::bare(address);
    vec![
        (count / 4, bare.clone(), Vec::new()),
        (count / 4, bare, cut_client_hello(100)),
        (count / 4, Door::tls(address, ca), b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_vec()),
        (count / 4, Door::http2(address, ca), begun(&[], &frame((HEADERS, 0), 1, &head(POST, "/v1/jobs", None)))),
    ]
}

/// Heads that never end, and readers that take nothing, also over TLS: the API closes each of these connections by itself.
pub(super) async fn to_the_end(plain: SocketAddr, secure: SocketAddr, ca: PathBuf) {
    let (plain, secure, secure2) = (Door::bare(plain), Door::tls(secure, &ca), Door::http2(secure, &ca));
    let slow = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_vec();
    let unended = begun(&[], &frame((HEADERS, 0), 1, &head(POST, "/v1/jobs", None)));
    let asked = |number| frame((HEADERS, END_STREAM | END_HEADERS), stream(number), &head(GET, "/openapi.json", None));
    let unread = begun(&CLOSED_WINDOW, &(0..100).flat_map(asked).collect::<Vec<u8>>());
    let cases = [
        ("a head byte by byte", &plain, &slow, true),
        ("a head byte by byte, over TLS", &secure, &slow, true),
        ("a head that does not go on, in HTTP/2", &plain, &unended, false),
        ("a head that does not go on, in HTTP/2 over TLS", &secure2, &unended, false),
        ("a frame byte by byte", &secure2, &unended, true),
        ("a window of nothing", &plain, &unread, false),
        ("a window of nothing, over TLS", &secure2, &unread, false),
    ];
    let closed = async |(what, door, words, trickles): &(&str, &Door, &Vec<u8>, bool)| {
        let closed = door.until_closed(words, *trickles).await;
        assert!(closed.is_ok(), "{what}: it is not closed: {closed:?}");
    };
    drop(futures_util::future::join_all(cases.iter().flat_map(|case| (0..SLOW).map(|_| closed(case)))).await);
}
