//! The times of ping(8), fping(8) and ours on the same path at the same time. What they say is for a benchmark to print: a busy machine delays
//! all of them, and not always alike.

use std::time::Duration;

use serde_json::{Value, json};

use super::Asker;
use super::compare::Comparison;
use super::reference::{both, each, says};
use super::table::Row;

/// So many hosts are pinged at once by each.
const MANY: u16 = 500;
/// How often each is pinged when there are many, and when there is one.
const FEW_TIMES: usize = 15;
const MANY_TIMES: usize = 50;
/// So many rounds are measured, of which the quietest counts: the one in which ping's median is the least.
const ROUNDS: usize = 3;

/// One host, then many at once.
pub const COMPARISONS: [Comparison; 2] = [
    |_, asker| measure(asker, "rtt median, 1 ping", 1, MANY_TIMES, 100),
    |_, asker| measure(asker, "rtt median, 500 pings at once", MANY, FEW_TIMES, 1000),
];

/// The medians of a round, in milliseconds, and how many answers we had. ping does not wait for its last for long.
struct Round {
    ours: f64,
    ping: f64,
    fping: f64,
    answers: usize,
}

fn measure(asker: &Asker, what: &'static str, hosts: u16, times: usize, interval_ms: u64) -> Row {
    let mut row = Row::new(what, "ping, fping");
    let mut rounds: Vec<Round> = (0..ROUNDS).map(|_| round(asker, hosts, times, interval_ms)).collect();
    rounds.sort_by(|one, other| one.ping.total_cmp(&other.ping));
    let expected = usize::from(hosts) * times;
    for round in &rounds {
        row.check(round.answers == expected, || format!("{} answers of {expected}", round.answers));
    }
    let Round { ours, ping, fping, .. } = rounds[0];
    let most = (ping * 0.01).max(0.1);
    row.check((ours - ping).abs() <= most, || format!("{ours:.3} ms and {ping:.3} ms are more than {most:.3} ms apart"));
    // ping and fping write three digits in all.
    row.found(format!("{ours:.2} ms"), format!("{ping:.1} ms, {fping:.1} ms"))
}

/// Ours and ping's begin pair by pair, spread over the interval: so packets of both meet the same traffic.
fn round(asker: &Asker, count: u16, times: usize, interval_ms: u64) -> Round {
    let (times_text, interval_text) = (times.to_string(), format!("{}.{:03}", interval_ms / 1000, interval_ms % 1000));
    let options = json!({"count": times, "interval_ms": interval_ms, "timeout": 2});
    let pairs: Vec<(u32, (String, String))> = (0..).zip(hosts(0, count).into_iter().zip(hosts(50, count))).collect();
    let by_pairs = || {
        each(&pairs, |(number, (ours, theirs))| {
            std::thread::sleep(Duration::from_millis(interval_ms) / u32::from(count) * *number);
            let arguments = ["-n", "-c", &times_text, "-i", &interval_text, theirs];
            both(|| our_times(&asker.ask("ping", ours, &options).0), || ping_times(&says("ping", &arguments)))
        })
    };
    let by_fping_alone = || {
        let hosts = hosts(100, count);
        let arguments = ["-q", "-i", "1", "-t", "2000", "-C", &times_text, "-p", &interval_ms.to_string()];
        let arguments: Vec<&str> = arguments.into_iter().chain(hosts.iter().map(String::as_str)).collect();
        fping_times(&says("fping", &arguments))
    };
    let (pairs, fping) = both(by_pairs, by_fping_alone);
    let (ours, ping): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (ours, ping) = (ours.concat(), ping.concat());
    let answers = ours.len();
    let [ours, ping, fping] = [ours, ping, fping].map(median);
    Round { ours, ping, fping, answers }
}

/// Hosts of their own for each of the three, so that nobody's answers are others' too.
fn hosts(third: u8, count: u16) -> Vec<String> {
    (0..count).map(|number| format!("10.78.{}.{}", u16::from(third) + number / 200, 1 + number % 200)).collect()
}

fn our_times(report: &Value) -> Vec<f64> {
    report["packets"].as_array().into_iter().flatten().filter_map(|packet| packet["rtt_ms"].as_f64()).collect()
}

/// `64 bytes from 10.78.0.1: icmp_seq=1 ttl=59 time=24.8 ms`.
fn ping_times(said: &str) -> Vec<f64> {
    said.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok()).collect()
}

/// `10.78.0.1 : 24.81 24.80 …`, on standard error.
fn fping_times(said: &str) -> Vec<f64> {
    let lines = said.lines().filter_map(|line| line.split_once(" : "));
    lines.flat_map(|(_, times)| times.split(' ')).filter_map(|time| time.parse().ok()).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}
