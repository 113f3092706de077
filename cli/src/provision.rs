//! One-shot preparation: keys and configuration before the broker starts, everything in it after.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use probeops_api::access::keys::{NewKey, mint};
use probeops_nats::config::{ServerSettings, TlsEnd, WebSocket};
use probeops_nats::connect::Credential;
use probeops_nats::layout::Layout;
use probeops_nats::layout::files::{self, Secrecy};
use probeops_nats::permissions::Role;
use probeops_nats::vault::{CREDENTIAL_LIFETIME, Vault};
use probeops_nats::{streams, tls};
use probeops_shared::access::{Limits, Scope};
use probeops_shared::ids::{Caller, NodeId, Region};
use probeops_shared::subjects::storage;
use probeops_shared::tools::ToolName;

use crate::control::{Control, DataArgs, block_on, write_servers};
use crate::exit::Failed;
use crate::register::grant_node;
use crate::terminal::say;

/// Make keys, a TLS authority and the broker's configuration in a data folder; the broker is started with it afterwards
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  probeops init --data /data --listen 0.0.0.0:4222 --name broker.example\n  nats-server --config /data/broker/server.conf\n  probeops provision --data /data"
)]
pub(crate) struct InitArgs {
    /// The data folder
    #[arg(long, env = "PROBEOPS_DATA", value_name = "DIR", default_value = crate::client::DATA_DEFAULT)]
    pub data: PathBuf,
    /// Where the broker listens for TLS
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4222")]
    pub listen: SocketAddr,
    /// Where it listens for WebSocket
    #[arg(long, value_name = "ADDRESS")]
    pub websocket: Option<SocketAddr>,
    /// A proxy in front ends TLS for WebSocket
    #[arg(long, requires = "websocket")]
    pub websocket_behind_proxy: bool,
    /// The loopback port of its health and figures
    #[arg(long, value_name = "PORT", default_value_t = 8222)]
    pub monitoring: u16,
    /// Names and addresses under which it is reached, for its certificate
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// Log to standard error instead of a file
    #[arg(long)]
    pub log_to_stderr: bool,
}

/// Prepare a running broker: accounts, streams, buckets, the first key, credentials of the API and of named nodes. Doing it again renews the
/// credentials and changes nothing else
#[derive(Args, Debug)]
pub(crate) struct ProvisionArgs {
    /// A node to grant all tools, as ID=REGION; its credential is nodes/ID.creds in the data folder
    #[arg(long = "node", value_name = "ID=REGION", value_parser = node)]
    pub nodes: Vec<(NodeId, Region)>,
    #[command(flatten)]
    pub data: DataArgs,
}

fn node(text: &str) -> Result<(NodeId, Region), String> {
    let (id, region) = text.split_once('=').ok_or_else(|| format!("`{text}` is not ID=REGION, such as fra-1=eu-central"))?;
    Ok((id.parse()?, region.parse()?))
}

/// Runs `init`.
pub(crate) fn init(args: &InitArgs) -> Result<(), Failed> {
    let failed = |error: anyhow::Error| Failed::work(format!("{error:#}"));
    let layout = Layout::new(&args.data);
    let vault = Vault::open_or_create(&layout).map_err(failed)?;
    let certificate = tls::ensure(&layout, &args.names).map_err(failed)?;
    let mut settings = ServerSettings::in_layout(&layout, &certificate, args.listen);
    let end = if args.websocket_behind_proxy { TlsEnd::Proxy } else { TlsEnd::Server };
    settings.websocket = args.websocket.map(|listen| WebSocket { listen, tls: end });
    settings.monitoring_port = Some(args.monitoring);
    if args.log_to_stderr {
        settings.log_file = None;
    }
    settings.write(&vault, &layout.server_conf()).map_err(failed)?;
    let host = args.names.first().cloned().unwrap_or_else(|| args.listen.ip().to_string());
    write_servers(&layout, &[format!("tls://{host}:{}", args.listen.port())])?;
    say(format!("{} is ready for nats-server --config", layout.server_conf().display()));
    Ok(())
}

/// Runs `provision`.
pub(crate) fn provision(args: &ProvisionArgs) -> Result<(), Failed> {
    block_on(async {
        let control = Control::open(&args.data)?;
        everything(&control, &args.nodes, CREDENTIAL_LIFETIME).await?;
        say(format!("the broker is provisioned; the first key is in {}", control.layout.admin_key().display()));
        Ok(())
    })
}

/// Brings a running broker and the data folder to where everything can start.
pub(crate) async fn everything(control: &Control, nodes: &[(NodeId, Region)], lifetime: Duration) -> Result<(), Failed> {
    let ca = control.ca();
    let provisioned = streams::provision(&control.layout, &control.vault, &control.servers, ca.as_deref()).await;
    provisioned.map_err(|error| Failed::work(format!("the broker cannot be provisioned: {error:#}")))?;
    credentials(control, lifetime)?;
    let session = control.session().await?;
    for (id, region) in nodes {
        let grant = grant_node(control, id, region, ToolName::ALL, &control.layout.node_creds(id), lifetime)?;
        session.write(storage::NODES, id.as_str(), &grant).await?;
    }
    first_key(control, &session).await
}

/// Makes or renews the credentials of the API's connections.
pub(crate) fn credentials(control: &Control, lifetime: Duration) -> Result<(), Failed> {
    // A replica keeps its name: those who wait for its answers do not notice a renewal.
    let caller = named(control, "api").filter(Caller::is_api).unwrap_or_else(Caller::new_api);
    let collector =
        named(control, "collector").map_or_else(|| format!("collector-{:08x}", rand::random::<u32>()).parse().map_err(Failed::work), Ok)?;
    let roles = [
        ("api", Role::Api { caller }),
        ("collector", Role::Collector { name: collector }),
        ("acknowledger", Role::Acknowledger),
        ("auditor", Role::Auditor),
    ];
    for (file, role) in roles {
        control.vault.mint_to(&control.layout.creds(file), &role, lifetime).map_err(|error| Failed::work(format!("{error:#}")))?;
    }
    Ok(())
}

fn named(control: &Control, role: &str) -> Option<Caller> {
    Credential::read(&control.layout.creds(role)).ok()?.name.parse().ok()
}

/// Makes the first key, unless there is one that the broker knows.
async fn first_key(control: &Control, session: &crate::control::Session) -> Result<(), Failed> {
    let path = control.layout.admin_key();
    let held = files::read_if_exists(&path).map_err(|error| Failed::work(format!("{error:#}")))?;
    if let Some(id) = held.as_deref().and_then(|key| key.trim().strip_prefix("pk_")?.split('_').next()) {
        let known: Option<serde_json::Value> = session.read(storage::KEYS, id).await?;
        if known.is_some() {
            return Ok(());
        }
    }
    let new =
        NewKey { name: "admin".to_owned(), scopes: vec![Scope::Admin], limits: Limits::default(), created_by: "provisioning".to_owned() };
    let minted = mint(new);
    session.write(storage::KEYS, &minted.record.id, &minted.record).await?;
    files::write(&path, format!("{}\n", minted.key).as_bytes(), Secrecy::Secret).map_err(|error| Failed::work(format!("{error:#}")))
}
