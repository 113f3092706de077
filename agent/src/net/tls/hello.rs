//! A greeting by hand, for servers that speak only what no library will speak any more.
//!
//! Up to TLS 1.2 a server shows its choice and its certificates in clear, before anything is encrypted. So a `ClientHello` that offers the
//! old versions and ciphers, and whatever comes back up to `ServerHelloDone`, is enough to see them; then the connection is dropped. No key
//! is ever agreed on, and nothing is sent that would have to be secret.

use std::io;

use probeops_shared::tls::{TlsFailure, TlsFailureCode, TlsSession, TlsVersion};
use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, CipherSuite, NamedGroup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Refused, Terms, first_words, verifier};

/// The most that is read of a server that does not come to its end.
const ANSWER_BYTES_MAX: usize = 128 * 1024;
/// The longest record (RFC 5246, 6.2.1, with room for its padding).
const RECORD_BYTES_MAX: usize = 16 * 1024 + 2048;

/// Kinds of records and handshake messages (RFC 5246, 6.2.1 and 7.4; RFC 6066, 8).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const SERVER_HELLO: u8 = 2;
const CERTIFICATE: u8 = 11;
const SERVER_KEY_EXCHANGE: u8 = 12;
const CERTIFICATE_REQUEST: u8 = 13;
const SERVER_HELLO_DONE: u8 = 14;
const CERTIFICATE_STATUS: u8 = 22;

/// What is offered, best first: whatever an old server may still have, down to what was broken long ago. Nothing is ever encrypted with it.
const CIPHERS: [u16; 44] = [
    0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc023, 0xc027, 0xc024, 0xc028, 0xc009, 0xc013, 0xc00a, 0xc014, 0x009e, 0x009f, 0x0067,
    0x006b, 0x0033, 0x0039, 0x0032, 0x0038, 0x009c, 0x009d, 0x003c, 0x003d, 0x002f, 0x0035, 0x0041, 0x0084, 0x0088, 0x0045, 0xc008, 0xc012,
    0x0016, 0x0013, 0x000a, 0xc007, 0xc011, 0x0005, 0x0004, 0x0015, 0x0009, 0x00ff,
];
/// X25519, P-256, P-384, P-521.
const GROUPS: [u16; 4] = [0x001d, 0x0017, 0x0018, 0x0019];
/// Every pair of a hash down to SHA-1 with ECDSA, RSA and DSA.
const SIGNATURES: [u16; 14] =
    [0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203, 0x0201, 0x0202, 0x0402, 0x0301];

/// Greets with `version` and reads what the server shows. The caller bounds the wait, and drops the connection.
pub(crate) async fn greet<S>(mut stream: S, version: TlsVersion, terms: &Terms) -> Result<TlsSession, Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut session = first_words(terms);
    match exchange(&mut stream, version, terms).await {
        Ok(shown) => {
            let asked = shown.asked;
            tell(shown, terms, &mut session).await;
            session.client_certificate_requested = Some(asked);
            Ok(session)
        }
        Err((failure, shown)) => {
            tell(shown, terms, &mut session).await;
            Err(Refused { failure, session: Box::new(session) })
        }
    }
}

/// What a server has shown so far.
#[derive(Debug, Default)]
struct Shown {
    version: Option<u16>,
    cipher: Option<u16>,
    alpn: Option<String>,
    chain: Vec<CertificateDer<'static>>,
    staple: Vec<u8>,
    group: Option<u16>,
    asked: bool,
}

async fn tell(shown: Shown, terms: &Terms, session: &mut TlsSession) {
    session.version = shown.version.and_then(|number| TlsVersion::ALL.iter().copied().find(|version| version.number() == number));
    session.cipher = shown.cipher.map(|number| CipherSuite::from(number).as_str().map_or_else(|| format!("0x{number:04x}"), str::to_owned));
    session.group = shown.group.map(|number| NamedGroup::from(number).as_str().map_or_else(|| format!("0x{number:04x}"), str::to_owned));
    session.alpn = shown.alpn;
    if !shown.chain.is_empty() {
        verifier::judge_shown(terms, shown.chain, &shown.staple, session).await;
    }
}

async fn exchange<S>(stream: &mut S, version: TlsVersion, terms: &Terms) -> Result<Shown, (TlsFailure, Shown)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut shown = Shown::default();
    if let Err(error) = stream.write_all(&client_hello(version, terms)).await {
        return Err((failed(&error), shown));
    }
    let (mut waiting, mut read) = (Vec::new(), 0);
    loop {
        let (kind, record) = match record(stream).await {
            Ok(record) => record,
            Err(failure) => return Err((failure, shown)),
        };
        read += record.len();
        match kind {
            HANDSHAKE => waiting.extend(record),
            ALERT => return Err((alert(&record), shown)),
            _ => return Err((protocol("a record that does not belong in a handshake"), shown)),
        }
        while let Some((kind, body, rest)) = message(&waiting) {
            match note(kind, body, &mut shown) {
                Some(Noted::More) => {}
                Some(Noted::Done) => return Ok(shown),
                None => return Err((protocol("a message that cannot be read"), shown)),
            }
            waiting = rest.to_vec();
        }
        if read > ANSWER_BYTES_MAX {
            return Err((protocol("an answer without end"), shown));
        }
    }
}

/// The greeting in its record.
fn client_hello(version: TlsVersion, terms: &Terms) -> Vec<u8> {
    let mut extensions = Vec::new();
    if terms.name.address().is_none() {
        let name = terms.name.to_string().into_bytes();
        extensions.extend(extension(0, &sized16(&[&[0], sized16(&name).as_slice()].concat())));
    }
    extensions.extend(extension(5, &[1, 0, 0, 0, 0]));
    extensions.extend(extension(10, &sized16(&numbers(&GROUPS))));
    extensions.extend(extension(11, &[1, 0]));
    if version == TlsVersion::V1_2 {
        extensions.extend(extension(13, &sized16(&numbers(&SIGNATURES))));
    }
    if !terms.alpn.is_empty() {
        let names: Vec<u8> = terms.alpn.iter().flat_map(|name| sized8(name.as_bytes())).collect();
        extensions.extend(extension(16, &sized16(&names)));
    }
    let body = [
        &version.number().to_be_bytes()[..],
        &rand::random::<[u8; 32]>(),
        &[0],
        &sized16(&numbers(&CIPHERS)),
        &[1, 0],
        &sized16(&extensions),
    ]
    .concat();
    let message = [&[1, 0], sized16(&body).as_slice()].concat();
    // The record says 1.0, which no server refuses (RFC 5246, appendix E.1).
    [&[HANDSHAKE, 3, 1], sized16(&message).as_slice()].concat()
}

fn numbers(list: &[u16]) -> Vec<u8> {
    list.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// With its length before it; nothing here is longer than fits.
fn sized16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes()[..], bytes].concat()
}

fn sized8(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap_or(u8::MAX)], bytes].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], sized16(body).as_slice()].concat()
}

/// The next record: its kind and what is in it.
async fn record<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(u8, Vec<u8>), TlsFailure> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.map_err(|error| failed(&error))?;
    let [kind, major, _, high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if major != 3 || !(20..=24).contains(&kind) || length > RECORD_BYTES_MAX {
        return Err(TlsFailure { code: TlsFailureCode::NotTls, detail: "the server answers with something that is not TLS".to_owned() });
    }
    let mut record = vec![0; length];
    stream.read_exact(&mut record).await.map_err(|error| failed(&error))?;
    Ok((kind, record))
}

/// The first whole message of these bytes: its kind, its body, and what follows.
fn message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, after) = bytes.split_first_chunk::<4>()?;
    let [kind, high, middle, low] = *head;
    let (body, rest) = after.split_at_checked(u32::from_be_bytes([0, high, middle, low]) as usize)?;
    Some((kind, body, rest))
}

enum Noted {
    More,
    Done,
}

/// Takes what a message shows; `None` when it is broken.
fn note(kind: u8, body: &[u8], shown: &mut Shown) -> Option<Noted> {
    match kind {
        SERVER_HELLO => {
            let (version, after) = body.split_first_chunk::<2>()?;
            let (_random, after) = after.split_at_checked(32)?;
            let (_session, after) = split8(after)?;
            let (cipher, after) = after.split_first_chunk::<2>()?;
            (shown.version, shown.cipher) = (Some(u16::from_be_bytes(*version)), Some(u16::from_be_bytes(*cipher)));
            shown.alpn = after.get(1..).and_then(split16).and_then(|(extensions, _)| chosen_protocol(extensions));
        }
        CERTIFICATE => {
            let (mut list, _) = split24(body)?;
            while !list.is_empty() {
                let (certificate, rest) = split24(list)?;
                shown.chain.push(CertificateDer::from(certificate.to_vec()));
                list = rest;
            }
        }
        CERTIFICATE_STATUS => shown.staple = split24(body.get(1..)?)?.0.to_vec(),
        // A named curve (RFC 8422, 5.4); anything else is of no interest.
        SERVER_KEY_EXCHANGE => {
            if let [3, high, low, ..] = *body {
                shown.group = Some(u16::from_be_bytes([high, low]));
            }
        }
        CERTIFICATE_REQUEST => shown.asked = true,
        SERVER_HELLO_DONE => return Some(Noted::Done),
        _ => {}
    }
    Some(Noted::More)
}

/// The protocol in a server's extensions (RFC 7301, 3.1).
fn chosen_protocol(mut extensions: &[u8]) -> Option<String> {
    while let Some((kind, after)) = extensions.split_first_chunk::<2>() {
        let (body, rest) = split16(after)?;
        if u16::from_be_bytes(*kind) == 16 {
            let (list, _) = split16(body)?;
            return Some(String::from_utf8_lossy(split8(list)?.0).into_owned());
        }
        extensions = rest;
    }
    None
}

fn split8(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, after) = bytes.split_first()?;
    after.split_at_checked(usize::from(*length))
}

fn split16(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, after) = bytes.split_first_chunk::<2>()?;
    after.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

fn split24(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, after) = bytes.split_first_chunk::<3>()?;
    let [high, middle, low] = *length;
    after.split_at_checked(u32::from_be_bytes([0, high, middle, low]) as usize)
}

fn alert(record: &[u8]) -> TlsFailure {
    let number = record.get(1).copied().unwrap_or_default();
    let name = AlertDescription::from(number).as_str().map_or_else(|| format!("of the number {number}"), str::to_owned);
    TlsFailure { code: TlsFailureCode::Alert, detail: format!("the server sent the alert {name}") }
}

fn protocol(what: &str) -> TlsFailure {
    TlsFailure { code: TlsFailureCode::Protocol, detail: format!("the server sent {what}") }
}

fn failed(error: &io::Error) -> TlsFailure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            TlsFailure { code: TlsFailureCode::Closed, detail: "the server ended the connection during the handshake".to_owned() }
        }
        _ => TlsFailure { code: TlsFailureCode::Protocol, detail: crate::net::words(error) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_anywhere_is_told_and_never_believed() {
        let hello = [&[3, 1][..], &[7; 32], &[0], &[0, 0x2f], &[0], &[0, 9, 0, 16, 0, 5, 0, 3, 2, b'h', b'2']].concat();
        let mut shown = Shown::default();
        assert!(note(SERVER_HELLO, &hello, &mut shown).is_some());
        assert_eq!((shown.version, shown.cipher, shown.alpn.as_deref()), (Some(0x0301), Some(0x002f), Some("h2")));
        for cut in 0..37 {
            assert!(note(SERVER_HELLO, &hello[..cut], &mut Shown::default()).is_none(), "{cut}");
        }
        for broken in [&[0, 0, 9, 1][..], &[0, 0, 4, 0, 0, 2, 1], &[0]] {
            assert!(note(CERTIFICATE, broken, &mut Shown::default()).is_none(), "{broken:?}");
        }
        assert!(message(&[2, 0, 0, 5, 1]).is_none() && message(&[14, 0, 0, 0]).is_some());
    }
}
