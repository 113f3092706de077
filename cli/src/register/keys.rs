//! `probeops keys`: who may ask the HTTP API.

use clap::{Args, Subcommand};
use probeops_api::access::keys::{KeyRecord, KeyView, NewKey, check_name, is_id, mint};
use probeops_shared::access::{AtOnce, Limits, Rate, RegionPattern, Scope, TargetPattern, Targets};
use probeops_shared::ids::NodeId;
use probeops_shared::registry::{ServiceGrant, ValidFor};
use probeops_shared::subjects::storage;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;

use crate::control::{COMMAND, Control, DataArgs, block_on};
use crate::exit::Failed;
use crate::register::services::revoke_service;
use crate::register::{ListArgs, Terms, joined, list, state};
use crate::terminal::{note, say};

/// Make, list and revoke keys of the HTTP API; works while the broker runs
#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make a key; it is printed once
    #[command(after_help = "Example:\n  probeops keys add n8n --scopes jobs:write,jobs:read --regions 'eu-*' --rate 60/m")]
    Add(KeyAdd),
    /// List them, without the keys themselves
    List(ListArgs),
    /// Revoke a key, on every API at once, and the services that it has made
    Revoke(KeyRevoke),
}

/// What a new key is.
#[derive(Args, Debug)]
pub(crate) struct KeyAdd {
    /// What it is for
    name: String,
    /// What it may do: jobs:write, jobs:read, nodes:read, nodes:write, nodes:enroll, keys:write, services:write, audit:read, metrics:read, admin
    #[arg(long, value_delimiter = ',', required = true)]
    scopes: Vec<Scope>,
    /// Only these tools
    #[arg(long, value_delimiter = ',', help = format!("Only these tools, of {}", joined(ToolName::ALL)))]
    tools: Vec<ToolName>,
    /// Only these regions; `eu-*` means all that begin so
    #[arg(long, value_delimiter = ',')]
    regions: Vec<RegionPattern>,
    /// Only these nodes
    #[arg(long, value_delimiter = ',')]
    nodes: Vec<NodeId>,
    /// Only nodes of whose labels all this holds: site=fra,env!=lab or `role in (edge,core)`
    #[arg(long, value_name = "TERMS", value_parser = crate::register::terms)]
    labels: Option<Terms>,
    /// Only these targets: networks (10.0.0.0/8) and names (`*.example.com`)
    #[arg(long, value_delimiter = ',')]
    targets: Vec<TargetPattern>,
    /// At most so many runs: 10/s, 60/m, 1000/h
    #[arg(long)]
    rate: Option<Rate>,
    /// At most so many runs at the same time
    #[arg(long, value_name = "COUNT")]
    at_once: Option<AtOnce>,
    /// How long it can be used: 12h, 7d, 30d at most [default: until it is revoked]
    #[arg(long, value_name = "TIME")]
    expires_in: Option<ValidFor>,
    #[command(flatten)]
    data: DataArgs,
}

/// Which key.
#[derive(Args, Debug)]
pub(crate) struct KeyRevoke {
    /// Its id, as `keys list` shows it
    id: String,
    #[command(flatten)]
    data: DataArgs,
}

/// Runs a `keys` command.
pub(crate) fn keys(command: Keys) -> Result<(), Failed> {
    match command {
        Keys::Add(args) => block_on(async {
            check_name(&args.name).map_err(Failed::usage)?;
            let limits = Limits {
                tools: given(args.tools),
                regions: given(args.regions),
                nodes: given(args.nodes),
                labels: args.labels.map(|terms| terms.0),
                targets: given(args.targets).map(Targets),
                rate: args.rate,
                at_once: args.at_once,
            };
            limits.check().map_err(|invalid| Failed::usage(invalid.to_string()))?;
            let session = Control::open(&args.data)?.session().await?;
            let expires_at = args.expires_in.map(|expires_in| Timestamp::now().plus(expires_in.duration()));
            let minted = mint(NewKey {
                name: args.name,
                scopes: args.scopes,
                limits,
                created_by: COMMAND.to_owned(),
                expires_at,
                counts_with: None,
            });
            session.write(storage::KEYS, &minted.record.id, &minted.record).await?;
            session.record(&minted.record.id, format!("key made: {}", minted.record.name)).await?;
            note("The key is shown once and kept nowhere:");
            say(minted.key);
            Ok(())
        }),
        Keys::List(args) => block_on(async {
            let records: Vec<KeyRecord> = Control::open(&args.data)?.session().await?.read_all(storage::KEYS).await?;
            let views: Vec<KeyView> = records.iter().map(KeyView::from).collect();
            let rows = |key: &KeyView| [key.id.clone(), key.name.clone(), joined(&key.scopes), key.created_at.to_string(), key_state(key)];
            list(args.output, ["KEY", "NAME", "SCOPES", "MADE", "STATE"], &views, "keys", rows);
            Ok(())
        }),
        Keys::Revoke(args) => block_on(async {
            let control = Control::open(&args.data)?;
            let session = control.session().await?;
            let known: Option<KeyRecord> = if is_id(&args.id) { session.read(storage::KEYS, &args.id).await? } else { None };
            if known.is_none() {
                return Err(Failed::usage(format!("there is no key `{}`; `probeops keys list` shows those there are", args.id)));
            }
            session.change(storage::KEYS, &args.id, |key: &mut KeyRecord| key.revoked_at = Some(Timestamp::now())).await?;
            session.record(&args.id, "key revoked".to_owned()).await?;
            say(format!("key {} is revoked", args.id));
            let maker = format!("key:{}", args.id);
            let made: Vec<ServiceGrant> = session.read_all(storage::SERVICES).await?;
            for grant in made.iter().filter(|grant| grant.created_by == maker && grant.revoked_at.is_none()) {
                let servers = revoke_service(&control, &session, grant).await?;
                say(format!("service {}, which it had made, is revoked; its connections are cut, on {servers}", grant.name));
            }
            Ok(())
        }),
    }
}

/// Whether a key is accepted, and until when.
fn key_state(key: &KeyView) -> String {
    match (key.expires_at, key.revoked_at) {
        (Some(expires_at), revoked_at) => state(expires_at, revoked_at),
        (None, Some(_)) => "revoked".to_owned(),
        (None, None) => "good".to_owned(),
    }
}

/// What was not given does not limit.
fn given<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}
