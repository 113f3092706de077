//! Limits that hold over all replicas of the API (bucket LIMITS): of principals and of nodes, how many runs in a window and how many at once.
//!
//! A replica leases what it may spend, at most a twentieth of a window at a time or what one job needs, by compare-and-set, and spends it in
//! memory. Where the bucket cannot be asked, what is limited is refused: a limit never opens. Who has none costs nothing.

mod at_once;
pub(crate) mod changes;
mod rate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::kv::Store;
use axum::http::{HeaderName, HeaderValue};
use futures_util::{StreamExt, stream};
use probeops_shared::access::{AtOnce, Limits as Given, Rate, Scope};
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::invalid::Invalid;
use probeops_shared::problem::Code;
use probeops_shared::registry::NodeGrant;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::at_once::Held;
use self::rate::{Paid, Taken};
use crate::access::Principal;
use crate::broker::{Broker, Destination, Lease, Spares, UsedNodes};
use crate::jobs::owner;
use crate::problem::Problem;

/// How long the bucket may take to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// When there may be room for one more at once.
const ENDED_RETRY_AFTER: Duration = Duration::from_secs(1);
/// How many limits are remembered here; beyond it those that nothing would be lost of go.
const REMEMBERED_MAX: usize = 20_000;
/// How many nodes' limits are told, and how many are looked up at once.
const NODES_TOLD_MAX: usize = 1_000;
const NODES_LOOKED_UP_AT_ONCE: usize = 16;

/// What a rate allows, and what is left of it (draft-ietf-httpapi-ratelimit-headers).
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// What is left of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    rate: Rate,
    left: u32,
    whole_in: Duration,
}

impl Allowance {
    /// What is told of it: the rate, how many runs are left, and in how many seconds all are possible again.
    pub fn headers(&self) -> [(HeaderName, HeaderValue); 2] {
        let Self { rate, left, whole_in } = self;
        let whole_in_s = whole_in.as_secs() + u64::from(whole_in.subsec_nanos() > 0);
        let policy = format!("\"runs\";q={};w={}", rate.count, rate.window.as_secs());
        let state = format!("\"runs\";r={left};t={whole_in_s}");
        // Digits, letters and quotes always make a header.
        let value = |text: String| HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        [(RATE_LIMIT_POLICY, value(policy)), (RATE_LIMIT, value(state))]
    }
}

/// The limits of one who asks, and of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitsDocument {
    /// Whose they are.
    pub principal: String,
    /// What he may do.
    pub scopes: Vec<Scope>,
    /// What narrows that, as it was given; what is absent is not limited.
    pub limits: Given,
    /// When his credential ends; absent where nothing says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// His rate; absent where he has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateLeft>,
    /// How many runs he may have at once; absent where that is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<AtOnceLeft>,
    /// The nodes that have limits of their own, which all callers share, by id.
    pub nodes: Vec<NodeLimits>,
}

/// A rate and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RateLeft {
    /// So many runs
    pub count: u32,
    /// in any stretch of so many milliseconds.
    pub window_ms: u64,
    /// How many are left now.
    pub left: u32,
    /// In how many milliseconds all are possible again, if there is none meanwhile.
    pub reset_ms: u64,
}

/// A number of runs at once and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AtOnceLeft {
    /// So many runs.
    pub count: u32,
    /// How many more may begin now.
    pub left: u32,
}

/// A node's limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeLimits {
    /// The node.
    pub node: NodeId,
    /// Its rate; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateLeft>,
    /// How many runs it may have at once; absent where only its slots limit that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<AtOnceLeft>,
}

/// What keeps to limits.
#[derive(Clone, Debug)]
pub(crate) struct Limits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Store,
    lease: Lease,
    broker: Broker,
    rates: Mutex<HashMap<String, Arc<rate::Shared>>>,
    at_once: Mutex<HashMap<String, Arc<at_once::Shared>>>,
}

/// A job that is within all limits.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Where its runs go: for a node that has no more to give another stands in, where one is meant.
    pub(crate) destinations: Vec<Destination>,
    /// What its principal has left of his rate; absent where he has none.
    pub(crate) allowance: Option<Allowance>,
    /// Kept as long as the job goes on.
    pub(crate) held: Vec<Held>,
    /// What it has paid.
    pub(crate) payment: Payment,
}

/// What was taken of the limits for one job; given back if it is not admitted in the end.
#[derive(Debug, Default)]
struct Takings {
    payment: Payment,
    held: Vec<Held>,
}

/// What was taken of rates. Dropped, it is spent.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Payment(Vec<(Arc<rate::Shared>, Paid)>);

impl Payment {
    /// Gives it back: what it was taken for does not run.
    pub(crate) async fn give_back(self) {
        for (of, paid) in self.0 {
            of.give_back(paid).await;
        }
    }
}

/// Why a node takes no more.
#[derive(Clone, Debug)]
struct Full {
    node: NodeId,
    limit: String,
    after: Duration,
}

/// The key of a principal's limits.
fn of_principal(principal: &Principal) -> String {
    format!("p.{}", owner(&principal.name))
}

impl Limits {
    pub(crate) fn new(broker: &Broker) -> Self {
        let (bucket, lease) = (broker.limits(), broker.lease().clone());
        Self(Arc::new(Inner { bucket, lease, broker: broker.clone(), rates: Mutex::default(), at_once: Mutex::default() }))
    }

    /// Takes so many runs from the rate of a principal, for a job whose nodes are not known yet.
    pub(crate) async fn pay(&self, principal: &Principal, runs: u32) -> Result<(Option<Allowance>, Payment), Problem> {
        let mut takings = Takings::default();
        let allowance = self.take_rate(principal, runs, &mut takings).await?;
        Ok((allowance, takings.payment))
    }

    /// Takes what a job needs of every limit it meets, or of none. `paid`: how many of its runs were taken from the rate before.
    pub(crate) async fn admit(
        &self,
        principal: &Principal,
        tool: ToolName,
        destinations: Vec<Destination>,
        paid: u32,
    ) -> Result<Admitted, Problem> {
        let nodes_are_limited = self.0.broker.roster().look(|nodes| nodes.limited().len() > 0);
        if principal.limits.rate.is_none() && principal.limits.at_once.is_none() && !nodes_are_limited {
            return Ok(Admitted { destinations, allowance: None, held: Vec::new(), payment: Payment::default() });
        }
        let mut takings = Takings::default();
        match Box::pin(self.take(principal, tool, (destinations, paid), &mut takings)).await {
            Ok((destinations, allowance)) => Ok(Admitted { destinations, allowance, held: takings.held, payment: takings.payment }),
            Err(problem) => {
                takings.payment.give_back().await;
                Err(problem)
            }
        }
    }

    async fn take(
        &self,
        principal: &Principal,
        tool: ToolName,
        (destinations, paid): (Vec<Destination>, u32),
        takings: &mut Takings,
    ) -> Result<(Vec<Destination>, Option<Allowance>), Problem> {
        let runs = u32::try_from(destinations.len()).unwrap_or(u32::MAX);
        if let Some(at_once) = principal.limits.at_once {
            if runs > at_once.get() {
                let detail =
                    format!("your credential is limited to {at_once} runs at once; a job with {runs} runs goes beyond that at any time");
                let never = Problem::new(Code::Forbidden, detail);
                return Err(never.at(Invalid::new("/from", "more runs than the limit `at_once` allows")));
            }
            let held = self.hold(&of_principal(principal), at_once, runs).await?;
            takings.held.push(held.ok_or_else(|| {
                let detail =
                    format!("your credential is limited to {at_once} runs at once; {runs} more are possible when others have ended");
                Problem::new(Code::RateLimited, detail).retry_after(ENDED_RETRY_AFTER)
            })?);
        }
        let allowance = match runs.saturating_sub(paid) {
            0 => None,
            runs => self.take_rate(principal, runs, takings).await?,
        };
        let mut taken = Vec::with_capacity(destinations.len());
        for destination in destinations {
            let destination = self.take_of_nodes(tool, destination, takings).await;
            taken.push(destination.map_err(|problem| match allowance {
                Some(allowance) => problem.allowance(allowance),
                None => problem,
            })?);
        }
        for destination in &taken {
            if let Destination::OneOf(_, spares) = destination {
                // Whoever stands in later has not been taken of.
                spares.retain(|id| self.limited(id).is_none());
            }
        }
        Ok((taken, allowance))
    }

    /// Takes so many runs of the principal's rate, where he has one; what is left.
    async fn take_rate(&self, principal: &Principal, runs: u32, takings: &mut Takings) -> Result<Option<Allowance>, Problem> {
        let Some(rate) = principal.limits.rate else { return Ok(None) };
        let shared = self.rate_of(&of_principal(principal));
        match answered(shared.take(&self.0.bucket, rate, runs)).await? {
            Taken::Now(paid, left) => {
                takings.payment.0.push((shared, paid));
                Ok(Some(left))
            }
            Taken::Later(after, left) => {
                let after_ms = after.as_millis().max(1);
                let detail = format!("your credential is limited to {rate} runs; {runs} more are possible in {after_ms} ms");
                Err(Problem::new(Code::RateLimited, detail).retry_after(after).allowance(left))
            }
            Taken::Never => {
                let detail = format!("your credential is limited to {rate} runs; a job with {runs} runs goes beyond that at any time");
                let never = Problem::new(Code::Forbidden, detail);
                Err(never.at(Invalid::new("/from", "more runs than the limit `rate` allows at once")))
            }
        }
    }

    /// Takes a run of the node that it goes to, where that is limited, or of another that is meant.
    async fn take_of_nodes(&self, tool: ToolName, destination: Destination, takings: &mut Takings) -> Result<Destination, Problem> {
        match destination {
            Destination::Node(id) => {
                let Some(grant) = self.limited(&id) else { return Ok(Destination::Node(id)) };
                match self.take_of_node(&grant, takings).await? {
                    None => Ok(Destination::Node(id)),
                    Some(full) => Err(refused(&[full])),
                }
            }
            Destination::OneOf(first, spares) => {
                let limited = [std::slice::from_ref(&first), &spares.left()].concat().iter().any(|id| self.limited(id).is_some());
                if !limited {
                    return Ok(Destination::OneOf(first, spares));
                }
                let mut full = Vec::new();
                let mut next = Some(first);
                while let Some(id) = next {
                    let Some(why) = (match self.limited(&id) {
                        None => None,
                        Some(grant) => self.take_of_node(&grant, takings).await?,
                    }) else {
                        return Ok(Destination::OneOf(id, spares));
                    };
                    full.push(why);
                    next = spares.take();
                }
                Err(refused(&full))
            }
            Destination::Region(region) => self.take_of_region(tool, region, takings).await,
        }
    }

    /// Any node of a region: where one of them is limited, we say which, and not the broker.
    async fn take_of_region(&self, tool: ToolName, region: Region, takings: &mut Takings) -> Result<Destination, Problem> {
        let able = self.0.broker.roster().look(|nodes| {
            if nodes.limited().all(|grant| grant.region != region) {
                return None;
            }
            let mut able: Vec<(usize, u32, NodeId)> =
                nodes.of_region(&region).filter_map(|seen| Some((seen.takes(tool)?, rand::random(), seen.grant.id.clone()))).collect();
            // Those with most free slots first; among equals nobody is always the first.
            able.sort_unstable_by(|a, b| b.cmp(a));
            Some(able)
        });
        let Some(able) = able.filter(|able| able.iter().any(|(_, _, id)| self.limited(id).is_some())) else {
            return Ok(Destination::Region(region));
        };
        let mut nodes = able.into_iter().map(|(_, _, id)| id);
        let Some(first) = nodes.next() else { return Ok(Destination::Region(region)) };
        let spares = Spares::new(nodes.collect(), &UsedNodes::default());
        Box::pin(self.take_of_nodes(tool, Destination::OneOf(first, spares), takings)).await
    }

    /// Takes a run of a node; why not, where it takes no more.
    async fn take_of_node(&self, grant: &NodeGrant, takings: &mut Takings) -> Result<Option<Full>, Problem> {
        let of = format!("n.{}", grant.id);
        let full = |limit: String, after| Some(Full { node: grant.id.clone(), limit, after });
        let held = match grant.at_once {
            None => None,
            Some(at_once) => match self.hold(&of, at_once, 1).await? {
                Some(held) => Some(held),
                None => return Ok(full(format!("{at_once} runs at once"), ENDED_RETRY_AFTER)),
            },
        };
        if let Some(rate) = grant.rate {
            let shared = self.rate_of(&of);
            match answered(shared.take(&self.0.bucket, rate, 1)).await? {
                Taken::Now(paid, _) => takings.payment.0.push((shared, paid)),
                Taken::Later(after, _) => return Ok(full(format!("{rate} runs"), after)),
                Taken::Never => return Ok(full(format!("{rate} runs"), rate.window)),
            }
        }
        takings.held.extend(held);
        Ok(None)
    }

    /// What is left now, of the limits of who asks and of the nodes that he may know of.
    pub(crate) async fn look(&self, principal: &Principal) -> Result<LimitsDocument, Problem> {
        let (rate, at_once) = self.left(&of_principal(principal), principal.limits.rate, principal.limits.at_once).await?;
        let limited: Vec<NodeGrant> = self.0.broker.roster().look(|nodes| {
            let seen = nodes.limited().filter(|grant| grant.revoked_at.is_none() && principal.sees_node(grant));
            seen.take(NODES_TOLD_MAX).cloned().collect()
        });
        let told = stream::iter(limited).map(async |grant| {
            let (rate, at_once) = self.left(&format!("n.{}", grant.id), grant.rate, grant.at_once).await?;
            Ok(NodeLimits { node: grant.id, rate, at_once })
        });
        let told: Vec<Result<NodeLimits, Problem>> = told.buffered(NODES_LOOKED_UP_AT_ONCE).collect().await;
        let nodes = told.into_iter().collect::<Result<_, _>>()?;
        let (scopes, limits, expires_at) = (principal.scopes.clone(), principal.limits.clone(), principal.expires_at);
        Ok(LimitsDocument { principal: principal.name.clone(), scopes, limits, expires_at, rate, at_once, nodes })
    }

    async fn left(&self, of: &str, rate: Option<Rate>, at_once: Option<AtOnce>) -> Result<(Option<RateLeft>, Option<AtOnceLeft>), Problem> {
        let rate = match rate {
            None => None,
            Some(rate) => {
                let Allowance { left, whole_in, .. } = answered(self.rate_of(of).look(&self.0.bucket, rate)).await?;
                Some(RateLeft { count: rate.count, window_ms: in_ms(rate.window), left, reset_ms: in_ms(whole_in) })
            }
        };
        let at_once = match at_once {
            None => None,
            Some(limit) => {
                let used = answered(self.at_once_of(of).look()).await?;
                Some(AtOnceLeft { count: limit.get(), left: limit.get().saturating_sub(used) })
            }
        };
        Ok((rate, at_once))
    }

    async fn hold(&self, of: &str, limit: AtOnce, runs: u32) -> Result<Option<Held>, Problem> {
        let shared = self.at_once_of(of);
        answered(shared.take(limit.get(), runs)).await
    }

    /// What a node was granted, if that has limits.
    fn limited(&self, id: &NodeId) -> Option<NodeGrant> {
        let limited = |grant: &NodeGrant| grant.rate.is_some() || grant.at_once.is_some();
        self.0.broker.roster().look(|nodes| nodes.node(id).map(|seen| seen.grant).filter(|grant| limited(grant)).cloned())
    }

    fn rate_of(&self, of: &str) -> Arc<rate::Shared> {
        let mut rates = self.0.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.len() >= REMEMBERED_MAX && !rates.contains_key(of) {
            let now = rate::now();
            rates.retain(|_, shared| Arc::strong_count(shared) > 1 || !shared.is_idle(now));
            if rates.len() > REMEMBERED_MAX / 2 {
                // The bucket remembers; only what is leased and not spent goes.
                rates.clear();
            }
        }
        Arc::clone(rates.entry(of.to_owned()).or_insert_with(|| Arc::new(rate::Shared::new(format!("rate.{of}")))))
    }

    fn at_once_of(&self, of: &str) -> Arc<at_once::Shared> {
        let mut at_once = self.0.at_once.lock().unwrap_or_else(PoisonError::into_inner);
        if at_once.len() >= REMEMBERED_MAX && !at_once.contains_key(of) {
            at_once.retain(|_, shared| Arc::strong_count(shared) > 1 || !shared.is_idle());
        }
        let shared = || Arc::new(at_once::Shared::new(format!("once.{of}"), self.0.bucket.clone(), self.0.lease.clone()));
        Arc::clone(at_once.entry(of.to_owned()).or_insert_with(shared))
    }
}

/// What the bucket says, or that it says nothing.
async fn answered<T>(asked: impl Future<Output = Result<T, String>>) -> Result<T, Problem> {
    let answer = tokio::time::timeout(ANSWERED_WITHIN, asked).await;
    answer.unwrap_or_else(|_elapsed| Err(format!("there was no answer within {} ms", ANSWERED_WITHIN.as_millis()))).map_err(|error| {
        let detail =
            format!("bucket LIMITS, where it stands what is left of limits, cannot be asked, so what is limited is refused: {error}");
        Problem::new(Code::Unavailable, detail).retry_after(ENDED_RETRY_AFTER)
    })
}

fn refused(full: &[Full]) -> Problem {
    let after = full.iter().map(|full| full.after).min().unwrap_or(ENDED_RETRY_AFTER);
    let nodes: Vec<String> = full.iter().map(|full| format!("node {} is limited to {}", full.node, full.limit)).collect();
    let detail = format!("{} of all callers together; one more is possible in {} ms", nodes.join(", "), after.as_millis().max(1));
    Problem::new(Code::RateLimited, detail).at(Invalid::new("/from", "beyond the limit of a node")).retry_after(after)
}

fn in_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_two_headers() {
        let rate: Rate = "60/m".parse().unwrap();
        let told = |left: u32, whole_in: Duration| {
            Allowance { rate, left, whole_in }.headers().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        };
        assert_eq!(told(60, Duration::ZERO), ["ratelimit-policy: \"runs\";q=60;w=60", "ratelimit: \"runs\";r=60;t=0"]);
        assert_eq!(told(58, Duration::from_millis(1_001))[1], "ratelimit: \"runs\";r=58;t=2");
    }

    #[test]
    fn a_refusal_names_every_node_and_the_first_moment() {
        let full = |node: &str, limit: &str, after| Full { node: node.parse().unwrap(), limit: limit.to_owned(), after };
        let problem = refused(&[full("a-1", "60/m runs", Duration::from_secs(3)), full("a-2", "2 runs at once", Duration::from_secs(1))]);
        let told = "node a-1 is limited to 60/m runs, node a-2 is limited to 2 runs at once of all callers together; one more is possible in 1000 ms";
        assert_eq!((problem.code(), problem.detail()), (Code::RateLimited, told));
    }
}
