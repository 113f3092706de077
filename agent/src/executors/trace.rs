//! What `traceroute` and `mtr` share: they send probes to all hops at once, round by round, and hear of them in any order.

pub(super) mod course;
pub(super) mod lookups;

use std::net::IpAddr;
use std::time::Duration;

use futures_util::FutureExt;
use probeops_shared::outcome::{Failure, FailureKind};
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::trace::{HANDSHAKE_PATIENCE, ProbeStatus, TraceFlow, TraceMethod, TraceProbe, TraceProtocol};
use tokio::time::Instant;

use self::course::{Place, Progression};
use crate::capability;
use crate::executors::{Context, broken};
use crate::net::beat;
use crate::net::pacer::Pacer;
use crate::net::trace::{Carrier, Course, Heard, Sign, Tracer, unsent};

/// How many probes of one run leave together where others wait for their turns, too: to wake up for each costs more than to send it. All that
/// the pacer lets leave at a time.
const TOGETHER_MAX: usize = 5;

/// Sends what is due and hears what comes.
pub(super) struct Follower<'a> {
    pacer: &'a Pacer,
    tracer: Tracer,
    target: IpAddr,
    flows: usize,
    next_tag: u64,
    /// When the next probes may leave, and how many.
    turns: Option<(Instant, usize)>,
    /// What is known of the path.
    pub(super) progression: Progression,
}

/// What has just happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Somebody answered this probe.
    Answered {
        /// Its hop.
        ttl: u8,
        /// In which round it was sent.
        round: usize,
    },
    /// Probes were given up, or could not be sent.
    GivenUp,
    /// A further round has begun.
    Round,
    /// Nothing is left to send or to wait for.
    Over,
}

impl<'a> Follower<'a> {
    /// Opens what is needed to follow the way to a target.
    pub(super) fn open(context: &'a Context, tool: ToolName, course: Course, progression: Progression) -> Result<Self, Failure> {
        let tracer = Tracer::open(&context.node.icmp, course).map_err(|error| match course.carrier {
            Carrier::Icmp => capability::icmp_lacks().map_or_else(
                || broken(tool, "open an ICMP socket", &error),
                |lacks| {
                    let detail = format!("this node cannot trace by ICMP: {lacks}; `protocol` \"udp\" and \"tcp\" need nothing");
                    Failure::new(FailureKind::Unsupported, detail)
                },
            ),
            Carrier::Udp(_) | Carrier::Tcp(_) => broken(tool, "open a socket for probes", &error),
        })?;
        let (pacer, flows) = (&context.node.pacer, usize::from(course.flows));
        Ok(Self { pacer, tracer, target: course.to, flows, next_tag: 0, turns: None, progression })
    }

    /// With which kind of socket.
    pub(super) fn method(&self) -> TraceMethod {
        self.tracer.method()
    }

    /// Whether the probes of a flow are alike.
    pub(super) fn flow(&self) -> TraceFlow {
        self.tracer.flow()
    }

    /// Goes on until something has happened.
    pub(super) async fn step(&mut self) -> Step {
        let mut has_yielded = false;
        loop {
            if let Some(heard) = self.tracer.next().now_or_never() {
                match self.note(heard) {
                    Some(step) => return step,
                    None => continue,
                }
            }
            let now = Instant::now();
            if self.progression.is_overdue(now) {
                if has_yielded {
                    for tag in self.progression.give_up(now) {
                        self.tracer.forget(tag);
                    }
                    return Step::GivenUp;
                }
                // The node was busy: what arrived meanwhile is read first.
                tokio::task::yield_now().await;
                has_yielded = true;
                continue;
            }
            if self.progression.begin_round(now) {
                return Step::Round;
            }
            // What is heard while turns are waited for may show that a probe is not needed.
            let due: Vec<Place> = self.progression.due(now).take(TOGETHER_MAX).collect();
            if due.is_empty() {
                self.turns = None;
            } else {
                let (at, packets) = self.turns.take().unwrap_or_else(|| {
                    let packets = self.progression.together(&due);
                    (Instant::from_std(self.pacer.turns(now.into_std(), packets)), packets)
                });
                if at <= now {
                    for place in due.into_iter().take(packets) {
                        if !self.send(place).await {
                            return Step::GivenUp;
                        }
                    }
                    continue;
                }
                self.turns = Some((at, packets));
            }
            let turn = self.turns.map(|(at, _)| at);
            let wake = self.progression.wake().map(|at| Instant::from_std(beat::at_or_after(at.into_std())));
            let Some(wake) = turn.into_iter().chain(wake).min() else { return Step::Over };
            tokio::select! {
                // What has arrived comes first: it was in time.
                biased;
                heard = self.tracer.next() => {
                    if let Some(step) = self.note(heard) {
                        return step;
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Sends a probe; whether it left.
    async fn send(&mut self, (ttl, round): Place) -> bool {
        let tag = self.next_tag;
        self.next_tag += 1;
        match self.tracer.send(tag, ttl, round % self.flows.max(1)).await {
            Ok(at) => {
                self.progression.sent((ttl, round), tag, Instant::from_std(at));
                true
            }
            Err(error) => {
                let (probe, is_last) = interpret(self.target, Duration::ZERO, unsent(&error));
                self.progression.ended((ttl, round), probe, is_last);
                false
            }
        }
    }

    fn note(&mut self, heard: Heard) -> Option<Step> {
        let Heard { tag, rtt, sign } = heard;
        if matches!(sign, Sign::Nameless) {
            self.tracer.vary_ports();
            for tag in self.progression.send_again() {
                self.tracer.forget(tag);
            }
            return None;
        }
        self.tracer.forget(tag);
        let (ttl, round) = self.progression.place(tag)?;
        let (probe, is_last) = interpret(self.target, rtt, sign);
        if probe.status == ProbeStatus::Answered {
            self.pacer.answered(Family::of(self.target), ttl);
        }
        self.progression.ended((ttl, round), probe, is_last);
        Some(Step::Answered { ttl, round })
    }
}

/// What a protocol's probes are made of.
pub(super) fn carrier(protocol: TraceProtocol, port: Option<u16>) -> Carrier {
    match protocol {
        TraceProtocol::Icmp => Carrier::Icmp,
        TraceProtocol::Udp => Carrier::Udp(port.unwrap_or_default()),
        TraceProtocol::Tcp => Carrier::Tcp(port.unwrap_or_default()),
    }
}

/// How long a probe of a protocol is waited for.
pub(super) fn patience(protocol: TraceProtocol, timeout: Duration) -> Duration {
    match protocol {
        TraceProtocol::Icmp | TraceProtocol::Udp => timeout,
        TraceProtocol::Tcp => timeout.min(HANDSHAKE_PATIENCE),
    }
}

/// What became of a probe, and whether nothing lies behind its hop.
fn interpret(target: IpAddr, rtt: Duration, sign: Sign) -> (TraceProbe, bool) {
    let answered = TraceProbe { status: ProbeStatus::Answered, from: Some(target), rtt_ms: Some(ms(rtt)), ..TraceProbe::default() };
    match sign {
        Sign::Reply(state) => (TraceProbe { state, ..answered }, true),
        Sign::Icmp { icmp, mpls } => {
            let (from, is_expired) = (icmp.from, icmp.is_expired(Family::of(target)));
            (TraceProbe { from, icmp: (!is_expired).then_some(icmp), mpls, ..answered }, !is_expired)
        }
        Sign::Failed(why) => (TraceProbe { status: ProbeStatus::Error, error: Some(why), ..TraceProbe::default() }, true),
        Sign::Nameless => (TraceProbe::default(), false),
    }
}
