//! The messages of a stream on some subjects, newest first, without a consumer.
//!
//! The broker reads forwards only. So windows of the stream are read, the newest first, each from its beginning and then turned round. A window
//! is as wide as it may be for what is in it to come in one answer: narrow where there is much, and ever wider where there is nothing.

use async_nats::Client;
use async_nats::jetstream::Context;

use super::last::{Last, next_of};

/// How many messages are read at once.
const WINDOW_MESSAGES_MAX: usize = 128;
/// The narrowest window: what is in it always comes in one answer.
const WIDTH_MIN: u64 = 128;
/// How much wider the next window is where this one was nearly empty, and how much narrower a window is tried that was too full.
const STEP: u64 = 8;

/// Reads a stream backwards.
#[derive(Debug)]
pub(crate) struct Backwards {
    client: Client,
    stream: &'static str,
    subject: String,
    /// The oldest message there is.
    pub(crate) oldest: u64,
    /// The newest that has not been read.
    newest: u64,
    width: u64,
}

impl Backwards {
    /// The messages on a subject, which may have wildcards, from the newest on or from the one at `newest`.
    pub(crate) async fn new(context: &Context, stream: &'static str, subject: String, newest: Option<u64>) -> Result<Self, String> {
        let held = context.get_stream_no_info(stream).await.map_err(|error| error.to_string())?;
        let state = held.get_info().await.map_err(|error| error.to_string())?.state;
        let newest = newest.map_or(state.last_sequence, |newest| newest.min(state.last_sequence));
        Ok(Self { client: context.client(), stream, subject, oldest: state.first_sequence.max(1), newest, width: WIDTH_MIN })
    }

    /// The newest message that has not been read, if there is one.
    pub(crate) fn unread(&self) -> Option<u64> {
        (self.newest >= self.oldest).then_some(self.newest)
    }

    /// The next messages, newest first, perhaps none; nothing when the beginning of the stream has been read.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Last>>, String> {
        while self.newest >= self.oldest {
            let from = self.oldest.max((self.newest + 1).saturating_sub(self.width));
            let count = usize::try_from(self.newest - from + 1).unwrap_or(usize::MAX).min(WINDOW_MESSAGES_MAX);
            let (mut messages, more) = next_of(&self.client, self.stream, &self.subject, from, count).await?;
            let end_seen = !more || messages.last().is_none_or(|last| last.sequence >= self.newest);
            if !end_seen && self.width > WIDTH_MIN {
                self.width = (self.width / STEP).max(WIDTH_MIN);
                continue;
            }
            messages.retain(|message| message.sequence <= self.newest);
            messages.reverse();
            self.newest = from - 1;
            if messages.len() < WINDOW_MESSAGES_MAX / usize::try_from(STEP).unwrap_or(1) {
                self.width = self.width.saturating_mul(STEP);
            }
            return Ok(Some(messages));
        }
        Ok(None)
    }
}
