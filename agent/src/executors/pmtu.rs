//! `pmtu`: packets that must not be fragmented, larger and smaller, until the largest that arrives is known.

mod search;

use probeops_shared::host::Host;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::pmtu::{PROBE_INTERVAL, Pmtu, PmtuProbe, PmtuProbeStatus, PmtuProgress, PmtuProtocol, PmtuReport, PmtuVerdict};
use tokio::time::MissedTickBehavior;

use crate::executors::{Context, Live, broken};
use crate::net::pmtu::{Carrier, Fate, Prober};

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
    let mut prober = prober.map_err(|error| broken(ToolName::Pmtu, "open a socket for packets that must not be fragmented", &error))?;
    live.tell(options, target, &PmtuProgress::Resolved { resolved: reached.resolved(), protocol });
    let mut report = PmtuReport {
        address,
        family: Family::of(address),
        resolve_ms: reached.resolve_ms,
        protocol,
        mtu_bytes: None,
        verdict: PmtuVerdict::Silent,
        limited_by: None,
        interface_mtu_bytes: None,
        probes: Vec::new(),
    };
    let mut search = Search::new(Pmtu::floor(address), u16::try_from(options.max_bytes.get()).unwrap_or(u16::MAX));
    let mut pace = tokio::time::interval(PROBE_INTERVAL);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while let Some(size) = search.next() {
        for attempt in 1..=options.tries.get() {
            pace.tick().await;
            let fate = prober.probe(size, options.timeout.duration()).await;
            let fate = fate.map_err(|error| broken(ToolName::Pmtu, "send a packet that must not be fragmented", &error))?;
            let (probe, answer) = judge(size, fate);
            report.probes.push(probe.clone());
            match answer {
                Some(Answer::Silence) if attempt < options.tries.get() => {}
                Some(answer) => search.learn(size, answer),
                None => {
                    report.verdict = PmtuVerdict::Unreachable;
                }
            }
            if let Some(Answer::Interface { mtu }) = answer {
                report.interface_mtu_bytes = Some(mtu);
            }
            if answer.is_some() {
                (report.mtu_bytes, report.verdict, report.limited_by) = search.verdict();
            }
            live.set(options, target, report.clone());
            live.tell(options, target, &PmtuProgress::Probe(probe));
            match answer {
                None => return Ok(report),
                Some(Answer::Silence) => {}
                Some(_) => break,
            }
        }
    }
    Ok(report)
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
        Fate::Unreachable { icmp, reason } => {
            (PmtuProbe { status: PmtuProbeStatus::Unreachable, icmp, reason: Some(reason), ..probe }, None)
        }
        Fate::Silent => (probe, Some(Answer::Silence)),
    }
}
