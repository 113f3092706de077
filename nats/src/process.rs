//! What every long-lived program of ours does first and last: one TLS provider, one log, one way to be told to stop.

use std::io::IsTerminal;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit codes with a meaning (`sysexits.h` where it has one).
pub mod exit {
    /// The broker does not accept the credential any more; starting again will not help.
    pub const REVOKED: u8 = 78;
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Makes ring the process's only TLS provider. Call it first thing; calling it again does nothing.
pub fn install_tls_provider() {
    // An error means that a provider is installed already, which is what we want.
    drop(async_nats::rustls::crypto::ring::default_provider().install_default());
}

/// Lets nobody have this process's memory, in which its secrets are: no core is dumped (`RLIMIT_CORE` 0, which programs that it starts
/// inherit), and no other process of its user may trace it or read its environment (`PR_SET_DUMPABLE`). Call it first thing.
pub fn keep_memory_private() {
    // Neither needs a privilege. Where a sandbox forbids one, as systemd's filter of `@resources` does the first, the other still counts, and
    // whoever wrote the sandbox has set `LimitCORE=0`.
    for kept in [setrlimit(Resource::RLIMIT_CORE, 0, 0), prctl::set_dumpable(false)] {
        if let Err(error) = kept {
            tracing::debug!(%error, "a protection against core dumps could not be turned on");
        }
    }
}

/// Starts logging to standard error; what is logged is chosen by `PROBEOPS_LOG` (default `info`, without the client library's own).
pub fn start_log(format: Option<LogFormat>) {
    let filter = EnvFilter::try_from_env("PROBEOPS_LOG").unwrap_or_else(|_| EnvFilter::new("info,async_nats=warn,hickory_net=off"));
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // An error means that a log is there already: the first one stays.
    match format {
        LogFormat::Text => drop(log.with_ansi(terminal).try_init()),
        LogFormat::Json => drop(log.json().flatten_event(true).try_init()),
    }
}

/// A token that is cancelled by SIGTERM or SIGINT.
pub fn stop_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = stop.clone();
    // A second signal changes nothing: a terminal's Ctrl-C reaches the children of `up` twice, from it and from `up`.
    #[expect(clippy::let_underscore_future, reason = "the task lives as long as the process")]
    let _ = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
