//! What a caller hears of a run before its outcome.

use std::future::pending;
use std::pin::Pin;

use probeops_shared::ids::RequestId;
use probeops_shared::job::{ACCEPTED_AFTER, ALIVE_EVERY, Event, Events};
use probeops_shared::outcome::Progress;
use probeops_shared::tools::network::ms;

use super::{Asker, answer};
use crate::executors::{Heard, Live, News};
use crate::outbox::{Leaving, Outbox};

/// The telling of a run. It waits for a slow connection, the run does not: what is to be told then stays where it is.
#[derive(Debug)]
pub(super) struct Narration<'a> {
    outbox: &'a Outbox,
    asker: &'a Asker,
    request_id: &'a RequestId,
    /// What the run finds, if the caller wants to know.
    heard: Option<Heard>,
    /// What leaves next.
    unsaid: Option<(Event, Vec<u8>)>,
    next_seq: u64,
}

impl<'a> Narration<'a> {
    /// One that tells this, and how the run tells of what it finds.
    pub(super) fn of(events: Events, outbox: &'a Outbox, asker: &'a Asker, request_id: &'a RequestId) -> (Live, Self) {
        let (live, heard) = match events {
            Events::All => {
                let (live, heard) = Live::heard();
                (live, Some(heard))
            }
            Events::SignsOfLife => (Live::default(), None),
        };
        (live, Self { outbox, asker, request_id, heard, unsaid: None, next_seq: 0 })
    }

    /// Says that the run goes on and what it finds, until it is over.
    pub(super) async fn accompany<T>(&mut self, mut run: Pin<&mut impl Future<Output = T>>) -> T {
        if self.heard.is_none()
            && let Ok(result) = tokio::time::timeout(ACCEPTED_AFTER, &mut run).await
        {
            return result;
        }
        tokio::select! {
            biased;
            never = self.go_on() => never,
            result = run => result,
        }
    }

    /// Says what the run has found and is not said yet. Returns the number of the next event.
    pub(super) async fn finish(mut self) -> u64 {
        // That it was alive need not be said any more.
        while self.heard.is_some() && self.has_more() {
            self.say().await;
        }
        self.next_seq
    }

    async fn go_on<T>(&mut self) -> T {
        self.unsaid = Some((Event::Accepted, self.nothing_more()));
        loop {
            self.say().await;
            let next = async {
                match &mut self.heard {
                    Some(heard) => heard.recv().await,
                    None => pending().await,
                }
            };
            self.unsaid = match tokio::time::timeout(ALIVE_EVERY, next).await {
                Ok(Some(news)) => Some(self.progress(news)),
                Ok(None) => pending().await,
                Err(_elapsed) => Some((Event::Alive, self.nothing_more())),
            };
        }
    }

    fn has_more(&mut self) -> bool {
        if self.unsaid.is_none() {
            let news = self.heard.as_mut().and_then(Heard::try_recv);
            self.unsaid = news.map(|news| self.progress(news));
        }
        self.unsaid.is_some()
    }

    /// Says what leaves next. Nothing is numbered that does not leave: the run may be over while there is no room.
    async fn say(&mut self) {
        let Some((_, body)) = &self.unsaid else { return };
        let room = self.outbox.room(body.len()).await;
        if let (Some((event, body)), Some(room)) = (self.unsaid.take(), room) {
            room.fill(body, |payload| Leaving::Event(answer(self.asker, event, self.next_seq, payload)));
            self.next_seq += 1;
        }
    }

    fn nothing_more(&self) -> Vec<u8> {
        serde_json::json!({"request_id": self.request_id}).to_string().into_bytes()
    }

    fn progress(&self, News { elapsed, progress, output, missed }: News) -> (Event, Vec<u8>) {
        let progress = Progress { request_id: self.request_id.clone(), elapsed_ms: ms(elapsed), progress, output, missed };
        // What is JSON already can be written again.
        (Event::Progress, serde_json::to_vec(&progress).unwrap_or_default())
    }
}
