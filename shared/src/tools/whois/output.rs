//! What whois(1) prints: an answer as it came; and of RDAP, whose answers are not for people, the same lines in the words of registries.

use std::fmt::Write as _;

use super::registered::RegisteredKind;
use super::report::{Registry, WhoisQuery, WhoisRecord, WhoisStatus};

/// What one server said; `record` is what its answer amounts to.
pub(super) fn answer(kind: RegisteredKind, query: &WhoisQuery, record: Option<&WhoisRecord>) -> String {
    let WhoisQuery { protocol, server, .. } = query;
    let mut text = match (query.status, protocol) {
        // An answer that means nothing to us may mean something to people.
        (WhoisStatus::Failed, Registry::Whois) if query.text.is_some() => query.text.as_deref().unwrap_or_default().replace('\r', ""),
        // These reasons begin with the host.
        (WhoisStatus::Denied | WhoisStatus::Unresolved, _) if query.reason.is_some() => {
            return format!("{protocol}: {}\n", query.reason.as_deref().unwrap_or_default());
        }
        (WhoisStatus::Denied | WhoisStatus::Unresolved | WhoisStatus::Unreachable | WhoisStatus::Failed, _) => {
            let reason = query.reason.as_deref().unwrap_or(query.status.as_str());
            return format!("{protocol}: {server}: {reason}\n");
        }
        (WhoisStatus::NotFound, Registry::Rdap) => return format!("No match for the object {server}\n"),
        (WhoisStatus::Referral, Registry::Rdap) => String::new(),
        (WhoisStatus::Found, Registry::Rdap) => record.map_or_else(String::new, |record| lines(kind, record)),
        (WhoisStatus::Found | WhoisStatus::NotFound | WhoisStatus::Referral, Registry::Whois) => {
            query.text.as_deref().unwrap_or_default().replace('\r', "")
        }
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// A record in the words of gTLD registries, or of regional ones.
fn lines(kind: RegisteredKind, record: &WhoisRecord) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(text, "{label}: {value}");
    };
    let [handle, name, range] = match kind {
        RegisteredKind::Domain => ["Registry Domain ID", "Domain Name", "Range"],
        RegisteredKind::Address => ["NetHandle", "NetName", "NetRange"],
        RegisteredKind::AutonomousSystem => ["ASHandle", "ASName", "ASNumber"],
    };
    let dnssec = record.dnssec.map(|signed| if signed { "signedDelegation" } else { "unsigned" }.to_owned());
    let singles = [
        (name, &record.name),
        (handle, &record.handle),
        (range, &record.range),
        ("Organization", &record.organization),
        ("Country", &record.country),
        ("Registrar", &record.registrar),
        ("Registrar IANA ID", &record.registrar_iana_id),
        ("Abuse Contact Email", &record.abuse_email),
        ("Abuse Contact Phone", &record.abuse_phone),
        ("Creation Date", &record.created),
        ("Updated Date", &record.updated),
        ("Expiry Date", &record.expires),
        ("DNSSEC", &dnssec),
    ];
    for (label, value) in singles {
        if let Some(value) = value {
            line(label, value);
        }
    }
    let status = if kind == RegisteredKind::Domain { "Domain Status" } else { "Status" };
    for (label, values) in [("CIDR", &record.prefixes), (status, &record.statuses), ("Name Server", &record.name_servers)] {
        for value in values {
            line(label, value);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_whois_is_printed_as_it_came() {
        let query = WhoisQuery {
            protocol: Registry::Whois,
            server: "whois.iana.org".to_owned(),
            status: WhoisStatus::Referral,
            referral: Some("whois.example".to_owned()),
            text: Some("refer: whois.example\r\n".to_owned()),
            ..WhoisQuery::default()
        };
        let printed = answer(RegisteredKind::Domain, &query, None);
        assert_eq!(printed, "refer: whois.example\n");
        let gone = WhoisQuery { status: WhoisStatus::Unreachable, reason: Some("Connection refused".to_owned()), ..query };
        assert_eq!(answer(RegisteredKind::Domain, &gone, None), "whois: whois.iana.org: Connection refused\n");
        let reason = Some("whois.iana.org cannot be resolved on this node: no such name".to_owned());
        let unknown = WhoisQuery { status: WhoisStatus::Unresolved, reason, ..gone };
        let said = "whois: whois.iana.org cannot be resolved on this node: no such name\n";
        assert_eq!(answer(RegisteredKind::Domain, &unknown, None), said);
    }

    #[test]
    fn an_answer_of_rdap_reads_like_one_of_whois() {
        let record = WhoisRecord {
            name: Some("example.com".to_owned()),
            registrar: Some("Example Registrar".to_owned()),
            statuses: vec!["client transfer prohibited".to_owned()],
            name_servers: vec!["a.iana-servers.net".to_owned()],
            dnssec: Some(true),
            ..WhoisRecord::default()
        };
        let query = WhoisQuery { status: WhoisStatus::Found, ..WhoisQuery::default() };
        assert_eq!(
            answer(RegisteredKind::Domain, &query, Some(&record)),
            "Domain Name: example.com\nRegistrar: Example Registrar\nDNSSEC: signedDelegation\n\
             Domain Status: client transfer prohibited\nName Server: a.iana-servers.net\n"
        );
    }
}
