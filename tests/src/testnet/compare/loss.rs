//! The same loss within counting error.

use std::time::Duration;

use serde_json::json;

use super::super::path::DELAY;
use super::super::reference::{both, each, says};
use super::super::table::Row;
use super::super::wire::Impairment;
use super::super::{Asker, Testnet};
use super::HOST;
use super::trace::watched;

/// One of five in each direction.
const LOSS: f64 = 0.2;
/// Two shares of the same chance are more standard deviations apart once in twenty-five million times.
const DEVIATIONS: f64 = 5.5;
/// Packets of ping that can still be on their way when it ends: it waits for twice the round trip, which a busy machine can stretch.
const LEFT_BEHIND: u64 = 50;

/// How many were sent, and how many of them were lost.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    sent: u64,
    lost: u64,
}

impl Count {
    #[expect(clippy::cast_precision_loss, reason = "thousands of packets")]
    fn share(self) -> f64 {
        self.lost as f64 / self.sent as f64
    }

    /// Whether both can come from the same chance.
    #[expect(clippy::cast_precision_loss, reason = "thousands of packets")]
    fn agrees(self, other: Self) -> bool {
        let all = Self { sent: self.sent + other.sent, lost: self.lost + other.lost }.share();
        let deviation = (all * (1.0 - all) * (1.0 / self.sent as f64 + 1.0 / other.sent as f64)).sqrt();
        (self.share() - other.share()).abs() <= DEVIATIONS * deviation
    }

    fn percent(self) -> String {
        format!("{:.1} % of {}", self.share() * 100.0, self.sent)
    }
}

/// The numbers of a text.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|character: char| !character.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

fn with_loss<T>(net: &Testnet, run: impl FnOnce() -> T) -> T {
    let link = net.path().link();
    link.impair(Impairment { delay: DELAY, jitter: Duration::from_millis(1), loss: LOSS });
    let result = run();
    link.impair(Impairment { delay: DELAY, ..Impairment::default() });
    result
}

/// Packets to the end of the path and back, over a link that loses some.
pub(super) fn packets(net: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("loss, where the wire loses 36 of 100, with jitter", "ping, fping");
    let before = net.path().link().lost();
    let (ours, theirs) = with_loss(net, || {
        let options = json!({"count": 100, "interval_ms": 100, "timeout": 2});
        let programs: [(&str, &[&str]); 2] =
            [("ping", &["-n", "-q", "-c", "1000", "-i", "0.01", HOST]), ("fping", &["-q", "-c", "1000", "-p", "10", "-t", "2000", HOST])];
        both(
            || each(&[(); 20], |()| asker.ask("ping", HOST, &options).0),
            || each(&programs, |(program, arguments)| says(program, arguments)),
        )
    });
    let of_wire = net.path().link().lost() - before;
    let sum = |field: &str| ours.iter().map(|report| report["stats"][field].as_u64().unwrap_or_default()).sum::<u64>();
    let ours = Count { sent: sum("sent"), lost: sum("sent") - sum("received") };
    // "1000 packets transmitted, 640 received, …" and "host : xmt/rcv/%loss = 1000/640/36%, …".
    let after = |text: &str, words: &str| text.split_once(words).map(|(_, rest)| numbers(rest)).unwrap_or_default();
    let ping = theirs[0].lines().find(|line| line.contains("packets transmitted")).map(numbers).unwrap_or_default();
    let fping = after(&theirs[1], "%loss =");
    let [Some(ping), Some(fping)] = [ping, fping].map(|found| Some(Count { sent: *found.first()?, lost: found[0] - found.get(1)? })) else {
        row.check(false, || format!("unreadable: {theirs:?}"));
        return row;
    };
    row.check((ours.sent, ping.sent, fping.sent) == (2000, 1000, 1000), || format!("sent: {ours:?} {ping:?} {fping:?}"));
    for (name, theirs) in [("ping", ping), ("fping", fping)] {
        row.check(ours.agrees(theirs), || format!("{name}: {theirs:?}, ours: {ours:?}"));
    }
    // Each that the wire lost is missed once, and none besides.
    let missed = ours.lost + ping.lost + fping.lost;
    row.check((of_wire..=of_wire + LEFT_BEHIND).contains(&missed), || format!("the wire lost {of_wire}, all together miss {missed}"));
    row.found(ours.percent(), format!("{}, {}", ping.percent(), fping.percent()))
}

/// Each hop before and behind that link, with several of each at once. The third says nothing, and the fourth has reasons of its own.
pub(super) fn hops(net: &Testnet, asker: &Asker) -> Row {
    const SPEAKING: [usize; 4] = [1, 2, 5, 6];
    let mut row = Row::new("the same, seen from each hop", "mtr");
    let options = json!({"rounds": 50, "interval_ms": 200, "timeout": 2});
    let (ours, theirs) = with_loss(net, || {
        both(
            || each(&[(); 4], |()| asker.ask("mtr", HOST, &options).1),
            || each(&[(); 4], |()| says("mtr", &["-r", "-n", "-c", "50", "-i", "0.2", "-G", "2", HOST])),
        )
    });
    let count = |texts: &[String], number: usize| {
        let hops = texts.iter().filter_map(|text| watched(text).into_iter().nth(number - 1));
        hops.fold(Count::default(), |sum, hop| Count { sent: sum.sent + hop.sent as u64, lost: sum.lost + hop.lost as u64 })
    };
    let mut shown = [String::new(), String::new()];
    for number in SPEAKING {
        let (ours, theirs) = (count(&ours, number), count(&theirs, number));
        row.check((ours.sent, theirs.sent) == (200, 200), || format!("sent to hop {number}: {ours:?} {theirs:?}"));
        row.check(ours.agrees(theirs), || format!("hop {number}: {ours:?} {theirs:?}"));
        row.check((ours.lost + theirs.lost == 0) == (number < 3), || format!("hop {number} beside the link: {ours:?} {theirs:?}"));
        for (shown, count) in shown.iter_mut().zip([ours, theirs]) {
            *shown += &format!(" {:.0}", count.share() * 100.0);
        }
    }
    let [ours, theirs] = shown.map(|shown| format!("{} %", shown.trim()));
    row.found(ours, theirs)
}
