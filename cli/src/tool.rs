//! One subcommand a tool, made from the catalogue.

mod explain;
mod options;
mod queued;

use std::fmt::Display;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use probeops_shared::job::GRACE;
use probeops_shared::outcome::{Outcome, Status};
use probeops_shared::selector::{self, Selector};
use probeops_shared::text::plain;
use probeops_shared::tools::{Spec, ToolName};
use serde_json::{Value, json};

use crate::client::{Client, ClientArgs};
use crate::exit::{Exit, Failed};
use crate::terminal::{Form, note, pretty, print, say};

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
        .help("From where: a region, REGION:all, REGION*3, node:ID, *, *:all, *5, or labels such as site=fra,env!=lab; several with commas, labels by naming it again")
        .required(true)
        .value_parser(selectors)
        .action(ArgAction::Append);
    let explain =
        Arg::new("EXPLAIN").long("explain").help("Only say which nodes would be used, and why not others").action(ArgAction::SetTrue);
    let output = Arg::new("OUTPUT")
        .short('o')
        .long("output")
        .value_name("FORM")
        .help("What to print: the tool's own text, or the job as JSON")
        .default_value("text")
        .value_parser(clap::value_parser!(Form));
    let command = Command::new(name)
        .args([target, from, explain, output])
        .args(queued::flags())
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
    let from: Vec<&Selector> = matches.get_many::<Vec<Selector>>("FROM").unwrap_or_default().flatten().collect();
    let body = json!({"tool": tool, "target": target, "parameters": parameters, "from": from});
    let client = Client::open(&ClientArgs::from_arg_matches(matches).map_err(|error| Failed::usage(error.to_string()))?)?;
    let form = matches.get_one::<Form>("OUTPUT").copied().unwrap_or_default();
    if matches.get_flag("EXPLAIN") {
        let explanation = client.post("/v1/jobs?explain=true", &body, NETWORK_MARGIN)?.body;
        return explain::explain(&explanation, form);
    }
    if let Some(body) = queued::body(matches, &body) {
        return queued::queue(&client, &body, form);
    }
    let document = match form {
        Form::Json => {
            let document = finished(&client, &body, spec.budget())?;
            say(pretty(&document));
            document
        }
        Form::Text => {
            let document = printed(&client, body, spec.budget())?;
            for missing in explain::missing(&document)? {
                note(format!("without {missing}"));
            }
            document
        }
    };
    let outcomes = outcomes(&document)?;
    if outcomes.is_empty() {
        return Err(Failed::new(Exit::Failed, "the job has no outcome"));
    }
    for outcome in &outcomes {
        if !is_good(&spec, outcome)? {
            return Err(Failed::new(Exit::Failed, ""));
        }
    }
    Ok(())
}

/// The selectors of an argument.
fn selectors(argument: &str) -> Result<Vec<Selector>, String> {
    selector::split_list(argument).into_iter().map(str::parse).collect()
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

/// Posts the job and prints what its tool prints, as it prints it. Who stops watching stops the job.
fn printed(client: &Client, mut body: Value, budget: Duration) -> Result<Value, Failed> {
    if let Some(body) = body.as_object_mut() {
        drop(body.insert("cancel_on_disconnect".to_owned(), true.into()));
    }
    let location = client.post_for_text("/v1/jobs", &body, budget + GRACE + GRACE + NETWORK_MARGIN, |text| print(&plain(text)))?;
    // Another replica may have to wait for its end to be stored.
    let begun = Instant::now();
    loop {
        let document = client.get(&location, &[], NETWORK_MARGIN)?.body;
        if document.get("status").and_then(Value::as_str) != Some("running") || begun.elapsed() > NETWORK_MARGIN {
            return Ok(document);
        }
        std::thread::sleep(POLL_EVERY);
    }
}

/// The outcomes of a job's document.
pub(crate) fn outcomes(document: &Value) -> Result<Vec<Outcome>, Failed> {
    let results = document.get("results").cloned().unwrap_or_default();
    serde_json::from_value(results).map_err(|error| unreadable(&error))
}

/// What the tool prints, for each outcome.
pub(crate) fn text(outcomes: &[Outcome]) -> String {
    if let [only] = outcomes {
        return plain(&only.output);
    }
    let parts = outcomes.iter().map(|outcome| {
        let head = outcome.node.as_ref().map_or_else(|| "no node".to_owned(), |node| format!("{} in {}", node.id, node.region));
        format!("== {head}\n{}", plain(outcome.output.trim_end()))
    });
    parts.collect::<Vec<_>>().join("\n\n")
}

/// Whether a script should go on: the tool ran, and found what a person would call good.
fn is_good(spec: &Spec, outcome: &Outcome) -> Result<bool, Failed> {
    let report = outcome.report.as_ref().filter(|_| outcome.status == Status::Success);
    report.map_or(Ok(false), |report| spec.is_bad(report).map(|bad| !bad).map_err(|invalid| unreadable(&invalid)))
}

fn unreadable(why: &dyn Display) -> Failed {
    Failed::new(Exit::Transport, format!("the API's answer cannot be read ({why}); is it of another version?"))
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
            let from: Vec<String> = matches.get_many::<Vec<Selector>>("FROM").unwrap().flatten().map(ToString::to_string).collect();
            assert_eq!(from, ["eu", "node:a"]);
        }
    }

    #[test]
    fn labels_keep_their_commas_and_what_selects_nothing_is_refused() {
        let from = |from: &str| command(ToolName::Echo).try_get_matches_from(["echo", "--from", from]);
        let read = |text: &str| {
            let matches = from(text).unwrap();
            matches.get_many::<Vec<Selector>>("FROM").unwrap().flatten().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(read("site=fra,env!=lab:all"), ["site=fra,env!=lab:all"]);
        assert_eq!(read("role in (edge, core)*2"), ["role in (edge,core)*2"]);
        assert_eq!(read("eu*2,*"), ["eu*2", "*"]);
        assert!(from("eu*0").unwrap_err().to_string().contains("how many distinct nodes, from 1 to 1000"));
    }

    #[test]
    fn a_finding_nobody_wants_ends_with_one() {
        let spec = Spec::parse(ToolName::Tcp, "192.0.2.1", serde_json::Map::new()).unwrap();
        let report = |state: &str| json!({"address": "192.0.2.1", "family": "4", "ports": [{"port": 443, "state": state}]});
        let good = |status, report| is_good(&spec, &outcome(status, report));
        assert_eq!(good(Status::Success, report("open")), Ok(true));
        assert_eq!(good(Status::Success, report("refused")), Ok(false));
        assert_eq!(good(Status::Failed, report("open")), Ok(false));
        assert_eq!(is_good(&spec, &Outcome { report: None, ..outcome(Status::Success, json!({})) }), Ok(false));
        assert_eq!(good(Status::Success, json!({"ports": 443})).unwrap_err().exit, Exit::Transport);
    }

    #[test]
    fn several_results_say_whose_they_are_and_one_does_not() {
        let one = outcome(Status::Success, json!({}));
        assert_eq!(text(std::slice::from_ref(&one)), "busy: no free slot\n");
        assert_eq!(text(&[one.clone(), one]), "== fra-1 in eu\nbusy: no free slot\n\n== fra-1 in eu\nbusy: no free slot");
    }
}
