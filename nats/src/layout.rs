//! Where everything lies below the data folder.

pub mod files;

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use probeops_shared::ids::{Caller, NodeId};

/// The paths below one data folder. Nothing else spells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

/// The data folder is ours for as long as this lives.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// The data folder is not ours.
#[derive(Debug)]
pub enum LockError {
    /// Somebody has it.
    InUse {
        /// The folder.
        root: PathBuf,
        /// The process that took it, as far as is known.
        owner: Option<i32>,
    },
    /// It cannot be taken by anybody.
    Unusable(anyhow::Error),
}

impl LockError {
    /// Whether the process that took it has ended, and only programs that it had started still end.
    pub fn owner_has_ended(&self) -> bool {
        matches!(self, Self::InUse { owner: Some(owner), .. } if kill(Pid::from_raw(*owner), None) == Err(Errno::ESRCH))
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { root, owner: Some(owner) } if !self.owner_has_ended() => {
                write!(f, "the data folder {} is in use by process {owner}; stop that one, or name another folder", root.display())
            }
            Self::InUse { root, owner: _ } => write!(
                f,
                "the data folder {} is in use by programs that a process which has ended left behind; stop them, or name another folder",
                root.display()
            ),
            Self::Unusable(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for LockError {}

impl Lock {
    /// Lets the programs that this process starts from now on hold the folder too, and this process until its end: were it killed, nobody
    /// takes the folder before the last of them is gone.
    pub fn pass_on(&self) -> Result<()> {
        // A copy that is not closed when another program is executed; above the numbers that shells give out.
        fcntl(&self.file, FcntlArg::F_DUPFD(10)).map(drop).context("cannot pass on the lock of the data folder")
    }
}

impl Layout {
    /// The layout of a data folder; touches nothing. A relative path is taken from the working directory of now.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let given = data_dir.into();
        Self { root: std::path::absolute(&given).unwrap_or(given) }
    }

    /// Makes the folders, readable by their owner only.
    pub fn create(&self) -> Result<()> {
        for dir in [
            self.root.clone(),
            self.keys_dir(),
            self.ledger_dir(),
            self.jwt_dir(),
            self.tls_dir(),
            self.server_tls_dir(),
            self.creds_dir(),
            self.sentry_dir(),
            self.nodes_dir(),
            self.services_dir(),
            self.broker_dir(),
            self.jetstream_dir(),
            self.resolver_dir(),
        ] {
            files::make_dir(&dir)?;
        }
        Ok(())
    }

    /// Takes the data folder for this process, until the lock is dropped or the process ends in whatever way.
    pub fn lock(&self) -> Result<Lock, LockError> {
        let path = self.root.join("lock");
        let mut file = open_lock(&path).map_err(LockError::Unusable)?;
        let unusable =
            |what: &str, error| LockError::Unusable(anyhow::Error::new(error).context(format!("cannot {what} {}", path.display())));
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                return Err(LockError::InUse { root: self.root.clone(), owner });
            }
            Err(TryLockError::Error(error)) => return Err(unusable("lock", error)),
        }
        // The number is for the message above; the lock itself is the kernel's.
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(|error| unusable("write", error))?;
        Ok(Lock { file })
    }

    /// Waits until no other process changes the keys and account claims.
    pub fn lock_vault(&self) -> Result<Lock> {
        let path = self.keys_dir().join("lock");
        let file = open_lock(&path)?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Lock { file })
    }

    /// The data folder itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Private keys.
    pub fn keys_dir(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// What was signed for which key, a file for each.
    pub fn ledger_dir(&self) -> PathBuf {
        self.keys_dir().join("signed")
    }

    /// The private key `name`.
    pub fn key(&self, name: &str) -> PathBuf {
        self.keys_dir().join(format!("{name}.nk"))
    }

    /// Claims of the operator and the accounts.
    pub fn jwt_dir(&self) -> PathBuf {
        self.root.join("jwt")
    }

    /// The claims of `name`.
    pub fn jwt(&self, name: &str) -> PathBuf {
        self.jwt_dir().join(format!("{name}.jwt"))
    }

    /// The authority's certificate: what every client needs, and no more.
    pub fn tls_dir(&self) -> PathBuf {
        self.root.join("tls")
    }

    /// The broker's certificate with its private key: for the broker and who stands before it, and nobody else.
    pub fn server_tls_dir(&self) -> PathBuf {
        self.root.join("server-tls")
    }

    /// The authorities' certificates: what every client trusts. There are two while one follows the other.
    pub fn ca_certificate(&self) -> PathBuf {
        self.tls_dir().join("ca.pem")
    }

    /// The authority's private key. It lies with those that sign, away from what servers read.
    pub fn ca_key(&self) -> PathBuf {
        self.keys_dir().join("ca.key")
    }

    /// The private key of the authority that is next.
    pub fn next_ca_key(&self) -> PathBuf {
        self.keys_dir().join("ca-next.key")
    }

    /// The broker's certificate.
    pub fn server_certificate(&self) -> PathBuf {
        self.server_tls_dir().join("server.pem")
    }

    /// The private key of the broker's certificate.
    pub fn server_key(&self) -> PathBuf {
        self.server_tls_dir().join("server.key")
    }

    /// Credentials of our own programs.
    pub fn creds_dir(&self) -> PathBuf {
        self.root.join("creds")
    }

    /// The credential of our own program `name`.
    pub fn creds(&self, name: &str) -> PathBuf {
        self.creds_dir().join(format!("{name}.creds"))
    }

    /// Credentials of the sentry: what ends connections is not where the API's are.
    pub fn sentry_dir(&self) -> PathBuf {
        self.root.join("sentry")
    }

    /// Credentials of nodes.
    pub fn nodes_dir(&self) -> PathBuf {
        self.root.join("nodes")
    }

    /// Where a node of this machine that enrols keeps its key and credential.
    pub fn node_state(&self, node: &NodeId) -> PathBuf {
        self.nodes_dir().join(node.as_str())
    }

    /// The credential of a node.
    pub fn node_creds(&self, node: &NodeId) -> PathBuf {
        self.nodes_dir().join(format!("{node}.creds"))
    }

    /// Credentials of services.
    pub fn services_dir(&self) -> PathBuf {
        self.root.join("services")
    }

    /// The credential of a service.
    pub fn service_creds(&self, service: &Caller) -> PathBuf {
        self.services_dir().join(format!("{service}.creds"))
    }

    /// What the broker reads and writes.
    pub fn broker_dir(&self) -> PathBuf {
        self.root.join("broker")
    }

    /// The broker's configuration.
    pub fn server_conf(&self) -> PathBuf {
        self.broker_dir().join("server.conf")
    }

    /// The broker's log.
    pub fn server_log(&self) -> PathBuf {
        self.broker_dir().join("server.log")
    }

    /// What the broker says before it has opened its log.
    pub fn server_stderr(&self) -> PathBuf {
        self.broker_dir().join("server.stderr")
    }

    /// Streams and buckets.
    pub fn jetstream_dir(&self) -> PathBuf {
        self.broker_dir().join("jetstream")
    }

    /// Account claims as the broker keeps them.
    pub fn resolver_dir(&self) -> PathBuf {
        self.broker_dir().join("resolver")
    }

    /// The first API key, with all scopes.
    pub fn admin_key(&self) -> PathBuf {
        self.root.join("admin.key")
    }

    /// Where a fetched nats-server is kept when there is no better place.
    pub fn cache_dir(&self) -> PathBuf {
        self.root.join("cache")
    }
}

fn open_lock(path: &Path) -> Result<File> {
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
    opened.with_context(|| format!("cannot open {}; is the data folder writable by this user?", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::Layout;
    use crate::testing::Scratch;

    #[test]
    fn folders_are_the_owners_alone() {
        let scratch = Scratch::new();
        let layout = Layout::new(scratch.path().join("data"));
        layout.create().unwrap();
        for dir in [layout.root().to_owned(), layout.keys_dir(), layout.nodes_dir(), layout.resolver_dir()] {
            assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700, "{}", dir.display());
        }
    }

    #[test]
    fn a_data_folder_has_one_user_at_a_time() {
        let scratch = Scratch::new();
        let layout = Layout::new(scratch.path());
        layout.create().unwrap();
        let lock = layout.lock().unwrap();
        let refused = layout.lock().unwrap_err().to_string();
        assert!(refused.contains(&format!("is in use by process {}", std::process::id())), "{refused}");
        drop(lock);
        layout.lock().unwrap();
    }

    #[test]
    fn a_data_folder_that_cannot_be_made_is_named() {
        let scratch = Scratch::new();
        std::fs::write(scratch.path().join("file"), "").unwrap();
        let refused = format!("{:#}", Layout::new(scratch.path().join("file/data")).create().unwrap_err());
        assert!(refused.starts_with(&format!("cannot make the folder {}", scratch.path().join("file/data").display())), "{refused}");
    }
}
