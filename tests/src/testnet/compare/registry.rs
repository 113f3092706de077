//! `whois` beside whois(1): the same words and the same fields, by WHOIS and by RDAP.

use serde_json::{Value, json};

use super::super::reference::{both, says};
use super::super::registry::REGISTRY;
use super::super::table::Row;
use super::super::{Asker, Testnet};
use super::{HOST, entries, text};

/// Our field, and the registry's words for it.
const FIELDS: [(&str, &str); 8] = [
    ("handle", "Registry Domain ID"),
    ("registrar", "Registrar"),
    ("registrar_iana_id", "Registrar IANA ID"),
    ("abuse_email", "Registrar Abuse Contact Email"),
    ("abuse_phone", "Registrar Abuse Contact Phone"),
    ("created", "Creation Date"),
    ("updated", "Updated Date"),
    ("expires", "Registry Expiry Date"),
];

/// A domain that is registered, and one that is not.
pub(super) fn records(_: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("registered or not, and every field of the record, by WHOIS and RDAP", "whois");
    let rdap = json!({"protocol": "rdap", "rdap_server": format!("http://{HOST}/rdap/")});
    let mut fields = 0;
    for (domain, registered) in [("probe.test", true), ("nope.test", false)] {
        let ask = |options: &Value| asker.ask("whois", domain, options);
        let (ours, said) = both(|| [ask(&json!({"server": REGISTRY})), ask(&rdap)], || says("whois", &["-h", REGISTRY, domain]));
        row.same(format!("the text for {domain}"), &ours[0].1, &said);
        for (report, _) in &ours {
            row.check(report["registered"] == json!(registered), || format!("{domain}: {report}"));
            let record = &report["record"];
            let theirs =
                |words: &str| said.lines().find_map(|line| line.trim().strip_prefix(words)?.strip_prefix(": ")).unwrap_or_default();
            for (field, words) in FIELDS {
                row.same(format!("{field} of {domain}"), &text(&record[field]), &theirs(words).to_owned());
                fields += usize::from(registered && record[field].is_string());
            }
            let servers: Vec<String> = entries(record, "name_servers").iter().map(text).collect();
            let named: Vec<String> = said.lines().filter_map(|line| line.strip_prefix("Name Server: ")).map(str::to_lowercase).collect();
            row.same(format!("name servers of {domain}"), &servers, &named);
        }
    }
    row.found(format!("{fields} fields"), FIELDS.len() * 2)
}
