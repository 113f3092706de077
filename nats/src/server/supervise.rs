//! A running nats-server that does not outlive us.
//!
//! It runs below a shell that holds the reading end of a pipe whose writing end is ours alone. However we end, killed included, the pipe ends
//! too, and the shell stops the server. Stopping on purpose is the same thing.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::config::ServerSettings;
use crate::server::Program;

/// How long it may take until it can be used; opening large streams takes time.
const READY_MAX: Duration = Duration::from_mins(1);
/// How often it is asked whether it is ready.
const READY_POLL: Duration = Duration::from_millis(25);
/// How long one such question may take.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// How long it may take to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How much of its log is searched for the reason of its end, in bytes.
const LOG_TAIL_BYTES: u64 = 16 * 1024;
/// The longest greeting or answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Starts the program it is given, stops it when standard input ends, and ends with it.
const WATCH: &str = r#"exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
{ read -r _ <&3; kill -TERM "$server"; } 2>/dev/null &
watcher=$!
exec 3<&-
wait "$server"
code=$?
kill "$watcher" 2>/dev/null
exit "$code""#;

/// A running server.
#[derive(Debug)]
pub struct Running {
    shell: Child,
    group: Pid,
    /// Closing it stops the server.
    pipe: Option<ChildStdin>,
    log_file: Option<PathBuf>,
    /// How long its log was before, in bytes.
    log_start: u64,
    stderr_file: PathBuf,
}

/// Starts a server with the configuration at `conf`, which was written from `settings`, and waits until it can be used. What it says before
/// it has opened its log goes to `stderr_file`.
pub async fn start(program: &Program, conf: &Path, settings: &ServerSettings, stderr_file: &Path) -> Result<Running> {
    let mut running = spawn(program, conf, settings, stderr_file)?;
    match running.ready(settings).await {
        Ok(()) => Ok(running),
        Err(error) => {
            running.stop().await?;
            Err(error)
        }
    }
}

/// The same without waiting.
pub fn spawn(program: &Program, conf: &Path, settings: &ServerSettings, stderr_file: &Path) -> Result<Running> {
    require_free_ports(settings)?;
    let log_start = settings.log_file.as_ref().and_then(|file| std::fs::metadata(file).ok()).map_or(0, |metadata| metadata.len());
    let stderr = File::create(stderr_file).with_context(|| format!("cannot write {}", stderr_file.display()))?;
    let mut shell = Command::new("/bin/sh")
        .arg("-c")
        .arg(WATCH)
        .arg("sh")
        .arg(&program.path)
        .arg("--config")
        .arg(conf)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(stderr)
        // A group of its own: an interrupt from the terminal is ours to handle, and the server is stopped last.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.path.display()))?;
    let group = shell.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw).context("the server ended at once")?;
    let pipe = shell.stdin.take();
    let log_file = settings.log_file.clone();
    Ok(Running { shell, group, pipe, log_file, log_start, stderr_file: stderr_file.to_owned() })
}

impl Running {
    /// Waits until the server has ended by itself, and says why. Dropping this future loses nothing.
    pub async fn ended(&mut self) -> anyhow::Error {
        match self.shell.wait().await {
            Ok(status) => self.explained(status),
            Err(error) => anyhow!(error).context("cannot wait for nats-server"),
        }
    }

    /// Stops the server: gently first, and by force if it takes too long.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.pipe.take());
        if timeout(STOP_MAX, self.shell.wait()).await.is_ok() {
            return Ok(());
        }
        tracing::warn!("nats-server did not stop within {} s and is killed", STOP_MAX.as_secs());
        killpg(self.group, Signal::SIGKILL).context("cannot kill nats-server")?;
        self.shell.wait().await.context("cannot wait for nats-server")?;
        Ok(())
    }

    /// The process group the server runs in.
    pub fn process_group(&self) -> i32 {
        self.group.as_raw()
    }

    /// Waits until the server can be used.
    pub async fn ready(&mut self, settings: &ServerSettings) -> Result<()> {
        let deadline = Instant::now() + READY_MAX;
        loop {
            if let Some(status) = self.shell.try_wait().context("cannot look at nats-server")? {
                return Err(self.explained(status));
            }
            match is_ready(settings).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("nats-server is not ready after {} s", READY_MAX.as_secs())));
                }
                Err(_) => sleep(READY_POLL).await,
            }
        }
    }

    fn explained(&self, status: ExitStatus) -> anyhow::Error {
        let in_log = || last_complaint(self.log_file.as_ref()?, self.log_start);
        let reason = last_complaint(&self.stderr_file, 0).or_else(in_log).unwrap_or_else(|| "it did not say why".to_owned());
        let log = self.log_file.as_ref().unwrap_or(&self.stderr_file).display();
        anyhow!("nats-server ended ({status}): {reason} (its log is {log})")
    }
}

fn require_free_ports(settings: &ServerSettings) -> Result<()> {
    let addresses = [
        ("the broker", Some(settings.listen)),
        ("the broker's WebSocket", settings.websocket.map(|websocket| websocket.listen)),
        ("the broker's monitoring", settings.monitoring()),
    ];
    for (what, address) in addresses {
        let Some(address) = address else { continue };
        if let Err(error) = std::net::TcpListener::bind(address) {
            let port = address.port();
            if error.kind() == std::io::ErrorKind::AddrInUse {
                bail!("port {port} for {what} ({address}) is already in use; stop the program that has it, or choose another port");
            }
            bail!("{what} cannot listen on {address}: {error}; choose another address or port");
        }
    }
    Ok(())
}

/// Whether the server takes clients. It says so of itself; only one without monitoring is tried, because it logs that as a failed handshake.
async fn is_ready(settings: &ServerSettings) -> Result<()> {
    if let Some(address) = settings.monitoring() {
        let answer = timeout(PROBE_MAX, health(address)).await.context("no answer about its health")??;
        if answer.split_whitespace().nth(1) != Some("200") {
            bail!("it says of its health: {}", answer.lines().last().unwrap_or_default());
        }
        return Ok(());
    }
    let greeting = timeout(PROBE_MAX, greeting(reachable(settings.listen))).await.context("no greeting")??;
    if !greeting.starts_with("INFO ") {
        bail!("what listens on {} is not a NATS server", settings.listen);
    }
    Ok(())
}

/// A server that listens everywhere is reached on the loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(address) if address.ip().is_unspecified() => (std::net::Ipv4Addr::LOCALHOST, address.port()).into(),
        SocketAddr::V6(address) if address.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, address.port()).into(),
        SocketAddr::V4(_) | SocketAddr::V6(_) => listen,
    }
}

async fn greeting(address: SocketAddr) -> Result<String> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line).await.context("cannot read its greeting")?;
    Ok(line)
}

async fn health(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    let request = format!("GET /healthz?js-enabled-only=true HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("cannot ask about its health")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await.context("cannot read about its health")?;
    Ok(answer)
}

/// The last fatal line of a log from `start` on, else its last error, without time and process id.
fn last_complaint(file: &Path, start: u64) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut opened = File::open(file).ok()?;
    let length = opened.metadata().ok()?.len();
    opened.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL_BYTES)))).ok()?;
    let mut bytes = Vec::new();
    opened.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    complaint_in(&String::from_utf8_lossy(&bytes))
}

fn complaint_in(log: &str) -> Option<String> {
    let marked = |mark: &str| log.lines().rev().find_map(|line| Some(line.split_once(mark)?.1.trim().to_owned()));
    marked("[FTL] ").or_else(|| marked("nats-server: ")).or_else(|| marked("[ERR] "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_an_end_is_found_in_the_log() {
        let log = "[1] 2026/01/01 00:00:00.0 [ERR] first\n[1] 2026/01/01 00:00:00.0 [FTL] Error listening\n[1] x [INF] bye\n";
        assert_eq!(complaint_in(log).as_deref(), Some("Error listening"));
        assert_eq!(complaint_in("nats-server: server.conf:3:1: unknown field\n").as_deref(), Some("server.conf:3:1: unknown field"));
        assert_eq!(complaint_in("fine\n"), None);
    }
}
