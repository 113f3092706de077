//! What mtr finds.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;
use crate::tools::network::{Family, IcmpMessage, MplsLabel};
use crate::tools::trace::{ProbeStatus, TraceEnd, TraceFlow, TraceMethod, TraceProbe};

/// How many single round trips a report tells: a hundred rounds over 128 hops, in some 100 KiB.
const RTTS_TOLD_MAX: usize = 12_800;

/// The way to a host, watched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MtrReport {
    /// When it began.
    pub started_at: Timestamp,
    /// The address that was traced.
    pub address: IpAddr,
    /// Its family.
    pub family: Family,
    /// How long the name took to resolve, in milliseconds; absent for a literal address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve_ms: Option<f64>,
    /// With which kind of socket.
    pub method: TraceMethod,
    /// The port; absent for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The size of each packet, headers included.
    pub packet_bytes: u64,
    /// Whether all packets of a flow take one of several equal paths.
    pub flow: TraceFlow,
    /// How many rounds have begun.
    pub rounds: usize,
    /// Why no further hop was asked.
    pub end: TraceEnd,
    /// How much of what was sent to the target was lost, in per cent: the loss of the path. Absent where the target never answered. The loss of
    /// a hop on the way is only how often that router did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_pct: Option<f64>,
    /// The hops, nearest first.
    pub hops: Vec<MtrHop>,
    /// From the first packet until the last was answered or given up, in milliseconds.
    pub elapsed_ms: f64,
}

/// A hop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MtrHop {
    /// How many routers away it is.
    pub ttl: u8,
    /// Who answered; the first is who did so first.
    pub addresses: Vec<MtrAddress>,
    /// How many packets were answered or given up; those that are still under way when a run is cut short are not counted.
    pub sent: usize,
    /// How many were answered.
    pub received: usize,
    /// How many were not, in per cent; absent when none was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_pct: Option<f64>,
    /// Whether this loss is the router's own, who does not answer all that he is asked: what is sent through him to the hops behind is not lost.
    pub limited: bool,
    /// The round trip of the last answer, in milliseconds; this and the next four are absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<f64>,
    /// The mean round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avg_ms: Option<f64>,
    /// The shortest round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_ms: Option<f64>,
    /// The longest round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst_ms: Option<f64>,
    /// The standard deviation of the round trips, in milliseconds, as mtr(8) has it: that of a sample; 0 for a single answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdev_ms: Option<f64>,
    /// The mean difference between one round trip and the next, in milliseconds; absent with fewer than two answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<f64>,
    /// The least such difference, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_min_ms: Option<f64>,
    /// The greatest such difference, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_max_ms: Option<f64>,
    /// The round trip of each packet that counts as sent, in milliseconds and in the order of the rounds, null where it was not answered. Empty
    /// where none was, while a run goes on (`last_ms` has what is new), and where there are more than 12,800 of them in a report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rtts_ms: Vec<Option<f64>>,
    /// The ICMP error that ends the path here; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMessage>,
    /// Why the node could not send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Who answered at a hop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MtrAddress {
    /// The address.
    pub address: IpAddr,
    /// Its name, if that was asked for and it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The numbers of the autonomous systems that announce the longest prefix that it is in, if that was asked for and is known; seldom more
    /// than one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asn: Vec<u32>,
    /// How many answers came from it.
    pub received: usize,
    /// The MPLS labels that the last packet bore there, outermost first, where the router says so (RFC 4950).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mpls: Vec<MplsLabel>,
}

impl MtrHop {
    /// Adds up what became of the packets to a hop, in the order of the rounds.
    pub fn of<'a>(ttl: u8, probes: impl Iterator<Item = &'a TraceProbe>) -> Self {
        let mut hop = Self { ttl, ..Self::default() };
        let mut rtts: Vec<f64> = Vec::new();
        for probe in probes {
            match probe.status {
                ProbeStatus::Answered => {
                    hop.sent += 1;
                    hop.rtts_ms.push(probe.rtt_ms);
                    rtts.extend(probe.rtt_ms);
                    hop.note(probe);
                }
                ProbeStatus::Silent => {
                    hop.sent += 1;
                    hop.rtts_ms.push(None);
                }
                ProbeStatus::Error => hop.error.clone_from(&probe.error),
            }
        }
        hop.received = rtts.len();
        let mean =
            |of: &dyn Fn(f64) -> f64, count: usize| (count > 0).then(|| rtts.iter().map(|rtt| of(*rtt)).sum::<f64>() / number(count));
        let avg = mean(&|rtt| rtt, rtts.len());
        let variance = avg.and_then(|avg| mean(&|rtt| (rtt - avg).powi(2), rtts.len().saturating_sub(1)));
        let differences: Vec<f64> = rtts.iter().zip(rtts.iter().skip(1)).map(|(one, next)| (next - one).abs()).collect();
        hop.loss_pct = (hop.sent > 0).then(|| rounded(100.0 * number(hop.sent - hop.received) / number(hop.sent)));
        hop.last_ms = rtts.last().copied();
        hop.avg_ms = avg.map(rounded);
        hop.best_ms = rtts.iter().copied().reduce(f64::min);
        hop.worst_ms = rtts.iter().copied().reduce(f64::max);
        hop.stdev_ms = avg.map(|_| rounded(variance.unwrap_or_default().sqrt()));
        hop.jitter_ms = (!differences.is_empty()).then(|| rounded(differences.iter().sum::<f64>() / number(differences.len())));
        hop.jitter_min_ms = differences.iter().copied().reduce(f64::min).map(rounded);
        hop.jitter_max_ms = differences.iter().copied().reduce(f64::max).map(rounded);
        if rtts.is_empty() {
            hop.rtts_ms.clear();
        }
        hop
    }

    fn note(&mut self, probe: &TraceProbe) {
        if probe.icmp.is_some() {
            self.icmp.clone_from(&probe.icmp);
        }
        let Some(address) = probe.from else { return };
        match self.addresses.iter_mut().find(|known| known.address == address) {
            Some(known) => {
                known.received += 1;
                known.mpls.clone_from(&probe.mpls);
            }
            None => self.addresses.push(MtrAddress { address, name: None, asn: Vec::new(), received: 1, mpls: probe.mpls.clone() }),
        }
    }
}

/// Leaves the single round trips out where they are so many that an outcome might have no room for them.
pub fn limit_rtts(hops: &mut [MtrHop]) {
    if hops.iter().map(|hop| hop.rtts_ms.len()).sum::<usize>() > RTTS_TOLD_MAX {
        forget_rtts(hops);
    }
}

/// Leaves the single round trips out.
pub fn forget_rtts(hops: &mut [MtrHop]) {
    for hop in hops {
        hop.rtts_ms = Vec::new();
    }
}

/// Says of each hop whether its loss is its own: a hop behind it has less. What is lost on the path is missing at all hops behind.
pub fn judge_loss(hops: &mut [MtrHop]) {
    let mut least_behind = f64::INFINITY;
    for hop in hops.iter_mut().rev() {
        let Some(loss_pct) = hop.loss_pct else { continue };
        hop.limited = loss_pct > least_behind;
        least_behind = least_behind.min(loss_pct);
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most a hundred rounds")]
fn number(count: usize) -> f64 {
    count as f64
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
