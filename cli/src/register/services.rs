//! `probeops services`: who may publish jobs straight to the broker.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use probeops_nats::permissions::Role;
use probeops_nats::vault::CREDENTIAL_LIFETIME;
use probeops_shared::access::{AtOnce, Rate, Targets};
use probeops_shared::ids::{Caller, NodeId, OBSERVER, Region};
use probeops_shared::registry::ServiceGrant;
use probeops_shared::subjects::{self, storage};
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;

use crate::control::{COMMAND, Control, DataArgs, Session, block_on};
use crate::exit::Failed;
use crate::register::{Held, ListArgs, Terms, joined, limits, list, refuse_second, revoke, state, void_what_would_stay};
use crate::terminal::say;

/// How long the credential of an observer lasts.
const OBSERVER_LIFETIME: Duration = Duration::from_hours(24);

/// Grant, list and revoke services that publish jobs straight to the broker; works while the broker runs
#[derive(Debug, Subcommand)]
pub(crate) enum Services {
    /// Make a credential for a service
    #[command(after_help = "Example:\n  probeops services add billing --regions eu-central --tools ping,tcp --rate 60/m")]
    Add(ServiceAdd),
    /// List those that were granted
    List(ListArgs),
    /// Make a credential that sees the API's NATS services, as `nats micro` shows them; it lasts a day
    #[command(
        after_help = "Example:\n  probeops services observe --out observer.creds\n  nats --creds observer.creds --inbox-prefix _INBOX_f.observer micro ls"
    )]
    Observe(ServiceObserve),
    /// Take a credential back; its connections are cut at once
    Revoke(ServiceRevoke),
}

/// What a new service is.
#[derive(Args, Debug)]
pub(crate) struct ServiceAdd {
    /// Its name: the last token of its jobs' subjects
    name: Caller,
    /// Where it may ask; nowhere unless given, but the nodes it may ask by id
    #[arg(long, value_delimiter = ',', required_unless_present = "nodes")]
    regions: Vec<Region>,
    /// What it may ask for
    #[arg(long, value_delimiter = ',', required = true, help = format!("What it may ask for: {}", joined(ToolName::ALL)))]
    tools: Vec<ToolName>,
    /// Whom it may ask by id
    #[arg(long, value_delimiter = ',')]
    nodes: Vec<NodeId>,
    /// Of all these only nodes of whose labels all this holds: site=fra,env!=lab; it then asks at the front door only [default with --renew: what it has]
    #[arg(long, value_name = "TERMS", value_parser = crate::register::terms)]
    labels: Option<Terms>,
    /// Whom it may point tools at: networks, names, *.NAME; it then asks at the front door only (api.v1.run.NAME) [default with --renew: what it has]
    #[arg(long)]
    targets: Option<Targets>,
    /// At most so many runs, over all nodes: 10/s, 60/m, 1000/h [default with --renew: what it has]
    #[arg(long)]
    rate: Option<Rate>,
    /// At most so many runs at the same time [default with --renew: what it has]
    #[arg(long, value_name = "COUNT")]
    at_once: Option<AtOnce>,
    /// Take its limits away
    #[arg(long, requires = "renew", conflicts_with_all = ["labels", "targets", "rate", "at_once"])]
    no_limits: bool,
    /// Where the credential is written [default: services/NAME.creds in the data folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Make it again for a service that has one
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    data: DataArgs,
}

/// Where the credential of an observer goes.
#[derive(Args, Debug)]
pub(crate) struct ServiceObserve {
    /// Where the credential is written
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    data: DataArgs,
}

/// Which service.
#[derive(Args, Debug)]
pub(crate) struct ServiceRevoke {
    /// Its name
    name: Caller,
    #[command(flatten)]
    data: DataArgs,
}

/// Runs a `services` command.
pub(crate) fn services(command: Services) -> Result<(), Failed> {
    match command {
        Services::Add(args) => block_on(add_service(args)),
        Services::List(args) => block_on(async {
            let grants: Vec<ServiceGrant> = Control::open(&args.data)?.session().await?.read_all(storage::SERVICES).await?;
            let rows = |grant: &ServiceGrant| {
                [
                    grant.name.to_string(),
                    joined(&grant.regions),
                    joined(&grant.tools),
                    joined(&grant.nodes),
                    grant.targets.as_ref().map_or_else(String::new, ToString::to_string),
                    [grant.labels.as_deref().map(joined), Some(limits(grant.rate, grant.at_once))]
                        .into_iter()
                        .flatten()
                        .collect::<Vec<_>>()
                        .join("; "),
                    state(grant.expires_at, grant.revoked_at),
                ]
            };
            list(args.output, ["SERVICE", "REGIONS", "TOOLS", "NODES", "TARGETS", "LIMITS", "STATE"], &grants, "services", rows);
            Ok(())
        }),
        Services::Observe(args) => block_on(async {
            let control = Control::open(&args.data)?;
            let minted = control.vault.mint_to(&args.out, &Role::Observer, OBSERVER_LIFETIME);
            let expires_at = minted.map_err(|error| Failed::work(format!("{error:#}")))?.expires_at;
            control.session().await?.record(OBSERVER, "credential of an observer made".to_owned()).await?;
            let (path, inbox) = (args.out.display(), Role::Observer.inbox_prefix());
            say(format!("{path} holds the credential of an observer until {expires_at}; its inbox prefix is {inbox}"));
            Ok(())
        }),
        Services::Revoke(args) => block_on(async {
            let control = Control::open(&args.data)?;
            let session = control.session().await?;
            let grant: Option<ServiceGrant> = session.read(storage::SERVICES, args.name.as_str()).await?;
            let missing = || Failed::usage(format!("there is no service `{}`; `probeops services list` shows those there are", args.name));
            let servers = revoke_service(&control, &session, &grant.ok_or_else(missing)?).await?;
            say(format!("service {} is revoked; its connections are cut, on {servers}", args.name));
            Ok(())
        }),
    }
}

/// Revokes a service; the servers that have taken it.
pub(super) async fn revoke_service(control: &Control, session: &Session, grant: &ServiceGrant) -> Result<String, Failed> {
    let name = grant.name.as_str();
    let servers = revoke(control, &grant.public_key).await?;
    session.change(storage::SERVICES, name, |grant: &mut ServiceGrant| grant.revoked_at = Some(Timestamp::now())).await?;
    session.record(name, format!("service revoked, taken by {servers}")).await?;
    Ok(servers)
}

async fn add_service(args: ServiceAdd) -> Result<(), Failed> {
    args.name.check_service().map_err(Failed::usage)?;
    let control = Control::open(&args.data)?;
    let session = control.session().await?;
    let held: Option<ServiceGrant> = session.read(storage::SERVICES, args.name.as_str()).await?;
    let held = held.filter(|grant| grant.revoked_at.is_none());
    refuse_second(held.is_some(), args.renew, "service", args.name.as_str())?;
    let kept = held.as_ref().filter(|_| !args.no_limits);
    let labels = args.labels.map(|terms| terms.0).or_else(|| kept?.labels.clone());
    let targets = args.targets.or_else(|| kept?.targets.clone());
    let rate = args.rate.or_else(|| kept?.rate);
    let at_once = args.at_once.or_else(|| kept?.at_once);
    let path = args.out.unwrap_or_else(|| control.layout.service_creds(&args.name));
    if let Some(held) = &held {
        let same_grants = held.regions == args.regions && held.tools == args.tools && held.nodes == args.nodes;
        let same_rights = same_grants && held.labels == labels && held.targets == targets;
        void_what_would_stay(&control, &Held { public_key: &held.public_key, same_rights }, &path).await?;
    }
    let role = Role::Service {
        name: args.name.clone(),
        regions: args.regions.clone(),
        tools: args.tools.clone(),
        nodes: args.nodes.clone(),
        direct: targets.is_none() && labels.is_none(),
    };
    let minted = control.vault.mint_to(&path, &role, CREDENTIAL_LIFETIME).map_err(|error| Failed::work(format!("{error:#}")))?;
    let (created_at, expires_at) = (Timestamp::now(), minted.expires_at);
    let grant = ServiceGrant {
        name: args.name.clone(),
        regions: args.regions,
        tools: args.tools,
        nodes: args.nodes,
        labels,
        targets,
        rate,
        at_once,
        public_key: minted.public_key,
        created_at,
        created_by: COMMAND.to_owned(),
        expires_at,
        revoked_at: None,
    };
    session.write(storage::SERVICES, args.name.as_str(), &grant).await?;
    let (regions, tools, limits) = (joined(&grant.regions), joined(&grant.tools), limits(rate, at_once));
    session.record(args.name.as_str(), format!("service granted: regions {regions}, tools {tools}, limits {limits}")).await?;
    say(format!("{} holds the credential of service {} until {expires_at}", path.display(), args.name));
    if grant.direct() {
        let tool = grant.tools.first().copied().unwrap_or(ToolName::Ping);
        let subject = match (grant.regions.first(), grant.nodes.first()) {
            (None, Some(node)) => subjects::node_job(node, tool, &args.name),
            (region, _) => subjects::job(region.map_or("", Region::as_str), tool.as_str(), &args.name),
        };
        say(format!("It publishes to {subject} and answers come to {}", subjects::replies(&args.name)));
    }
    let (door, inbox) = (subjects::front_door(&args.name), subjects::door_inbox(&args.name));
    say(format!("It knocks at the API's front door on {door}, and answers come to {inbox}.>: its client's inbox prefix"));
    Ok(())
}
