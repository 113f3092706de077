//! Answers of WHOIS, which every registry writes in its own way: lines of `key: value`, or a key with its values below.

use probeops_shared::host::Host;
use probeops_shared::tools::whois::WHOIS_PORT;
use probeops_shared::tools::whois::registered::{Registered, RegisteredKind};
use probeops_shared::tools::whois::report::WhoisRecord;

/// The longest that a key is; a longer one is a sentence with a colon in it.
const KEY_LENGTH_MAX: usize = 48;

/// What an answer says.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Of the entry; `None` if it has none that is understood.
    pub(crate) record: Option<WhoisRecord>,
    /// Whether it says that there is no entry.
    pub(crate) missing: bool,
    /// Who is said to know more.
    pub(crate) referral: Option<Referral>,
}

/// Another server.
#[derive(Debug, PartialEq)]
pub(crate) struct Referral {
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// Whether it is that of a registrar: then what refers to it is the registry's own entry.
    pub(crate) to_registrar: bool,
}

/// The one line that is sent. A few servers answer a bare name with a list of everything that looks like it.
pub(super) fn question(target: &Registered, server: &Host) -> String {
    match (server.to_string().as_str(), target) {
        ("whois.verisign-grs.com", Registered::Domain(name)) => format!("domain {name}"),
        ("whois.arin.net", Registered::Address(address)) => format!("n + {address}"),
        ("whois.arin.net", Registered::AutonomousSystem(number)) => format!("a + {number}"),
        ("whois.jprs.jp", Registered::Domain(name)) => format!("{name}/e"),
        _ => target.to_string(),
    }
}

/// The text of an answer: UTF-8, or Latin-1 as older servers write it.
pub(crate) fn decoded(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().copied().map(char::from).collect(), str::to_owned)
}

/// Reads an answer about `target`.
pub(crate) fn read(target: &Registered, text: &str) -> Reading {
    let all = Fields::of(text);
    let referral = all.referral();
    let fields = all.without_what_is_before(target.kind());
    let mut record = match target.kind() {
        RegisteredKind::Domain => fields.domain(),
        RegisteredKind::Address => fields.network(),
        RegisteredKind::AutonomousSystem => fields.autonomous_system(),
    };
    // The RIPE NCC and others write it in a remark before the entry.
    record.abuse_email = record.abuse_email.or_else(|| remark_on_abuse(text));
    let known = [&record.registrar, &record.created, &record.range, &record.handle, &record.organization].into_iter().any(Option::is_some)
        || !record.name_servers.is_empty();
    Reading { missing: !known && says_missing(text), record: known.then_some(record), referral }
}

fn remark_on_abuse(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("% Abuse contact for"))?;
    line.rsplit('\'').nth(1).filter(|address| address.contains('@')).map(str::to_owned)
}

fn says_missing(text: &str) -> bool {
    const WORDS: [&str; 15] = [
        "no match",
        "not found",
        "no data found",
        "no entries found",
        "no object found",
        "nothing found",
        "no such domain",
        "no information available",
        "does not exist",
        "not registered",
        "no found",
        "is available for",
        "is free",
        "status: free",
        "status: available",
    ];
    text.lines().any(|line| {
        let line = line.to_ascii_lowercase().replace('\t', " ").split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        WORDS.iter().any(|word| line.contains(word)) || line.starts_with("%error:101")
    })
}

/// Keys in lower case with their values, in the order of the answer. What is below a key also counts as `key.inner key`.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn of(text: &str) -> Self {
        let (mut fields, mut block) = (Vec::new(), None::<String>);
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() {
                block = None;
            }
            if line.is_empty() || line.starts_with(['%', '#', '>']) {
                continue;
            }
            match line.split_once(':').filter(|(key, _)| key.len() <= KEY_LENGTH_MAX) {
                Some((key, value)) => {
                    // Some fill up to the colon with dots.
                    let (key, value) = (key.trim_end_matches(['.', ' ', '\t']).to_ascii_lowercase(), value.trim());
                    if value.is_empty() {
                        block = Some(key);
                        continue;
                    }
                    if let Some(block) = &block {
                        fields.push((format!("{block}.{key}"), value.to_owned()));
                    }
                    fields.push((key, value.to_owned()));
                }
                None => fields.extend(block.clone().map(|block| (block, line.to_owned()))),
            }
        }
        Self(fields)
    }

    /// From the key that an entry of this kind begins with: before it come blocks that the entry lies in.
    fn without_what_is_before(mut self, kind: RegisteredKind) -> Self {
        let first: &[&str] = match kind {
            RegisteredKind::Domain => &["domain name", "domain"],
            RegisteredKind::Address => &["inetnum", "inet6num", "netrange"],
            RegisteredKind::AutonomousSystem => &["aut-num", "asnumber"],
        };
        if let Some(start) = self.0.iter().position(|(key, _)| first.contains(&key.as_str())) {
            self.0.drain(..start);
        }
        self
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == key).map(|(_, value)| value.as_str())
    }

    /// The first value of the first of these keys that has one.
    fn one(&self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| self.all(key).next()).map(str::to_owned)
    }

    /// All values of the first of these keys that has any.
    fn many(&self, keys: &[&str]) -> Vec<String> {
        let values = keys.iter().map(|key| self.all(key).collect::<Vec<_>>()).find(|values| !values.is_empty());
        let mut distinct: Vec<String> = Vec::new();
        for value in values.unwrap_or_default() {
            if !distinct.iter().any(|known| known == value) {
                distinct.push(value.to_owned());
            }
        }
        distinct
    }

    fn referral(&self) -> Option<Referral> {
        let keys =
            [("refer", false), ("whois", false), ("referralserver", false), ("registrar whois server", true), ("whois server", true)];
        keys.into_iter().find_map(|(key, to_registrar)| {
            let value = self.all(key).next()?;
            let value = match value.split_once("://") {
                Some(("whois", rest)) => rest.trim_end_matches('/'),
                // Other protocols (rwhois, http) are not spoken here.
                Some(_) => return None,
                None => value,
            };
            let (host, port) = match value.rsplit_once(':').filter(|(host, _)| !host.contains(':')) {
                Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
                None => (value, WHOIS_PORT),
            };
            Some(Referral { host: host.parse().ok()?, port, to_registrar })
        })
    }

    fn domain(&self) -> WhoisRecord {
        // Statuses are written as words in a list, or as a word with the address of its explanation.
        let statuses = self.many(&["domain status", "status", "state"]);
        let statuses = statuses.iter().flat_map(|status| status.split(',')).filter_map(|status| match status.trim() {
            "" => None,
            plain => Some(plain.split(" http").next().unwrap_or(plain).trim_end_matches(" (").to_owned()),
        });
        let servers = self.many(&["name server", "nserver", "name servers", "nameserver", "nameservers"]);
        let servers = servers.iter().filter_map(|server| server.split_whitespace().next());
        let signed = self.one(&["dnssec"]).map(|word| {
            let word = word.to_ascii_lowercase();
            word.starts_with("signed") || word == "yes" || word == "active"
        });
        WhoisRecord {
            name: self.one(&["domain name", "domain"]).map(|name| name.to_ascii_lowercase()),
            handle: self.one(&["registry domain id"]),
            registrar: self.one(&["registrar", "sponsoring registrar", "registrar name", "registrar.name"]),
            registrar_iana_id: self.one(&["registrar iana id"]),
            organization: self.one(&["registrant organization", "registrant.organization", "org", "organisation", "registrant"]),
            country: self.one(&["registrant country", "country"]),
            abuse_email: self.one(&["registrar abuse contact email", "abuse-mailbox"]),
            abuse_phone: self.one(&["registrar abuse contact phone"]),
            created: self.one(&["creation date", "created", "created on", "registered on", "registered", "registration date"]),
            updated: self.one(&["updated date", "last updated", "last-update", "last modified", "last-modified", "changed", "modified"]),
            expires: self.one(&[
                "registry expiry date",
                "registrar registration expiration date",
                "expiration date",
                "expiry date",
                "expires",
                "expires on",
                "expire",
                "paid-till",
                "renewal date",
            ]),
            statuses: statuses.collect(),
            name_servers: servers.map(|server| server.trim_end_matches('.').to_ascii_lowercase()).collect(),
            dnssec: signed.or_else(|| (!self.many(&["ds-rdata", "dsrecord", "ds"]).is_empty()).then_some(true)),
            ..WhoisRecord::default()
        }
    }

    fn network(&self) -> WhoisRecord {
        let range = self.one(&["inetnum", "inet6num", "netrange"]);
        let mut prefixes: Vec<String> =
            self.many(&["cidr"]).iter().flat_map(|list| list.split(',')).map(|prefix| prefix.trim().to_owned()).collect();
        if prefixes.is_empty() {
            prefixes.extend(range.clone().filter(|range| range.contains('/')));
        }
        WhoisRecord { name: self.one(&["netname"]), handle: self.one(&["nethandle"]), range, prefixes, ..self.holder() }
    }

    fn autonomous_system(&self) -> WhoisRecord {
        let number = |text: String| if text.bytes().all(|byte| byte.is_ascii_digit()) { format!("AS{text}") } else { text };
        WhoisRecord {
            name: self.one(&["as-name", "asname"]),
            handle: self.one(&["ashandle"]),
            range: self.one(&["aut-num", "asnumber"]).map(number),
            ..self.holder()
        }
    }

    /// What regional registries say of whoever holds a network or an autonomous system.
    fn holder(&self) -> WhoisRecord {
        WhoisRecord {
            organization: self.one(&["org-name", "orgname", "organization", "owner", "custname", "descr"]),
            country: self.one(&["country"]),
            abuse_email: self.one(&["orgabuseemail", "abuse-mailbox"]),
            abuse_phone: self.one(&["orgabusephone"]),
            created: self.one(&["regdate", "created"]),
            updated: self.one(&["updated", "last-modified", "changed"]),
            statuses: self.many(&["status", "nettype"]),
            ..WhoisRecord::default()
        }
    }
}

#[cfg(test)]
mod tests;
