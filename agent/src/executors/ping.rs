//! `ping`: requests leave on the interval, answered or not.

mod icmp;
mod tcp;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use probeops_shared::host::Host;
use probeops_shared::outcome::Failure;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::ping::report::{DUPLICATES_TOLD_MAX, IcmpEngine, PingDuplicate, PingMethod, PingPacket, PingReport, PingStats};
use probeops_shared::tools::ping::{Ping, PingProgress, PingProtocol};
use tokio::time::{Interval, MissedTickBehavior};

use crate::executors::reach::{self, Reached};
use crate::executors::{Context, Live};

pub(super) async fn run(context: &Context, target: &Host, options: &Ping, live: &Live) -> Result<PingReport, Failure> {
    let source = reach::source(options.source)?;
    let family = options.family.from_source(options.source);
    let reached = context.reach(target, options.port(), family).await?;
    let run = Run {
        target,
        options,
        live,
        reached,
        source,
        method: PingMethod::TcpConnect,
        engine: None,
        started: Instant::now(),
        sending: Duration::ZERO,
        packets: Vec::new(),
        duplicates: 0,
    };
    match options.protocol {
        PingProtocol::Icmp => icmp::run(context, run).await,
        PingProtocol::Tcp => Ok(tcp::run(run).await),
    }
}

/// A run so far.
struct Run<'a> {
    target: &'a Host,
    options: &'a Ping,
    live: &'a Live,
    reached: Reached,
    source: Option<IpAddr>,
    method: PingMethod,
    engine: Option<IcmpEngine>,
    started: Instant,
    /// How long after that the last request left.
    sending: Duration,
    /// In the order of their answers.
    packets: Vec<PingPacket>,
    duplicates: usize,
}

impl Run<'_> {
    /// Tells who is pinged.
    fn begin(&mut self, method: PingMethod) {
        (self.method, self.started) = (method, Instant::now());
        self.tell(&PingProgress::Resolved(self.reached.resolved()));
        self.keep();
    }

    /// When requests are due.
    fn interval(&self) -> Interval {
        let mut interval = tokio::time::interval(self.options.interval_ms.ms());
        // A request that left late does not make the next one leave early.
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    }

    /// Notes what became of a request.
    fn note(&mut self, packet: PingPacket) {
        self.tell(&PingProgress::Packet(packet.clone()));
        self.packets.push(packet);
        self.keep();
    }

    /// Notes a further reply.
    fn note_duplicate(&mut self, duplicate: PingDuplicate) {
        self.duplicates += 1;
        let Some(packet) = self.packets.iter_mut().find(|packet| packet.seq == duplicate.seq) else { return };
        if packet.duplicates.len() < DUPLICATES_TOLD_MAX {
            packet.duplicates.push(duplicate.clone());
            self.tell(&PingProgress::Duplicate(duplicate));
        }
        self.keep();
    }

    /// Notes a reply to a request that was given up; `of` completes what is known of it.
    fn note_late(&mut self, seq: u64, of: impl FnOnce(PingPacket) -> PingPacket) {
        let Some(packet) = self.packets.iter_mut().find(|packet| packet.seq == seq) else { return };
        *packet = of(std::mem::take(packet));
        let packet = packet.clone();
        self.tell(&PingProgress::Late(packet));
        self.keep();
    }

    fn tell(&self, progress: &PingProgress) {
        self.live.tell(self.options, self.target, progress);
    }

    fn keep(&self) {
        self.live.set(self.options, self.target, self.report());
    }

    fn report(&self) -> PingReport {
        let duplicates = (self.engine != Some(IcmpEngine::Surge)).then_some(self.duplicates);
        let stats = PingStats::of(&self.packets, duplicates, ms(self.sending), ms(self.started.elapsed()));
        let mut packets = self.packets.clone();
        packets.sort_unstable_by_key(|packet| packet.seq);
        PingReport {
            address: self.reached.address,
            family: Family::of(self.reached.address),
            resolve_ms: self.reached.resolve_ms,
            method: self.method,
            engine: self.engine,
            port: self.options.port(),
            payload_bytes: self.options.payload_bytes(),
            stats,
            packets,
        }
    }
}
