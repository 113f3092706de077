//! One-shot preparation: keys and configuration before the broker starts, everything in it after.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use probeops_api::access::keys::{KeyRecord, NewKey, id_of, is_key_of, mint};
use probeops_api::enroll::tokens::{self, NewToken};
use probeops_nats::config::{ServerSettings, TlsEnd, WebSocket};
use probeops_nats::connect::Credential;
use probeops_nats::layout::Layout;
use probeops_nats::layout::files::{self, Secrecy};
use probeops_nats::permissions::Role;
use probeops_nats::tls::ServerCertificate;
use probeops_nats::vault::{CREDENTIAL_LIFETIME, Vault};
use probeops_nats::{sentry, streams, tls};
use probeops_shared::access::Scope;
use probeops_shared::ids::{Caller, NodeId, Region};
use probeops_shared::registry::{Labels, NodeGrant};
use probeops_shared::subjects::storage;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;

use crate::control::{Control, DataArgs, Session, block_on, write_servers};
use crate::exit::Failed;
use crate::register::{Held, grant_node, revoke, void_what_would_stay};
use crate::terminal::{note, say};

/// Where a node finds the token to enrol with, in its folder.
pub(crate) const TOKEN_FILE: &str = "token";
/// How long a node has to enrol with it.
const INVITED_FOR: Duration = Duration::from_hours(24);

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
    /// Log to this file, which a sentry reads, in place of the one in the data folder
    #[arg(long, value_name = "FILE", conflicts_with = "log_to_stderr")]
    pub log_file: Option<PathBuf>,
}

/// Prepare a running broker: accounts, streams, buckets, the first key, credentials of the API, tokens for named nodes. Doing it again renews the
/// credentials and changes nothing else
#[derive(Args, Debug)]
pub(crate) struct ProvisionArgs {
    /// A node to let in with all tools, as ID=REGION; until it has enrolled a token for it is nodes/ID/token in the data folder
    #[arg(long = "node", value_name = "ID=REGION", value_parser = node)]
    pub nodes: Vec<(NodeId, Region)>,
    /// Write what each of these nodes needs to DIR/ID, where it keeps its key: its token as token, the authority as ca.pem
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
    if let Some(file) = &args.log_file {
        settings.log_file = Some(file.clone());
    }
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
        let folder_of = |id: &NodeId| match &args.hand_over {
            Some(folder) => folder.join(id.as_str()),
            None => control.layout.node_state(id),
        };
        let granted = everything(&control, &args.nodes, &folder_of, CREDENTIAL_LIFETIME).await?;
        for granted in granted.iter().filter(|_| args.hand_over.is_some()) {
            hand_over(&control.layout, granted, &folder_of(&granted.id)).map_err(|error| Failed::work(format!("{error:#}")))?;
        }
        for (id, _) in args.nodes.iter().filter(|(id, _)| !granted.iter().any(|granted| granted.id == *id)) {
            note(format!("node {id} was revoked and stays so; `probeops nodes add {id} --renew` would grant it again"));
        }
        if let Some(file) = &args.mirror {
            control.vault.mint_to(file, &Role::Mirror, CREDENTIAL_LIFETIME).map_err(|error| Failed::work(format!("{error:#}")))?;
        }
        say(format!("the broker is provisioned; the first key is in {}", control.layout.admin_key().display()));
        Ok(())
    })
}

/// Copies what a node needs to a folder that it can read, and nothing else.
fn hand_over(layout: &Layout, granted: &Granted, folder: &Path) -> anyhow::Result<()> {
    files::make_dir(folder)?;
    let creds = Some((layout.node_creds(&granted.id), "node.creds", Secrecy::Secret)).filter(|_| granted.carried);
    let copies = [Some((layout.ca_certificate(), "ca.pem", Secrecy::Public)), creds];
    for (from, name, secrecy) in copies.into_iter().flatten() {
        if let Some(text) = files::read_if_exists(&from)? {
            files::write(&folder.join(name), text.as_bytes(), secrecy)?;
        }
    }
    Ok(())
}

/// A node of this fabric that was not revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Its id.
    pub(crate) id: NodeId,
    /// Its credential was made here (`nodes add`); else it enrols, and keeps what it gets in its own folder.
    pub(crate) carried: bool,
}

/// Brings a running broker and the data folder to where everything can start. A node that was revoked stays so; returns the others. One that has
/// no credential yet finds a token to enrol with in its folder.
pub(crate) async fn everything(
    control: &Control,
    nodes: &[(NodeId, Region)],
    folder_of: &dyn Fn(&NodeId) -> PathBuf,
    lifetime: Duration,
) -> Result<Vec<Granted>, Failed> {
    let ca = control.ca();
    let provisioned = streams::provision(&control.layout, &control.vault, &control.servers, ca.as_deref()).await;
    provisioned.map_err(|error| Failed::work(format!("the broker cannot be provisioned: {error:#}")))?;
    credentials(control, lifetime)?;
    let session = control.session().await?;
    let mut granted = Vec::new();
    for (id, region) in nodes {
        let held: Option<NodeGrant> = session.read(storage::NODES, id.as_str()).await?;
        let carried = match &held {
            Some(held) if held.revoked_at.is_some() => continue,
            Some(held) if held.enrolled.is_none() => {
                renew(control, &session, held, lifetime).await?;
                true
            }
            Some(_) | None => {
                invite(control, &session, (id, region), (held.as_ref(), &folder_of(id))).await?;
                false
            }
        };
        granted.push(Granted { id: id.clone(), carried });
    }
    first_key(control, &session).await?;
    Ok(granted)
}

/// Renews a credential that was made here, with the rights that the node has.
async fn renew(control: &Control, session: &Session, held: &NodeGrant, lifetime: Duration) -> Result<(), Failed> {
    let path = control.layout.node_creds(&held.id);
    void_what_would_stay(control, &Held { public_key: &held.public_key, same_rights: true }, &path).await?;
    let grant = grant_node(control, &held.id, &held.region, &held.tools, &path, lifetime)?;
    // It may be revoked at this very moment, which must last.
    let renew = |held: &mut NodeGrant| (held.public_key, held.expires_at) = (grant.public_key.clone(), grant.expires_at);
    session.change(storage::NODES, held.id.as_str(), renew).await.map(drop)
}

/// Puts a token in a node's folder, unless it has enrolled and its key is still there.
async fn invite(
    control: &Control,
    session: &Session,
    (id, region): (&NodeId, &Region),
    (held, folder): (Option<&NodeGrant>, &Path),
) -> Result<(), Failed> {
    let failed = |error: anyhow::Error| Failed::work(format!("{error:#}"));
    if let Some(held) = held.filter(|held| held.enrolled.as_ref().is_some_and(|enrolled| !enrolled.pending)) {
        if folder.join("node.nk").exists() {
            return Ok(());
        }
        // Its key was carried away, or lost.
        revoke(control, &held.public_key).await?;
        note(format!("The key of {id} is not in {}; it is void from now on, and the node enrols anew.", folder.display()));
        let free = |held: &mut NodeGrant| {
            held.expires_at = Timestamp::now();
            held.enrolled.get_or_insert_default().pending = true;
        };
        session.change(storage::NODES, id.as_str(), free).await?;
    }
    let (token, record) = tokens::mint(NewToken {
        region: region.clone(),
        tools: ToolName::ALL.to_vec(),
        labels: Labels::new(),
        node: Some(id.clone()),
        uses: 1,
        ephemeral: false,
        valid_for: INVITED_FOR,
        created_by: "provisioning".to_owned(),
    });
    session.create_for(storage::TOKENS, &record.view.id, &record, record.kept_for()).await?;
    session.record(&format!("token:{}", record.view.id), format!("enrolment token made: node {id}, region {region}")).await?;
    files::make_dir(folder).map_err(failed)?;
    files::write(&folder.join(TOKEN_FILE), format!("{token}\n").as_bytes(), Secrecy::Secret).map_err(failed)
}

/// Makes or renews the credentials of the API's connections, and of the sentry's.
pub(crate) fn credentials(control: &Control, lifetime: Duration) -> Result<(), Failed> {
    // A replica keeps its name: those who wait for its answers do not notice a renewal.
    let caller = named(control, "api").filter(Caller::is_api).unwrap_or_else(Caller::new_api);
    let collector =
        named(control, "collector").map_or_else(|| format!("collector-{:08x}", rand::random::<u32>()).parse().map_err(Failed::work), Ok)?;
    let roles = [
        ("api", Role::Api { caller: caller.clone() }),
        ("store", Role::Store { caller }),
        ("collector", Role::Collector { name: collector }),
        ("acknowledger", Role::Acknowledger),
        ("frontdoor", Role::FrontDoor),
        ("auditor", Role::Auditor),
    ];
    for (file, role) in roles {
        control.vault.mint_to(&control.layout.creds(file), &role, lifetime).map_err(|error| Failed::work(format!("{error:#}")))?;
    }
    sentry::mint(&control.layout, &control.vault, lifetime).map_err(|error| Failed::work(format!("{error:#}")))
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
        if known.is_some_and(|record| is_key_of(key, &record) && record.is_in_force()) {
            return Ok(());
        }
        note(format!("{} held no key that is accepted; it is written anew", path.display()));
    }
    let new = NewKey { name: "admin".to_owned(), scopes: vec![Scope::Admin], created_by: "provisioning".to_owned(), ..NewKey::default() };
    let minted = mint(new);
    session.write(storage::KEYS, &minted.record.id, &minted.record).await?;
    files::write(&path, format!("{}\n", minted.key).as_bytes(), Secrecy::Secret).map_err(|error| Failed::work(format!("{error:#}")))
}
