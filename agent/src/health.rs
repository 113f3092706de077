//! How the agent is, in a file: for container engines and service managers, which cannot ask a program that opens no port.
//!
//! Well means that the control plane has acknowledged a beat lately, which proves the whole way there and back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use probeops_nats::layout::files::{self, Secrecy};
use probeops_shared::presence::{BEAT_INTERVAL_MS, BEATS_UNTIL_GONE};
use probeops_shared::timestamp::Timestamp;

const STARTING: &str = "starting";
const ENDED: &str = "ended";

/// The file, where there is one.
#[derive(Debug)]
pub(crate) struct Health(Option<PathBuf>);

impl Health {
    /// Says that the agent is starting, whatever an earlier one has said.
    pub(crate) fn begin(path: Option<PathBuf>) -> Result<Self, String> {
        if let Some(path) = &path {
            write(path, STARTING).map_err(|detail| format!("health_file: {detail}"))?;
        }
        Ok(Self(path))
    }

    /// Says that a beat was acknowledged just now.
    pub(crate) fn well(&self) {
        self.say(&Timestamp::now().to_string());
    }

    /// Says that the agent has stopped.
    pub(crate) fn ended(&self) {
        self.say(ENDED);
    }

    fn say(&self, text: &str) {
        if let Some(Err(detail)) = self.0.as_deref().map(|path| write(path, text)) {
            tracing::error!("{detail}");
        }
    }
}

/// Whether the agent that writes the file is well; if not, why.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let text = files::read_if_exists(path).map_err(|error| format!("{error:#}"))?;
    judge(text.as_deref().map(str::trim), Timestamp::now()).map_err(|why| format!("{}: {why}", path.display()))
}

fn judge(text: Option<&str>, now: Timestamp) -> Result<(), String> {
    // The roster forgets a node after as long.
    let fresh = Duration::from_millis(BEAT_INTERVAL_MS * BEATS_UNTIL_GONE);
    match text {
        None => Err("there is no such file; no agent was started with it".to_owned()),
        Some(STARTING) => Err("the agent is starting; the control plane has acknowledged no beat yet".to_owned()),
        Some(ENDED) => Err("the agent has stopped".to_owned()),
        Some(text) => {
            let last = Timestamp::parse(text).ok_or_else(|| format!("`{}` is not what an agent writes", text.escape_debug()))?;
            if last.plus(fresh) < now {
                return Err(format!(
                    "the last beat that the control plane acknowledged was at {last}, more than {} s ago",
                    fresh.as_secs()
                ));
            }
            Ok(())
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    // Relative to the working directory, as every other path in the settings.
    let path = std::path::absolute(path).map_err(|error| format!("{} is not a path: {error}", path.display()))?;
    files::write(&path, format!("{text}\n").as_bytes(), Secrecy::Public).map_err(|error| format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_is_a_beat_acknowledged_within_three() {
        let now = Timestamp::now();
        let at = |seconds: u64| now.plus(Duration::from_secs(seconds));
        let said = now.to_string();
        judge(Some(&said), at(29)).unwrap();
        let refused = |text: Option<&str>, at: Timestamp| judge(text, at).unwrap_err();
        assert!(refused(Some(&said), at(31)).ends_with("more than 30 s ago"));
        assert!(refused(None, now).starts_with("there is no such file"));
        assert!(refused(Some(STARTING), now).contains("no beat yet"));
        assert!(refused(Some(ENDED), now).contains("stopped"));
        assert_eq!(refused(Some("x"), now), "`x` is not what an agent writes");
    }

    #[test]
    fn what_cannot_be_written_is_said_at_the_start() {
        let refused = Health::begin(Some("/nonexistent/health".into())).unwrap_err();
        assert!(refused.starts_with("health_file: cannot write /nonexistent/health"), "{refused}");
        assert!(check(Path::new("/nonexistent/health")).unwrap_err().starts_with("/nonexistent/health: there is no such file"));
    }
}
