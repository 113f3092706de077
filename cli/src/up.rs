//! `probeops up`: a broker, an API and two agents on this machine, from nothing, with one command.

mod child;
mod fabric;
mod first_jobs;
mod ping_groups;
mod settings;

use std::path::Path;
use std::time::{Duration, Instant};

use probeops_nats::layout::Layout;
use probeops_nats::process;
use serde_json::Value;

pub(crate) use settings::UpArgs;

use crate::exit::Failed;
use crate::terminal::{note, say};
use crate::up::fabric::Fabric;
use crate::up::settings::Settings;

/// How long what a killed `up` left behind may take to end.
const REMAINS_MAX: Duration = Duration::from_secs(30);
/// How often to look for what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long work in the background is waited for at the end.
const BACKGROUND_PATIENCE: Duration = Duration::from_secs(1);

/// Runs `up`.
pub(crate) fn run(args: UpArgs) -> Result<(), Failed> {
    process::install_tls_provider();
    let Some(settings) = args.settings()? else { return Ok(()) };
    process::start_log(settings.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failed::work(format!("cannot start threads: {error}")))?;
    let done = runtime.block_on(up(settings));
    // A download that nobody wants any more is not waited for.
    runtime.shutdown_timeout(BACKGROUND_PATIENCE);
    done
}

async fn up(settings: Settings) -> Result<(), Failed> {
    let stop = process::stop_signal().map_err(|error| Failed::work(format!("cannot listen to signals: {error}")))?;
    if settings.allow_ping {
        ping_groups::allow()?;
    }
    settings.require_http()?;
    let layout = Layout::new(&settings.data);
    layout.create().map_err(unusable)?;
    let fabric = async {
        lock(&layout).await?;
        Fabric::start(&settings, layout.clone()).await
    };
    let mut fabric = tokio::select! {
        fabric = fabric => fabric?,
        () = stop.cancelled() => return stopped(&settings),
    };
    let done = tokio::select! {
        done = live(&mut fabric, &settings) => done,
        () = stop.cancelled() => stopped(&settings),
    };
    fabric.stop().await;
    done
}

/// Being told to stop is a good end, unless there was something to finish.
fn stopped(settings: &Settings) -> Result<(), Failed> {
    if settings.once { Err(Failed::work("told to stop before both jobs were done")) } else { Ok(()) }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err calls")]
fn unusable(error: anyhow::Error) -> Failed {
    Failed::work(format!("{error:#}"))
}

/// Takes the data folder, until this process and all that it starts have ended.
async fn lock(layout: &Layout) -> Result<(), Failed> {
    let (begun, mut said) = (Instant::now(), false);
    loop {
        match layout.lock() {
            Ok(lock) => return lock.pass_on().map_err(unusable),
            Err(error) if error.owner_has_ended() && begun.elapsed() < REMAINS_MAX => {
                if !std::mem::replace(&mut said, true) {
                    note("waiting for the programs of the last `up`, which was killed, to end");
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(error) => return Err(Failed::work(error)),
        }
    }
}

/// Brings everything up, says so, and stays until something ends that must not.
async fn live(fabric: &mut Fabric, settings: &Settings) -> Result<(), Failed> {
    fabric.start_programs(settings).await?;
    let nodes = fabric.ready().await?;
    if settings.once {
        return first_jobs::run(fabric, &nodes).await;
    }
    announce(fabric, &nodes);
    fabric.stay(settings.credential_lifetime).await
}

fn announce(fabric: &Fabric, nodes: &[Value]) {
    let key_file = fabric.layout().admin_key();
    say(format!("ready {}", fabric.url()));
    say(format!("key   {}", key_file.display()));
    match first_jobs::curl(fabric, nodes) {
        Some(line) => {
            say("Try it:");
            say(format!("  {line}"));
            let ids: Vec<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
            say(format!(
                "The demo agents ({}) allow loopback as a target, so that this works without a network; other agents do not.",
                ids.join(", ")
            ));
        }
        None => say("No demo agent runs: all are revoked. `probeops nodes add` grants one; it runs from the next start on."),
    }
    for lacks in nodes.iter().filter_map(|node| node["beat"]["unavailable"].as_array()).flatten().take(1) {
        let text = |name: &str| lacks[name].as_str().unwrap_or_default().to_owned();
        say(format!("{} is not possible here: {}. To allow it: {}", text("tool"), text("missing"), text("grant")));
    }
    say("Ctrl-C stops all of it; started again it keeps its state.");
}

/// Shows a path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
