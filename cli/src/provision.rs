//! One-shot preparation: keys and configuration before the broker starts, everything in it after.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use probeops_api::access::keys::{KeyRecord, NewKey, id_of, is_key_of, mint};
use probeops_nats::config::{ServerSettings, TlsEnd, WebSocket};
use probeops_nats::connect::Credential;
use probeops_nats::layout::Layout;
use probeops_nats::layout::files::{self, Secrecy};
use probeops_nats::permissions::Role;
use probeops_nats::tls::ServerCertificate;
use probeops_nats::vault::{CREDENTIAL_LIFETIME, Vault};
use probeops_nats::{streams, tls};
use probeops_shared::access::{Limits, Scope};
use probeops_shared::ids::{Caller, NodeId, Region};
use probeops_shared::registry::NodeGrant;
use probeops_shared::subjects::storage;
use probeops_shared::tools::ToolName;

use crate::control::{Control, DataArgs, Session, block_on, write_servers};
use crate::exit::Failed;
use crate::register::{Held, grant_node, void_what_would_stay};
use crate::terminal::{note, say};

/// Make keys, a TLS authority and the broker's configuration in a data folder; the broker is started with it afterwards. Doing it again
/// writes the configuration anew and keeps the keys
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  probeops init --data /data --listen 0.0.0.0:4222 --name broker.example\n  $(probeops nats-server) --config /data/broker/server.conf\n  probeops provision --data /data"
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
    /// Names and addresses under which it is reached, for its certificate; the first is the one that `provision` uses
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// A certificate made elsewhere (PEM, with those between it and its authority), in place of one of our own authority
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The authority that signed it (PEM), where the systems of agents and services do not know it
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// Where servers of another operator may connect to copy the audit trail; `provision --mirror FILE` writes their credential
    #[arg(long, value_name = "ADDRESS")]
    pub mirror_listen: Option<SocketAddr>,
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
    /// Copy what each of these nodes needs to DIR/ID: its credential as node.creds, the broker's authority as ca.pem
    #[arg(long, value_name = "DIR", requires = "nodes")]
    pub hand_over: Option<PathBuf>,
    /// Write a credential to FILE with which a server of another operator can copy the audit trail, and nothing else
    #[arg(long, value_name = "FILE")]
    pub mirror: Option<PathBuf>,
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
    let certificate = certificate(args, &layout).map_err(failed)?;
    let mut settings = ServerSettings::in_layout(&layout, &certificate, args.listen);
    let end = if args.websocket_behind_proxy { TlsEnd::Proxy } else { TlsEnd::Server };
    settings.websocket = args.websocket.map(|listen| WebSocket { listen, tls: end });
    settings.monitoring_port = Some(args.monitoring);
    settings.mirrors = args.mirror_listen;
    if args.log_to_stderr {
        settings.log_file = None;
    }
    settings.write(&vault, &layout.server_conf()).map_err(failed)?;
    let host = args.names.first().cloned().unwrap_or_else(|| args.listen.ip().to_string());
    write_servers(&layout, &[format!("tls://{host}:{}", args.listen.port())])?;
    say(format!("{} is ready for nats-server --config", layout.server_conf().display()));
    Ok(())
}

/// The broker's certificate: the one that is given, else one of our own authority.
fn certificate(args: &InitArgs, layout: &Layout) -> anyhow::Result<ServerCertificate> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else { return tls::ensure(layout, &args.names) };
    let (certificate, key) = (std::path::absolute(certificate)?, std::path::absolute(key)?);
    let given = ServerCertificate::from_files(&certificate, &key, args.tls_ca.as_deref())?;
    // What lies there is what clients are told to trust, so it has to be this certificate's authority and no other.
    match given.authority.as_deref().map(files::read_if_exists).transpose()?.flatten() {
        Some(authority) => files::write(&layout.ca_certificate(), authority.as_bytes(), Secrecy::Public)?,
        None if layout.ca_certificate().exists() => std::fs::remove_file(layout.ca_certificate())?,
        None => {}
    }
    Ok(given)
}

/// Runs `provision`.
pub(crate) fn provision(args: &ProvisionArgs) -> Result<(), Failed> {
    block_on(async {
        let control = Control::open(&args.data)?;
        let granted = everything(&control, &args.nodes, CREDENTIAL_LIFETIME).await?;
        for (id, _) in &args.nodes {
            if !granted.contains(id) {
                note(format!("node {id} was revoked and stays so; `probeops nodes add {id} --renew` would grant it again"));
            }
            if let Some(folder) = &args.hand_over {
                hand_over(&control.layout, id, &folder.join(id.as_str())).map_err(|error| Failed::work(format!("{error:#}")))?;
            }
        }
        if let Some(file) = &args.mirror {
            control.vault.mint_to(file, &Role::Mirror, CREDENTIAL_LIFETIME).map_err(|error| Failed::work(format!("{error:#}")))?;
        }
        say(format!("the broker is provisioned; the first key is in {}", control.layout.admin_key().display()));
        Ok(())
    })
}

/// Copies what a node needs to a folder that it can read, and nothing else.
fn hand_over(layout: &Layout, id: &NodeId, folder: &Path) -> anyhow::Result<()> {
    files::make_dir(folder)?;
    let copies = [(layout.node_creds(id), "node.creds", Secrecy::Secret), (layout.ca_certificate(), "ca.pem", Secrecy::Public)];
    for (from, name, secrecy) in copies {
        if let Some(text) = files::read_if_exists(&from)? {
            files::write(&folder.join(name), text.as_bytes(), secrecy)?;
        }
    }
    Ok(())
}

/// Brings a running broker and the data folder to where everything can start. A node that was revoked stays so; returns the others.
pub(crate) async fn everything(control: &Control, nodes: &[(NodeId, Region)], lifetime: Duration) -> Result<Vec<NodeId>, Failed> {
    let ca = control.ca();
    let provisioned = streams::provision(&control.layout, &control.vault, &control.servers, ca.as_deref()).await;
    provisioned.map_err(|error| Failed::work(format!("the broker cannot be provisioned: {error:#}")))?;
    credentials(control, lifetime)?;
    let session = control.session().await?;
    let mut granted = Vec::new();
    for (id, region) in nodes {
        let held: Option<NodeGrant> = session.read(storage::NODES, id.as_str()).await?;
        if held.as_ref().is_some_and(|held| held.revoked_at.is_some()) {
            continue;
        }
        let path = control.layout.node_creds(id);
        if let Some(held) = &held {
            let same_rights = held.region == *region && held.tools == ToolName::ALL;
            void_what_would_stay(control, &Held { public_key: &held.public_key, same_rights }, &path).await?;
        }
        let grant = grant_node(control, id, region, ToolName::ALL, &path, lifetime)?;
        if held.is_some() {
            // It may be revoked at this very moment, which must last.
            let renew = |held: &mut NodeGrant| {
                let labels = std::mem::take(&mut held.labels);
                let NodeGrant { created_at, revoked_at, rate, at_once, .. } = *held;
                *held = NodeGrant { created_at, revoked_at, labels, rate, at_once, ..grant.clone() };
            };
            session.change(storage::NODES, id.as_str(), renew).await?;
        } else {
            session.write(storage::NODES, id.as_str(), &grant).await?;
        }
        granted.push(id.clone());
    }
    first_key(control, &session).await?;
    Ok(granted)
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
        ("frontdoor", Role::FrontDoor),
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

/// Makes the first key, unless there is one that the broker accepts.
async fn first_key(control: &Control, session: &Session) -> Result<(), Failed> {
    let path = control.layout.admin_key();
    let held = files::read_if_exists(&path).map_err(|error| Failed::work(format!("{error:#}")))?;
    if let Some(key) = held.as_deref().map(str::trim) {
        let known: Option<KeyRecord> = match id_of(key) {
            Ok(id) => session.read(storage::KEYS, id).await?,
            Err(_damaged) => None,
        };
        if known.is_some_and(|record| is_key_of(key, &record) && record.revoked_at.is_none()) {
            return Ok(());
        }
        note(format!("{} held no key that is accepted; it is written anew", path.display()));
    }
    let new =
        NewKey { name: "admin".to_owned(), scopes: vec![Scope::Admin], limits: Limits::default(), created_by: "provisioning".to_owned() };
    let minted = mint(new);
    session.write(storage::KEYS, &minted.record.id, &minted.record).await?;
    files::write(&path, format!("{}\n", minted.key).as_bytes(), Secrecy::Secret).map_err(|error| Failed::work(format!("{error:#}")))
}
