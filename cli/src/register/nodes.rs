//! `probeops nodes`: who may be asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use probeops_nats::permissions::Role;
use probeops_nats::vault::CREDENTIAL_LIFETIME;
use probeops_shared::access::{AtOnce, Rate};
use probeops_shared::enroll::PublicKey;
use probeops_shared::ids::{LabelKey, LabelValue, NodeId, Region};
use probeops_shared::registry::{Enrollment, LABELS_MAX, Labels, NodeGrant, RevokedKey};
use probeops_shared::subjects::storage;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;

use crate::control::{Control, DataArgs, Session, block_on};
use crate::exit::Failed;
use crate::register::{Held, ListArgs, joined, limits, list, refuse_second, revoke, state, void_what_would_stay};
use crate::terminal::{note, say};

/// Grant, list and revoke nodes; works while the broker runs
#[derive(Debug, Subcommand)]
pub(crate) enum Nodes {
    /// Grant a node by name: register the public key that it made, or make a credential to carry there. Most machines enrol with a token
    /// instead, see `probeops enroll-tokens`
    #[command(
        after_help = "Examples:\n  probeops nodes add fra-1 --region eu-central --tools echo,ping,dns,tcp --public-key U…   # from `probeops-agent enroll URL --print-key`\n  probeops nodes add fra-1 --region eu-central --tools echo,ping,dns,tcp --label site=fra --label role=edge"
    )]
    Add(NodeAdd),
    /// List those that were granted
    List(ListArgs),
    /// Take a credential back; its agent is cut off at once
    Revoke(NodeRevoke),
}

/// What a new node is.
#[derive(Args, Debug)]
pub(crate) struct NodeAdd {
    /// Its id, unique in the fabric
    id: NodeId,
    /// Its region
    #[arg(long)]
    region: Region,
    /// What it may run
    #[arg(long, value_delimiter = ',', required = true, help = format!("What it may run: {}", joined(ToolName::ALL)))]
    tools: Vec<ToolName>,
    /// A label, such as site=fra, by which jobs can select it; several by naming it again [default with --renew: those it has]
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(LabelKey, LabelValue)>,
    /// Take all its labels away
    #[arg(long, requires = "renew", conflicts_with = "labels")]
    no_labels: bool,
    /// At most so many runs of all callers together: 10/s, 60/m, 1000/h [default with --renew: what it has]
    #[arg(long)]
    rate: Option<Rate>,
    /// At most so many runs of all callers together at the same time [default with --renew: what it has]
    #[arg(long, value_name = "COUNT")]
    at_once: Option<AtOnce>,
    /// Take its limits away
    #[arg(long, requires = "renew", conflicts_with_all = ["rate", "at_once"])]
    no_limits: bool,
    /// The public half of the key that the node made itself; it then enrols by a signature of it, and nothing has to be carried there
    #[arg(long, value_name = "KEY", conflicts_with = "out")]
    public_key: Option<PublicKey>,
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
pub(crate) struct NodeRevoke {
    /// Its id
    id: NodeId,
    #[command(flatten)]
    data: DataArgs,
}

/// Runs a `nodes` command.
pub(crate) fn nodes(command: Nodes) -> Result<(), Failed> {
    match command {
        Nodes::Add(args) => block_on(add_node(args)),
        Nodes::List(args) => block_on(async {
            let session = Control::open(&args.data)?.session().await?;
            let mut grants: Vec<NodeGrant> = session.read_all(storage::NODES).await?;
            // What the sentry had revoked while no API was there to say so.
            let said: Vec<RevokedKey> = session.read_all(storage::REVOKED).await?;
            for grant in &mut grants {
                if let Some(revoked) = said.iter().find(|revoked| grant.keys().iter().any(|key| key == revoked.public_key.as_str())) {
                    grant.mark_revoked(revoked.at, &revoked.because);
                }
            }
            let rows = |grant: &NodeGrant| {
                let unused = grant.enrolled.as_ref().is_some_and(|enrolled| enrolled.mark.is_none()) && grant.revoked_at.is_none();
                let mut state = if unused { "registered".to_owned() } else { state(grant.expires_at, grant.revoked_at) };
                if let Some(because) = &grant.revoked_because {
                    state = format!("{state}: {because}");
                }
                [
                    grant.id.to_string(),
                    grant.region.to_string(),
                    joined(&grant.tools),
                    shown(&grant.labels),
                    limits(grant.rate, grant.at_once),
                    state,
                ]
            };
            list(args.output, ["NODE", "REGION", "TOOLS", "LABELS", "LIMITS", "STATE"], &grants, "nodes", rows);
            Ok(())
        }),
        Nodes::Revoke(args) => block_on(async {
            let control = Control::open(&args.data)?;
            let session = control.session().await?;
            let there: Option<NodeGrant> = session.read(storage::NODES, args.id.as_str()).await?;
            there.ok_or_else(|| Failed::usage(format!("there is no node `{}`; `probeops nodes list` shows those there are", args.id)))?;
            // First the register: nothing that the node asks for at the same time gives it another key then.
            let mark = |grant: &mut NodeGrant| {
                grant.mark_revoked(Timestamp::now(), "by an operator");
            };
            let grant = session.change(storage::NODES, args.id.as_str(), mark).await?;
            let mut servers = String::new();
            for key in grant.keys() {
                servers = revoke(&control, &key).await?;
            }
            session.change(storage::NODES, args.id.as_str(), |grant: &mut NodeGrant| grant.revoking = false).await?;
            session.record(args.id.as_str(), format!("node revoked, taken by {servers}")).await?;
            say(format!("node {} is revoked; its agent is cut off and exits 78, on {servers}", args.id));
            Ok(())
        }),
    }
}

/// Reads a label as it is given.
pub(crate) fn label(text: &str) -> Result<(LabelKey, LabelValue), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "a label is written KEY=VALUE, such as site=fra".to_owned())?;
    Ok((key.parse()?, value.parse()?))
}

fn shown(labels: &Labels) -> String {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join(",") }
}

/// The labels given, each once.
fn given(labels: &[(LabelKey, LabelValue)]) -> Result<Labels, Failed> {
    let mut unique = Labels::new();
    for (key, value) in labels {
        if unique.insert(key.clone(), value.clone()).is_some() {
            return Err(Failed::usage(format!("label `{key}` is given twice; a node has one value for each")));
        }
    }
    if unique.len() > LABELS_MAX {
        return Err(Failed::usage(format!("a node has at most {LABELS_MAX} labels, not {}", unique.len())));
    }
    Ok(unique)
}

async fn add_node(args: NodeAdd) -> Result<(), Failed> {
    args.id.check_node().map_err(Failed::usage)?;
    let mut labels = given(&args.labels)?;
    let control = Control::open(&args.data)?;
    let session = control.session().await?;
    let held: Option<NodeGrant> = session.read(storage::NODES, args.id.as_str()).await?;
    if let Some(held) = held.as_ref().filter(|held| held.revoking) {
        void(&control, &held.keys()).await?;
    }
    let held = held.filter(|grant| grant.revoked_at.is_none());
    refuse_second(held.is_some(), args.renew, "node", args.id.as_str())?;
    if let Some(held) = held.as_ref().filter(|_| labels.is_empty() && !args.no_labels) {
        labels = held.labels.clone();
    }
    let kept = held.as_ref().filter(|_| !args.no_limits);
    let rate = args.rate.or_else(|| kept?.rate);
    let at_once = args.at_once.or_else(|| kept?.at_once);
    if let Some(public_key) = args.public_key {
        let new = NodeGrant { labels, rate, at_once, ..registered(&args.id, &args.region, &args.tools, &public_key) };
        return register(&control, &session, held.as_ref(), new).await;
    }
    let path = args.out.unwrap_or_else(|| control.layout.node_creds(&args.id));
    if let Some(held) = &held {
        let same_rights = held.region == args.region && held.tools == args.tools;
        void_what_would_stay(&control, &Held { public_key: &held.public_key, same_rights }, &path).await?;
        let others: Vec<String> = held.keys().into_iter().filter(|key| *key != held.public_key).collect();
        void(&control, &others).await?;
    }
    let grant = grant_node(&control, &args.id, &args.region, &args.tools, &path, CREDENTIAL_LIFETIME)?;
    let grant = NodeGrant { labels, rate, at_once, ..grant };
    let servers = control.servers_elsewhere()?;
    session.write(storage::NODES, args.id.as_str(), &grant).await?;
    let (labels, limits) = (shown(&grant.labels), limits(grant.rate, grant.at_once));
    let what = format!("node granted: region {}, tools {}, labels {labels}, limits {limits}", args.region, joined(&args.tools));
    session.record(args.id.as_str(), what).await?;
    say(format!("{} holds the credential of node {} until {}", path.display(), args.id, grant.expires_at));
    say(format!("Copy it and {} to its machine and start there:", control.layout.ca_certificate().display()));
    say(format!("  probeops-agent --servers {} --ca ca.pem --creds {}.creds", servers.join(","), args.id));
    if servers.iter().all(|server| server.contains("//127.") || server.contains("//localhost")) {
        note(
            "This broker is reached from this machine only; for agents elsewhere start it with `probeops up --broker 0.0.0.0:4222 --name HOST`.",
        );
    }
    Ok(())
}

/// A node whose key was made on its machine, and that has no credential yet.
fn registered(id: &NodeId, region: &Region, tools: &[ToolName], public_key: &PublicKey) -> NodeGrant {
    let now = Timestamp::now();
    NodeGrant {
        id: id.clone(),
        region: region.clone(),
        tools: tools.to_vec(),
        labels: Labels::new(),
        rate: None,
        at_once: None,
        public_key: public_key.to_string(),
        created_at: now,
        expires_at: now,
        revoked_at: None,
        revoked_because: None,
        revoking: false,
        enrolled: Some(Enrollment::default()),
    }
}

/// Registers a node's own key, in the place of whatever it had.
async fn register(control: &Control, session: &Session, held: Option<&NodeGrant>, new: NodeGrant) -> Result<(), Failed> {
    verify_key(&new.public_key)?;
    let all: Vec<NodeGrant> = session.read_all(storage::NODES).await?;
    if let Some(other) = all.iter().find(|other| other.public_key == new.public_key && other.id != new.id) {
        return Err(Failed::usage(format!("that key is node `{}`'s; a key is one node's", other.id)));
    }
    if let Some(held) = held {
        let same = held.public_key == new.public_key && held.region == new.region && held.tools == new.tools;
        if !same {
            void(control, &held.keys()).await?;
            note("The credential it had before is void from now on; whoever uses it is cut off.");
        }
        if held.public_key == new.public_key && !same {
            return Err(Failed::usage("a key that was revoked has no second life: have the node make another (`--new-identity`)"));
        }
    }
    let enrolled = held.filter(|held| held.public_key == new.public_key).and_then(|held| held.enrolled.clone());
    let new = NodeGrant { enrolled: enrolled.or(new.enrolled.clone()), ..new };
    session.write(storage::NODES, new.id.as_str(), &new).await?;
    let (labels, limits) = (shown(&new.labels), limits(new.rate, new.at_once));
    let tools = joined(&new.tools);
    let what = format!("node registered: key {}, region {}, tools {tools}, labels {labels}, limits {limits}", new.public_key, new.region);
    session.record(new.id.as_str(), what).await?;
    say(format!("node {} may enrol with its own key; on its machine:", new.id));
    say("  probeops-agent enroll https://THE-API --no-token");
    Ok(())
}

/// Voids these keys, which the register is about to name no more.
async fn void(control: &Control, public_keys: &[String]) -> Result<(), Failed> {
    for key in public_keys {
        drop(revoke(control, key).await?);
    }
    Ok(())
}

fn verify_key(public_key: &str) -> Result<(), Failed> {
    probeops_nats::node_key::check(public_key).map_err(|detail| Failed::usage(format!("--public-key: {detail}")))
}

/// Makes a node's credential at `path` and says what was granted.
pub(crate) fn grant_node(
    control: &Control,
    id: &NodeId,
    region: &Region,
    tools: &[ToolName],
    path: &Path,
    lifetime: Duration,
) -> Result<NodeGrant, Failed> {
    let role = Role::Node { node: id.clone(), region: region.clone(), tools: tools.to_vec() };
    let minted = control.vault.mint_to(path, &role, lifetime).map_err(|error| Failed::work(format!("{error:#}")))?;
    Ok(NodeGrant::new(id.clone(), region.clone(), tools.to_vec(), minted.public_key, minted.expires_at))
}
