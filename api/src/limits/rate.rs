//! A rate that all replicas share: chunks of it are leased from the bucket and spent in memory.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::kv::{Store, UpdateErrorKind};
use probeops_shared::access::Rate;
use probeops_shared::window::{SLOTS, Window, slot, slot_length};
use tokio::sync::Mutex;

use super::Allowance;

/// How often an entry is tried that other replicas change at the same time.
const TRIES_MAX: u32 = 16;
/// The wait after a try grows by up to so much with each.
const TRY_AGAIN_WITHIN: Duration = Duration::from_millis(2);
/// For so long nobody looks again whether others gave back what they did not need, at least.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(50);

/// What became of an attempt to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// They are taken.
    Now(Paid, Allowance),
    /// There are not enough until then; none is taken.
    Later(Duration, Allowance),
    /// There will never be so many at once.
    Never,
}

/// What was taken, to be given back if it is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paid {
    slot: u64,
    count: u32,
}

/// What is known here of one rate.
#[derive(Debug)]
pub(super) struct Shared {
    key: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The entry as it was last seen, without what is to be given back, and its revision.
    known: Option<(Window, u64)>,
    chunk: Chunk,
    /// What was given back of slots that are over, until the entry says so.
    returned: BTreeMap<u64, u32>,
    /// Until when there is no use in asking for so many.
    short: Option<(Duration, u32)>,
}

/// What this replica has leased in a slot. At its end it is worth nothing, and what is left is given back with the next lease.
#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    slot: u64,
    left: u32,
    leased: u32,
    /// What was spent of the chunk before, if that was of the slot before.
    before: u32,
}

impl Chunk {
    /// What is left of it in this slot.
    fn left_in(&self, slot: u64) -> u32 {
        // Of a slot to come it is where another replica's clock is ahead.
        if self.slot >= slot { self.left } else { 0 }
    }

    fn at(self, slot: u64) -> Self {
        if self.slot >= slot {
            return self;
        }
        let spent = self.leased.saturating_sub(self.left);
        Self { slot, left: 0, leased: 0, before: if self.slot + 1 == slot { spent } else { 0 } }
    }
}

impl Shared {
    pub(super) fn new(key: String) -> Self {
        Self { key, state: Mutex::default() }
    }

    /// Takes so many, of what is leased or of a new lease. An error means that the bucket cannot be asked: then none is taken.
    pub(super) async fn take(&self, bucket: &Store, rate: Rate, count: u32) -> Result<Taken, String> {
        if count > rate.count {
            return Ok(Taken::Never);
        }
        let mut state = self.state.lock().await;
        for number in 0..TRIES_MAX {
            let now = now();
            let left = state.chunk.left_in(slot(rate, now));
            if left >= count {
                state.chunk.left -= count;
                let paid = Paid { slot: state.chunk.slot, count };
                return Ok(Taken::Now(paid, state.allowance(rate, now)));
            }
            let lacking = count - left;
            if state.short.is_some_and(|(until, short)| now < until && lacking >= short) {
                return Ok(state.later(rate, lacking, now));
            }
            let seen = state.known.is_some();
            if !seen {
                state.known = Some(look_up(bucket, &self.key).await?.unwrap_or_else(|| (Window::fresh(rate, now), 0)));
            }
            let revision = state.known.as_ref().map_or(0, |(_, revision)| *revision);
            let mut window = state.window(rate, now);
            let chunk = state.chunk.at(window.slot());
            let lacking = count.saturating_sub(chunk.left);
            if window.room(rate) < lacking {
                if seen {
                    // Others may have given back meanwhile, or taken.
                    state.known = None;
                    continue;
                }
                state.short = Some((now + slot_length(rate).max(LOOK_AGAIN_MIN), lacking));
                return Ok(state.later(rate, lacking, now));
            }
            let leased = window.room(rate).min(lacking.max((rate.count / SLOTS).min(chunk.leased.max(chunk.before))));
            window.take(leased);
            let value = serde_json::to_vec(&window).map_err(|error| error.to_string())?;
            match bucket.update(&self.key, value.into(), revision).await {
                Ok(revision) => {
                    let left = chunk.left + leased - count;
                    state.chunk = Chunk { left, leased: chunk.leased + leased, ..chunk };
                    let paid = Paid { slot: chunk.slot, count };
                    state.known = Some((window, revision));
                    state.returned.clear();
                    state.short = None;
                    return Ok(Taken::Now(paid, state.allowance(rate, now)));
                }
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    state.known = None;
                    tokio::time::sleep((TRY_AGAIN_WITHIN * number).mul_f64(rand::random())).await;
                }
                Err(error) => {
                    state.known = None;
                    return Err(error.to_string());
                }
            }
        }
        Err("too many replicas take of it at the same time".to_owned())
    }

    /// Gives back what was taken and is not used.
    pub(super) async fn give_back(&self, paid: Paid) {
        self.state.lock().await.give_back(paid);
    }

    /// What is left, as the bucket has it now.
    pub(super) async fn look(&self, bucket: &Store, rate: Rate) -> Result<Allowance, String> {
        let known = look_up(bucket, &self.key).await?;
        let mut state = self.state.lock().await;
        state.known = known;
        Ok(state.allowance(rate, now()))
    }

    /// Whether nothing would be lost if it were forgotten here.
    pub(super) fn is_idle(&self, now: Duration) -> bool {
        self.state.try_lock().is_ok_and(|state| {
            let short = state.short.is_some_and(|(until, _)| now < until);
            state.chunk.left == 0 && state.returned.is_empty() && !short
        })
    }
}

impl State {
    fn give_back(&mut self, paid: Paid) {
        if self.chunk.slot == paid.slot {
            self.chunk.left += paid.count;
        } else {
            *self.returned.entry(paid.slot).or_default() += paid.count;
            // What no window reaches back to is worth nothing.
            while self.returned.len() > SLOTS as usize + 1 {
                self.returned.pop_first();
            }
        }
        self.short = None;
    }

    fn window(&self, rate: Rate, now: Duration) -> Window {
        let mut window = self.known.as_ref().map_or_else(|| Window::fresh(rate, now), |(window, _)| window.clone());
        window.advance(rate, now);
        if self.chunk.slot < window.slot() {
            window.give_back(self.chunk.slot, self.chunk.left);
        }
        for (slot, count) in &self.returned {
            window.give_back(*slot, *count);
        }
        window
    }

    fn allowance(&self, rate: Rate, now: Duration) -> Allowance {
        let window = self.window(rate, now);
        let left = window.room(rate).saturating_add(self.chunk.left_in(slot(rate, now))).min(rate.count);
        Allowance { rate, left, whole_in: window.whole_in(rate, now) }
    }

    fn later(&self, rate: Rate, lacking: u32, now: Duration) -> Taken {
        let after = self.window(rate, now).room_in(rate, lacking, now);
        let allowance = self.allowance(rate, now);
        Taken::Later(after, allowance)
    }
}

async fn look_up(bucket: &Store, key: &str) -> Result<Option<(Window, u64)>, String> {
    let Some(entry) = bucket.entry(key).await.map_err(|error| error.to_string())? else { return Ok(None) };
    let window = serde_json::from_slice(&entry.value).map_err(|error| format!("entry {key} cannot be read: {error}"))?;
    Ok(Some((window, entry.revision)))
}

/// The time since 1970.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_there_again_though_its_slot_be_over() {
        let rate: Rate = "20/m".parse().unwrap();
        let now = Duration::from_hours(500_000);
        let mut window = Window::fresh(rate, now);
        window.take(4);
        let mut state = State { known: Some((window, 1)), short: Some((now + rate.window, 1)), ..State::default() };
        state.chunk = Chunk { slot: slot(rate, now), leased: 4, ..Chunk::default() };
        state.give_back(Paid { slot: slot(rate, now), count: 1 });
        assert_eq!((state.chunk.left, state.short), (1, None), "it is spent here");
        let later = now + slot_length(rate);
        state.chunk = state.chunk.at(slot(rate, later));
        assert_eq!(state.allowance(rate, later).left, 16, "that of a chunk that is over is worth nothing by itself");
        state.give_back(Paid { slot: slot(rate, now), count: 3 });
        assert_eq!(state.allowance(rate, later).left, 19);
        // Nothing grows with time.
        for number in 0..100 {
            state.give_back(Paid { slot: number, count: 1 });
        }
        assert!(state.returned.len() <= SLOTS as usize + 1);
        assert_eq!(state.allowance(rate, later + rate.window * 2).left, 20);
    }
}
