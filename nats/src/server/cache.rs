//! Where a fetched nats-server is kept between starts.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::layout::Layout;
use crate::layout::files::{self, Secrecy};
use crate::server::Program;
use crate::server::sources::sha256_of_file;
use crate::server::version::{self, PINNED};

/// Folders in which a fetched nats-server may be kept, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The folders.
    pub dirs: Vec<PathBuf>,
}

/// A folder for work in progress that goes with its owner.
#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

impl Cache {
    /// The user's cache folder where there is one, then the data folder.
    pub fn usual(xdg_cache_home: Option<OsString>, home: Option<OsString>, layout: &Layout) -> Self {
        let absolute = |variable: Option<OsString>| variable.map(PathBuf::from).filter(|path| path.is_absolute());
        let user = absolute(xdg_cache_home).or_else(|| absolute(home).map(|home| home.join(".cache")));
        Self { dirs: user.map(|dir| dir.join("probeops")).into_iter().chain([layout.cache_dir()]).collect() }
    }

    /// The one that was kept, if it is still what it was.
    pub fn find(&self, tried: &mut Vec<String>) -> Option<Program> {
        for dir in &self.dirs {
            let path = dir.join(file_name());
            match check(&path) {
                Ok(program) => return Some(program),
                Err(error) if path.exists() => tried.push(format!("cache: {error:#}")),
                Err(_) => {}
            }
        }
        None
    }

    /// A new folder beside where the result will be kept.
    pub fn work_dir(&self) -> Result<WorkDir> {
        let mut refusals = Vec::new();
        for dir in &self.dirs {
            let work = dir.join(format!(".fetch.{:016x}", rand::random::<u64>()));
            match files::make_dir(&work) {
                Ok(()) => return Ok(WorkDir(work)),
                Err(error) => refusals.push(format!("{error:#}")),
            }
        }
        bail!("there is no folder to keep it in: {}", refusals.join("; "))
    }

    /// Moves what was fetched into `work` to its place beside it.
    pub fn keep(&self, fetched: &Path, work: &Path) -> Result<Program> {
        fs::set_permissions(fetched, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", fetched.display()))?;
        let version = version::of_program(fetched)?;
        let dir = work.parent().ok_or_else(|| anyhow!("{} has no parent", work.display()))?;
        let path = dir.join(file_name());
        let digest = sha256_of_file(fetched)?;
        // The digest first: a program without one is not believed, so an interruption leaves nothing half right.
        files::write(&digest_path(&path), digest.as_bytes(), Secrecy::Public)?;
        fs::rename(fetched, &path).with_context(|| format!("cannot move it to {}", path.display()))?;
        Ok(Program { path, version })
    }
}

fn file_name() -> String {
    format!("nats-server-{PINNED}-{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

fn digest_path(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.sha256", file_name()))
}

fn check(path: &Path) -> Result<Program> {
    let wanted = files::read_if_exists(&digest_path(path))?.context("its digest is missing")?;
    let found = sha256_of_file(path)?;
    if wanted.trim() != found {
        bail!("{} has SHA-256 {found} and was kept with {}; it is fetched again", path.display(), wanted.trim().escape_debug());
    }
    let version = version::of_program(path)?;
    Ok(Program { path: path.to_owned(), version })
}
