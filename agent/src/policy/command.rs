//! `probeops-agent policy`: what the owner's policy says of something, without running it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use probeops_shared::access::Targets;
use probeops_shared::host::{DnsName, Host};
use probeops_shared::ids::Caller;
use probeops_shared::settings;
use probeops_shared::tools::dns::DNS_PORT;
use probeops_shared::tools::pmtu::PmtuProtocol;
use probeops_shared::tools::whois::registered::Registered;
use probeops_shared::tools::whois::report::Registry;
use probeops_shared::tools::{Spec, ToolName};
use serde_json::{Map, Value};

use crate::config::{Given, ProxySetting, resolver};
use crate::enroll::Folder;
use crate::net::pmtu::Prober;
use crate::policy::keeper::Keeper;
use crate::policy::surroundings::{Lookout, Surroundings};
use crate::policy::{Denial, Endpoint, Policy, Touch};
use crate::resolve::Resolver;
use crate::way::proxy::Proxies;

/// Show the owner's policy, or ask it, without running anything
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print every rule in force, with its line
    Show(Where),
    /// Say whether a tool may touch a target, and which rule of which line decides, for each address; exit 0 allowed, 1 denied
    #[command(after_help = "\
Examples:
  probeops-agent policy test ping 10.0.0.1 --policy policy.toml
  probeops-agent policy test tcp db.corp.example port=5432 --as api --targets '10.0.0.0/8,*.corp.example'")]
    Test(Test),
}

/// Where the policy is.
#[derive(Args, Clone, Debug, Default)]
pub struct Where {
    /// The agent's settings file (TOML), which names the policy, the broker and the resolvers
    #[arg(long, env = "PROBEOPS_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where a node that enrolled keeps its key and credential: with it the broker and the API that it belongs to are known, which are denied
    #[arg(long, env = "PROBEOPS_STATE", value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// The policy; the default policy unless given
    #[arg(long, env = "PROBEOPS_POLICY", value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The broker's addresses, which are always denied
    #[arg(long, env = "PROBEOPS_SERVERS", value_delimiter = ',', value_name = "URL")]
    servers: Option<Vec<String>>,
    /// Name servers to resolve names with; the system's own way unless given
    #[arg(long, env = "PROBEOPS_RESOLVERS", value_delimiter = ',', value_name = "ADDRESS")]
    resolvers: Option<Vec<String>>,
}

/// What is asked.
#[derive(Args, Clone, Debug)]
pub struct Test {
    /// The tool
    tool: ToolName,
    /// Its target, as in a job
    target: String,
    /// Its options, as in a job: port=22
    #[arg(value_name = "OPTION=VALUE")]
    options: Vec<String>,
    /// Who asks: api, or the name of a service, whose --targets a node does not believe
    #[arg(long = "as", value_name = "CALLER", default_value = "api")]
    caller: String,
    /// The targets that the one who asks is limited to: networks, names, *.NAME
    #[arg(long)]
    targets: Option<Targets>,
    #[command(flatten)]
    place: Where,
}

/// Whom a run touches first, before anybody leads it on.
#[derive(Debug, PartialEq)]
struct Step {
    what: &'static str,
    host: Host,
    ports: Vec<Option<u16>>,
}

/// What came of it.
#[derive(Debug)]
struct Answer {
    /// For people.
    text: String,
    /// Whether it was yes.
    allowed: bool,
}

impl PolicyCommand {
    /// Says what the policy says. Exit codes: 0 allowed, 1 denied, 2 cannot be asked so.
    pub fn run(self) -> ExitCode {
        let (text, code) = match answer(self) {
            Ok(Answer { text, allowed }) => (text, u8::from(!allowed)),
            Err(detail) => {
                // With nowhere to complain to, the exit code has to do.
                drop(writeln!(std::io::stderr(), "probeops-agent: {detail}"));
                return ExitCode::from(2);
            }
        };
        std::io::stdout().write_all(text.as_bytes()).map_or(ExitCode::from(2), |()| ExitCode::from(code))
    }
}

/// Answers; an error is why that cannot be.
fn answer(command: PolicyCommand) -> Result<Answer, String> {
    let (PolicyCommand::Show(place) | PolicyCommand::Test(Test { place, .. })) = &command;
    let given = Given {
        policy: place.policy.clone(),
        servers: place.servers.clone(),
        resolvers: place.resolvers.clone(),
        state: place.state.clone(),
        ..Given::default()
    };
    let file: Given = settings::load_if_given(place.config.as_deref()).map_err(|error| error.to_string())?;
    let given = given.or(file);
    let (own, note) = Own::of(&given)?;
    let keeper = Keeper::open(given.policy.as_deref(), &own.servers, own.others).map_err(|error| error.to_string())?;
    let policy = keeper.current();
    match command {
        PolicyCommand::Show(_) => {
            let report = keeper.report();
            let file = report.digest.map_or_else(
                || "the default policy; no file is given".to_owned(),
                |digest| format!("{} (SHA-256 {digest})", policy.file.display()),
            );
            let text = note.into_iter().chain([file]).chain(policy.told()).fold(String::new(), |all, line| all + &line + "\n");
            Ok(Answer { text, allowed: true })
        }
        PolicyCommand::Test(test) => {
            let resolvers: Vec<_> = given.resolvers.unwrap_or_default().iter().map(|text| resolver(text)).collect::<Result<_, _>>()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
            let Answer { text, allowed } = runtime.block_on(test.answer(&policy, &Resolver::new(&resolvers)))?;
            Ok(Answer { text: note.map_or_else(String::new, |note| note + "\n") + &text, allowed })
        }
    }
}

/// The node's own servers, as the agent will know them.
struct Own {
    servers: Vec<String>,
    /// Its API, and the proxies on the way to the broker.
    others: Vec<Endpoint>,
}

impl Own {
    /// By the settings and what the node knows of its enrolment; with it, what is to be said where that cannot be read.
    fn of(given: &Given) -> Result<(Self, Option<String>), String> {
        let state = given.state.as_deref().filter(|_| given.creds.is_none());
        let (record, note) = match state.map(|state| Folder::new(state).record()).transpose() {
            Ok(record) => (record.flatten(), None),
            Err(error) => (None, Some(format!("{error}; so the broker and the API that it enrolled with are not judged as its own"))),
        };
        let api = given.enroll.clone().filter(|_| state.is_some()).or_else(|| record.as_ref().map(|record| record.api.clone()));
        let setting = ProxySetting { proxy: given.proxy.clone(), proxy_password_file: given.proxy_password_file.clone() };
        let proxies = match &record {
            Some(record) if setting.proxy.is_none() => record.proxies().map_err(|error| error.to_string())?,
            Some(_) | None => Proxies::new(&setting)?,
        };
        let told = record.and_then(|record| record.servers.or(record.given.map(|given| given.servers)));
        let servers = given.servers.clone().or(told).unwrap_or_default();
        let mut others: Vec<Endpoint> = api.map(|api| Endpoint::of_api(&api)).transpose()?.into_iter().collect();
        for proxy in servers.iter().filter_map(|server| proxies.of(&Endpoint::of_server(server).ok()?)) {
            if !others.contains(proxy.endpoint()) {
                others.push(proxy.endpoint().clone());
            }
        }
        Ok((Self { servers, others }, note))
    }
}

impl Test {
    async fn answer(self, policy: &Policy, resolver: &Resolver) -> Result<Answer, String> {
        let spec = self.spec()?;
        let api = self.caller == "api" || self.caller.parse::<Caller>().map_err(|detail| format!("--as: {detail}"))?.is_api();
        let mut text = String::new();
        if self.targets.is_some() && !api {
            let _ = writeln!(text, "--targets are believed only from the API: those of `{}` are not looked at", self.caller);
        }
        let lookout = Lookout::new().map_err(|error| format!("cannot read this machine's addresses: {error}"))?;
        let surroundings = lookout.look(policy, resolver).await;
        let judge = Judge { policy, surroundings: &surroundings, targets: self.targets.filter(|_| api), resolver };
        let tool = judge.said(policy.check_tool(self.tool), || policy.why_tool(self.tool));
        let mut allowed = tool.is_ok();
        let _ = writeln!(text, "{}: {}", self.tool, words(&tool));
        if let Some(name) = question(&spec) {
            let asked = judge.question(&name);
            allowed &= asked.is_ok();
            let _ = writeln!(text, "what is asked for, {name}: {}", words(&asked));
        }
        for step in steps(&spec) {
            allowed &= judge.step(&step, &mut text).await;
        }
        let _ = writeln!(text, "{}", if allowed { "allowed" } else { "denied" });
        Ok(Answer { text, allowed })
    }

    fn spec(&self) -> Result<Spec, String> {
        let mut options = Map::new();
        for given in &self.options {
            let (name, value) =
                given.split_once('=').ok_or_else(|| format!("`{given}` is no option; write NAME=VALUE, such as port=22"))?;
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
            options.insert(name.to_owned(), value);
        }
        Spec::parse(self.tool, &self.target, options).map_err(|invalid| invalid.to_string())
    }
}

/// What judges as a run is judged.
struct Judge<'a> {
    policy: &'a Policy,
    surroundings: &'a Surroundings,
    targets: Option<Targets>,
    resolver: &'a Resolver,
}

impl Judge<'_> {
    fn said(&self, verdict: Result<(), Denial>, why: impl FnOnce() -> String) -> Result<String, String> {
        verdict.map(|()| why()).map_err(|denial| self.policy.with_line(&denial, denial.at))
    }

    /// A name or address that is only asked for.
    fn question(&self, name: &DnsName) -> Result<String, String> {
        match name {
            DnsName::Name(name) => self.name(name),
            DnsName::Address(address) => match &self.targets {
                Some(targets) if !targets.allow_literal(*address) => Err(format!("--targets {targets} do not include it")),
                Some(_) | None => Ok("nothing denies to ask for it".to_owned()),
            },
        }
    }

    fn name(&self, name: &str) -> Result<String, String> {
        match &self.targets {
            Some(targets) if !targets.allow_name(name) => Err(format!("--targets {targets} do not include it")),
            Some(_) | None => self.said(self.policy.check_name(name), || self.policy.why_name(name)),
        }
    }

    /// Says of every address of a host whether it may be touched; whether there is one.
    async fn step(&self, Step { what, host, ports }: &Step, text: &mut String) -> bool {
        let addresses = match host {
            Host::Address(address) => vec![address.to_canonical()],
            Host::Name(name) => {
                let server = ports.iter().try_for_each(|port| self.policy.check_endpoint_name(name, *port));
                let permitted = self.name(name).and_then(|why| self.said(server, || why));
                let _ = writeln!(text, "{what} {name}: {}", words(&permitted));
                if permitted.is_err() {
                    return false;
                }
                match self.resolver.lookup(name).await {
                    Ok(found) => {
                        for alias in &found.aliases {
                            let server = ports.iter().try_for_each(|port| self.policy.check_endpoint_name(alias, *port));
                            if let Err(why) = self.said(self.policy.check_denied_name(alias).and(server), String::new) {
                                let _ = writeln!(text, "{name}, an alias of {alias}: denied: {why}");
                                return false;
                            }
                        }
                        found.addresses.iter().map(IpAddr::to_canonical).collect()
                    }
                    Err(why) => {
                        let _ = writeln!(text, "{what} {name}: it cannot be resolved here, so nothing would be touched: {why}");
                        return false;
                    }
                }
            }
        };
        let named = host.address().is_none();
        let mut any = false;
        for address in addresses {
            let mut all = true;
            for port in ports {
                let verdict = self.address(Touch { address, port: *port, named });
                all &= verdict.is_ok();
                let port = port.map_or_else(String::new, |port| format!(" port {port}"));
                let _ = writeln!(text, "{what} {address}{port}: {}", words(&verdict));
            }
            any |= all;
        }
        any
    }

    fn address(&self, touch: Touch) -> Result<String, String> {
        let included = |targets: &Targets| {
            if touch.named { targets.allow_resolved(touch.address) } else { targets.allow_literal(touch.address) }
        };
        match &self.targets {
            Some(targets) if !included(targets) => Err(format!("--targets {targets} do not include it")),
            Some(_) | None => {
                self.said(self.policy.check_address(touch, self.surroundings), || self.policy.why_address(touch, self.surroundings))
            }
        }
    }
}

fn words(verdict: &Result<String, String>) -> String {
    match verdict {
        Ok(why) => format!("allowed: {why}"),
        Err(why) => format!("denied: {why}"),
    }
}

/// What a tool asks for without touching it.
fn question(spec: &Spec) -> Option<DnsName> {
    match spec {
        Spec::Dns { target, .. } => Some(target.clone()),
        Spec::Whois { target: Registered::Domain(name), .. } => Some(DnsName::Name(name.clone())),
        Spec::Whois { target: Registered::Address(address), .. } => Some(DnsName::Address(*address)),
        Spec::Http { target, options } if options.resolve.is_some() => Some(match target.host() {
            Host::Address(address) => DnsName::Address(*address),
            Host::Name(name) => DnsName::Name(name.clone()),
        }),
        Spec::Whois { .. }
        | Spec::Echo { .. }
        | Spec::Ping { .. }
        | Spec::Traceroute { .. }
        | Spec::Mtr { .. }
        | Spec::Tcp { .. }
        | Spec::Tls { .. }
        | Spec::Http { .. }
        | Spec::Pmtu { .. } => None,
    }
}

/// Whom a run touches, as far as it is known before. Where it is led then, by redirects, delegations and referrals, is judged as it goes.
fn steps(spec: &Spec) -> Vec<Step> {
    let step = |what, host: &Host, ports: Vec<Option<u16>>| Step { what, host: host.clone(), ports };
    let target = |host: &Host, port: Option<u16>| vec![step("target", host, vec![port])];
    match spec {
        Spec::Echo { .. } => Vec::new(),
        Spec::Ping { target: host, options } => target(host, options.port()),
        Spec::Traceroute { target: host, options } => target(host, options.port()),
        Spec::Mtr { target: host, options } => target(host, options.port()),
        Spec::Pmtu { target: host, options } => {
            let by_udp = match options.protocol {
                PmtuProtocol::Icmp => false,
                PmtuProtocol::Auto => !Prober::may_use_icmp(),
                PmtuProtocol::Udp => true,
            };
            target(host, by_udp.then(|| options.port.get_u16()))
        }
        Spec::Tcp { target: host, options } => vec![step("target", host, options.ports().into_iter().map(Some).collect())],
        Spec::Tls { target: host, options } => target(host, Some(options.port())),
        Spec::Http { target: url, options } => {
            let own = options.resolve.as_ref().unwrap_or_else(|| url.host());
            let mut steps = target(own, Some(url.port()));
            steps.extend(options.resolver.iter().map(|resolver| step("resolver", resolver, vec![Some(DNS_PORT)])));
            steps.extend(options.proxy.iter().map(|proxy| step("proxy", proxy.host(), vec![Some(proxy.port())])));
            steps
        }
        Spec::Dns { options, .. } => {
            let named = options.resolver.iter().chain(options.compare_with.hosts());
            named.map(|resolver| step("resolver", resolver, vec![Some(options.port())])).collect()
        }
        Spec::Whois { options, .. } => {
            let rdap = options.rdap_server();
            let each = options.protocols().iter().map(|registry| match registry {
                Registry::Rdap => step("RDAP server", &rdap.host, vec![Some(rdap.port)]),
                Registry::Whois => step("WHOIS server", &options.whois_server(), vec![Some(options.port.get_u16())]),
            });
            each.collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str, tool: &str, target: &str, options: &[&str], more: (&str, Option<&str>)) -> Answer {
        let file = std::env::temp_dir().join(format!("probeops-asked-{:032x}.toml", rand::random::<u128>()));
        std::fs::write(&file, text).unwrap();
        let place = Where { policy: Some(file.clone()), servers: Some(vec!["tls://192.0.2.1:4222".to_owned()]), ..Where::default() };
        let question = Test {
            tool: tool.parse().unwrap(),
            target: target.to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
            caller: more.0.to_owned(),
            targets: more.1.map(|targets| targets.parse().unwrap()),
            place,
        };
        let verdict = answer(PolicyCommand::Test(question)).unwrap();
        std::fs::remove_file(&file).unwrap();
        Answer { text: verdict.text.replace(&file.display().to_string(), "FILE"), ..verdict }
    }

    #[track_caller]
    fn says(answer: &Answer, allowed: bool, part: &str) {
        assert!(answer.allowed == allowed && answer.text.contains(part), "{}", answer.text);
        assert!(answer.text.ends_with(if allowed { "\nallowed\n" } else { "\ndenied\n" }), "{}", answer.text);
    }

    #[test]
    fn a_verdict_names_its_rule_for_every_address() {
        let text =
            "allow_loopback = true\n[allow]\nnetworks = [\"10.0.0.0/8\", \"127.0.0.0/8\"]\nports = [443]\n[deny]\ntools = [\"mtr\"]\n";
        let ask = |tool, target, options: &[&str]| asked(text, tool, target, options, ("api", None));
        says(&ask("ping", "10.0.0.1", &[]), true, "target 10.0.0.1: allowed: 10.0.0.0/8 is in allow.networks (line 3 of FILE)");
        says(&ask("ping", "11.0.0.1", &[]), false, "target 11.0.0.1: denied: it is in none of allow.networks (line 3 of FILE)");
        says(&ask("ping", "169.254.169.254", &[]), false, "is always denied");
        says(&ask("ping", "192.0.2.1", &[]), false, "the node's own broker 192.0.2.1:4222 is always denied");
        says(&ask("mtr", "10.0.0.1", &[]), false, "mtr: denied: the tool mtr is in deny.tools (line 6 of FILE)");
        says(
            &ask("tcp", "10.0.0.1", &["port=22"]),
            false,
            "target 10.0.0.1 port 22: denied: port 22 is not in allow.ports (line 4 of FILE)",
        );
        says(&ask("tcp", "10.0.0.1", &["port=443"]), true, "port 443 is in allow.ports (line 4 of FILE)");
        says(&ask("http", "https://10.0.0.1/", &["proxy=http://11.0.0.1:443"]), false, "proxy 11.0.0.1 port 443: denied");
        says(
            &ask("dns", "example.com", &["resolver=10.0.0.53"]),
            false,
            "resolver 10.0.0.53 port 53: denied: port 53 is not in allow.ports",
        );
        says(&ask("dns", "example.com", &[]), true, "what is asked for, example.com: allowed: nothing denies the name");
        says(&ask("ping", "localhost", &[]), true, "target 127.0.0.1: allowed: allow_loopback is true (line 1 of FILE); 127.0.0.0/8");
        says(&ask("echo", "hello", &[]), true, "echo: allowed: nothing denies the tool echo");
    }

    #[test]
    fn the_targets_of_who_asks_are_believed_from_the_api_alone() {
        let ask = |caller, target| asked("", "ping", target, &[], (caller, Some("10.0.0.0/8")));
        says(&ask("api", "10.0.0.1"), true, "target 10.0.0.1: allowed: nothing denies it");
        says(&ask("api", "11.0.0.1"), false, "target 11.0.0.1: denied: --targets 10.0.0.0/8 do not include it");
        says(&ask("billing", "11.0.0.1"), true, "those of `billing` are not looked at");
    }

    #[test]
    fn what_is_asked_in_the_wrong_way_is_said() {
        let place = Where::default;
        let test = |options: &[&str]| Test {
            tool: ToolName::Ping,
            target: "10.0.0.1".to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
            caller: "api".to_owned(),
            targets: None,
            place: place(),
        };
        let ask = |options: &[&str]| answer(PolicyCommand::Test(test(options))).unwrap_err();
        assert!(ask(&["port"]).contains("write NAME=VALUE"));
        assert!(ask(&["cuont=3"]).contains("did you mean `count`?"));
        let shown = answer(PolicyCommand::Show(place())).unwrap().text;
        assert!(
            shown.starts_with("the default policy; no file is given\nalways denied: ") && shown.contains("allow.networks: all that"),
            "{shown}"
        );
    }

    #[test]
    fn the_broker_and_the_api_that_a_node_enrolled_with_are_judged_as_its_own() {
        let state = std::env::temp_dir().join(format!("probeops-asked-{:032x}", rand::random::<u128>()));
        std::fs::create_dir(&state).unwrap();
        let record = state.join("enrollment.json");
        let mark = probeops_shared::enroll::Mark::new();
        let text = serde_json::json!({"api": "https://203.0.113.2:8443", "next_mark": mark, "servers": ["wss://203.0.113.1/nats"]});
        std::fs::write(&record, text.to_string()).unwrap();
        let ask = |target: &str, port: &str| {
            let place = Where { state: Some(state.clone()), ..Where::default() };
            let (tool, target, options) = (ToolName::Tcp, target.to_owned(), vec![port.to_owned()]);
            answer(PolicyCommand::Test(Test { tool, target, options, caller: "api".to_owned(), targets: None, place })).unwrap()
        };
        says(&ask("203.0.113.1", "port=443"), false, "the node's own broker 203.0.113.1:443 is always denied");
        says(&ask("203.0.113.2", "port=8443"), false, "the node's own API 203.0.113.2:8443 is always denied");
        says(&ask("203.0.113.2", "port=22"), true, "nothing denies it");
        std::fs::write(&record, "{").unwrap();
        says(&ask("203.0.113.2", "port=8443"), true, "are not judged as its own\ntcp: allowed");
        std::fs::remove_dir_all(&state).unwrap();
    }
}
