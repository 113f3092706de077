//! How the keymaster or the sentry is, in a file: for container engines and service managers, which cannot ask a program that opens no port.
//!
//! Well means that every server of the broker that is there has lately been at the accounts' claims as they are on disk, or has listed its
//! connections.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use probeops_shared::timestamp::Timestamp;

use crate::layout::files::{self, Secrecy};

/// How often it says so.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// For how long that holds.
const FRESH: Duration = Duration::from_secs(20);

/// The file, where there is one.
pub(crate) struct Health {
    path: Option<PathBuf>,
    said: Option<Instant>,
}

impl Health {
    /// Takes away what an earlier one has said.
    pub(crate) fn begin(path: Option<PathBuf>) -> Result<Self> {
        if let Some(path) = path.as_deref().filter(|path| path.exists()) {
            std::fs::remove_file(path).with_context(|| format!("cannot remove the health file {}", path.display()))?;
        }
        Ok(Self { path, said: None })
    }

    /// Says that it is well.
    pub(crate) fn well(&mut self) {
        let Some(path) = &self.path else { return };
        if self.said.is_some_and(|said| said.elapsed() < SAY_EVERY) {
            return;
        }
        if let Err(error) = files::write(path, format!("{}\n", Timestamp::now()).as_bytes(), Secrecy::Public) {
            tracing::error!("{error:#}");
        }
        self.said = Some(Instant::now());
    }
}

/// Whether the keymaster, or the sentry, that writes the file is well; if not, why.
pub fn check_health(path: &Path) -> Result<()> {
    let Some(text) = files::read_if_exists(path)? else {
        bail!("{}: there is no such file; who was started with it has not reached the broker yet", path.display());
    };
    let last = Timestamp::parse(text.trim()).with_context(|| format!("{} is not what these programs write", path.display()))?;
    if last.plus(FRESH) < Timestamp::now() {
        bail!("{}: it was last well at {last}, more than {} s ago", path.display(), FRESH.as_secs());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn it_is_well_for_as_long_as_it_says_so() {
        let scratch = Scratch::new();
        let path = scratch.path().join("health");
        files::write(&path, b"2020-01-01T00:00:00Z\n", Secrecy::Public).unwrap();
        assert!(check_health(&path).unwrap_err().to_string().contains("last well at"));
        let mut health = Health::begin(Some(path.clone())).unwrap();
        assert!(check_health(&path).unwrap_err().to_string().contains("no such file"), "what an earlier one said is gone");
        health.well();
        check_health(&path).unwrap();
        files::write(&path, b"x", Secrecy::Public).unwrap();
        assert!(check_health(&path).unwrap_err().to_string().contains("not what these programs write"));
    }
}
