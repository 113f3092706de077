//! How far a reported round trip is from that on the wire, by a capture on the interface.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::asker::{Job, address};
use super::yard::{self, Held};
use super::{Site, ping, timed, web};

/// How many checks of a web page the agent makes meanwhile, at once, where it is busy.
const CHECKS: usize = 8;
/// A file of pcap with nanoseconds begins with this, and with so many bytes before the first packet; each packet has so many before it.
const PCAP_NANOSECONDS: u32 = 0xa1b2_3c4d;
const PCAP_HEADER_BYTES: usize = 24;
const PACKET_HEADER_BYTES: usize = 16;
/// Of each packet as much is kept: Ethernet, IPv4 and ICMP.
const SNAPPED_BYTES: &str = "64";
const ETHERNET_BYTES: usize = 14;

pub(super) fn measure(site: &mut Site) -> anyhow::Result<()> {
    // So many targets, and so many packets to each, one a second.
    let (count, packets) = site.scale.of((1_000, 10), (100, 2));
    let targets: Vec<String> = (0..count).map(address).collect();
    let list = site.file("targets", &targets.join("\n"));
    let jobs = ping::jobs(&targets, &json!({"count": packets, "interval_ms": 1000, "timeout": 2}));

    let capture = Capture::start(site)?;
    let (said, ..) = timed(Command::new("fping").args(["-c", &packets.to_string(), "-p", "1000", "-i", "0.9", "-t", "2000", "-f", &list]))?;
    report("fping", capture.end()?.errors(fping(&said)), (count, packets))?;

    let capture = Capture::start(site)?;
    let outcomes = site.fabric.block_on(site.asker.all(&jobs, Duration::from_secs(1)))?;
    report("ProbeOps", capture.end()?.errors(ours(&outcomes)), (count, packets))?;

    let server = web::serve(site, web::Scheme::Http)?;
    let capture = Capture::start(site)?;
    let others: Vec<Job> = (0..CHECKS).map(|index| server.check(&address(index), "/1k")).collect();
    let (outcomes, checks) = site.fabric.block_on(site.asker.beside(&jobs, Duration::from_secs(1), &others))?;
    report(&format!("ProbeOps, busy with {checks} web checks"), capture.end()?.errors(ours(&outcomes)), (count, packets))
}

fn report(who: &str, mut errors: Vec<f64>, (targets, packets): (usize, usize)) -> anyhow::Result<()> {
    ensure!(errors.len() == targets * packets, "{who}: {} of {} round trips are in the capture", errors.len(), targets * packets);
    errors.sort_by(f64::total_cmp);
    let at = |hundredth: usize| errors.get((errors.len() - 1) * hundredth / 100).copied().unwrap_or_default();
    println!("  round trip minus that on the wire, {targets} targets: p50 {:.0} \u{b5}s, p99 {:.0} \u{b5}s ({who})", at(50), at(99));
    Ok(())
}

/// Round trips as reported: whom, which packet from 0, microseconds.
type Told = Vec<(Ipv4Addr, usize, f64)>;

fn ours(outcomes: &[Value]) -> Told {
    let packets = outcomes.iter().filter_map(|outcome| outcome["report"]["packets"].as_array()).flatten();
    let told = packets.filter_map(|packet| {
        let seq = usize::try_from(packet["seq"].as_u64()?).ok()?;
        Some((packet["from"].as_str()?.parse().ok()?, seq - 1, packet["rtt_ms"].as_f64()? * 1000.0))
    });
    told.collect()
}

/// `10.78.0.1 : [0], 64 bytes, 0.051 ms (0.051 avg, 0% loss)`
fn fping(said: &str) -> Told {
    let line = |line: &str| {
        let (address, rest) = line.split_once(':')?;
        let (seq, rest) = rest.split_once('[')?.1.split_once(']')?;
        let rtt_ms: f64 = rest.split_once("bytes,")?.1.split_once("ms")?.0.trim().parse().ok()?;
        Some((address.trim().parse().ok()?, seq.parse().ok()?, rtt_ms * 1000.0))
    };
    said.lines().filter_map(line).collect()
}

/// A capture that goes on.
struct Capture {
    tcpdump: Held,
    file: String,
}

impl Capture {
    fn start(site: &Site) -> anyhow::Result<Self> {
        let (file, log) = (site.file("capture", ""), site.file("tcpdump.log", ""));
        let mut command = Command::new("tcpdump");
        command.args(["-i", "eth0", "-nn", "-s", SNAPPED_BYTES, "-B", "32768", "--time-stamp-precision=nano", "-Z", "root", "-w", &file]);
        command.args(["icmp[0] == 8 or icmp[0] == 0"]).stderr(std::fs::File::create(&log)?);
        let tcpdump = Held::keeping_its_words(command)?;
        yard::wait_until("tcpdump listens", || std::fs::read_to_string(&log).is_ok_and(|said| said.contains("listening on")))?;
        Ok(Self { tcpdump, file })
    }

    fn end(self) -> anyhow::Result<Wire> {
        // It is given packets by the block, a second after the first of one at the latest.
        std::thread::sleep(Duration::from_millis(1_500));
        self.tcpdump.stop()?;
        Wire::read(Path::new(&self.file))
    }
}

/// Round trips as they were on the wire, in nanoseconds, by whom and in their order.
struct Wire(HashMap<Ipv4Addr, Vec<Option<u64>>>);

impl Wire {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(file)?;
        let number = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes);
        ensure!(number(0) == Some(PCAP_NANOSECONDS), "tcpdump has written something else");
        let (mut at, mut requests, mut trips) = (PCAP_HEADER_BYTES, HashMap::new(), HashMap::<_, Vec<_>>::new());
        while let (Some(seconds), Some(nanoseconds), Some(length)) = (number(at), number(at + 4), number(at + 8)) {
            let time = u64::from(seconds) * 1_000_000_000 + u64::from(nanoseconds);
            let begin = at + PACKET_HEADER_BYTES;
            at = begin + usize::try_from(length)?;
            let packet = bytes.get(begin + ETHERNET_BYTES..at).context("a packet is cut")?;
            let [_, _, _, _, _, _, _, _, _, _, _, _, s1, s2, s3, s4, d1, d2, d3, d4, kind, _, _, _, i1, i2, n1, n2, ..] = *packet else {
                continue;
            };
            let (from, to, name) = (Ipv4Addr::new(s1, s2, s3, s4), Ipv4Addr::new(d1, d2, d3, d4), [i1, i2, n1, n2]);
            if kind == 8 {
                let of_target = trips.entry(to).or_default();
                requests.insert((to, name), (time, of_target.len()));
                of_target.push(None);
            } else if let Some((sent, place)) = requests.remove(&(from, name))
                && let Some(trip) = trips.get_mut(&from).and_then(|of_target| of_target.get_mut(place))
            {
                *trip = Some(time - sent);
            }
        }
        Ok(Self(trips))
    }

    /// By how many microseconds what was reported is longer.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a round trip")]
    fn errors(&self, told: Told) -> Vec<f64> {
        let error = |(address, seq, micros): (Ipv4Addr, usize, f64)| {
            let trip = (*self.0.get(&address)?.get(seq)?)?;
            Some(micros - trip as f64 / 1000.0)
        };
        told.into_iter().filter_map(error).collect()
    }
}
