//! Listens to the beginning of what a server says, to tell its head as it was sent.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose first bytes are kept.
#[derive(Debug)]
pub(super) struct Tap<S> {
    stream: S,
    heard: Heard,
    bytes_max: usize,
}

/// What was heard.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<Mutex<Vec<u8>>>);

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The words after the status.
    pub(super) reason: Option<String>,
    /// The fields in their order.
    pub(super) headers: Vec<(String, String)>,
}

impl<S> Tap<S> {
    pub(super) fn new(stream: S, bytes_max: usize) -> (Self, Heard) {
        let heard = Heard::default();
        (Self { stream, heard: heard.clone(), bytes_max }, heard)
    }
}

impl Heard {
    /// The head of the final answer, after those that only say that one is coming (1xx).
    pub(super) fn head(&self) -> Option<Head> {
        head(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn head(mut heard: &[u8]) -> Option<Head> {
    loop {
        let mut lines = Vec::new();
        loop {
            let end = heard.iter().position(|byte| *byte == b'\n')?;
            let (line, rest) = heard.split_at_checked(end + 1)?;
            heard = rest;
            let line = line.trim_ascii_end();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let (first, fields) = lines.split_first()?;
        let mut words = first.splitn(3, |byte| *byte == b' ');
        let status = words.nth(1)?;
        if status.first() == Some(&b'1') && status != b"101" {
            continue;
        }
        let reason = words.next().map(text).filter(|reason| !reason.is_empty());
        let field = |line: &&[u8]| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at_checked(colon)?;
            Some((text(name), text(value.get(1..)?.trim_ascii())))
        };
        return Some(Head { reason, headers: fields.iter().filter_map(field).collect() });
    }
}

/// What a server says, as text: what is none is escaped.
pub(super) fn text(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() && c != '\t') => text.to_owned(),
        Ok(_) | Err(_) => bytes.escape_ascii().to_string(),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let mut heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (room, new) = (self.bytes_max.saturating_sub(heard.len()), buffer.filled().get(before..).unwrap_or_default());
        heard.extend_from_slice(new.get(..room).unwrap_or(new));
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_told_as_it_was_sent() {
        let sent = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 All right\r\nX-b: 1\r\nA:\xff \r\nX-B: 2\r\n\r\nbody";
        let head = head(sent).unwrap();
        assert_eq!(head.reason.as_deref(), Some("All right"));
        assert_eq!(head.headers, [("X-b", "1"), ("A", "\\xff"), ("X-B", "2")].map(|(name, value)| (name.to_owned(), value.to_owned())));
        for cut in 0..sent.len() - 6 {
            assert!(super::head(&sent[..cut]).is_none(), "{cut}");
        }
        assert_eq!(super::head(b"HTTP/1.1 204 \r\n\r\n").unwrap().reason, None);
    }
}
