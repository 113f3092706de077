//! One subcommand a tool, made from the catalogue.

mod options;

use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use probeops_shared::job::GRACE;
use probeops_shared::outcome::{Outcome, Status};
use probeops_shared::tools::{Spec, ToolName};
use serde_json::{Value, json};

use crate::client::{Client, ClientArgs};
use crate::exit::{Exit, Failed};
use crate::terminal::{Form, plain, pretty, say};

/// The longest the API keeps a call waiting before it says that the job is still running.
const CALL_MAX: Duration = Duration::from_mins(1);
/// What the way to the API and back may add.
const NETWORK_MARGIN: Duration = Duration::from_secs(10);
/// How often a job that is still running is looked at.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// The subcommand of a tool.
pub(crate) fn command(tool: ToolName) -> Command {
    let name = tool.as_str();
    let example = tool.example_target();
    let target = Arg::new("TARGET").help("Whom to point it at").required(needs_target(tool)).value_parser(clap::value_parser!(String));
    let from = Arg::new("FROM")
        .long("from")
        .value_name("SELECTOR")
        .help("From where: a region, or node:ID; several with commas")
        .required(true)
        .value_delimiter(',')
        .action(ArgAction::Append);
    let output = Arg::new("OUTPUT")
        .short('o')
        .long("output")
        .value_name("FORM")
        .help("What to print: the tool's own text, or the job as JSON")
        .default_value("text")
        .value_parser(clap::value_parser!(Form));
    let command = Command::new(name)
        .args([target, from, output])
        .next_help_heading(format!("Options of {name}"))
        .args(options::flags(tool))
        .after_help(format!(
            "Examples:\n  probeops {name} {example} --from eu-central\n  probeops {name} {example} --from eu-central,node:fra-1 -o json"
        ));
    // Last: the arguments bring a summary of their own.
    ClientArgs::augment_args(command).about(tool.summary())
}

/// Runs a tool, prints what came of it, and says how to end.
pub(crate) fn run(tool: ToolName, matches: &ArgMatches) -> Result<(), Failed> {
    let target = matches.get_one::<String>("TARGET").cloned().unwrap_or_default();
    let parameters = options::given(tool, matches);
    // What the API would refuse is refused here, in the same words, without asking it.
    let spec = Spec::parse(tool, &target, parameters.clone()).map_err(|invalid| Failed::usage(format!("{invalid}")))?;
    let from: Vec<&String> = matches.get_many("FROM").unwrap_or_default().collect();
    let body = json!({"tool": tool, "target": target, "parameters": parameters, "from": from});
    let client = Client::open(&ClientArgs::from_arg_matches(matches).map_err(|error| Failed::usage(error.to_string()))?)?;
    let document = finished(&client, &body, spec.budget())?;
    let outcomes = outcomes(&document)?;
    match matches.get_one::<Form>("OUTPUT").copied().unwrap_or_default() {
        Form::Json => say(pretty(&document)),
        Form::Text => say(text(&outcomes).trim_end()),
    }
    if outcomes.iter().all(positive) { Ok(()) } else { Err(Failed::new(Exit::Failed, "")) }
}

fn needs_target(tool: ToolName) -> bool {
    Spec::parse(tool, "", serde_json::Map::new()).is_err()
}

/// Posts the job and waits until it is finished.
fn finished(client: &Client, body: &Value, budget: Duration) -> Result<Value, Failed> {
    let patience = budget + GRACE + NETWORK_MARGIN;
    let begun = Instant::now();
    let mut answer = client.post("/v1/jobs", body, patience.min(CALL_MAX + NETWORK_MARGIN))?;
    while answer.body.get("status").and_then(Value::as_str) == Some("running") {
        let id = answer.body.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        if begun.elapsed() > patience {
            let waited = begun.elapsed().as_secs();
            return Err(Failed::new(
                Exit::Transport,
                format!("job {id} is still running after {waited} s; look again with GET /v1/jobs/{id}"),
            ));
        }
        std::thread::sleep(POLL_EVERY);
        answer = client.get(&format!("/v1/jobs/{id}"), &[], NETWORK_MARGIN)?;
    }
    Ok(answer.body)
}

fn outcomes(document: &Value) -> Result<Vec<Outcome>, Failed> {
    let results = document.get("results").cloned().unwrap_or_default();
    serde_json::from_value(results)
        .map_err(|error| Failed::new(Exit::Transport, format!("the API's answer cannot be read ({error}); is it of another version?")))
}

fn text(outcomes: &[Outcome]) -> String {
    if let [only] = outcomes {
        return plain(&only.output);
    }
    let parts = outcomes.iter().map(|outcome| {
        let head = outcome.node.as_ref().map_or_else(|| "no node".to_owned(), |node| format!("{} in {}", node.id, node.region));
        format!("== {head}\n{}", plain(outcome.output.trim_end()))
    });
    parts.collect::<Vec<_>>().join("\n\n")
}

/// Whether a script should go on: the tool ran, and something answered it as it should.
fn positive(outcome: &Outcome) -> bool {
    outcome.status == Status::Success && outcome.report.as_ref().is_some_and(|report| !negative(report))
}

/// The findings that a person would call bad: nothing received, a port that is not open, no answer, a name that does not exist, a server
/// that cannot be spoken to or is not to be trusted, an assertion that does not hold.
fn negative(report: &Value) -> bool {
    let nothing_received = report.pointer("/stats/received").and_then(Value::as_u64) == Some(0);
    let port_is_bad = |port: &Value| {
        port.get("state").is_some_and(|state| state != "open")
            || port.pointer("/expect/matched") == Some(&Value::Bool(false))
            || port.pointer("/tls/failure").is_some()
    };
    let bad_port = report.get("ports").and_then(Value::as_array).is_some_and(|ports| ports.iter().any(port_is_bad));
    // Of pmtu: no packet arrives, or large ones vanish.
    let bad_path = matches!(report.get("verdict").and_then(Value::as_str), Some("silent" | "unreachable" | "black_hole"));
    // Of whois: there is no such entry, or no registry said.
    let not_registered = report.get("queries").is_some() && report.get("registered") != Some(&Value::Bool(true));
    let no_answer = report.get("answered") == Some(&Value::Bool(false));
    let no_such_name = report.pointer("/rcode/code").and_then(Value::as_u64).is_some_and(|code| code != 0);
    let not_open = report.get("state").and_then(Value::as_str).is_some_and(|state| state != "open");
    let not_trusted = report.get("verified") == Some(&Value::Bool(false));
    let not_spoken_to = report.get("failure").is_some();
    let assertions = report.get("assertions").and_then(Value::as_array);
    let not_asserted = assertions.is_some_and(|verdicts| verdicts.iter().any(|verdict| verdict.get("passed") == Some(&Value::Bool(false))));
    let bad_answer = no_answer || no_such_name || not_registered || not_trusted || not_spoken_to || not_asserted;
    nothing_received || not_open || bad_port || bad_path || bad_answer
}

#[cfg(test)]
mod tests {
    use probeops_shared::ids::RequestId;
    use probeops_shared::outcome::{Failure, FailureKind, NodeRef};

    use super::*;

    fn outcome(status: Status, report: Value) -> Outcome {
        let failure = Failure::new(FailureKind::Busy, "no free slot");
        let node = NodeRef { id: "fra-1".parse().unwrap(), region: "eu".parse().unwrap() };
        Outcome { status, report: Some(report), node: Some(node), ..Outcome::failed(RequestId::new(), "ping", "a", failure) }
    }

    #[test]
    fn every_tools_command_is_sound_and_takes_its_example() {
        for tool in ToolName::ALL {
            let command = command(*tool);
            command.clone().debug_assert();
            assert_eq!(command.get_about().map(ToString::to_string).as_deref(), Some(tool.summary()));
            let matches = command.try_get_matches_from([tool.as_str(), tool.example_target(), "--from", "eu,node:a"]).unwrap();
            assert_eq!(matches.get_many::<String>("FROM").unwrap().collect::<Vec<_>>(), ["eu", "node:a"]);
        }
    }

    #[test]
    fn a_finding_nobody_wants_ends_with_one() {
        for (report, good) in [
            (json!({"stats": {"received": 4}}), true),
            (json!({"stats": {"received": 0}}), false),
            (json!({"ports": [{"state": "open", "expect": {"matched": true}}]}), true),
            (json!({"ports": [{"state": "open"}, {"state": "refused"}]}), false),
            (json!({"ports": [{"state": "open", "expect": {"matched": false}}]}), false),
            (json!({"ports": [{"state": "open", "tls": {"failure": {"code": "closed"}}}]}), false),
            (json!({"verdict": "hop"}), true),
            (json!({"verdict": "black_hole"}), false),
            (json!({"queries": [], "registered": true}), true),
            (json!({"queries": []}), false),
            (json!({"rcode": {"code": 0}}), true),
            (json!({"rcode": {"code": 3}}), false),
            (json!({"answered": false}), false),
            (json!({"version": "1"}), true),
            (json!({"state": "open", "verified": true}), true),
            (json!({"state": "open", "verified": false}), false),
            (json!({"failure": {"code": "alert"}}), false),
            (json!({"status": 500, "assertions": [{"passed": true}]}), true),
            (json!({"status": 200, "assertions": [{"passed": true}, {"passed": false}]}), false),
        ] {
            assert_eq!(positive(&outcome(Status::Success, report.clone())), good, "{report}");
        }
        assert!(!positive(&outcome(Status::Failed, json!({"ports": [{"state": "open"}]}))));
    }

    #[test]
    fn several_results_say_whose_they_are_and_one_does_not() {
        let one = outcome(Status::Success, json!({}));
        assert_eq!(text(std::slice::from_ref(&one)), "busy: no free slot\n");
        assert_eq!(text(&[one.clone(), one]), "== fra-1 in eu\nbusy: no free slot\n\n== fra-1 in eu\nbusy: no free slot");
    }
}
