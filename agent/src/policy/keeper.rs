//! The policy in force, and the owner's file it came from, which is read again when it changes.
//!
//! A file that cannot be used changes nothing: the last good one stays, and the log and the roster say what is wrong with the new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use probeops_shared::presence::PolicyReport;
use probeops_shared::settings::{self, SettingsError, Stamp};
use probeops_shared::timestamp::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Endpoint, Policy, PolicyError};

/// How often the owner's file is looked at for changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How much of what is wrong with a file is told.
const ERROR_CHARACTERS_MAX: usize = 1_000;

/// Keeps the policy.
#[derive(Debug)]
pub(crate) struct Keeper {
    file: Option<PathBuf>,
    servers: Vec<String>,
    /// What tools must keep away from besides the servers.
    ways: Vec<Endpoint>,
    now: watch::Sender<InForce>,
}

/// The policy in force.
#[derive(Clone, Debug)]
struct InForce {
    policy: Arc<Policy>,
    /// The version of the file that says so; none where there is no file.
    stamp: Stamp,
    since: Timestamp,
    /// Why the file as it is now is not in force.
    error: Option<String>,
}

/// What asks for the file to be read again.
#[derive(Debug)]
pub(crate) struct Follower {
    changes: Watched,
    hangup: Signal,
}

/// What has been seen of a file.
#[derive(Debug)]
struct Watched {
    /// What was read of it last.
    read: Stamp,
    /// As it was at the last look, where that is something else.
    candidate: Option<Stamp>,
}

impl From<Policy> for Keeper {
    /// One that never changes.
    fn from(policy: Policy) -> Self {
        Self { file: None, servers: Vec::new(), ways: Vec::new(), now: watch::Sender::new(InForce::new(policy, Stamp::default())) }
    }
}

impl InForce {
    fn new(policy: Policy, stamp: Stamp) -> Self {
        Self { policy: Arc::new(policy), stamp, since: Timestamp::now(), error: None }
    }
}

impl Watched {
    /// Whether the file is to be read, being so now. One that changes is read when it has been still for one look: it may be half written.
    fn is_ripe(&mut self, now: Stamp) -> bool {
        let candidate = self.candidate.take();
        if now == self.read {
            return false;
        }
        if candidate == Some(now) {
            // What comes while it is read is something else again at the next look.
            self.read = now;
            return true;
        }
        self.candidate = Some(now);
        false
    }
}

impl Keeper {
    /// Reads the owner's file, if there is one.
    pub(crate) fn open(file: Option<&Path>, servers: &[String], ways: Vec<Endpoint>) -> Result<Self, PolicyError> {
        let (policy, stamp) = read(file, servers, (&ways, false))?;
        Ok(Self { file: file.map(Path::to_owned), servers: servers.to_vec(), ways, now: watch::Sender::new(InForce::new(policy, stamp)) })
    }

    /// The policy as it is now.
    pub(crate) fn current(&self) -> Arc<Policy> {
        Arc::clone(&self.now.borrow().policy)
    }

    /// Tells when the policy has changed.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.now.subscribe())
    }

    /// What the roster is told.
    pub(crate) fn report(&self) -> PolicyReport {
        let InForce { policy, stamp, since, error } = self.now.borrow().clone();
        PolicyReport { summary: policy.summary(), allows: policy.classes(), digest: stamp.hex(), since, error }
    }

    /// What to follow the file by. From now on SIGHUP does not end the process.
    pub(crate) fn follower(&self) -> std::io::Result<Follower> {
        Ok(Follower { changes: self.watched(), hangup: signal(SignalKind::hangup())? })
    }

    /// From what was read on, so that nothing is missed that came after it.
    fn watched(&self) -> Watched {
        Watched { read: self.now.borrow().stamp, candidate: None }
    }

    /// Reads the file again whenever it changes and at SIGHUP, and tells what is new; until told to stop.
    pub(crate) async fn follow(&self, mut by: Follower, tell: impl Fn(PolicyReport), stop: &CancellationToken) {
        loop {
            let asked = tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => false,
                Some(()) = by.hangup.recv() => true,
                () = stop.cancelled() => return,
            };
            let Some(file) = &self.file else {
                tracing::info!("told to read the policy again, and there is no file: the default policy stays");
                continue;
            };
            let stamp = Stamp::of(file);
            if asked {
                by.changes = Watched { read: stamp, candidate: None };
            } else if !by.changes.is_ripe(stamp) {
                continue;
            }
            if self.read_again(file) {
                tell(self.report());
            } else if asked {
                tracing::info!("told to read the owner's policy again: it is as it was");
            }
        }
    }

    /// Reads the file; whether there is anything new to tell.
    pub(crate) fn read_again(&self, file: &Path) -> bool {
        let read = read(Some(file), &self.servers, (&self.ways, true));
        self.now.send_if_modified(|now| {
            let next = match read {
                Ok((_, stamp)) if stamp == now.stamp => InForce { error: None, ..now.clone() },
                Ok((policy, stamp)) => {
                    tracing::info!(digest = stamp.hex(), policy = policy.summary(), "the owner's policy has changed and is in force");
                    InForce::new(policy, stamp)
                }
                Err(error) => {
                    let error: String = error.to_string().chars().take(ERROR_CHARACTERS_MAX).collect();
                    tracing::error!(digest = now.stamp.hex(), since = %now.since, "the owner's policy cannot be used, and the last good one stays: {error}");
                    InForce { error: Some(error), ..now.clone() }
                }
            };
            let is_new = next.error != now.error || !Arc::ptr_eq(&next.policy, &now.policy);
            *now = next;
            is_new
        })
    }
}

/// Tells of changes.
#[derive(Debug)]
pub(crate) struct Changes(watch::Receiver<InForce>);

impl Changes {
    /// The policy after the next change; never, where none can come any more.
    pub(crate) async fn next(&mut self) -> Arc<Policy> {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        Arc::clone(&self.0.borrow_and_update().policy)
    }
}

/// The policy of a file, and which version of it that is.
fn read(file: Option<&Path>, servers: &[String], (ways, again): (&[Endpoint], bool)) -> Result<(Policy, Stamp), PolicyError> {
    let away = |policy: Policy| policy.keeping_away_from(ways.to_vec());
    let Some(file) = file else { return Policy::new("", Path::new("(none)"), servers).map(|policy| (away(policy), Stamp::default())) };
    let text = settings::read(file).map_err(PolicyError::File)?;
    if again && text.trim().is_empty() {
        // As it is for a moment while it is written anew, which must not allow everything.
        let source = std::io::Error::other("it is empty; write a comment into it to mean the default policy");
        return Err(PolicyError::File(SettingsError::Unreadable { path: file.to_owned(), source }));
    }
    Policy::new(&text, file, servers).map(|policy| (away(policy), Stamp::of_bytes(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_is_in_force_and_a_broken_one_changes_nothing() {
        let file = std::env::temp_dir().join(format!("probeops-keeper-{:032x}.toml", rand::random::<u128>()));
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("allow_loopback = true\n");
        let keeper = Keeper::open(Some(&file), &[], Vec::new()).unwrap();
        let first = keeper.report();
        assert_eq!(first.digest.as_deref().map(str::len), Some(64));
        assert!(!keeper.read_again(&file), "what is the same is not told");
        write("# narrower\n[allow]\nnetworks = [\"10.0.0.0/33\"]\n");
        assert!(keeper.read_again(&file));
        let broken = keeper.report();
        assert_eq!((&broken.digest, broken.since), (&first.digest, first.since));
        let error = broken.error.unwrap();
        assert!(error.contains(" line 3: `allow.networks[0]`: must be a network") && error.contains("10.0.0.0/33"), "{error}");
        write("[allow]\nnetworks = [\"10.0.0.0/8\"]\n");
        assert!(keeper.read_again(&file));
        let narrowed = keeper.report();
        assert!(narrowed.error.is_none() && narrowed.digest != first.digest && narrowed.summary.contains("only networks 10.0.0.0/8"));
        std::fs::remove_file(&file).unwrap();
        assert!(keeper.read_again(&file));
        assert!(keeper.report().error.unwrap().starts_with("there is no settings file"), "a file that is gone opens nothing");
        write("[allow]\nnetworks = [\"10.0.0.0/8\"]\n");
        assert!(keeper.read_again(&file) && keeper.report().error.is_none(), "it is mended");
        assert_eq!(keeper.report().since, narrowed.since, "and was in force all the time");
        std::fs::remove_file(&file).unwrap();
    }

    /// A folder with a policy in it.
    struct Place(PathBuf);

    impl Place {
        fn new() -> Self {
            let place = Self(std::env::temp_dir().join(format!("probeops-place-{:032x}", rand::random::<u128>())));
            std::fs::create_dir(&place.0).unwrap();
            place
        }

        fn file(&self) -> PathBuf {
            self.0.join("policy.toml")
        }

        fn writes(&self, name: &str, port: u16) {
            std::fs::write(self.0.join(name), format!("[deny]\nports = [{port}]\n")).unwrap();
        }

        fn links(&self, name: &str, to: &str) {
            std::os::unix::fs::symlink(to, self.0.join(name)).unwrap();
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// What a follower does at two looks, between which nothing happens.
    #[track_caller]
    fn comes_into_force(keeper: &Keeper, watched: &mut Watched, place: &Place, port: u16) {
        assert!(!watched.is_ripe(Stamp::of(&place.file())), "it may be half written");
        assert!(watched.is_ripe(Stamp::of(&place.file())) && keeper.read_again(&place.file()));
        assert!(keeper.report().summary.ends_with(&format!("no ports {port}")), "{}", keeper.report().summary);
        assert!(!watched.is_ripe(Stamp::of(&place.file())), "once");
    }

    #[test]
    fn whatever_way_the_file_changes_it_is_noticed() {
        let place = Place::new();
        place.writes("policy.toml", 1);
        let keeper = Keeper::open(Some(&place.file()), &[], Vec::new()).unwrap();
        // Between the first reading and the first look.
        place.writes("policy.toml", 2);
        let mut watched = keeper.watched();
        comes_into_force(&keeper, &mut watched, &place, 2);
        // As long as before, and as old.
        let modified = std::fs::metadata(place.file()).unwrap().modified().unwrap();
        place.writes("policy.toml", 3);
        std::fs::File::options().write(true).open(place.file()).unwrap().set_modified(modified).unwrap();
        comes_into_force(&keeper, &mut watched, &place, 3);
        // Another file in its place.
        place.writes("new", 4);
        std::fs::rename(place.0.join("new"), place.file()).unwrap();
        comes_into_force(&keeper, &mut watched, &place, 4);
        // A link in its place, and another folder behind that, as of a ConfigMap.
        std::fs::create_dir(place.0.join("one")).unwrap();
        std::fs::create_dir(place.0.join("two")).unwrap();
        place.writes("one/policy.toml", 5);
        place.writes("two/policy.toml", 6);
        place.links("..data", "one");
        std::fs::remove_file(place.file()).unwrap();
        place.links("policy.toml", "..data/policy.toml");
        comes_into_force(&keeper, &mut watched, &place, 5);
        place.links("..next", "two");
        std::fs::rename(place.0.join("..next"), place.0.join("..data")).unwrap();
        comes_into_force(&keeper, &mut watched, &place, 6);
        // While it is read: the next look sees it.
        place.writes("two/policy.toml", 7);
        assert!(!watched.is_ripe(Stamp::of(&place.file())) && watched.is_ripe(Stamp::of(&place.file())));
        place.writes("two/policy.toml", 8);
        assert!(keeper.read_again(&place.file()));
        place.writes("two/policy.toml", 9);
        comes_into_force(&keeper, &mut watched, &place, 9);
        // One that is still being written is left alone until it is still.
        place.writes("two/policy.toml", 10);
        assert!(!watched.is_ripe(Stamp::of(&place.file())));
        place.writes("two/policy.toml", 11);
        comes_into_force(&keeper, &mut watched, &place, 11);
    }
}
