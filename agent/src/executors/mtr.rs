//! `mtr`: all hops once a round.

use probeops_shared::bounded::Bounded;
use probeops_shared::host::Host;
use probeops_shared::outcome::Failure;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use probeops_shared::tools::mtr::report::{MtrHop, MtrReport, forget_rtts, judge_loss, limit_rtts};
use probeops_shared::tools::mtr::{Mtr, MtrProgress, MtrRound};
use probeops_shared::tools::network::{Family, ms};
use probeops_shared::tools::trace::TraceEnd;
use tokio::time::Instant;

use crate::executors::reach::{self, Reached};
use crate::executors::trace::course::{Pace, Plan, Progression};
use crate::executors::trace::lookups::Lookups;
use crate::executors::trace::{Follower, Step, carrier, patience};
use crate::executors::{Context, Live};
use crate::net::icmp::Fragments;
use crate::net::trace::Course;

pub(super) async fn run(context: &Context, target: &Host, options: &Mtr, live: &Live) -> Result<MtrReport, Failure> {
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
        flow: options.flow(),
    };
    let plan = Plan {
        first: options.first_ttl.get_u8().unwrap_or(u8::MAX),
        max: options.max_ttl.get_u8().unwrap_or(u8::MAX),
        rounds: options.rounds.get_usize(),
        gap: options.interval_ms.ms(),
        silent_hops: options.silent_hops.get_u8().unwrap_or(u8::MAX),
        timeout: patience(options.protocol, options.timeout.duration()),
        one_by_one: false,
        pace: Pace::Steady,
    };
    let follower = Follower::open(context, ToolName::Mtr, course, Progression::new(plan))?;
    let lookups = Lookups::new(context, options.names, options.asn);
    let (started_at, started) = (Timestamp::now(), Instant::now());
    let mut run = Run { target, options, live, reached, plan, follower, lookups, started_at, started, is_over: false };
    run.tell(&MtrProgress::Resolved(reached.resolved()));
    run.follow().await;
    run.is_over = true;
    Ok(run.report())
}

/// A run so far.
struct Run<'a> {
    target: &'a Host,
    options: &'a Mtr,
    live: &'a Live,
    reached: Reached,
    plan: Plan,
    follower: Follower<'a>,
    lookups: Lookups<'a>,
    started_at: Timestamp,
    started: Instant,
    /// Whether it has come to its end.
    is_over: bool,
}

impl Run<'_> {
    async fn follow(&mut self) {
        loop {
            let step = tokio::select! {
                biased;
                step = self.follower.step() => step,
                () = self.lookups.next() => continue,
            };
            match step {
                Step::Answered { ttl, round } => self.answered(ttl, round),
                Step::GivenUp => {}
                Step::Round => self.tell_round(self.follower.progression.rounds() - 1),
                Step::Over => break,
            }
        }
        self.lookups.all().await;
        self.tell_round(self.follower.progression.rounds());
    }

    fn answered(&mut self, ttl: u8, round: usize) {
        let probe = self.follower.progression.ended_of(ttl).find(|(of, _)| *of == round);
        if let Some(from) = probe.and_then(|(_, probe)| probe.from) {
            self.lookups.want(from);
        }
    }

    /// Tells how the hops stand at the end of a round.
    fn tell_round(&self, round: usize) {
        if self.live.is_heard() {
            let mut hops = self.hops();
            forget_rtts(&mut hops);
            let round = MtrRound { round: u64::try_from(round).unwrap_or_default(), hops };
            self.tell(&MtrProgress::Round(round));
        }
    }

    fn hops(&self) -> Vec<MtrHop> {
        let progression = &self.follower.progression;
        let mut hops: Vec<MtrHop> = (self.plan.first..=progression.end())
            .map(|ttl| {
                let mut hop = MtrHop::of(ttl, progression.ended_of(ttl).map(|(_, probe)| probe));
                for address in &mut hop.addresses {
                    address.name = self.lookups.name(address.address).map(str::to_owned);
                    address.asn = self.lookups.asn(address.address).to_vec();
                }
                hop
            })
            .collect();
        // Of a run that has only begun, those of which something is known.
        while hops.last().is_some_and(|hop| hop.sent == 0 && hop.error.is_none()) {
            hops.pop();
        }
        judge_loss(&mut hops);
        hops
    }

    fn tell(&self, progress: &MtrProgress) {
        self.live.tell(self.options, self.target, progress);
    }

    fn report(&self) -> MtrReport {
        let (mut hops, address) = (self.hops(), self.reached.address);
        limit_rtts(&mut hops);
        let target = hops.last().filter(|hop| hop.addresses.iter().any(|known| known.address == address));
        let end = match (self.follower.progression.last(), target) {
            (Some(_), Some(_)) => TraceEnd::Reached,
            (Some(_), None) => TraceEnd::Unreachable,
            (None, _) if !self.is_over => TraceEnd::CutShort,
            (None, _) if hops.last().is_some_and(|hop| hop.ttl == self.plan.max) => TraceEnd::MaxTtl,
            (None, _) => TraceEnd::Silent,
        };
        MtrReport {
            started_at: self.started_at,
            address,
            family: Family::of(address),
            resolve_ms: self.reached.resolve_ms,
            method: self.follower.method(),
            port: self.options.port(),
            packet_bytes: self.options.packet_bytes(address),
            flow: self.follower.flow(),
            rounds: self.follower.progression.rounds(),
            end,
            loss_pct: target.and_then(|hop| hop.loss_pct),
            hops,
            elapsed_ms: ms(self.started.elapsed()),
        }
    }
}

impl Drop for Run<'_> {
    /// Keeps what a run has found that is cut short.
    fn drop(&mut self) {
        if !self.is_over && !std::thread::panicking() {
            self.live.set(self.options, self.target, self.report());
        }
    }
}
