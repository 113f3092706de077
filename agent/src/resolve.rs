//! Names to addresses, as the host's own programs find them or by the name servers that its operator set.

pub(crate) mod origin;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use probeops_shared::host::DnsName;
use probeops_shared::tools::dns::record_type::RecordType;
use probeops_shared::tools::dns::report::DnsResponse;
use probeops_shared::tools::dns::{DNS_PORT, Dns};
use tokio::sync::Semaphore;

use crate::net::dns::message::{self, Query};
use crate::net::dns::{self, Way};

/// How many names the system may be asked for at once. Its answer cannot be cancelled, so each holds a thread until it comes.
const SYSTEM_LOOKUPS_MAX: usize = 64;
/// How long one configured name server may take before the next is asked.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);
/// Where the system's name servers are listed (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How many of them are used, as by the system itself.
const SYSTEM_SERVERS_MAX: usize = 3;

/// What finds addresses.
#[derive(Debug)]
pub(crate) struct Resolver {
    /// Empty: ask the system.
    servers: Vec<SocketAddr>,
    system_lookups: Arc<Semaphore>,
}

impl Resolver {
    /// By these name servers; by the system's own way if there are none.
    pub(crate) fn new(servers: &[SocketAddr]) -> Self {
        Self { servers: servers.to_vec(), system_lookups: Arc::new(Semaphore::new(SYSTEM_LOOKUPS_MAX)) }
    }

    /// The name servers of this node: those set, else those of the system.
    pub(crate) async fn own_servers(&self) -> Vec<SocketAddr> {
        if !self.servers.is_empty() {
            return self.servers.clone();
        }
        match tokio::fs::read_to_string(Path::new(RESOLV_CONF)).await {
            Ok(text) => system_servers(&text),
            Err(error) => {
                tracing::debug!(%error, "could not read {RESOLV_CONF}; taking the system's default");
                system_servers("")
            }
        }
    }

    /// What a name leads to; in words why that is nothing. The caller bounds the wait.
    pub(crate) async fn lookup(&self, name: &str) -> Result<Found, String> {
        if self.servers.is_empty() { self.ask_system(name).await } else { self.ask_servers(name).await }
    }

    /// The name of an address, by the DNS of this node's name servers; the first that answers.
    pub(crate) async fn name(&self, address: IpAddr) -> Option<String> {
        let response = self.first_answer(&DnsName::Address(address), RecordType::PTR).await?;
        let record = response.answer.iter().find(|record| record.kind == "PTR")?;
        Some(record.value.trim_end_matches('.').to_owned())
    }

    /// The numbers of the autonomous systems that announce an address, as this zone has them; Team Cymru's, and none of an address that is not
    /// public, unless there is one.
    pub(crate) async fn asn(&self, address: IpAddr, zone: Option<&str>) -> Vec<u32> {
        let Some(name) = origin::name(address, zone) else { return Vec::new() };
        let response = self.first_answer(&DnsName::Name(name), RecordType::TXT).await;
        response.map_or_else(Vec::new, |response| origin::read(address, &response.answer))
    }

    /// What this node's name servers say: the first that answers.
    async fn first_answer(&self, name: &DnsName, kind: RecordType) -> Option<DnsResponse> {
        let query = Query::new(name, kind, &Dns::default()).ok()?;
        for server in self.own_servers().await {
            let asked = dns::ask((None, server), &Way::Udp, query.bytes(), |bytes| query.is_answered_by(bytes), SERVER_PATIENCE).await;
            if let Ok(response) = asked.map_err(drop).and_then(|answer| message::read(&answer.bytes).map_err(drop)) {
                return Some(response);
            }
        }
        None
    }

    async fn ask_system(&self, name: &str) -> Result<Found, String> {
        let permit = Arc::clone(&self.system_lookups).acquire_owned().await.map_err(|error| error.to_string())?;
        let owned = name.to_owned();
        let looked_up = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            (owned.as_str(), 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect::<Vec<_>>())
        });
        let found = looked_up.await.map_err(|error| error.to_string())?;
        let mut addresses = found.map_err(|error| system_words(&error.to_string()))?;
        let mut seen = std::collections::HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        Ok(Found { addresses, aliases: Vec::new() })
    }

    async fn ask_servers(&self, name: &str) -> Result<Found, String> {
        // This name never leaves the machine (RFC 6761, 6.3).
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(Found { addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], aliases: Vec::new() });
        }
        let mut last = String::new();
        for server in &self.servers {
            let (v4, v6) = tokio::join!(records(*server, name, RecordType::A), records(*server, name, RecordType::AAAA));
            match (v4, v6) {
                (Ok(mut found), Ok(more)) => {
                    found.addresses.extend(more.addresses);
                    found.aliases.extend(more.aliases);
                    return if found.addresses.is_empty() { Err(format!("it has no address, says {server}")) } else { Ok(found) };
                }
                // Some servers are silent about one of the two; what the other brought is an answer.
                (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.addresses.is_empty() => return Ok(found),
                (Err(Refusal::NoSuchName), _) | (_, Err(Refusal::NoSuchName)) => {
                    return Err(format!("there is no such name, says {server} (NXDOMAIN)"));
                }
                (Err(Refusal::Other(error)), _) | (_, Err(Refusal::Other(error))) => last = format!("{server}: {error}"),
            }
        }
        Err(last)
    }
}

/// What a name leads to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Its addresses, in order of preference.
    pub(crate) addresses: Vec<IpAddr>,
    /// The names that it is an alias of, where the servers that were asked are ours to choose: the system does not tell.
    pub(crate) aliases: Vec<String>,
}

/// Why a server did not say.
enum Refusal {
    NoSuchName,
    Other(String),
}

/// The addresses that a server has for a name. A recursive server puts the whole chain of aliases into its answer.
async fn records(server: SocketAddr, name: &str, kind: RecordType) -> Result<Found, Refusal> {
    let query = Query::new(&DnsName::Name(name.to_owned()), kind, &Dns::default()).map_err(Refusal::Other)?;
    let ask = async |way: Way| dns::ask((None, server), &way, query.bytes(), |bytes| query.is_answered_by(bytes), SERVER_PATIENCE).await;
    let words = |none: dns::NoAnswer| Refusal::Other(none.detail.unwrap_or_else(|| none.result.to_string()));
    let mut answer = ask(Way::Udp).await.map_err(words)?;
    if message::is_truncated(&answer.bytes) {
        answer = ask(Way::Tcp).await.map_err(words)?;
    }
    found(&message::read(&answer.bytes).map_err(Refusal::Other)?)
}

fn found(response: &DnsResponse) -> Result<Found, Refusal> {
    let values = |kinds: &'static [&'static str]| {
        response.answer.iter().filter(|record| kinds.contains(&record.kind.as_str())).map(|record| record.value.as_str())
    };
    match response.rcode.name.as_str() {
        "NOERROR" => Ok(Found {
            addresses: values(&["A", "AAAA"]).filter_map(|address| address.parse().ok()).collect(),
            aliases: values(&["CNAME"]).map(|name| name.trim_end_matches('.').to_ascii_lowercase()).collect(),
        }),
        "NXDOMAIN" => Err(Refusal::NoSuchName),
        other => Err(Refusal::Other(format!("it answered {other}"))),
    }
}

/// The system's words without the crate's.
fn system_words(error: &str) -> String {
    error.strip_prefix("failed to lookup address information: ").unwrap_or(error).to_owned()
}

/// The name servers in a resolv.conf; this machine itself if it names none. One with a zone id cannot be used here.
fn system_servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    let servers: Vec<SocketAddr> = named.take(SYSTEM_SERVERS_MAX).map(|address| SocketAddr::new(address, DNS_PORT)).collect();
    if servers.is_empty() { vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))] } else { servers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_system_reads_them() {
        let text =
            "# comment\nsearch corp.example\nnameserver 10.0.0.53\nnameserver 2001:db8::53\nnameserver fe80::1%eth0\noptions edns0\n";
        assert_eq!(system_servers(text), ["10.0.0.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()]);
        assert_eq!(system_servers(""), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[tokio::test]
    async fn the_system_knows_this_machine_and_no_invalid_name() {
        let resolver = Resolver::new(&[]);
        let addresses = resolver.lookup("localhost").await.unwrap().addresses;
        assert!(addresses.iter().all(IpAddr::is_loopback) && !addresses.is_empty(), "{addresses:?}");
        assert!(!resolver.own_servers().await.is_empty());
    }
}
