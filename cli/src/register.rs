//! Nodes, services and keys: granting, listing, revoking.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use probeops_api::access::keys::{KeyRecord, KeyView, NewKey, check_name, mint};
use probeops_nats::permissions::Role;
use probeops_nats::vault::CREDENTIAL_LIFETIME;
use probeops_shared::access::{Limits, Rate, RegionPattern, Scope, TargetPattern, Targets};
use probeops_shared::ids::{API_CALLER_PREFIX, Caller, NodeId, Region};
use probeops_shared::registry::{NodeGrant, ServiceGrant};
use probeops_shared::subjects::storage;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;

use crate::control::{Control, DataArgs, Session, block_on};
use crate::exit::Failed;
use crate::terminal::{Form, note, pretty, say, table};

/// Grant, list and revoke nodes; works while the broker runs
#[derive(Debug, Subcommand)]
pub enum Nodes {
    /// Make a credential for an agent on another machine
    #[command(after_help = "Example:\n  probeops nodes add fra-1 --region eu-central --tools echo,ping,dns,tcp")]
    Add(NodeAdd),
    /// List those that were granted
    List(ListArgs),
    /// Take a credential back; its agent is cut off at once
    Revoke(NodeRevoke),
}

/// Grant, list and revoke services that publish jobs straight to the broker; works while the broker runs
#[derive(Debug, Subcommand)]
pub enum Services {
    /// Make a credential for a service
    #[command(after_help = "Example:\n  probeops services add billing --regions eu-central --tools ping,tcp")]
    Add(ServiceAdd),
    /// List those that were granted
    List(ListArgs),
    /// Take a credential back; its connections are cut at once
    Revoke(ServiceRevoke),
}

/// Make, list and revoke keys of the HTTP API; works while the broker runs
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a key; it is printed once
    #[command(after_help = "Example:\n  probeops keys add n8n --scopes jobs:write,jobs:read --regions 'eu-*' --rate 60/m")]
    Add(KeyAdd),
    /// List them, without the keys themselves
    List(ListArgs),
    /// Revoke a key, on every API at once
    Revoke(KeyRevoke),
}

/// What a new node is.
#[derive(Args, Debug)]
pub struct NodeAdd {
    /// Its id, unique in the fabric
    id: NodeId,
    /// Its region
    #[arg(long)]
    region: Region,
    /// What it may run
    #[arg(long, value_delimiter = ',', required = true)]
    tools: Vec<ToolName>,
    /// Where the credential is written [default: nodes/ID.creds in the data folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Make it again for a node that has one
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    data: DataArgs,
}

/// Which node.
#[derive(Args, Debug)]
pub struct NodeRevoke {
    /// Its id
    id: NodeId,
    #[command(flatten)]
    data: DataArgs,
}

/// What a new service is.
#[derive(Args, Debug)]
pub struct ServiceAdd {
    /// Its name: the last token of its jobs' subjects
    name: Caller,
    /// Where it may ask
    #[arg(long, value_delimiter = ',', required = true)]
    regions: Vec<Region>,
    /// What it may ask for
    #[arg(long, value_delimiter = ',', required = true)]
    tools: Vec<ToolName>,
    /// Whom it may ask by id
    #[arg(long, value_delimiter = ',')]
    nodes: Vec<NodeId>,
    /// Where the credential is written [default: services/NAME.creds in the data folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Make it again for a service that has one
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    data: DataArgs,
}

/// Which service.
#[derive(Args, Debug)]
pub struct ServiceRevoke {
    /// Its name
    name: Caller,
    #[command(flatten)]
    data: DataArgs,
}

/// What a new key is.
#[derive(Args, Debug)]
pub struct KeyAdd {
    /// What it is for
    name: String,
    /// What it may do: jobs:write, jobs:read, nodes:read, nodes:write, keys:write, audit:read, admin
    #[arg(long, value_delimiter = ',', required = true)]
    scopes: Vec<Scope>,
    /// Only these tools
    #[arg(long, value_delimiter = ',')]
    tools: Vec<ToolName>,
    /// Only these regions; `eu-*` means all that begin so
    #[arg(long, value_delimiter = ',')]
    regions: Vec<RegionPattern>,
    /// Only these targets: networks (10.0.0.0/8) and names (`*.example.com`)
    #[arg(long, value_delimiter = ',')]
    targets: Vec<TargetPattern>,
    /// At most so many runs: 10/s, 60/m, 1000/h
    #[arg(long)]
    rate: Option<Rate>,
    #[command(flatten)]
    data: DataArgs,
}

/// Which key.
#[derive(Args, Debug)]
pub struct KeyRevoke {
    /// Its id, as `keys list` shows it
    id: String,
    #[command(flatten)]
    data: DataArgs,
}

/// How to list.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    data: DataArgs,
}

/// Runs a `nodes` command.
pub fn nodes(command: Nodes) -> Result<(), Failed> {
    match command {
        Nodes::Add(args) => block_on(add_node(args)),
        Nodes::List(args) => block_on(async {
            let grants: Vec<NodeGrant> = Control::open(&args.data)?.session().await?.read_all(storage::NODES).await?;
            let rows = |grant: &NodeGrant| [grant.id.to_string(), grant.region.to_string(), joined(&grant.tools), state(grant.expires_at, grant.revoked_at)];
            list(args.output, ["NODE", "REGION", "TOOLS", "STATE"], &grants, "nodes", rows);
            Ok(())
        }),
        Nodes::Revoke(args) => block_on(async {
            let control = Control::open(&args.data)?;
            let session = control.session().await?;
            let grant: Option<NodeGrant> = session.read(storage::NODES, args.id.as_str()).await?;
            let grant = grant.ok_or_else(|| Failed::usage(format!("there is no node `{}`; `probeops nodes list` shows those there are", args.id)))?;
            revoke(&control, &grant.public_key).await?;
            session.change(storage::NODES, args.id.as_str(), |grant: &mut NodeGrant| grant.revoked_at = Some(Timestamp::now())).await?;
            session.record(args.id.as_str(), "node revoked".to_owned()).await?;
            say(format!("node {} is revoked; its agent is cut off and exits 78", args.id));
            Ok(())
        }),
    }
}

/// Runs a `services` command.
pub fn services(command: Services) -> Result<(), Failed> {
    match command {
        Services::Add(args) => block_on(add_service(args)),
        Services::List(args) => block_on(async {
            let grants: Vec<ServiceGrant> = Control::open(&args.data)?.session().await?.read_all(storage::SERVICES).await?;
            let rows = |grant: &ServiceGrant| {
                [grant.name.to_string(), joined(&grant.regions), joined(&grant.tools), joined(&grant.nodes), state(grant.expires_at, grant.revoked_at)]
            };
            list(args.output, ["SERVICE", "REGIONS", "TOOLS", "NODES", "STATE"], &grants, "services", rows);
            Ok(())
        }),
        Services::Revoke(args) => block_on(async {
            let control = Control::open(&args.data)?;
            let session = control.session().await?;
            let grant: Option<ServiceGrant> = session.read(storage::SERVICES, args.name.as_str()).await?;
            let missing = || Failed::usage(format!("there is no service `{}`; `probeops services list` shows those there are", args.name));
            revoke(&control, &grant.ok_or_else(missing)?.public_key).await?;
            session.change(storage::SERVICES, args.name.as_str(), |grant: &mut ServiceGrant| grant.revoked_at = Some(Timestamp::now())).await?;
            session.record(args.name.as_str(), "service revoked".to_owned()).await?;
            say(format!("service {} is revoked; its connections are cut", args.name));
            Ok(())
        }),
    }
}

/// Runs a `keys` command.
pub fn keys(command: Keys) -> Result<(), Failed> {
    match command {
        Keys::Add(args) => block_on(async {
            check_name(&args.name).map_err(Failed::usage)?;
            let some = |list: Vec<_>| Some(list).filter(|list| !list.is_empty());
            let limits = Limits {
                tools: Some(args.tools).filter(|list| !list.is_empty()),
                regions: Some(args.regions).filter(|list| !list.is_empty()),
                targets: some(args.targets).map(Targets),
                rate: args.rate,
            };
            let session = Control::open(&args.data)?.session().await?;
            let minted = mint(NewKey { name: args.name, scopes: args.scopes, limits, created_by: "command".to_owned() });
            session.write(storage::KEYS, &minted.record.id, &minted.record).await?;
            session.record(&minted.record.id, format!("key made: {}", minted.record.name)).await?;
            note("The key is shown once and kept nowhere:");
            say(minted.key);
            Ok(())
        }),
        Keys::List(args) => block_on(async {
            let records: Vec<KeyRecord> = Control::open(&args.data)?.session().await?.read_all(storage::KEYS).await?;
            let views: Vec<KeyView> = records.iter().map(KeyView::from).collect();
            let rows = |key: &KeyView| {
                let state = if key.revoked_at.is_some() { "revoked" } else { "good" };
                [key.id.clone(), key.name.clone(), joined(&key.scopes), key.created_at.to_string(), state.to_owned()]
            };
            list(args.output, ["KEY", "NAME", "SCOPES", "MADE", "STATE"], &views, "keys", rows);
            Ok(())
        }),
        Keys::Revoke(args) => block_on(async {
            let session = Control::open(&args.data)?.session().await?;
            session.change(storage::KEYS, &args.id, |key: &mut KeyRecord| key.revoked_at = Some(Timestamp::now())).await?;
            session.record(&args.id, "key revoked".to_owned()).await?;
            say(format!("key {} is revoked", args.id));
            Ok(())
        }),
    }
}

async fn add_node(args: NodeAdd) -> Result<(), Failed> {
    let control = Control::open(&args.data)?;
    let session = control.session().await?;
    let held: Option<NodeGrant> = session.read(storage::NODES, args.id.as_str()).await?;
    refuse_second(held.is_some_and(|grant| grant.revoked_at.is_none()), args.renew, "node", args.id.as_str())?;
    let path = args.out.unwrap_or_else(|| control.layout.node_creds(&args.id));
    let grant = grant_node(&control, &args.id, &args.region, &args.tools, &path, CREDENTIAL_LIFETIME)?;
    session.write(storage::NODES, args.id.as_str(), &grant).await?;
    session.record(args.id.as_str(), format!("node granted: region {}, tools {}", args.region, joined(&args.tools))).await?;
    say(format!("{} holds the credential of node {} until {}", path.display(), args.id, grant.expires_at));
    say(format!("Copy it and {} to its machine and start there:", control.layout.ca_certificate().display()));
    say(format!("  probeops-agent --servers {} --ca ca.pem --creds {}.creds", control.servers.join(","), args.id));
    Ok(())
}

async fn add_service(args: ServiceAdd) -> Result<(), Failed> {
    if args.name.is_api() {
        return Err(Failed::usage(format!("`{}` begins with `{API_CALLER_PREFIX}`, which is kept for replicas of the API; choose another name", args.name)));
    }
    let control = Control::open(&args.data)?;
    let session = control.session().await?;
    let held: Option<ServiceGrant> = session.read(storage::SERVICES, args.name.as_str()).await?;
    refuse_second(held.is_some_and(|grant| grant.revoked_at.is_none()), args.renew, "service", args.name.as_str())?;
    let path = args.out.unwrap_or_else(|| control.layout.service_creds(&args.name));
    let role = Role::Service { name: args.name.clone(), regions: args.regions.clone(), tools: args.tools.clone(), nodes: args.nodes.clone() };
    let minted = control.vault.mint_to(&path, &role, CREDENTIAL_LIFETIME).map_err(|error| Failed::work(format!("{error:#}")))?;
    let (created_at, expires_at) = (Timestamp::now(), minted.expires_at);
    let grant = ServiceGrant {
        name: args.name.clone(),
        regions: args.regions,
        tools: args.tools,
        nodes: args.nodes,
        public_key: minted.public_key,
        created_at,
        expires_at,
        revoked_at: None,
    };
    session.write(storage::SERVICES, args.name.as_str(), &grant).await?;
    session.record(args.name.as_str(), format!("service granted: regions {}, tools {}", joined(&grant.regions), joined(&grant.tools))).await?;
    say(format!("{} holds the credential of service {} until {expires_at}", path.display(), args.name));
    let (region, tool) = (grant.regions.first().map_or_else(String::new, ToString::to_string), grant.tools.first().map_or("ping", |tool| tool.as_str()));
    say(format!("It publishes to {} and answers come to {}", subject(&region, tool, &args.name), replies(&args.name)));
    Ok(())
}

fn subject(region: &str, tool: &str, name: &Caller) -> String {
    probeops_shared::subjects::job(region, tool, name)
}

fn replies(name: &Caller) -> String {
    probeops_shared::subjects::replies(name)
}

/// Makes a node's credential at `path` and says what was granted.
pub fn grant_node(control: &Control, id: &NodeId, region: &Region, tools: &[ToolName], path: &std::path::Path, lifetime: Duration) -> Result<NodeGrant, Failed> {
    let role = Role::Node { node: id.clone(), region: region.clone(), tools: tools.to_vec() };
    let minted = control.vault.mint_to(path, &role, lifetime).map_err(|error| Failed::work(format!("{error:#}")))?;
    Ok(NodeGrant {
        id: id.clone(),
        region: region.clone(),
        tools: tools.to_vec(),
        public_key: minted.public_key,
        created_at: Timestamp::now(),
        expires_at: minted.expires_at,
        revoked_at: None,
    })
}

fn refuse_second(held: bool, renew: bool, kind: &str, name: &str) -> Result<(), Failed> {
    if held && !renew {
        return Err(Failed::usage(format!("{kind} `{name}` has a credential already; --renew makes it again, `probeops {kind}s revoke {name}` takes it back")));
    }
    Ok(())
}

async fn revoke(control: &Control, public_key: &str) -> Result<(), Failed> {
    let revoked = probeops_nats::revoke::revoke(&control.layout, &control.servers, control.ca(), public_key).await;
    revoked.map(drop).map_err(|error| Failed::work(format!("{error:#}")))
}

fn joined<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn state(expires_at: Timestamp, revoked_at: Option<Timestamp>) -> String {
    match revoked_at {
        Some(revoked_at) => format!("revoked {revoked_at}"),
        None if expires_at <= Timestamp::now() => format!("expired {expires_at}"),
        None => format!("until {expires_at}"),
    }
}

fn list<T: serde::Serialize, const COLUMNS: usize>(form: Form, headings: [&str; COLUMNS], items: &[T], name: &str, row: impl Fn(&T) -> [String; COLUMNS]) {
    match form {
        Form::Json => say(pretty(&serde_json::json!({ name: items }))),
        Form::Text if items.is_empty() => note(format!("no {name}")),
        Form::Text => say(table(headings, &items.iter().map(row).collect::<Vec<_>>()).trim_end()),
    }
}
