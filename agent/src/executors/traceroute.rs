//! `traceroute`: all hops at once, a few packets each.

use std::time::Duration;

use probeops_shared::bounded::Bounded;
use probeops_shared::host::Host;
use probeops_shared::outcome::Failure;
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::trace::{ProbeStatus, TraceEnd, TraceProbe};
use probeops_shared::tools::traceroute::{AGAIN_MAX, ProbeAnswer, TraceHop, Traceroute, TracerouteProgress, TracerouteReport};
use tokio::time::Instant;

use crate::executors::reach::{self, Reached};
use crate::executors::trace::course::{Pace, Plan, Progression};
use crate::executors::trace::lookups::Lookups;
use crate::executors::trace::{Follower, Step, carrier, patience};
use crate::executors::{Context, Live};
use crate::net::icmp::Fragments;
use crate::net::trace::Course;

/// How long after one packet to a hop the next is sent, at the earliest.
const GAP: Duration = Duration::from_millis(10);

pub(super) async fn run(context: &Context, target: &Host, options: &Traceroute, live: &Live) -> Result<TracerouteReport, Failure> {
    let source = reach::source(options.source)?;
    let family = options.family.from_source(options.source);
    let reached = context.reach(target, options.port(), family).await?;
    let course = Course {
        to: reached.address,
        carrier: carrier(options.protocol, options.port()),
        source,
        dscp: options.dscp.and_then(Bounded::get_u8),
        payload_bytes: usize::try_from(options.payload_bytes()).unwrap_or_default(),
        fragments: if options.dont_fragment { Fragments::Forbidden } else { Fragments::Allowed },
        flows: options.flows.get_u8().unwrap_or(u8::MAX),
        flow: options.flow,
    };
    let plan = Plan {
        first: options.first_ttl.get_u8().unwrap_or(u8::MAX),
        max: options.max_ttl.get_u8().unwrap_or(u8::MAX),
        rounds: options.queries.get_usize(),
        gap: GAP,
        silent_hops: options.silent_hops.get_u8().unwrap_or(u8::MAX),
        timeout: patience(options.protocol, options.timeout.duration()),
        one_by_one: options.is_one_by_one(),
        pace: Pace::Hasty,
    };
    let follower = Follower::open(context, ToolName::Traceroute, course, Progression::new(plan))?;
    let (started, lookups) = (Instant::now(), Lookups::new(context, options.names, options.asn));
    let mut run = Run {
        context,
        target,
        options,
        live,
        reached,
        plan,
        follower,
        started,
        lookups,
        told: 0,
        again: None,
        limited: Vec::new(),
        is_over: false,
    };
    run.tell(&TracerouteProgress::Resolved(reached.resolved()));
    run.follow().await;
    run.is_over = true;
    Ok(run.report())
}

/// A run so far.
struct Run<'a> {
    context: &'a Context,
    target: &'a Host,
    options: &'a Traceroute,
    live: &'a Live,
    reached: Reached,
    plan: Plan,
    follower: Follower<'a>,
    started: Instant,
    lookups: Lookups<'a>,
    /// How many hops are told whole.
    told: u8,
    /// Until when hops that limit their answers are asked again; none before all others have ended.
    again: Option<Instant>,
    /// These do.
    limited: Vec<u8>,
    /// Whether it has come to its end.
    is_over: bool,
}

impl Run<'_> {
    async fn follow(&mut self) {
        loop {
            let step = tokio::select! {
                biased;
                step = self.follower.step() => Some(step),
                () = self.lookups.next() => None,
            };
            match step {
                Some(Step::Answered { ttl, round }) => self.answered(ttl, round),
                Some(Step::Over) if !self.ask_again() => break,
                Some(Step::GivenUp | Step::Round | Step::Over) | None => {}
            }
            self.tell_hops();
        }
        self.lookups.all().await;
        self.tell_hops();
    }

    fn answered(&mut self, ttl: u8, round: usize) {
        let Some((_, probe)) = self.follower.progression.ended_of(ttl).find(|(of, _)| *of == round) else { return };
        if let Some(from) = probe.from {
            self.lookups.want(from);
        }
        if self.again.is_some() && !self.limited.contains(&ttl) {
            self.limited.push(ttl);
        }
        // The target has answered a nearer one.
        if ttl > self.end() || !self.live.is_heard() {
            return;
        }
        let query = u64::try_from(round).unwrap_or_default() + 1;
        self.tell(&TracerouteProgress::Probe(ProbeAnswer { ttl, query, probe: probe.clone() }));
    }

    /// Has hops asked once more that answer some packets and not others, as those do that limit how often they answer; as slowly as that needs.
    /// Whether there is one.
    fn ask_again(&mut self) -> bool {
        if self.again.is_some() {
            return false;
        }
        let until = Instant::now() + AGAIN_MAX;
        self.again = Some(until);
        let mut asked = false;
        for ttl in self.plan.first + self.told..self.follower.progression.farthest().unwrap_or_default() {
            for round in self.unexplained(ttl) {
                let Some(at) = self.context.node.pacer.again(Family::of(self.reached.address), ttl, until.into_std()) else { break };
                self.follower.progression.ask_again((ttl, round), Instant::from_std(at));
                asked = true;
            }
        }
        asked
    }

    /// In which rounds a hop was silent that answers others.
    fn unexplained(&self, ttl: u8) -> Vec<usize> {
        if !self.context.node.pacer.answers(Family::of(self.reached.address), ttl) {
            return Vec::new();
        }
        let silent = self.follower.progression.ended_of(ttl).filter(|(_, probe)| probe.status == ProbeStatus::Silent);
        silent.map(|(round, _)| round).collect()
    }

    /// Tells of the hops of which nothing more is to be learnt, and of none before those nearer.
    fn tell_hops(&mut self) {
        let is_over = self.again.is_some();
        while self.plan.first.saturating_add(self.told) <= self.end() {
            let ttl = self.plan.first + self.told;
            // Some that are silent are asked again at the end.
            let is_open = !self.follower.progression.is_settled(ttl) || (!is_over && !self.unexplained(ttl).is_empty());
            if is_open || !self.lookups.are_over_for(self.follower.progression.ended_of(ttl).filter_map(|(_, probe)| probe.from)) {
                return;
            }
            self.told += 1;
            if self.live.is_heard() {
                self.tell(&TracerouteProgress::Hop(self.hop(ttl)));
            }
        }
    }

    /// The farthest hop to tell of.
    fn end(&self) -> u8 {
        self.follower.progression.end()
    }

    fn hop(&self, ttl: u8) -> TraceHop {
        let probes: Vec<TraceProbe> = self.follower.progression.ended_of(ttl).map(|(_, probe)| probe.clone()).collect();
        let some = |status| probes.iter().any(|probe| probe.status == status);
        let is_before = self.follower.progression.farthest().is_some_and(|farthest| ttl < farthest);
        let limited = is_before && (self.limited.contains(&ttl) || (some(ProbeStatus::Silent) && some(ProbeStatus::Answered)));
        TraceHop { ttl, names: self.lookups.names_of(&probes), origins: self.lookups.origins_of(&probes), probes, limited }
    }

    fn tell(&self, progress: &TracerouteProgress) {
        self.live.tell(self.options, self.target, progress);
    }

    fn report(&self) -> TracerouteReport {
        let mut hops: Vec<TraceHop> = (self.plan.first..=self.end()).map(|ttl| self.hop(ttl)).collect();
        // Of a run that is cut short, those of which something is known.
        while hops.last().is_some_and(|hop| hop.probes.is_empty()) {
            hops.pop();
        }
        let address = self.reached.address;
        let is_target = |probe: &TraceProbe| probe.from == Some(address);
        let end = match (self.follower.progression.last(), hops.last()) {
            (Some(_), Some(hop)) if hop.probes.iter().any(is_target) => TraceEnd::Reached,
            (Some(_), _) => TraceEnd::Unreachable,
            (None, _) if !self.is_over => TraceEnd::CutShort,
            (None, Some(hop)) if hop.ttl == self.plan.max => TraceEnd::MaxTtl,
            (None, _) => TraceEnd::Silent,
        };
        TracerouteReport {
            address,
            family: Family::of(address),
            resolve_ms: self.reached.resolve_ms,
            method: self.follower.method(),
            port: self.options.port(),
            packet_bytes: self.options.packet_bytes(address),
            flow: self.follower.flow(),
            end,
            hops,
            elapsed_ms: ms(self.started.elapsed()),
        }
    }
}

impl Drop for Run<'_> {
    /// Keeps what a run has found that is cut short: to keep it at each step would cost more than to find it.
    fn drop(&mut self) {
        if !self.is_over && !std::thread::panicking() {
            self.live.set(self.options, self.target, self.report());
        }
    }
}
