//! Pings by ICMP echo.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt;
use probeops_shared::bounded::Bounded;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::ping::Ping;
use probeops_shared::tools::ping::report::{IcmpEngine, PacketStatus, PingDuplicate, PingPacket, PingReport};
use tokio::time::Instant;

use super::Run;
use crate::executors::{Context, broken};
use crate::net::icmp::{Answer, Conversation, Fragments, Heard, Kind, Request, surge};
use crate::net::words;

/// How long a reply that has arrived may wait to be read, on a node that is busy, before its request is given up.
const READ_WITHIN: Duration = Duration::from_millis(10);

pub(super) async fn run(context: &Context, mut run: Run<'_>) -> Result<PingReport, Failure> {
    let options = run.options;
    let (engine, icmp, family) = (context.icmp_engine, &context.node.icmp, Family::of(run.reached.address));
    let ttl = options.ttl.and_then(Bounded::get_u8);
    let socket = match engine {
        IcmpEngine::Own => {
            let fragments = if options.dont_fragment { Fragments::Forbidden } else { Fragments::Allowed };
            icmp.socket(Kind { family, source: run.source, fragments, flow: 0 }, options.count.get_usize())
        }
        IcmpEngine::Surge => {
            check_surge(options)?;
            icmp.surge(family, ttl, options.count.get_usize())
        }
    };
    let socket = socket.map_err(|error| broken(ToolName::Ping, "open an ICMP socket", &error))?;
    run.engine = Some(engine);
    run.begin(socket.method());
    let request = Request {
        to: run.reached.address,
        ttl,
        dscp: options.dscp.and_then(Bounded::get_u8),
        payload_bytes: options.payload_bytes.get_usize(),
    };
    let mut conversation = Conversation::new();
    let mut interval = run.interval();
    let mut left = 1..=options.count.get();
    // Not answered yet, with the moment when each is given up, which is in the same order.
    let mut open: VecDeque<(u64, Instant)> = VecDeque::new();
    while !(left.is_empty() && open.is_empty()) {
        let given_up_at = open.front().map(|(_, at)| *at);
        tokio::select! {
            // What has arrived comes first: it was in time.
            biased;
            heard = conversation.next() => {
                if let Answer::Error { .. } = heard.answer {
                    conversation.forget(heard.tag);
                }
                note(&mut run, &mut open, heard);
            }
            () = async { tokio::time::sleep_until(given_up_at.unwrap_or_else(Instant::now)).await }, if given_up_at.is_some() => {
                // Where the node was busy, what arrived meanwhile is read first.
                tokio::task::yield_now().await;
                if let Some(heard) = conversation.next().now_or_never() {
                    note(&mut run, &mut open, heard);
                } else if let Some((seq, _)) = open.pop_front() {
                    run.note(PingPacket { seq, ..PingPacket::default() });
                }
            }
            _ = interval.tick(), if !left.is_empty() => {
                let Some(seq) = left.next() else { continue };
                run.sending = run.started.elapsed();
                match conversation.send(&socket, seq, &request).await {
                    Ok(at) => open.push_back((seq, Instant::from_std(at) + options.timeout.duration() + READ_WITHIN)),
                    Err(error) => run.note(PingPacket { seq, status: PacketStatus::Error, error: Some(words(&error)), ..PingPacket::default() }),
                }
            }
        }
    }
    Ok(run.report())
}

/// Refuses what surge-ping cannot do.
fn check_surge(options: &Ping) -> Result<(), Failure> {
    let refuse = |what: &str| {
        let detail =
            format!("{what} is beyond this node's ICMP engine, surge-ping; its operator allows it by the setting icmp_engine = \"own\"");
        Err(Failure::new(FailureKind::Unsupported, detail))
    };
    if options.source.is_some() {
        return refuse("`source`");
    }
    if options.dscp.is_some() {
        return refuse("`dscp`");
    }
    if options.dont_fragment {
        return refuse("`dont_fragment`");
    }
    if options.payload_bytes.get_usize() > surge::PAYLOAD_BYTES_MAX {
        return refuse(&format!("`payload_bytes` of more than {}", surge::PAYLOAD_BYTES_MAX));
    }
    Ok(())
}

fn note(run: &mut Run<'_>, open: &mut VecDeque<(u64, Instant)>, heard: Heard) {
    let Heard { tag: seq, rtt, answer } = heard;
    let place = open.iter().position(|(waiting, _)| *waiting == seq);
    match (answer, place) {
        (Answer::Reply { ttl, bytes, from }, _) => {
            let (bytes, rtt_ms) = (u64::try_from(bytes).unwrap_or(u64::MAX), ms(rtt));
            let reply = |packet| PingPacket { ttl, bytes: Some(bytes), from: Some(from), ..packet };
            if let Some(place) = place {
                open.remove(place);
                let packet = PingPacket { seq, ..PingPacket::default() };
                if rtt <= run.options.timeout.duration() {
                    run.note(reply(PingPacket { status: PacketStatus::Reply, rtt_ms: Some(rtt_ms), ..packet }));
                    return;
                }
                run.note(packet);
            }
            if run.packets.iter().any(|packet| packet.seq == seq && packet.status == PacketStatus::Timeout && packet.late_ms.is_none()) {
                run.note_late(seq, |packet| reply(PingPacket { late_ms: Some(rtt_ms), ..packet }));
            } else {
                run.note_duplicate(PingDuplicate { seq, rtt_ms, ttl, bytes, from });
            }
        }
        (Answer::Error { icmp, .. }, Some(place)) => {
            open.remove(place);
            run.note(PingPacket { seq, status: PacketStatus::Error, from: icmp.from, icmp: Some(icmp), ..PingPacket::default() });
        }
        // An error about what was answered or given up says nothing new.
        (Answer::Error { .. }, None) => {}
    }
}
