//! What the commands that hold the keys share: the data folder, and a short-lived way onto the running broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, kv::Store};
use clap::Args;
use probeops_nats::connect::{Link, connect};
use probeops_nats::layout::Layout;
use probeops_nats::layout::files::{self, Secrecy};
use probeops_nats::permissions::Role;
use probeops_nats::vault::Vault;
use probeops_shared::audit::chain::Chain;
use probeops_shared::audit::{Record, Verdict};
use probeops_shared::ids::Caller;
use probeops_shared::subjects::{self, broker};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::DATA_DEFAULT;
use crate::exit::{Exit, Failed};

/// Where the broker's addresses are written in the data folder.
const SERVERS_FILE: &str = "servers";
/// Where the addresses for other machines are written, if there are any.
const SERVERS_ELSEWHERE_FILE: &str = "servers-elsewhere";
/// How long the credential of one command lasts.
const COMMAND_LIFETIME: Duration = Duration::from_mins(5);
/// Who made what a command makes.
pub(crate) const COMMAND: &str = "command";
/// How often an entry is written again that somebody else has changed meanwhile.
const WRITES_MAX: u32 = 5;

/// Where the keys are, and the broker they are for.
#[derive(Args, Clone, Debug)]
pub(crate) struct DataArgs {
    /// The data folder of `probeops up` or `probeops init`
    #[arg(long, env = "PROBEOPS_DATA", value_name = "DIR", default_value = DATA_DEFAULT)]
    pub data: PathBuf,
    /// The broker's addresses, where they are not those that the data folder names
    #[arg(long, env = "PROBEOPS_SERVERS", value_delimiter = ',', value_name = "URL")]
    pub servers: Vec<String>,
}

/// The keys of a data folder.
#[derive(Debug)]
pub(crate) struct Control {
    /// The folder.
    pub layout: Layout,
    /// Its keys.
    pub vault: Vault,
    /// The broker's addresses.
    pub servers: Vec<String>,
}

impl Control {
    /// Opens a data folder that has keys.
    pub(crate) fn open(args: &DataArgs) -> Result<Self, Failed> {
        let layout = Layout::new(&args.data);
        let vault = Vault::open(&layout).map_err(|error| Failed::work(format!("{error:#}")))?;
        let servers = if args.servers.is_empty() { read_servers(&layout)? } else { args.servers.clone() };
        Ok(Self { layout, vault, servers })
    }

    /// A connection for one command.
    pub(crate) async fn session(&self) -> Result<Session, Failed> {
        let name: Caller = format!("command-{:08x}", rand::random::<u32>()).parse().map_err(Failed::work)?;
        let registrar = self.connected(&Role::Registrar { name: name.clone() }).await?;
        let recorder = self.connected(&Role::Recorder { name: name.clone() }).await?;
        Ok(Session {
            caller: name.to_string(),
            jetstream: jetstream::with_prefix(registrar, broker::LENT),
            recorder: jetstream::new(recorder),
        })
    }

    /// Connects with a credential that nothing is left of but the connection.
    async fn connected(&self, role: &Role) -> Result<Client, Failed> {
        let creds = self.layout.creds(&role.name());
        self.vault.mint_to(&creds, role, COMMAND_LIFETIME).map_err(|error| Failed::work(format!("{error:#}")))?;
        let link = Link { servers: self.servers.clone(), ca: self.ca(), creds: creds.clone() };
        let connected = connect(&link, "probeops command", &role.inbox_prefix()).await;
        // The connection has it; nobody else needs it.
        std::fs::remove_file(&creds).map_err(|error| Failed::work(format!("cannot remove {}: {error}", creds.display())))?;
        let (client, _events) = connected.map_err(|error| {
            Failed::new(Exit::Transport, format!("{error}; is `probeops up` running on {}?", self.layout.root().display()))
        })?;
        Ok(client)
    }

    /// The broker's addresses as agents on other machines need them.
    pub(crate) fn servers_elsewhere(&self) -> Result<Vec<String>, Failed> {
        servers_elsewhere(&self.layout, &self.servers)
    }

    /// The broker's authority, where it is our own.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        Some(self.layout.ca_certificate()).filter(|ca| ca.exists())
    }
}

/// The connections of one command.
#[derive(Debug)]
pub(crate) struct Session {
    caller: String,
    /// Where the registers are.
    jetstream: jetstream::Context,
    /// Where it is said what was done.
    recorder: jetstream::Context,
}

impl Session {
    /// A bucket.
    pub(crate) async fn bucket(&self, name: &str) -> Result<Store, Failed> {
        self.jetstream
            .get_key_value(name)
            .await
            .map_err(|error| Failed::new(Exit::Transport, format!("bucket {name} cannot be used: {error}")))
    }

    /// An entry, if there is one.
    pub(crate) async fn read<T: DeserializeOwned>(&self, bucket: &str, key: &str) -> Result<Option<T>, Failed> {
        let value =
            self.bucket(bucket).await?.get(key).await.map_err(|error| Failed::new(Exit::Transport, format!("bucket {bucket}: {error}")))?;
        value.map(|value| parsed(bucket, key, &value)).transpose()
    }

    /// All entries of a bucket, by key.
    pub(crate) async fn read_all<T: DeserializeOwned>(&self, bucket: &str) -> Result<Vec<T>, Failed> {
        use futures_util::TryStreamExt;
        let store = self.bucket(bucket).await?;
        let failed = |error: String| Failed::new(Exit::Transport, format!("bucket {bucket}: {error}"));
        let keys = store.keys().await.map_err(|error| failed(error.to_string()))?;
        let mut keys: Vec<String> = keys.try_collect().await.map_err(|error| failed(error.to_string()))?;
        keys.sort();
        let mut entries = Vec::new();
        for key in keys {
            entries.extend(self.read(bucket, &key).await?);
        }
        Ok(entries)
    }

    /// Writes an entry.
    pub(crate) async fn write(&self, bucket: &str, key: &str, value: &impl Serialize) -> Result<(), Failed> {
        let body = serde_json::to_vec(value).map_err(Failed::work)?;
        let written = self.bucket(bucket).await?.put(key, body.into()).await;
        written.map(drop).map_err(|error| Failed::new(Exit::Transport, format!("bucket {bucket}: {error}")))
    }

    /// Makes an entry that the broker forgets after a while.
    pub(crate) async fn create_for(&self, bucket: &str, key: &str, value: &impl Serialize, kept_for: Duration) -> Result<(), Failed> {
        let body = serde_json::to_vec(value).map_err(Failed::work)?;
        let created = self.bucket(bucket).await?.create_with_ttl(key, body.into(), kept_for).await;
        created.map(drop).map_err(|error| Failed::new(Exit::Transport, format!("bucket {bucket}: {error}")))
    }

    /// Changes an entry that there must be; what others write meanwhile is kept.
    pub(crate) async fn change<T: DeserializeOwned + Serialize>(
        &self,
        bucket: &str,
        key: &str,
        change: impl Fn(&mut T),
    ) -> Result<T, Failed> {
        let store = self.bucket(bucket).await?;
        let failed = |error: String| Failed::new(Exit::Transport, format!("bucket {bucket}: {error}"));
        for _ in 0..WRITES_MAX {
            let entry = store.entry(key).await.map_err(|error| failed(error.to_string()))?;
            let entry = entry.ok_or_else(|| Failed::usage(format!("there is no `{key}`")))?;
            let mut value: T = parsed(bucket, key, &entry.value)?;
            change(&mut value);
            let body = serde_json::to_vec(&value).map_err(Failed::work)?;
            if store.update(key, body.into(), entry.revision).await.is_ok() {
                return Ok(value);
            }
        }
        Err(failed(format!("`{key}` is being changed by somebody else; try again")))
    }

    /// Puts what was done into the audit trail, and waits until it is there.
    pub(crate) async fn record(&self, target: &str, detail: String) -> Result<(), Failed> {
        let record =
            Record { caller: Some(self.caller.clone()), target: target.to_owned(), detail, ..Record::new(Verdict::Changed, COMMAND) };
        let (body, _) =
            Chain::begin(&self.caller).batch([&record], usize::MAX).ok_or_else(|| Failed::work("the record cannot be written"))?;
        let failed = |error: String| Failed::new(Exit::Transport, format!("it is done, but the audit trail could not be told: {error}"));
        let sent = self
            .recorder
            .publish(subjects::audit(subjects::AUDIT_COMMAND, &self.caller), body.into())
            .await
            .map_err(|error| failed(error.to_string()))?;
        sent.await.map(drop).map_err(|error| failed(error.to_string()))
    }
}

fn parsed<T: DeserializeOwned>(bucket: &str, key: &str, value: &[u8]) -> Result<T, Failed> {
    serde_json::from_slice(value).map_err(|error| Failed::work(format!("entry `{key}` of bucket {bucket} cannot be read: {error}")))
}

/// Says in the data folder where the broker is.
pub(crate) fn write_servers(layout: &Layout, servers: &[String]) -> Result<(), Failed> {
    let path = layout.root().join(SERVERS_FILE);
    files::write(&path, format!("{}\n", servers.join("\n")).as_bytes(), Secrecy::Public).map_err(|error| Failed::work(format!("{error:#}")))
}

/// The broker's addresses as agents on other machines need them: those that were written down, or these.
pub(crate) fn servers_elsewhere(layout: &Layout, servers: &[String]) -> Result<Vec<String>, Failed> {
    let elsewhere = read_lines(&layout.root().join(SERVERS_ELSEWHERE_FILE))?;
    Ok(if elsewhere.is_empty() { servers.to_vec() } else { elsewhere })
}

/// Says in the data folder under which addresses other machines reach the broker.
pub(crate) fn write_servers_elsewhere(layout: &Layout, servers: &[String]) -> Result<(), Failed> {
    let path = layout.root().join(SERVERS_ELSEWHERE_FILE);
    files::write(&path, servers.join("\n").as_bytes(), Secrecy::Public).map_err(|error| Failed::work(format!("{error:#}")))
}

pub(crate) fn read_servers(layout: &Layout) -> Result<Vec<String>, Failed> {
    let path = layout.root().join(SERVERS_FILE);
    let servers = read_lines(&path)?;
    if servers.is_empty() {
        return Err(Failed::usage(format!("{} names no broker; run `probeops up` there, or give --servers", path.display())));
    }
    Ok(servers)
}

fn read_lines(path: &Path) -> Result<Vec<String>, Failed> {
    let text = files::read_if_exists(path).map_err(|error| Failed::work(format!("{error:#}")))?.unwrap_or_default();
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Runs what is asynchronous in a command that is not.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    probeops_nats::process::install_tls_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failed::work(format!("cannot start: {error}")))?.block_on(future)
}
