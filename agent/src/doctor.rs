//! `probeops-agent doctor`: what works on this machine and what does not, each with its cure.
//!
//! Everything is tried as the agent does it, with its settings and its credential, and nothing is changed. It prints no secret.

mod broker;
mod machine;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use probeops_nats::connect::{Credential, Link, LinkError};
use probeops_shared::outcome::NodeRef;
use probeops_shared::settings;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use serde::Serialize;

use crate::agent::identity;
use crate::config::{Given, Settings};
use crate::enroll::api::Api;
use crate::enroll::{self, Folder};
use crate::policy::Policy;
use crate::way::dial::Obstacle;

/// Where the package keeps the settings.
const PACKAGED_CONFIG: &str = "/etc/probeops/agent.toml";

/// What may be said to the doctor.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "Exit codes: 0 all is well, 1 something does not work, 2 the command line is not right.")]
pub struct Doctor {
    /// Settings that differ from the file's
    #[command(flatten)]
    pub given: Given,
    /// The settings file of the agent (TOML) [default: /etc/probeops/agent.toml, where it exists and nothing else is given]
    #[arg(long, env = "PROBEOPS_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// It works.
    Ok,
    /// It works, and something about it is worth knowing.
    Note,
    /// It does not work.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What: one word or two.
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    detail: String,
    /// What to do about it, as a command to paste where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, detail: detail.into(), cure: None }
    }

    fn note(check: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Note, detail: detail.into(), cure: Some(cure.into()) }
    }

    fn failed(check: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failed, ..Self::note(check, detail, cure) }
    }

    fn of(check: &'static str, obstacle: Obstacle) -> Self {
        Self::failed(check, obstacle.detail, obstacle.cure)
    }
}

/// All that was looked at.
#[derive(Debug, Serialize)]
struct Findings {
    /// Whether nothing has failed.
    well: bool,
    checks: Vec<Finding>,
}

impl Doctor {
    /// Looks at everything and prints it.
    pub fn run(self) -> ExitCode {
        let json = self.json;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let checks = match runtime {
            Ok(runtime) => runtime.block_on(self.examine()),
            Err(error) => vec![Finding::failed("machine", format!("no runtime: {error}"), "raise the limits of this process (ulimit -a)")],
        };
        let findings = Findings { well: checks.iter().all(|finding| finding.verdict != Verdict::Failed), checks };
        let text = if json { serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n" } else { findings.to_text() };
        match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) if findings.well => ExitCode::SUCCESS,
            Ok(()) | Err(_) => ExitCode::FAILURE,
        }
    }

    async fn examine(self) -> Vec<Finding> {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(finding) => return vec![finding],
        };
        if let Some(Err(error)) = settings.state.as_deref().map(|state| Folder::new(state).become_owner()) {
            return vec![Finding::failed("enrolment", error.to_string(), "run it as the user whose folder it is")];
        }
        let (settings, api) = match enroll::known(settings) {
            Ok(known) => known,
            Err(error) => return vec![Finding::failed("enrolment", error.to_string(), "probeops-agent enroll --help")],
        };
        let mut found = configuration(&settings);
        if let Some(api) = &api {
            found.push(renewals(api).await);
        }
        let (credential, who) = credential(&settings.creds);
        found.extend(credential);
        found.extend(broker::examine(&settings, who.as_ref().map(|(node, granted)| (node, &granted[..]))).await);
        found.extend(machine::examine(who.as_ref().map_or(ToolName::ALL, |(_, granted)| granted)));
        found
    }

    fn settings(self) -> Result<Settings, Finding> {
        let bare = self.given.servers.is_none() && self.given.creds.is_none() && self.given.state.is_none();
        let path = self.config.or_else(|| Some(PathBuf::from(PACKAGED_CONFIG)).filter(|path| bare && path.exists()));
        let shown = path.as_deref().map_or_else(|| "--help".to_owned(), |path| path.display().to_string());
        let failed = |detail: String| {
            let cure = if path.is_some() {
                format!("edit {shown}   # probeops-agent --help has every setting")
            } else {
                "probeops-agent --help".to_owned()
            };
            Finding::failed("configuration", detail, cure)
        };
        let file: Given = settings::load_if_given(path.as_deref()).map_err(|error| failed(error.to_string()))?;
        self.given.or(file).complete().map_err(failed)
    }
}

impl Findings {
    fn to_text(&self) -> String {
        let mut text = String::new();
        for Finding { check, verdict, detail, cure } in &self.checks {
            let verdict = match verdict {
                Verdict::Ok => "ok",
                Verdict::Note => "note",
                Verdict::Failed => "FAILED",
            };
            text.push_str(&format!("{verdict:<8}{check:<16}{detail}\n"));
            text.extend(cure.iter().map(|cure| format!("{:24}cure: {cure}\n", "")));
        }
        let failed = self.checks.iter().filter(|finding| finding.verdict == Verdict::Failed).count();
        text + &if self.well { "all is well\n".to_owned() } else { format!("{failed} of {} do not work\n", self.checks.len()) }
    }
}

/// The settings as a whole, and the owner's policy.
fn configuration(settings: &Settings) -> Vec<Finding> {
    let servers = settings.servers.join(", ");
    let policy = match Policy::load(settings.policy.as_deref(), &settings.servers) {
        Ok(policy) => Finding::ok("policy", policy.summary()),
        Err(error) => {
            let file = settings.policy.as_deref().map_or_else(|| "the settings".to_owned(), |path| path.display().to_string());
            Finding::failed("policy", error.to_string(), format!("edit {file}   # the README's section on policy has what it may say"))
        }
    };
    vec![Finding::ok("configuration", format!("servers {servers}")), policy]
}

/// Whether the API is reached with which the credential is renewed.
async fn renewals(api: &Api) -> Finding {
    let through = api.proxy().map(|proxy| format!(" through the proxy {proxy}, of {}", proxy.known_from())).unwrap_or_default();
    match api.is_ready().await {
        Ok(()) => Finding::ok("api", format!("{} is ready{through}; the credential is renewed with it", api.url())),
        Err(error) => Finding::failed("api", error.to_string(), format!("curl -v {}/readyz   # shows every step", api.url())),
    }
}

/// Who the credential says we are.
fn credential(path: &Path) -> (Vec<Finding>, Option<(NodeRef, Vec<ToolName>)>) {
    let failed = |detail: String| vec![Finding::failed("credential", detail, renew(None, path))];
    let credential = match Credential::read(path) {
        Ok(credential) => credential,
        Err(error) => return (failed(error.to_string()), None),
    };
    let (node, granted) = match identity(&credential) {
        Ok(who) => who,
        Err(detail) => return (failed(detail), None),
    };
    let tools: Vec<&str> = granted.iter().map(|tool| tool.as_str()).collect();
    let mut found = Vec::new();
    let who = format!("node {} in region {}, tools {}", node.id, node.region, tools.join(", "));
    found.push(match credential.expires_at {
        Some(expiry) if expiry <= Timestamp::now() => {
            Finding::failed("credential", format!("{who}: it expired at {expiry}"), renew(Some((&node, &granted)), path))
        }
        Some(expiry) => Finding::ok("credential", format!("{who}, until {expiry}")),
        None => Finding::ok("credential", who),
    });
    found.extend(machine::open_to_others(path));
    found.extend(machine::clock_behind(&credential));
    (found, Some((node, granted)))
}

/// Where the broker is and who we are, of one server.
fn link_to(settings: &Settings, server: &str) -> Link {
    Link { servers: vec![server.to_owned()], ..settings.link() }
}

/// How to have a credential written again: by the operator, and then here.
fn renew(who: Option<(&NodeRef, &[ToolName])>, path: &Path) -> String {
    let (name, region, tools) = who.map_or_else(
        || ("NAME".to_owned(), "REGION".to_owned(), "TOOLS".to_owned()),
        |(node, granted)| {
            let tools: Vec<&str> = granted.iter().map(|tool| tool.as_str()).collect();
            (node.id.to_string(), node.region.to_string(), tools.join(","))
        },
    );
    format!(
        "probeops nodes add {name} --region {region} --tools {tools} --renew --out {name}.creds   # the operator; then here: install -m 640 -g probeops {name}.creds {}",
        path.display()
    )
}

/// Why the broker does not let us in, if it is that.
fn refusal(error: LinkError, settings: &Settings, who: (&NodeRef, &[ToolName])) -> Finding {
    let creds = &settings.creds;
    match error {
        LinkError::Refused(why) => {
            let detail =
                format!("it does not accept the credential {}: it is revoked, expired, or of another broker ({why})", creds.display());
            Finding::failed("broker", detail, renew(Some(who), creds))
        }
        LinkError::Credential(detail) => Finding::failed("broker", detail, renew(Some(who), creds)),
        LinkError::Invalid(detail) | LinkError::Unreachable(detail) => {
            Finding::failed("broker", detail, "PROBEOPS_LOG=debug probeops-agent …   # shows every step of the connection")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_counted_and_has_its_cure_below_it() {
        let checks = vec![Finding::ok("policy", "p"), Finding::failed("broker", "gone", "start it")];
        let text = Findings { well: false, checks }.to_text();
        assert_eq!(text, format!("ok      policy          p\nFAILED  broker          gone\n{:24}cure: start it\n1 of 2 do not work\n", ""));
    }

    #[test]
    fn without_settings_it_says_which_are_missing() {
        let given = Given { servers: Some(vec!["tls://b:1".to_owned()]), ..Given::default() };
        let finding = Doctor { given, ..Doctor::default() }.settings().unwrap_err();
        assert!(finding.detail.contains("--creds") && finding.cure.as_deref() == Some("probeops-agent --help"), "{finding:?}");
    }
}
