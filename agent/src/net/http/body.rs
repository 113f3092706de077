//! Reads a body within bounds: counts, hashes, keeps the beginning, and decompresses where that is asked for.

use std::io::{self, Write};

use data_encoding::HEXLOWER;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use probeops_shared::planted;
use probeops_shared::tools::http::report::HttpBody;
use sha2::{Digest, Sha256};

use super::Limits;

/// A body on its way.
pub(super) struct Reader {
    coding: Coding,
    limit: usize,
    received: usize,
    full: bool,
}

/// How the body is wrapped.
enum Coding {
    Plain(Sink),
    Gzip(MultiGzDecoder<Sink>),
    /// Which of two it is shows in the first byte: the standard's own (RFC 1950), or what some servers send instead (RFC 1951).
    Deflate(Sink),
    Zlib(ZlibDecoder<Sink>),
    Raw(DeflateDecoder<Sink>),
}

impl Reader {
    /// A body whose `Content-Encoding` is this.
    pub(super) fn new(limits: Limits, encoding: Option<&str>) -> Self {
        let sink = Sink { limit: limits.read, keep: limits.keep, size: 0, hash: Sha256::new(), kept: Vec::new(), full: false };
        let encoding = encoding.filter(|_| limits.decompress).map(str::to_ascii_lowercase);
        let coding = match encoding.as_deref() {
            Some("gzip" | "x-gzip") => Coding::Gzip(MultiGzDecoder::new(sink)),
            Some("deflate") => Coding::Deflate(sink),
            Some(_) | None => Coding::Plain(sink),
        };
        Self { coding, limit: limits.read, received: 0, full: false }
    }

    /// Whether no more is to be read although there is more.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// The next piece; in words why it cannot be decompressed.
    pub(super) fn take(&mut self, data: &[u8]) -> Result<(), String> {
        let Some((first, _)) = data.split_first() else { return Ok(()) };
        let room = self.limit.saturating_sub(self.received);
        let (now, later) = data.split_at_checked(room).unwrap_or((data, &[]));
        self.received += now.len();
        self.full = !later.is_empty();
        if let Coding::Deflate(sink) = &mut self.coding {
            let sink = std::mem::replace(sink, Sink::empty());
            self.coding = if first & 0x0f == 8 { Coding::Zlib(ZlibDecoder::new(sink)) } else { Coding::Raw(DeflateDecoder::new(sink)) };
        }
        let written = match &mut self.coding {
            Coding::Plain(sink) if planted!("http" if !sink.kept.is_empty() && sink.kept.len() + now.len() > sink.keep) => {
                sink.keep += now.len();
                sink.write_all(now)
            }
            Coding::Plain(sink) | Coding::Deflate(sink) => sink.write_all(now),
            Coding::Gzip(decoder) => decoder.write_all(now),
            Coding::Zlib(decoder) => decoder.write_all(now),
            Coding::Raw(decoder) => decoder.write_all(now),
        };
        self.settle(written)
    }

    fn settle(&mut self, written: io::Result<()>) -> Result<(), String> {
        let sink_full = self.sink().full;
        self.full |= sink_full;
        match written {
            Err(error) if !sink_full => Err(format!("the body cannot be decompressed: {error}")),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn sink(&mut self) -> &mut Sink {
        match &mut self.coding {
            Coding::Plain(sink) | Coding::Deflate(sink) => sink,
            Coding::Gzip(decoder) => decoder.get_mut(),
            Coding::Zlib(decoder) => decoder.get_mut(),
            Coding::Raw(decoder) => decoder.get_mut(),
        }
    }

    /// The body has ended: what a decoder still holds back comes out, and whether it was whole.
    pub(super) fn end(&mut self) -> Result<(), String> {
        if self.full || self.received == 0 {
            return Ok(());
        }
        let ended = match &mut self.coding {
            Coding::Plain(_) | Coding::Deflate(_) => Ok(()),
            Coding::Gzip(decoder) => decoder.try_finish(),
            Coding::Zlib(decoder) => decoder.try_finish(),
            Coding::Raw(decoder) => decoder.try_finish(),
        };
        self.settle(ended)
    }

    /// What was kept, and what is told of it; the text is left to whoever knows how much of it to show.
    pub(super) fn finish(&mut self) -> (Vec<u8>, HttpBody) {
        let (received, truncated, plain) = (self.received, self.full, matches!(self.coding, Coding::Plain(_)));
        let sink = std::mem::replace(self.sink(), Sink::empty());
        let told = HttpBody {
            text: String::new(),
            size_bytes: sink.size,
            compressed_bytes: (!plain).then_some(received),
            sha256: HEXLOWER.encode(&sink.hash.finalize()),
            truncated,
        };
        (sink.kept, told)
    }
}

/// Where a body ends up.
struct Sink {
    limit: usize,
    keep: usize,
    size: usize,
    hash: Sha256,
    kept: Vec<u8>,
    full: bool,
}

impl Sink {
    fn empty() -> Self {
        Self { limit: 0, keep: 0, size: 0, hash: Sha256::new(), kept: Vec::new(), full: false }
    }
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let now = data.get(..self.limit.saturating_sub(self.size)).unwrap_or(data);
        if now.is_empty() && !data.is_empty() {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.size += now.len();
        self.hash.update(now);
        let room = self.keep.saturating_sub(self.kept.len());
        self.kept.extend(now.iter().take(room));
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn limits(read: usize) -> Limits {
        Limits { read, keep: 10, decompress: true, until: tokio::time::Instant::now() }
    }

    fn read(limits: Limits, encoding: Option<&str>, body: &[u8]) -> Result<(Vec<u8>, HttpBody), String> {
        let mut reader = Reader::new(limits, encoding);
        for piece in body.chunks(7) {
            if !reader.is_full() {
                reader.take(piece)?;
            }
        }
        reader.end()?;
        Ok(reader.finish())
    }

    fn sha256(data: &[u8]) -> String {
        HEXLOWER.encode(&Sha256::digest(data))
    }

    #[test]
    fn every_coding_comes_to_the_same_body() {
        let text = b"the quick brown fox ".repeat(50);
        let gzip = {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(&text).unwrap();
            encoder.finish().unwrap()
        };
        let zlib = {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(&text).unwrap();
            encoder.finish().unwrap()
        };
        let raw = {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(&text).unwrap();
            encoder.finish().unwrap()
        };
        for (encoding, body) in [(None, &text), (Some("GZIP"), &gzip), (Some("deflate"), &zlib), (Some("deflate"), &raw)] {
            let (kept, told) = read(limits(1000), encoding, body).unwrap();
            assert_eq!((kept.as_slice(), told.size_bytes, told.truncated), (&b"the quick "[..], 1000, false), "{encoding:?}");
            assert_eq!((told.sha256, told.compressed_bytes), (sha256(&text), encoding.map(|_| body.len())));
        }
        let (_, told) = read(Limits { decompress: false, ..limits(1000) }, Some("gzip"), &gzip).unwrap();
        assert_eq!((told.sha256, told.compressed_bytes), (sha256(&gzip), None));
        for broken in [&text[..], b"short", &gzip[..gzip.len() - 9]] {
            assert!(read(limits(1000), Some("gzip"), broken).unwrap_err().contains("cannot be decompressed"));
        }
    }

    #[test]
    fn a_bomb_is_cut_where_it_begins_to_swell() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; 10_000_000]).unwrap();
        let bomb = encoder.finish().unwrap();
        let (_, told) = read(limits(20_000), Some("gzip"), &bomb).unwrap();
        assert_eq!((told.size_bytes, told.truncated, told.sha256), (20_000, true, sha256(&vec![0; 20_000])));
        let (_, told) = read(limits(100), None, &[1; 101]).unwrap();
        assert_eq!((told.size_bytes, told.truncated), (100, true));
        let (_, told) = read(limits(100), None, &[1; 100]).unwrap();
        assert_eq!((told.size_bytes, told.truncated), (100, false));
        assert!(!read(limits(0), None, &[]).unwrap().1.truncated && read(limits(0), None, &[1]).unwrap().1.truncated);
    }
}
