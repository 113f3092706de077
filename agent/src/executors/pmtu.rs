//! `pmtu`: packets that must not be fragmented, larger and smaller, until the largest that arrives is known; and where larger ones vanish without
//! a word, smaller and larger ones that die on the way, until it is known where.

mod location;
mod search;

use probeops_shared::host::Host;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::pmtu::{
    LOCATION_MAX, PROBE_INTERVAL, Pmtu, PmtuProbe, PmtuProbeStatus, PmtuProgress, PmtuProtocol, PmtuReport, PmtuVerdict,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep_until, timeout};

use crate::executors::{Context, Live, broken};
use crate::net::pmtu::{Carrier, Fate, Prober};

use location::{Heard, Location, Size};
use search::{Answer, Search};

pub(super) async fn run(context: &Context, target: &Host, options: &Pmtu, live: &Live) -> Result<PmtuReport, Failure> {
    let carrier = carrier(options);
    let port = match carrier {
        Carrier::Icmp => None,
        Carrier::Udp { port } => Some(port),
    };
    if matches!(carrier, Carrier::Icmp) && !Prober::may_use_icmp() {
        let detail = "this node may open no ICMP socket (net.ipv4.ping_group_range); leave `protocol` out, and it probes over UDP";
        return Err(Failure::new(FailureKind::Unsupported, detail));
    }
    let reached = context.reach(target, port, options.family).await?;
    let address = reached.address;
    let protocol = if port.is_some() { PmtuProtocol::Udp } else { PmtuProtocol::Icmp };
    let prober = Prober::open(address, carrier);
    let prober = prober.map_err(|error| broken(ToolName::Pmtu, "open a socket for packets that must not be fragmented", &error))?;
    live.tell(options, target, &PmtuProgress::Resolved { resolved: reached.resolved(), protocol });
    let report = PmtuReport {
        address,
        family: Family::of(address),
        resolve_ms: reached.resolve_ms,
        protocol,
        mtu_bytes: None,
        verdict: PmtuVerdict::Silent,
        limited_by: None,
        black_hole: None,
        interface_mtu_bytes: None,
        probes: Vec::new(),
    };
    let mut pace = tokio::time::interval(PROBE_INTERVAL);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut run = Run { context, target, options, live, prober, pace, report };
    run.search().await?;
    if let (PmtuVerdict::BlackHole, Some(arrives)) = (run.report.verdict, run.report.mtu_bytes) {
        // Whatever is known when time is over is in the report.
        timeout(LOCATION_MAX, run.locate(arrives)).await.unwrap_or(Ok(()))?;
    }
    Ok(run.report)
}

struct Run<'a> {
    context: &'a Context,
    target: &'a Host,
    options: &'a Pmtu,
    live: &'a Live,
    prober: Prober,
    pace: Interval,
    report: PmtuReport,
}

impl Run<'_> {
    /// Looks for the largest size that arrives.
    async fn search(&mut self) -> Result<(), Failure> {
        let ceiling = u16::try_from(self.options.max_bytes.get()).unwrap_or(u16::MAX);
        let mut search = Search::new(Pmtu::floor(self.report.address), ceiling);
        while let Some(size) = search.next() {
            for attempt in 1..=self.options.tries.get() {
                let (probe, answer) = self.probe(size).await?;
                match answer {
                    Some(Answer::Silence) if attempt < self.options.tries.get() => {}
                    Some(answer) => search.learn(size, answer),
                    None => self.report.verdict = PmtuVerdict::Unreachable,
                }
                if let Some(Answer::Interface { mtu }) = answer {
                    self.report.interface_mtu_bytes = Some(mtu);
                }
                if answer.is_some() {
                    (self.report.mtu_bytes, self.report.verdict, self.report.limited_by) = search.verdict();
                }
                self.note(probe);
                match answer {
                    None => return Ok(()),
                    Some(Answer::Silence) => {}
                    Some(_) => break,
                }
            }
        }
        Ok(())
    }

    /// Looks for the hop behind which what is larger than `arrives` vanishes.
    async fn locate(&mut self, arrives: u16) -> Result<(), Failure> {
        let family = self.report.family;
        let mut location = Location::new(self.options.tries.get());
        self.report.black_hole = Some(location.hole());
        while let Some((ttl, size)) = location.next() {
            // To routers these are probes of a trace.
            sleep_until(Instant::from_std(self.context.node.pacer.turns(std::time::Instant::now(), 1))).await;
            self.prober.limit(ttl).map_err(|error| broken(ToolName::Pmtu, "have a packet die on the way", &error))?;
            let bytes = if size == Size::Vanishes { arrives + 1 } else { arrives };
            let (probe, _) = self.probe(bytes).await?;
            let probe = PmtuProbe { ttl: Some(ttl), ..probe };
            let from = probe.icmp.as_ref().and_then(|icmp| icmp.from);
            let heard = match (probe.status, size, from) {
                (PmtuProbeStatus::Expired, _, Some(from)) => Some(Heard::Answer(from)),
                (PmtuProbeStatus::Reply, Size::Arrives, _) => Some(Heard::Answer(self.report.address)),
                (PmtuProbeStatus::Timeout, ..) => Some(Heard::Silence),
                // It does not vanish after all: the path has changed, or the hop had said so too often before.
                (PmtuProbeStatus::TooBig, Size::Vanishes, from) => {
                    (self.report.verdict, self.report.limited_by, self.report.black_hole) = (PmtuVerdict::Hop, from, None);
                    None
                }
                _ => None,
            };
            if let Some(heard) = heard {
                if matches!(heard, Heard::Answer(_)) {
                    self.context.node.pacer.answered(family, ttl);
                }
                location.learn(heard);
                self.report.black_hole = Some(location.hole());
            }
            self.note(probe);
            if heard.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// What becomes of a packet of this size.
    async fn probe(&mut self, size: u16) -> Result<(PmtuProbe, Option<Answer>), Failure> {
        self.pace.tick().await;
        let fate = self.prober.probe(size, self.options.timeout.duration()).await;
        Ok(judge(size, fate.map_err(|error| broken(ToolName::Pmtu, "send a packet that must not be fragmented", &error))?))
    }

    fn note(&mut self, probe: PmtuProbe) {
        self.report.probes.push(probe.clone());
        self.live.set(self.options, self.target, self.report.clone());
        self.live.tell(self.options, self.target, &PmtuProgress::Probe(probe));
    }
}

/// What to send: ICMP wherever the system lets this process, unless told otherwise.
fn carrier(options: &Pmtu) -> Carrier {
    let udp = Carrier::Udp { port: options.port.get_u16() };
    match options.protocol {
        PmtuProtocol::Icmp => Carrier::Icmp,
        PmtuProtocol::Auto if Prober::may_use_icmp() => Carrier::Icmp,
        PmtuProtocol::Udp | PmtuProtocol::Auto => udp,
    }
}

/// What a probe tells of its size; nothing, if it did not get far enough to tell.
fn judge(size: u16, fate: Fate) -> (PmtuProbe, Option<Answer>) {
    let probe = PmtuProbe { size_bytes: size, ..PmtuProbe::default() };
    match fate {
        Fate::Arrived { took } => (PmtuProbe { status: PmtuProbeStatus::Reply, rtt_ms: Some(ms(took)), ..probe }, Some(Answer::Arrived)),
        Fate::TooBig { icmp, took } => {
            let mtu = icmp.mtu_bytes.and_then(|mtu_bytes| u16::try_from(mtu_bytes).ok());
            let answer = Answer::TooBig { from: icmp.from, mtu };
            let status = PmtuProbeStatus::TooBig;
            (PmtuProbe { status, rtt_ms: Some(ms(took)), mtu_bytes: mtu, icmp: Some(icmp), ..probe }, Some(answer))
        }
        Fate::NotSent { mtu } => {
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            (PmtuProbe { status: PmtuProbeStatus::NotSent, mtu_bytes: Some(mtu), ..probe }, Some(Answer::Interface { mtu }))
        }
        Fate::Expired { icmp, took } => {
            (PmtuProbe { status: PmtuProbeStatus::Expired, rtt_ms: Some(ms(took)), icmp: Some(icmp), ..probe }, None)
        }
        Fate::Unreachable { icmp, reason } => {
            (PmtuProbe { status: PmtuProbeStatus::Unreachable, icmp, reason: Some(reason), ..probe }, None)
        }
        Fate::Silent => (probe, Some(Answer::Silence)),
    }
}
