//! The times of ping(8), fping(8) and ours on the same path at the same time. What they say is for a benchmark to print: a busy machine delays
//! all of them, and not always alike.

use serde_json::{Value, json};

use super::Asker;
use super::compare::Comparison;
use super::reference::{both, each, says};
use super::table::Row;

/// So many hosts are pinged at once by each.
const MANY: u16 = 500;
/// How often each is pinged when there are many, and when there is one.
const FEW_TIMES: u64 = 15;
const MANY_TIMES: u64 = 100;

/// One host, then many at once.
pub const COMPARISONS: [Comparison; 2] = [
    |_, asker| measure(asker, "rtt median, 1 ping", 1, MANY_TIMES, 100),
    |_, asker| measure(asker, "rtt median, 500 pings at once", MANY, FEW_TIMES, 1000),
];

/// Hosts of their own for each of the three, so that nobody's answers are others' too.
fn hosts(third: u8, count: u16) -> Vec<String> {
    (0..count).map(|number| format!("10.78.{}.{}", u16::from(third) + number / 200, 1 + number % 200)).collect()
}

fn measure(asker: &Asker, what: &'static str, count: u16, times: u64, interval_ms: u64) -> Row {
    let mut row = Row::new(what, "ping, fping");
    let (times_text, interval_text) = (times.to_string(), format!("{}.{:03}", interval_ms / 1000, interval_ms % 1000));
    let options = json!({"count": times, "interval_ms": interval_ms, "timeout": 2});
    let by_each_ping =
        || each(&hosts(50, count), |host| ping_times(&says("ping", &["-n", "-c", &times_text, "-i", &interval_text, host]))).concat();
    let by_fping_alone = || {
        let hosts = hosts(100, count);
        let arguments = ["-q", "-i", "1", "-t", "2000", "-C", &times_text, "-p", &interval_ms.to_string()];
        let arguments: Vec<&str> = arguments.into_iter().chain(hosts.iter().map(String::as_str)).collect();
        fping_times(&says("fping", &arguments))
    };
    let by_us = || each(&hosts(0, count), |host| our_times(&asker.ask("ping", host, &options).0)).concat();
    let (ours, (ping, fping)) = both(by_us, || both(by_each_ping, by_fping_alone));
    let expected = usize::from(count) * usize::try_from(times).unwrap_or_default();
    row.same("answers of ours and of ping", &ours.len(), &ping.len());
    row.check(ours.len() == expected, || format!("{} answers of {expected}", ours.len()));
    let [ours, ping, fping] = [ours, ping, fping].map(median);
    let most = (ping * 0.01).max(0.1);
    row.check((ours - ping).abs() <= most, || format!("{ours:.3} ms and {ping:.3} ms are more than {most:.3} ms apart"));
    row.found(format!("{ours:.3} ms"), format!("{ping:.3} ms, {fping:.3} ms"))
}

fn our_times(report: &Value) -> Vec<f64> {
    report["packets"].as_array().into_iter().flatten().filter_map(|packet| packet["rtt_ms"].as_f64()).collect()
}

/// `64 bytes from 10.78.0.1: icmp_seq=1 ttl=59 time=24.8 ms`, with three digits in all.
fn ping_times(said: &str) -> Vec<f64> {
    said.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok()).collect()
}

/// `10.78.0.1 : 24.81 24.80 …`, on standard error.
fn fping_times(said: &str) -> Vec<f64> {
    said.lines()
        .filter_map(|line| line.split_once(" : "))
        .flat_map(|(_, times)| times.split(' '))
        .filter_map(|time| time.parse().ok())
        .collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}
