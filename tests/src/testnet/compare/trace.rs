//! `traceroute` and `mtr` beside their namesakes: the same hops.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;

use super::super::reference::{both, each, says};
use super::super::table::Row;
use super::super::{Asker, Testnet};
use super::{HOST, HOST_V6, entries};

/// The hop of the equal pair, the silent one, and the one that limits how often it answers.
const PAIR: usize = 2;
const SILENT: usize = 3;
const LIMITED: usize = 4;
/// All hops, the target too.
const HOPS: usize = 6;
/// Both routers of the pair.
const BOTH: [&str; 2] = ["10.77.1.2", "10.77.21.2"];
/// After this the limited router answers six times at once again.
const RECOVERY: Duration = Duration::from_millis(700);

/// Who answered at a hop, how many packets were sent to it, and how many were not answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Hop {
    from: BTreeSet<IpAddr>,
    pub(super) sent: usize,
    pub(super) lost: usize,
}

/// The hops as traceroute(8) prints them; ours reads like it.
fn printed(text: &str) -> Vec<Hop> {
    let hop = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first()?.parse::<usize>().ok()?;
        let from = words.iter().filter_map(|word| word.parse().ok()).collect();
        let lost = words.iter().filter(|word| **word == "*").count();
        Some(Hop { from, lost, sent: lost + words.iter().filter(|word| **word == "ms").count() })
    };
    text.lines().filter_map(hop).collect()
}

/// The hops as mtr(8) prints them in a report; further addresses of a hop have lines of their own.
pub(super) fn watched(text: &str) -> Vec<Hop> {
    let mut hops: Vec<Hop> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first().is_some_and(|word| word.ends_with(".|--")) {
            let number = |at: usize| words.get(at).and_then(|word: &&str| word.trim_end_matches('%').parse::<f64>().ok()).unwrap_or(-1.0);
            let (share, packets) = (number(2) / 100.0, number(3));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of packets")]
            let (sent, lost) = (packets as usize, (share * packets).round() as usize);
            hops.push(Hop { from: words.get(1).and_then(|word| word.parse().ok()).into_iter().collect(), sent, lost });
        } else if let (Some(hop), [address]) = (hops.last_mut(), words.as_slice()) {
            hop.from.extend(address.parse::<IpAddr>());
        }
    }
    hops
}

/// Every hop of each protocol over each version of IP, the silent one too.
pub(super) fn hops(_: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("hops, ICMP, UDP and TCP over IPv4 and IPv6, one silent, one limited, two equal", "traceroute");
    let (mut of_ours, mut of_theirs) = (0, 0);
    for (protocol, flags) in [("icmp", &["-I"][..]), ("udp", &["-U", "-p", "33434"]), ("tcp", &["-T"])] {
        std::thread::sleep(RECOVERY);
        let traces = each(&[HOST, HOST_V6], |target| {
            // By itself it waits three times as long as for the answer before, which on a busy machine is too short.
            let arguments = [&["-n", "-w", "2,9999,9999"], flags, &[target]].concat();
            both(|| asker.ask("traceroute", target, &json!({"protocol": protocol})).1, || says("traceroute", &arguments))
        });
        for (output, said) in traces {
            let (mut ours, mut theirs) = (printed(&output), printed(&said));
            let known = |hops: &[Hop]| hops.iter().filter(|hop| !hop.from.is_empty()).count();
            (of_ours, of_theirs) = (of_ours + known(&ours), of_theirs + known(&theirs));
            for hops in [&mut ours, &mut theirs].into_iter().filter(|hops| hops.len() == HOPS) {
                // How often it answers each of the two depends on who comes first.
                (hops[LIMITED - 1].sent, hops[LIMITED - 1].lost) = (0, 0);
                if protocol != "icmp" {
                    // Which of the pair it is depends on the ports.
                    hops[PAIR - 1].from.clear();
                }
            }
            row.same(format!("{protocol}\n{output}\n{said}"), &ours, &theirs);
            let silent = ours.get(SILENT - 1).is_some_and(|hop| hop.from.is_empty() && hop.lost == 3);
            row.check(ours.len() == HOPS && silent, || format!("{protocol}: another path\n{output}"));
        }
    }
    row.found(format!("{of_ours} routers and hosts"), of_theirs)
}

/// Both routers of the equal pair: 2 x 16 flows here and 4 x 10 there miss one once in two thousand million times.
pub(super) fn equal_paths(_: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("the two routers of the equal pair", "traceroute");
    let ours = || {
        let options = json!({"protocol": "udp", "first_ttl": 2, "max_ttl": 2, "queries": 16, "flows": 16});
        each(&[(); 2], |()| asker.ask("traceroute", HOST, &options).1)
    };
    let theirs = || each(&[(); 4], |()| says("traceroute", &["-n", "-U", "-f", "2", "-m", "2", "-q", "10", HOST]));
    let (ours, theirs) = both(ours, theirs);
    let routers = |texts: &[String]| texts.iter().flat_map(|text| printed(text)).flat_map(|hop| hop.from).collect::<BTreeSet<_>>();
    let (found, said) = (routers(&ours), routers(&theirs));
    row.same("equal paths", &found, &said);
    row.same("equal paths", &found, &pair());
    row.found(found.len(), said.len())
}

/// Round by round at a rate that no router minds: nothing is lost anywhere, except at the silent one.
pub(super) fn watched_hops(_: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("hops, packets and loss of each, 10 rounds over IPv4 and IPv6", "mtr");
    let mut sums = [0; 2];
    let options = json!({"rounds": 10, "interval_ms": 500, "timeout": 2});
    let runs = each(&[HOST, HOST_V6], |target| {
        let theirs = || says("mtr", &["-r", "-n", "-c", "10", "-i", "0.5", "-G", "2", target]);
        both(|| asker.ask("mtr", target, &options).1, theirs)
    });
    for (output, said) in runs {
        let (ours, theirs) = (watched(&output), watched(&said));
        row.same(format!("{output}\n{said}"), &ours, &theirs);
        let lost: Vec<usize> = ours.iter().map(|hop| hop.lost).collect();
        row.check(lost == [0, 0, 10, 0, 0, 0], || format!("lost {lost:?}\n{output}"));
        for (sum, hops) in sums.iter_mut().zip([&ours, &theirs]) {
            *sum += hops.iter().map(|hop| hop.sent - hop.lost).sum::<usize>();
        }
    }
    row.found(format!("{} answers", sums[0]), sums[1])
}

/// Asked more often than it answers, the limited router seems to lose packets, and nobody behind it does.
pub(super) fn limited(_: &Testnet, asker: &Asker) -> Row {
    const ROUNDS: usize = 30;
    let mut row = Row::new("a router that answers too seldom is no loss; both of the equal pair", "mtr");
    let options = json!({"protocol": "udp", "rounds": ROUNDS, "flows": ROUNDS, "interval_ms": 200, "timeout": 2});
    let theirs = || says("mtr", &["-r", "-n", "-u", "-c", "60", "-i", "0.1", "-G", "2", HOST]);
    let ((report, output), said) = both(|| asker.ask("mtr", HOST, &options), theirs);
    let (ours, theirs) = (watched(&output), watched(&said));
    row.same(format!("who is at each hop\n{output}\n{said}"), &addresses(&ours), &addresses(&theirs));
    row.check(ours.get(PAIR - 1).is_some_and(|hop| hop.from == pair()), || format!("not both of the pair:\n{output}"));
    let unanswered = |hops: &[Hop]| hops.get(LIMITED - 1).map_or(0, |hop| hop.lost);
    let behind = |hops: &[Hop]| hops.iter().skip(LIMITED).map(|hop| hop.lost).sum::<usize>();
    row.same("lost behind it", &behind(&ours), &behind(&theirs));
    row.check(behind(&ours) == 0 && unanswered(&ours) + unanswered(&theirs) > 0, || format!("limited:\n{output}\n{said}"));
    let said_so = entries(&report, "hops").get(LIMITED - 1).is_some_and(|hop| hop["limited"] == json!(unanswered(&ours) > 0));
    row.check(said_so, || format!("`limited` is not said: {report}"));
    row.found(format!("{} unanswered, 0 lost behind", unanswered(&ours)), format!("{}, 0", unanswered(&theirs)))
}

/// The equal pair.
fn pair() -> BTreeSet<IpAddr> {
    BOTH.iter().filter_map(|router| router.parse().ok()).collect()
}

fn addresses(hops: &[Hop]) -> Vec<BTreeSet<IpAddr>> {
    hops.iter().map(|hop| hop.from.clone()).collect()
}
