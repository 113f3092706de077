//! `ping`: requests leave on the interval, answered or not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use probeops_shared::host::Host;
use probeops_shared::outcome::Failure;
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::ping::{PacketStatus, Ping, PingPacket, PingProgress, PingReport, PingStats};
use tokio::time::MissedTickBehavior;

use crate::executors::reach::Reached;
use crate::executors::{Context, Found, Live, broken};
use crate::net::icmp::{Echo, IcmpSocket};

pub(super) async fn run(context: &Context, target: &Host, options: &Ping, live: &Live) -> Result<PingReport, Failure> {
    let reached = context.reach(target, None, options.family).await?;
    let ttl = options.ttl.and_then(|ttl| u8::try_from(ttl.get()).ok());
    let socket = context.node.icmp.socket(reached.address, ttl);
    let socket = socket.map_err(|error| broken(ToolName::Ping, "open an ICMP socket", &error))?;
    live.tell(options, target, &PingProgress::Resolved(reached.resolved()));
    let mut progress =
        Progress { reached, options, socket: &socket, started: Instant::now(), sending: Duration::ZERO, packets: Vec::new() };
    live.set(Found::of(options, target, &progress.report()));
    let payload: Arc<[u8]> = (0..=u8::MAX).cycle().take(options.payload_bytes.get_usize()).collect();
    let mut interval = tokio::time::interval(options.interval_ms.ms());
    // A request that left late does not make the next one leave early.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way = FuturesUnordered::new();
    let mut left = 1..=options.count.get();
    loop {
        tokio::select! {
            Some(packet) = under_way.next() => {
                let packet: PingPacket = packet;
                live.tell(options, target, &PingProgress::Packet(packet.clone()));
                progress.packets.push(packet);
                live.set(Found::of(options, target, &progress.report()));
            }
            _ = interval.tick(), if !left.is_empty() => {
                if let Some(seq) = left.next() {
                    progress.sending = progress.started.elapsed();
                    under_way.push(request(&socket, reached, seq, &payload, options.timeout.duration()));
                }
            }
            else => return Ok(progress.report()),
        }
    }
}

/// A run so far.
struct Progress<'a> {
    reached: Reached,
    options: &'a Ping,
    socket: &'a Arc<IcmpSocket>,
    started: Instant,
    /// How long after that the last request left.
    sending: Duration,
    /// In the order of their answers.
    packets: Vec<PingPacket>,
}

impl Progress<'_> {
    fn report(&self) -> PingReport {
        let stats = PingStats::of(&self.packets, ms(self.sending), ms(self.started.elapsed()));
        let mut packets = self.packets.clone();
        packets.sort_unstable_by_key(|packet| packet.seq);
        PingReport {
            address: self.reached.address,
            family: Family::of(self.reached.address),
            resolve_ms: self.reached.resolve_ms,
            method: self.socket.method(),
            payload_bytes: self.options.payload_bytes.get(),
            stats,
            packets,
        }
    }
}

async fn request(socket: &Arc<IcmpSocket>, reached: Reached, seq: u64, payload: &Arc<[u8]>, patience: Duration) -> PingPacket {
    let packet = PingPacket { seq, ..PingPacket::default() };
    match socket.echo(reached.address, payload, patience).await {
        Echo::Reply { rtt, ttl, bytes, from } => PingPacket {
            status: PacketStatus::Reply,
            rtt_ms: Some(ms(rtt)),
            ttl,
            bytes: u64::try_from(bytes).ok(),
            from: Some(from),
            ..packet
        },
        Echo::Error(icmp) => PingPacket { status: PacketStatus::Error, from: icmp.from, icmp: Some(icmp), ..packet },
        Echo::Silent => PingPacket { status: PacketStatus::Timeout, ..packet },
        Echo::NotSent(error) => PingPacket { status: PacketStatus::Error, error: Some(error), ..packet },
    }
}
