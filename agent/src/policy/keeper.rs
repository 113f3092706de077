//! The policy in force, and the owner's file it came from, which is read again when it changes.
//!
//! A file that cannot be used changes nothing: the last good one stays, and the log and the roster say what is wrong with the new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use probeops_shared::presence::PolicyReport;
use probeops_shared::settings::{self, SettingsError, Stamp};
use probeops_shared::timestamp::Timestamp;
use sha2::{Digest, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
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
    digest: Option<String>,
    since: Timestamp,
    /// Why the file as it is now is not in force.
    error: Option<String>,
}

/// What asks for the file to be read again.
#[derive(Debug)]
pub(crate) struct Follower {
    seen: Option<Stamp>,
    /// As it was at the last look.
    candidate: Option<Stamp>,
    hangup: Signal,
}

impl From<Policy> for Keeper {
    /// One that never changes.
    fn from(policy: Policy) -> Self {
        Self { file: None, servers: Vec::new(), ways: Vec::new(), now: watch::Sender::new(InForce::new(policy, None)) }
    }
}

impl InForce {
    fn new(policy: Policy, digest: Option<String>) -> Self {
        Self { policy: Arc::new(policy), digest, since: Timestamp::now(), error: None }
    }
}

impl Keeper {
    /// Reads the owner's file, if there is one.
    pub(crate) fn open(file: Option<&Path>, servers: &[String], ways: Vec<Endpoint>) -> Result<Self, PolicyError> {
        let (policy, digest) = read(file, servers, (&ways, false))?;
        Ok(Self { file: file.map(Path::to_owned), servers: servers.to_vec(), ways, now: watch::Sender::new(InForce::new(policy, digest)) })
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
        let InForce { policy, digest, since, error } = self.now.borrow().clone();
        PolicyReport { summary: policy.summary(), allows: policy.classes(), digest, since, error }
    }

    /// What to follow the file by. From now on SIGHUP does not end the process.
    pub(crate) fn follower(&self) -> std::io::Result<Follower> {
        Ok(Follower { seen: self.file.as_deref().map(Stamp::of), candidate: None, hangup: signal(SignalKind::hangup())? })
    }

    /// Reads the file again whenever it changes and at SIGHUP, and notifies who tells the roster; until told to stop.
    pub(crate) async fn follow(&self, mut by: Follower, told: &Notify, stop: &CancellationToken) {
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
            let stamp = Some(Stamp::of(file));
            // A file that changes is read when it has been still for one look: it may be half written.
            if !asked && by.seen != stamp && by.candidate != stamp {
                by.candidate = stamp;
                continue;
            }
            if asked || by.seen != stamp {
                let is_new = self.read_again(file);
                if is_new {
                    told.notify_one();
                } else if asked {
                    tracing::info!("told to read the owner's policy again: it is as it was");
                }
            }
            by.seen = stamp;
        }
    }

    /// Reads the file; whether there is anything new to tell.
    pub(crate) fn read_again(&self, file: &Path) -> bool {
        let read = read(Some(file), &self.servers, (&self.ways, true));
        self.now.send_if_modified(|now| {
            let next = match read {
                Ok((_, digest)) if digest == now.digest => InForce { error: None, ..now.clone() },
                Ok((policy, digest)) => {
                    tracing::info!(digest, policy = policy.summary(), "the owner's policy has changed and is in force");
                    InForce::new(policy, digest)
                }
                Err(error) => {
                    let error: String = error.to_string().chars().take(ERROR_CHARACTERS_MAX).collect();
                    tracing::error!(digest = now.digest, since = %now.since, "the owner's policy cannot be used, and the last good one stays: {error}");
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

/// The policy of a file, and the SHA-256 of that.
fn read(file: Option<&Path>, servers: &[String], (ways, again): (&[Endpoint], bool)) -> Result<(Policy, Option<String>), PolicyError> {
    let away = |policy: Policy| policy.keeping_away_from(ways.to_vec());
    let Some(file) = file else { return Policy::new("", Path::new("(none)"), servers).map(|policy| (away(policy), None)) };
    let text = settings::read(file).map_err(PolicyError::File)?;
    if again && text.trim().is_empty() {
        // As it is for a moment while it is written anew, which must not allow everything.
        let source = std::io::Error::other("it is empty; write a comment into it to mean the default policy");
        return Err(PolicyError::File(SettingsError::Unreadable { path: file.to_owned(), source }));
    }
    let digest = HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
    Policy::new(&text, file, servers).map(|policy| (away(policy), Some(digest)))
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
}
