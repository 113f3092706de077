//! What operators, owners of nodes and identity providers write.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use probeops_agent::fuzzing as agent;
use probeops_api::access::keys;
use probeops_api::fuzzing::jwt::{self, Checker};
use probeops_shared::host::Host;
use probeops_shared::tools::ToolName;

use crate::chosen;

/// Longer than any refusal needs to be.
const DETAIL_LENGTH_MAX: usize = 8_192;

pub(crate) fn policy(input: &[u8]) {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    // In memory, and each process its own.
    let file = FILE.get_or_init(|| PathBuf::from(format!("/dev/shm/probeops-fuzz-policy-{}", std::process::id())));
    fs::write(file, input).expect("a file in /dev/shm");
    let read = agent::policy(file, "tls://broker.example:4222");
    fs::remove_file(file).expect("it is ours");
    match read {
        Ok(policy) => {
            assert!(policy.summary().len() <= DETAIL_LENGTH_MAX, "{}", policy.summary());
            let document: toml::Table = str::from_utf8(input).expect("UTF-8").parse().expect("TOML");
            let list = |table: &str, list: &str| {
                let list = document.get(table).and_then(|table| table.get(list)).and_then(toml::Value::as_array);
                list.map(|entries| entries.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>())
            };
            let denied = list("deny", "tools").is_some_and(|tools| tools.contains(&"ping"));
            let left_out = list("allow", "tools").is_some_and(|tools| !tools.contains(&"ping"));
            let (tool, _) = agent::judged(&policy, ToolName::Ping, "a.example");
            assert_eq!(tool.is_err(), denied || left_out, "{tool:?}");
            for rule in list("deny", "names").unwrap_or_default() {
                let Ok(Host::Name(name)) = rule.replace("*.", "x.").parse() else { continue };
                let (_, judged) = agent::judged(&policy, ToolName::Ping, &name);
                assert!(judged.is_err(), "`{name}` may be asked for although `{rule}` is denied");
            }
        }
        Err(detail) => assert!(detail.contains("probeops-fuzz-policy-") && detail.len() <= DETAIL_LENGTH_MAX, "{detail}"),
    }
}

pub(crate) fn settings(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    match agent::settings(text) {
        Ok(Ok(printed)) => {
            let again = agent::settings(&printed).map_err(|error| error.to_string()).and_then(|read| read);
            assert_eq!(again.as_deref(), Ok(printed.as_str()), "what is printed is not the same file again");
        }
        Ok(Err(detail)) => assert!(!detail.is_empty() && detail.len() <= DETAIL_LENGTH_MAX, "{detail}"),
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("agent.toml") && error.len() <= DETAIL_LENGTH_MAX, "{error}");
        }
    }
}

pub(crate) fn jwt(input: &[u8]) {
    static CHECKER: OnceLock<Checker> = OnceLock::new();
    let (which, rest) = chosen(input);
    match which % 4 {
        0 => {
            let checker = CHECKER.get_or_init(|| Checker::new(JWKS, "https://id.example", "probeops").expect("a JWKS"));
            let Ok(token) = str::from_utf8(rest) else { return };
            // Nobody has the other half of these keys.
            let why = checker.check(token).expect_err("a token that nobody has signed is accepted");
            assert!(!why.is_empty() && why.len() <= DETAIL_LENGTH_MAX && !why.chars().any(char::is_control), "{why:?}");
        }
        1 => match jwt::claimed(rest) {
            Ok((name, scopes, limits)) => {
                let name = name.strip_prefix("jwt:").expect("whose name it is");
                assert!((1..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name}");
                assert!(scopes <= rest.len() && limits.check().is_ok());
                let again = serde_json::from_value(serde_json::to_value(&limits).expect("JSON"));
                assert_eq!(again.ok(), Some(limits), "limits are not the same again");
            }
            Err(why) => assert!(why.starts_with("the JWT") && why.len() <= DETAIL_LENGTH_MAX, "{why}"),
        },
        2 => match Checker::new(rest, "https://id.example", "probeops") {
            Ok(checker) => assert!((1..=rest.len()).contains(&checker.keys())),
            Err(why) => assert!(!why.is_empty() && why.len() <= DETAIL_LENGTH_MAX, "{why}"),
        },
        _ => {
            let Ok(key) = str::from_utf8(rest) else { return };
            if let Ok(id) = keys::id_of(key) {
                assert!(keys::is_id(id) && key.len() == 74 && key.starts_with("pk_"), "{key}");
            }
        }
    }
}

/// Public halves of keys whose private ones were never kept.
const JWKS: &[u8] = include_bytes!("../jwks.json");
