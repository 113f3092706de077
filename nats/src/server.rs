//! nats-server: found, or fetched and checked; started, watched, stopped.

pub mod cache;
pub mod ports;
pub mod sources;
pub mod supervise;
pub mod version;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::layout::Layout;
use crate::server::cache::Cache;
use crate::server::sources::Sources;
use crate::server::version::{FLOOR, Version};

/// The variable that names a nats-server.
pub const VARIABLE: &str = "NATS_SERVER";

/// Where to look, in this order.
#[derive(Clone, Debug)]
pub struct Search {
    /// The one to use and no other.
    pub explicit: Option<PathBuf>,
    /// The folders of programs, as in `PATH`.
    pub path: Option<OsString>,
    /// Where a fetched one is kept; the first that can be written to is used.
    pub cache: Cache,
    /// Where to fetch it from.
    pub sources: Sources,
}

/// A nats-server that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its version, which is new enough.
    pub version: Version,
}

/// There is no usable nats-server; the message says what was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFound {
    tried: Vec<String>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "no usable nats-server; {FLOOR} or later is needed. Tried:")?;
        for attempt in &self.tried {
            writeln!(f, "  - {attempt}")?;
        }
        write!(f, "Install one and name it: {VARIABLE}=/path/to/nats-server")
    }
}

impl std::error::Error for NotFound {}

impl Search {
    /// The usual places. `explicit` is what the variable [`VARIABLE`] says, if it says anything.
    pub fn usual(explicit: Option<PathBuf>, layout: &Layout) -> Self {
        Self {
            explicit: explicit.filter(|path| !path.as_os_str().is_empty()),
            path: std::env::var_os("PATH"),
            cache: Cache::usual(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"), layout),
            sources: Sources::official(),
        }
    }

    /// Finds nats-server, or fetches it. Blocks; `progress` is told what takes time.
    pub fn find_or_fetch(&self, progress: &dyn Fn(&str)) -> Result<Program, NotFound> {
        if let Some(path) = &self.explicit {
            return version::of_program(path)
                .map(|version| Program { path: path.clone(), version })
                .map_err(|error| NotFound { tried: vec![format!("{VARIABLE}: {error:#}")] });
        }
        let mut tried = Vec::new();
        if let Some(program) = self.in_path(&mut tried) {
            return Ok(program);
        }
        if let Some(program) = self.cache.find(&mut tried) {
            return Ok(program);
        }
        self.fetch(progress, &mut tried).ok_or(NotFound { tried })
    }

    fn in_path(&self, tried: &mut Vec<String>) -> Option<Program> {
        let dirs: Vec<PathBuf> = self.path.iter().flat_map(std::env::split_paths).collect();
        let mut found = dirs.iter().map(|dir| dir.join("nats-server")).filter(|path| path.is_file()).peekable();
        if found.peek().is_none() {
            tried.push("PATH: there is no nats-server in it".to_owned());
        }
        for path in found {
            match version::of_program(&path) {
                Ok(version) => return Some(Program { path, version }),
                Err(error) => tried.push(format!("PATH: {error:#}")),
            }
        }
        None
    }

    fn fetch(&self, progress: &dyn Fn(&str), tried: &mut Vec<String>) -> Option<Program> {
        let work = match self.cache.work_dir() {
            Ok(work) => work,
            Err(error) => {
                tried.push(format!("fetching: {error:#}"));
                return None;
            }
        };
        let fetched = self.sources.fetch(work.path(), progress, tried)?;
        match self.cache.keep(&fetched, work.path()) {
            Ok(program) => {
                progress(&format!("nats-server {} is at {}", program.version, program.path.display()));
                Some(program)
            }
            Err(error) => {
                tried.push(format!("keeping what was fetched: {error:#}"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
