//! All services, held in memory by watching bucket SERVICES: one that is revoked anywhere is refused at every front door at once.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use probeops_shared::access::{Limits, Scope};
use probeops_shared::ids::Caller;
use probeops_shared::problem::Code;
use probeops_shared::registry::ServiceGrant;
use probeops_shared::timestamp::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::principal::Identity;
use crate::broker::Broker;
use crate::problem::Problem;
use crate::watch::{Change, watch};

/// How many services are held.
const SERVICES_MAX: usize = 10_000;
/// How many of them one has made, with the keys that he has made.
const SERVICES_OF_ONE_MAX: usize = 1_000;
/// What a service may do at the front door.
const SCOPES: [Scope; 2] = [Scope::JobsWrite, Scope::JobsRead];

/// All services.
#[derive(Clone, Debug)]
pub struct Services(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: RwLock<Known>,
    /// Told when one may have changed.
    changed: Arc<Notify>,
    broker: Broker,
}

/// The services that were heard of.
#[derive(Debug, Default)]
struct Known {
    services: BTreeMap<Caller, Service>,
    /// What a watch that has just been built told of so far; the rest is forgotten when it has told all.
    told: Option<HashSet<String>>,
}

/// A service and whom it names.
#[derive(Debug)]
struct Service {
    grant: ServiceGrant,
    identity: Arc<Identity>,
}

/// A grant as it lies in the bucket.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) grant: ServiceGrant,
    revision: u64,
}

impl Services {
    /// Begins to watch; ends with `stop`.
    pub(super) fn start(broker: Broker, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let (bucket, link) = (broker.services(), broker.store_link());
        let services = Self(Arc::new(Inner { known: RwLock::default(), changed: Arc::default(), broker }));
        let learning = services.clone();
        drop(tasks.spawn(watch(bucket, link, stop.clone(), move |change| learning.learn(change))));
        services
    }

    /// Told when a service may have changed; for one listener.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.0.changed)
    }

    /// Whom a caller is that the broker has attested: only who holds the service's credential can ask in its name.
    pub(super) async fn identify(&self, caller: &Caller) -> Result<Arc<Identity>, Problem> {
        if let Some(answer) = self.read(|known| known.check(caller)) {
            return answer;
        }
        // Made a moment ago, or before the first words of the watch.
        if let Some(stored) = self.find(caller).await? {
            self.write(|known| known.learn(stored.grant));
        }
        let unknown = || {
            let detail = format!("there is no service `{caller}`; it was never granted here, or its record is gone: have it granted again");
            Problem::new(Code::Unauthorized, detail)
        };
        self.read(|known| known.check(caller)).unwrap_or_else(|| Err(unknown()))
    }

    /// Every service, by name.
    pub fn list(&self) -> Vec<ServiceGrant> {
        self.read(|known| known.services.values().map(|service| service.grant.clone()).collect())
    }

    /// Refuses one service too many of one who makes them, or of the keys that he has made.
    pub(crate) fn check_room(&self, is_of_him: impl Fn(&ServiceGrant) -> bool) -> Result<(), Problem> {
        self.read(|known| known.check_room(is_of_him))
    }

    /// A service as it lies in the bucket.
    pub(crate) async fn find(&self, name: &Caller) -> Result<Option<Stored>, Problem> {
        let unavailable = |error: String| Problem::new(Code::Unavailable, format!("services cannot be read now: {error}"));
        let entry = self.0.broker.services().entry(name.as_str()).await.map_err(|error| unavailable(error.to_string()))?;
        // One that was deleted has no value.
        let Some(entry) = entry.filter(|entry| !entry.value.is_empty()) else { return Ok(None) };
        Ok(read(&entry.key, &entry.value).map(|grant| Stored { grant, revision: entry.revision }))
    }

    /// Keeps a grant, in the place of `held` where there is one. Somebody else may have been faster.
    pub(crate) async fn keep(&self, grant: &ServiceGrant, held: Option<&Stored>) -> Result<(), Problem> {
        if held.is_none() && self.read(|known| known.services.len()) >= SERVICES_MAX {
            return Err(Problem::new(Code::Conflict, format!("there are {SERVICES_MAX} services already, and no more are possible")));
        }
        let unavailable = |error: String| Problem::new(Code::Unavailable, format!("the service could not be kept: {error}"));
        let value = serde_json::to_vec(grant).map_err(|error| unavailable(error.to_string()))?;
        let (bucket, key) = (self.0.broker.services(), grant.name.as_str());
        let written = match held {
            Some(held) => bucket.update(key, value.into(), held.revision).await.map_err(|error| error.to_string()),
            None => bucket.create(key, value.into()).await.map_err(|error| error.to_string()),
        };
        if let Err(error) = written {
            let now = self.find(&grant.name).await?;
            if now.as_ref().map(|now| now.revision) != held.map(|held| held.revision) {
                let detail = format!("somebody else changed the service `{}` at the same time; look at it, and try again", grant.name);
                return Err(Problem::new(Code::Conflict, detail));
            }
            return Err(unavailable(error));
        }
        self.write(|known| known.learn(grant.clone()));
        Ok(())
    }

    fn learn(&self, change: Change) {
        self.write(|known| match change {
            Change::Restart => known.told = Some(HashSet::new()),
            Change::Put(entry) => {
                let grant = read(&entry.key, &entry.value);
                known.hear(&entry.key, grant, entry.seen_current);
            }
            Change::Gone(entry) => known.hear(&entry.key, None, entry.seen_current),
        });
    }

    fn read<T>(&self, reader: impl FnOnce(&Known) -> T) -> T {
        reader(&self.0.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, writer: impl FnOnce(&mut Known)) {
        writer(&mut self.0.known.write().unwrap_or_else(PoisonError::into_inner));
        self.0.changed.notify_one();
    }
}

impl Known {
    /// Whom a caller names, or why it is refused; none when it was not heard of.
    fn check(&self, caller: &Caller) -> Option<Result<Arc<Identity>, Problem>> {
        let Service { grant, identity } = self.services.get(caller)?;
        let refused =
            |why: String| Some(Err(Problem::new(Code::Unauthorized, format!("the service `{caller}` {why}; get another credential"))));
        match grant.revoked_at {
            Some(at) => refused(format!("was revoked at {at}")),
            None if grant.expires_at <= Timestamp::now() => refused(format!("expired at {}", grant.expires_at)),
            None => Some(Ok(Arc::clone(identity))),
        }
    }

    fn check_room(&self, is_of_him: impl Fn(&ServiceGrant) -> bool) -> Result<(), Problem> {
        if self.services.values().filter(|service| is_of_him(&service.grant)).count() < SERVICES_OF_ONE_MAX {
            return Ok(());
        }
        let detail = format!(
            "you, and the keys that you have made, have made {SERVICES_OF_ONE_MAX} services; the name of one that was revoked or has expired can be \
             used again"
        );
        Err(Problem::new(Code::Conflict, detail))
    }

    fn learn(&mut self, grant: ServiceGrant) {
        // What the watch tells late does not bring back a credential that was revoked; a newer grant does.
        let newer =
            |known: &Service| known.grant.revoked_at.is_some() && grant.revoked_at.is_none() && grant.created_at <= known.grant.created_at;
        if self.services.get(&grant.name).is_some_and(newer) {
            return;
        }
        if self.services.len() >= SERVICES_MAX && !self.services.contains_key(&grant.name) {
            tracing::error!(service = %grant.name, "there are more than {SERVICES_MAX} services; this one is not accepted");
            return;
        }
        let identity = Arc::new(identity(&grant));
        self.services.insert(grant.name.clone(), Service { grant, identity });
    }

    /// What the watch says of a service; `all_told` once everything that was there has been told.
    fn hear(&mut self, name: &str, grant: Option<ServiceGrant>, all_told: bool) {
        match grant {
            Some(grant) => self.learn(grant),
            None => self.services.retain(|known, _| known.as_str() != name),
        }
        if let Some(told) = &mut self.told {
            told.insert(name.to_owned());
        }
        if all_told && let Some(told) = self.told.take() {
            self.services.retain(|name, _| told.contains(name.as_str()));
        }
    }
}

/// What a service may at the front door: what was granted, and no more.
pub(super) fn identity(grant: &ServiceGrant) -> Identity {
    // A region's name is a pattern that means itself.
    let regions = grant.regions.iter().filter_map(|region| region.as_str().parse().ok()).collect();
    let limits = Limits {
        tools: Some(grant.tools.clone()),
        regions: Some(regions),
        // What it was granted by id comes to its regions, and is no limit of them.
        nodes: None,
        labels: grant.labels.clone(),
        targets: grant.targets.clone(),
        rate: grant.rate,
        at_once: grant.at_once,
    };
    Identity { name: format!("service:{}", grant.name), scopes: SCOPES.to_vec(), limits, nodes: grant.nodes.clone(), expires_at: None }
}

/// A grant that can be understood; any other is as good as none.
fn read(name: &str, value: &[u8]) -> Option<ServiceGrant> {
    let grant: Result<ServiceGrant, String> = serde_json::from_slice(value).map_err(|error| error.to_string());
    grant
        .and_then(|grant| if grant.name.as_str() == name { Ok(grant) } else { Err("it says another name".to_owned()) })
        .inspect_err(|error| tracing::error!(service = name, error, "a service's record cannot be understood; it is not accepted"))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use probeops_shared::tools::ToolName;

    use super::*;

    fn grant(created_unix_ms: i64) -> ServiceGrant {
        ServiceGrant {
            name: "svc".parse().unwrap(),
            regions: vec!["eu".parse().unwrap()],
            tools: vec![ToolName::Echo],
            nodes: vec!["n9".parse().unwrap()],
            labels: None,
            targets: None,
            rate: None,
            at_once: None,
            public_key: "U".to_owned(),
            created_at: Timestamp::from_unix_ms(created_unix_ms).unwrap(),
            created_by: "key:k".to_owned(),
            expires_at: Timestamp::now().plus(Duration::from_mins(1)),
            revoked_at: None,
        }
    }

    fn check(known: &Known) -> Result<Arc<Identity>, Problem> {
        known.check(&"svc".parse().unwrap()).unwrap()
    }

    #[test]
    fn a_service_may_what_it_was_granted() {
        let mut known = Known::default();
        known.learn(grant(1));
        let identity = check(&known).unwrap();
        assert_eq!(identity.name, "service:svc");
        assert!(identity.sees_region(&"eu".parse().unwrap()) && !identity.sees_region(&"us".parse().unwrap()));
        assert!(!identity.sees_region(&"eu-central".parse().unwrap()), "a region is a name, not the beginning of names");
        assert_eq!(identity.nodes, ["n9".parse().unwrap()]);
        assert!(!identity.has(Scope::NodesRead) && identity.has(Scope::JobsWrite));
    }

    #[test]
    fn a_revoked_or_expired_service_is_refused_until_it_is_granted_anew() {
        let mut known = Known::default();
        known.learn(ServiceGrant { revoked_at: Some(Timestamp::now()), ..grant(1) });
        assert!(check(&known).unwrap_err().detail().contains("was revoked at"));
        known.learn(grant(1));
        assert_eq!(check(&known).unwrap_err().code(), Code::Unauthorized, "a late word of the watch changes nothing");
        known.learn(grant(2));
        assert!(check(&known).is_ok());
        known.learn(ServiceGrant { expires_at: Timestamp::now(), ..grant(3) });
        assert!(check(&known).unwrap_err().detail().contains("expired at"));
    }

    #[test]
    fn one_who_makes_too_many_services_leaves_room_for_others() {
        let mut known = Known::default();
        let check = |known: &Known, maker: &str| known.check_room(|grant| grant.created_by == maker);
        for number in 0..SERVICES_OF_ONE_MAX {
            check(&known, "key:k").unwrap();
            known.learn(ServiceGrant { name: format!("svc-{number}").parse().unwrap(), ..grant(1) });
        }
        let refused = check(&known, "key:k").unwrap_err();
        assert!(refused.code() == Code::Conflict && refused.detail().contains("have made 1000 services"), "{refused}");
        check(&known, "key:other").unwrap();
    }

    #[test]
    fn what_is_gone_when_all_has_been_told_is_forgotten() {
        let mut known = Known::default();
        known.learn(grant(1));
        known.told = Some(HashSet::new());
        known.hear("other", None, true);
        assert!(known.check(&"svc".parse().unwrap()).is_none());
    }
}
