//! The lines between the parts hold: who may depend on whom, and who alone may say what.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of our crates each may use.
const LAYERS: [(&str, &[&str]); 6] = [
    ("shared", &[]),
    ("nats", &["probeops-shared"]),
    ("agent", &["probeops-shared", "probeops-nats"]),
    ("api", &["probeops-shared", "probeops-nats"]),
    ("cli", &["probeops-shared", "probeops-nats", "probeops-agent", "probeops-api"]),
    ("tests", &["probeops-shared", "probeops-nats", "probeops-agent", "probeops-api", "probeops"]),
];

/// What speaks to the broker: not the tools, the routes, the policy, nor what keys and jobs are.
const BROKER: [&str; 25] = [
    "cli/src/audit/copy.rs",
    "nats/",
    "agent/src/agent",
    "agent/src/doctor/",
    "agent/src/fuzzing.rs",
    "agent/src/groups.rs",
    "agent/src/inbox.rs",
    "agent/src/outbox.rs",
    "agent/src/presence.rs",
    "agent/src/way.rs",
    "agent/src/worker",
    "api/src/audit/",
    "api/src/broker",
    "api/src/callbacks.rs",
    "api/src/callbacks/",
    "api/src/collector.rs",
    "api/src/door.rs",
    "api/src/enroll",
    "api/src/jobs/queue.rs",
    "api/src/jobs/store.rs",
    "api/src/limits",
    "api/src/later/",
    "api/src/watch.rs",
    "cli/src/control.rs",
    "tests/",
];

/// What only certain files may say, and why it is theirs.
const HOMES: [(&str, &[&str], &str); 9] = [
    ("tokio", &["nats/", "agent/", "api/", "cli/", "tests/"], "shared is words, without a runtime"),
    (
        "StatusCode::",
        &["api/src/problem.rs", "api/src/server", "api/src/broker/replies.rs", "agent/", "nats/", "tests/"],
        "statuses are picked in one file",
    ),
    ("\"job.v1.", &["shared/src/subjects.rs", "tests/"], "subjects are spelled in one file"),
    ("\"node.v1.", &["shared/src/subjects.rs", "tests/"], "subjects are spelled in one file"),
    ("\"_INBOX", &["shared/src/subjects", "tests/"], "subjects are spelled in one place"),
    ("async_nats", &BROKER, "the broker is spoken to by few"),
    ("socket2", &["agent/src/net/", "api/src/server.rs", "tests/"], "sockets are opened below one module"),
    ("surge_ping", &["agent/src/net/icmp"], "sockets are opened below one module"),
    ("Type::RAW", &["agent/src/net/icmp", "tests/"], "raw sockets are opened in one module"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every source file, with its path from the root. Unit tests may say what the code may not.
fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("a folder of ours") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("a file of ours");
            found.push((name, text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()));
        }
    }
}

/// The names of all files that are kept; without git, of all sources.
fn kept_files() -> Vec<String> {
    match Command::new("git").arg("ls-files").current_dir(root()).output() {
        Ok(listed) if listed.status.success() => String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect(),
        Ok(_) | Err(_) => all_sources().into_iter().map(|(name, _)| name).collect(),
    }
}

fn all_sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (folder, _) in LAYERS {
        sources(&root().join(folder), &mut found);
    }
    found
}

#[test]
fn dependencies_point_one_way() {
    for (folder, allowed) in LAYERS {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let section = manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).expect("dependencies");
        let used = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).filter(|name| name.starts_with("probeops"));
        for name in used {
            assert!(allowed.contains(&name), "{folder} must not depend on {name}");
        }
    }
    let shared = fs::read_to_string(root().join("shared/Cargo.toml")).expect("a manifest");
    for runtime in ["tokio", "axum", "async-nats"] {
        assert!(!shared.contains(&format!("\n{runtime}")), "shared must not depend on {runtime}");
    }
}

#[test]
fn what_has_a_home_is_said_nowhere_else() {
    for (name, text) in all_sources() {
        for (word, homes, why) in HOMES {
            let lines = text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
            if !homes.iter().any(|home| name.starts_with(home)) && !name.contains("/tests") {
                for line in lines {
                    assert!(!line.contains(word), "{name} says `{word}`: {line}\n({why})");
                }
            }
        }
    }
}

#[test]
fn the_agent_and_the_api_never_meet() {
    for (name, text) in all_sources() {
        let other = if name.starts_with("agent/") {
            "probeops_api"
        } else if name.starts_with("api/") {
            "probeops_agent"
        } else {
            continue;
        };
        assert!(!text.contains(other), "{name} names {other}");
    }
}

/// Whether a text has this path, and not only as the end of another.
fn has_path(text: &str, path: &str) -> bool {
    text.match_indices(path).any(|(at, _)| !text[..at].ends_with(|before: char| before.is_alphanumeric() || "._-".contains(before)))
}

#[test]
fn nothing_speaks_of_the_machine_it_was_written_on() {
    // Where this copy lies, and the home of whoever tests it.
    let home = std::env::var("HOME").ok().filter(|home| home.len() > 1);
    let paths: Vec<String> = home.into_iter().chain([root().display().to_string()]).map(|path| format!("{path}/")).collect();
    for name in kept_files() {
        // One that was just removed is still listed.
        let Ok(bytes) = fs::read(root().join(&name)) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        for path in &paths {
            assert!(!has_path(&text, path), "{name} has the path {path}");
        }
    }
}

#[test]
fn the_readme_lists_every_tool_with_its_options() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    for tool in probeops_shared::tools::ToolName::ALL {
        let options: Vec<String> = tool.option_names().iter().map(|option| format!("`{option}`")).collect();
        let row = format!("| `{tool}` | {} | {} |", tool.summary(), options.join(", "));
        assert!(readme.contains(&row), "README.md lacks this row:\n{row}");
    }
}
