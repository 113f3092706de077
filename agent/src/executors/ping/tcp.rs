//! Pings by TCP handshakes.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use probeops_shared::bounded::Bounded;
use probeops_shared::tools::network::ms;
use probeops_shared::tools::ping::report::{PacketStatus, PingMethod, PingPacket, PingReport};
use tokio::time::timeout;

use super::Run;
use crate::net::syn::{Handshake, Syn};

pub(super) async fn run(mut run: Run<'_>) -> PingReport {
    let options = run.options;
    run.begin(PingMethod::TcpConnect);
    let syn = Syn {
        to: SocketAddr::new(run.reached.address, options.port().unwrap_or_default()),
        from: run.source.map(|source| SocketAddr::new(source, 0)),
        ttl: options.ttl.and_then(Bounded::get_u8),
        dscp: options.dscp.and_then(Bounded::get_u8),
    };
    let mut interval = run.interval();
    let mut under_way = FuturesUnordered::new();
    let mut left = 1..=options.count.get();
    loop {
        tokio::select! {
            Some(packet) = under_way.next() => run.note(packet),
            _ = interval.tick(), if !left.is_empty() => {
                if let Some(seq) = left.next() {
                    run.sending = run.started.elapsed();
                    under_way.push(request(syn, seq, options.timeout.duration()));
                }
            }
            else => return run.report(),
        }
    }
}

async fn request(syn: Syn, seq: u64, patience: Duration) -> PingPacket {
    let packet = PingPacket { seq, ..PingPacket::default() };
    match timeout(patience, syn.ask()).await {
        Ok((rtt, Handshake::Answered(state))) => {
            let (rtt_ms, from) = (Some(ms(rtt)), Some(syn.to.ip()));
            PingPacket { status: PacketStatus::Reply, rtt_ms, from, state: Some(state), ..packet }
        }
        Ok((_, Handshake::Error { icmp, .. })) => PingPacket { status: PacketStatus::Error, from: icmp.from, icmp: Some(icmp), ..packet },
        Ok((_, Handshake::Failed(why))) => PingPacket { status: PacketStatus::Error, error: Some(why), ..packet },
        Err(_) => packet,
    }
}
