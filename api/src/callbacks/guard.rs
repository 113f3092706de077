//! Where callbacks may go: whoever can run a job chooses the destination, so it must not lead to what only this machine can reach.
//!
//! Judged are addresses as they will be connected to, in every disguise; what the operator names in `callback_allow` is allowed in spite of it,
//! the broker and this API never. Nothing else of the destination is known: an answer shows its status only.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use probeops_shared::access::TargetPattern;
use probeops_shared::host::Host;
use probeops_shared::http_url::{HttpUrl, Scheme};
use probeops_shared::reserved::{self, Reserved};
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::url::CallbackUrl;

/// How many addresses of a name are judged and tried.
const ADDRESSES_MAX: usize = 16;
/// How long a name may take to resolve: an attempt must be over before the broker hands it to another replica.
const RESOLVED_WITHIN: Duration = Duration::from_secs(3);
/// What every refusal ends with.
const SETTING: &str = "the operator can allow it with --callback-allow (PROBEOPS_CALLBACK_ALLOW, `callback_allow` in the file)";

/// What judges destinations.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    allow: Vec<TargetPattern>,
    own: Vec<Own>,
}

/// A server of our own.
#[derive(Clone, Debug)]
struct Own {
    what: &'static str,
    host: Host,
    port: u16,
}

impl Guard {
    /// Allows these beyond the public internet, and never the broker at `servers` nor the API at `listen`.
    pub(crate) fn new(allow: Vec<TargetPattern>, servers: &[String], listen: SocketAddr) -> Result<Self, String> {
        let mut own = vec![Own { what: "this API", host: Host::Address(listen.ip()), port: listen.port() }];
        for server in servers {
            let (host, port) = host_and_port(server)?;
            own.push(Own { what: "the broker", host, port });
        }
        Ok(Self { allow, own })
    }

    /// Refuses what can be refused before anything is resolved.
    pub(super) fn check_form(&self, url: &CallbackUrl) -> Result<(), String> {
        if let Some(own) = self.own.iter().find(|own| own.port == url.port() && own.host == *url.host()) {
            return Err(own.denial());
        }
        // A name that the operator did not name may still lead to a network that he did.
        let possible = match url.host() {
            Host::Address(address) => self.allows(*address),
            Host::Name(name) => self.allows_name(name) || self.allow.iter().any(|pattern| matches!(pattern, TargetPattern::Network { .. })),
        };
        if url.scheme() == Scheme::Http && !possible {
            return Err(format!("must be https, so that nobody reads or changes it on its way; {SETTING}"));
        }
        match url.host() {
            Host::Address(address) => {
                self.check_address(*address, false).map_err(|what| format!("leads to {what}; {SETTING}"))?;
                Self::check_own(*address, url.port(), &self.own_literal())
            }
            Host::Name(name) if !possible && (name == "localhost" || name.ends_with(".localhost")) => {
                Err(format!("leads to a loopback address; {SETTING}"))
            }
            Host::Name(_) => Ok(()),
        }
    }

    /// Where to connect to: every address that the host has now has been judged. The errors tell nothing of them.
    pub(super) async fn addresses(&self, url: &CallbackUrl) -> Result<Vec<SocketAddr>, String> {
        self.check_form(url)?;
        let (addresses, named): (Vec<IpAddr>, bool) = match url.host() {
            Host::Address(address) => (vec![*address], false),
            Host::Name(name) => (resolved(name, url.port()).await?, self.allows_name(name)),
        };
        let own = self.own_resolved().await;
        for address in &addresses {
            if url.scheme() == Scheme::Http && !named && !self.allows(*address) {
                return Err(format!("must be https, because it leads to an address that is not allowed in clear text; {SETTING}"));
            }
            self.check_address(*address, named).map_err(|what| format!("leads to {what}; {SETTING}"))?;
            Self::check_own(*address, url.port(), &own)?;
        }
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address.to_canonical(), url.port())).collect())
    }

    /// Whether an address may be connected to, or what it is. `named`: the operator allows the name that led to it, which allows private networks
    /// and this machine, and not where credentials are served.
    fn check_address(&self, address: IpAddr, named: bool) -> Result<(), String> {
        let disguised = reserved::embedded(address).into_iter().map(|(inner, disguise)| (IpAddr::V4(inner), Some(disguise)));
        for (address, disguise) in std::iter::once((address, None)).chain(disguised) {
            if self.allows(address) {
                continue;
            }
            let what = match Reserved::of(address) {
                Some(Reserved::Loopback) | None if named => continue,
                Some(reserved) => reserved.to_string(),
                None => match reserved::unroutable(address) {
                    Some(what) => what.to_owned(),
                    None if is_here(address) => "an address of this API's own machine".to_owned(),
                    None => continue,
                },
            };
            return Err(disguise.map_or_else(|| what.clone(), |disguise| format!("{what} ({disguise})")));
        }
        Ok(())
    }

    fn check_own(address: IpAddr, port: u16, own: &[(&Own, IpAddr)]) -> Result<(), String> {
        let inner = reserved::embedded(address).into_iter().map(|(inner, _)| IpAddr::V4(inner));
        let every: Vec<IpAddr> = std::iter::once(address).chain(inner).collect();
        let hit = own
            .iter()
            .find(|(own, at)| own.port == port && every.iter().any(|address| address == at || (is_here(*at) && is_here(*address))));
        hit.map_or(Ok(()), |(own, _)| Err(own.denial()))
    }

    fn own_literal(&self) -> Vec<(&Own, IpAddr)> {
        self.own.iter().filter_map(|own| Some((own, own.host.address()?))).collect()
    }

    async fn own_resolved(&self) -> Vec<(&Own, IpAddr)> {
        let mut all = self.own_literal();
        for own in &self.own {
            if let Host::Name(name) = &own.host {
                // One that has no address cannot be reached by it.
                all.extend(resolved(name, own.port).await.unwrap_or_default().into_iter().map(|address| (own, address)));
            }
        }
        all
    }

    fn allows(&self, address: IpAddr) -> bool {
        self.allow.iter().any(|pattern| pattern.matches_address(address))
    }

    fn allows_name(&self, name: &str) -> bool {
        self.allow.iter().any(|pattern| pattern.matches_name(name))
    }
}

impl Own {
    fn denial(&self) -> String {
        format!("leads to {} itself, which no callback may", self.what)
    }
}

/// Whether what is sent there arrives at this machine.
fn is_here(address: IpAddr) -> bool {
    let ip = |socket: &SockaddrStorage| {
        let v4 = socket.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| socket.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let address = address.to_canonical();
    // Looked at each time, for they come and go; where they cannot be read, what is not known to be elsewhere is here.
    address.is_unspecified()
        || address.is_loopback()
        || getifaddrs().map_or(true, |mut all| all.any(|interface| interface.address.as_ref().and_then(ip) == Some(address)))
}

async fn resolved(name: &str, port: u16) -> Result<Vec<IpAddr>, String> {
    let found =
        timeout(RESOLVED_WITHIN, lookup_host((name, port))).await.map_err(|_elapsed| "its name is not resolved in time".to_owned())?;
    let found = found.map_err(|_error| "its name cannot be resolved".to_owned())?;
    let addresses: BTreeSet<IpAddr> = found.map(|address| address.ip()).collect();
    match addresses.len() {
        0 => Err("its name has no address".to_owned()),
        1..=ADDRESSES_MAX => Ok(addresses.into_iter().collect()),
        _ => Err(format!("its name has more than {ADDRESSES_MAX} addresses")),
    }
}

/// Where a broker is, by its URL.
fn host_and_port(server: &str) -> Result<(Host, u16), String> {
    let (scheme, rest) = server.split_once("://").unwrap_or(("tls", server));
    let place: HttpUrl = format!("https://{rest}").parse().map_err(|detail| format!("servers: {detail}"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let given = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port = given.unwrap_or(match scheme {
        "wss" => 443,
        "ws" => 80,
        _ => 4222,
    });
    Ok((place.host().clone(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allow: &[&str]) -> Guard {
        let allow = allow.iter().map(|pattern| pattern.parse().unwrap()).collect();
        Guard::new(allow, &["tls://127.0.0.1:4222".to_owned(), "wss://broker.example/nats".to_owned()], "0.0.0.0:8080".parse().unwrap())
            .unwrap()
    }

    #[track_caller]
    fn refuses(guard: &Guard, url: &str, part: &str) {
        let refused = guard.check_form(&url.parse().unwrap()).unwrap_err();
        assert!(refused.contains(part), "{url}: {refused}");
    }

    /// All the ways to write an address of this machine or of a private network that are known to have passed somebody's check.
    pub(crate) const DISGUISES: [&str; 32] = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "0x7f000001",
        "0x7f.0.0.1",
        "2130706433",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::127.0.0.1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[fe80::5efe:127.0.0.1]",
        "0.0.0.0",
        "0",
        "[::]",
        "169.254.169.254",
        "0xa9fea9fe",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "[fd12::1]",
        "[64:ff9b::10.0.0.1]",
        "224.0.0.1",
    ];

    #[test]
    fn every_disguise_is_seen_through_and_the_setting_named() {
        let closed = guard(&[]);
        for host in DISGUISES {
            refuses(&closed, &format!("https://{host}/x"), "--callback-allow");
            refuses(&closed, &format!("https://{host}:8443/x"), "callback_allow");
        }
        for name in ["localhost", "LOCALHOST", "a.localhost"] {
            refuses(&closed, &format!("https://{name}/"), "loopback");
        }
        for public in ["https://192.0.1.1/", "https://[2606:4700::1]/", "https://n8n.example/", "https://172.32.0.1:8443/"] {
            closed.check_form(&public.parse().unwrap()).unwrap();
        }
        refuses(&closed, "http://n8n.example/", "must be https");
    }

    #[test]
    fn the_operator_allows_networks_and_names() {
        let open = guard(&["127.0.0.0/8", "10.20.0.0/16", "*.internal"]);
        for url in
            ["http://127.0.0.1:5678/", "https://10.20.1.1/", "http://n8n.internal/", "https://[::ffff:10.20.0.1]/", "https://localhost/"]
        {
            open.check_form(&url.parse().unwrap()).unwrap_or_else(|refused| panic!("{url}: {refused}"));
        }
        refuses(&open, "https://10.21.1.1/", "a private address");
        refuses(&open, "http://1.1.1.1/", "must be https");
        refuses(&open, "https://[64:ff9b::10.21.0.1]/", "NAT64");
        // A name that is allowed leads to private networks, and not to where credentials are served.
        assert!(open.check_address("192.168.0.1".parse().unwrap(), true).is_ok());
        assert!(open.check_address("169.254.169.254".parse().unwrap(), true).is_err());
    }

    #[tokio::test]
    async fn our_own_servers_are_never_a_destination() {
        let open = guard(&["127.0.0.0/8", "*.example", "localhost"]);
        for url in ["http://127.0.0.1:4222/", "http://127.0.0.2:8080/", "http://127.0.0.1:8080/"] {
            refuses(&open, url, "itself");
        }
        refuses(&open, "https://broker.example/x", "the broker itself");
        let refused = open.addresses(&"http://localhost:8080/".parse().unwrap()).await.unwrap_err();
        assert!(refused.contains("this API itself"), "{refused}");
        let found = open.addresses(&"http://127.0.0.1:5678/".parse().unwrap()).await.unwrap();
        assert_eq!(found, ["127.0.0.1:5678".parse().unwrap()]);
    }

    #[test]
    fn what_arrives_at_this_machine_is_here_and_nothing_else_is() {
        // The address from which this machine would leave.
        let outward = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        if outward.connect("192.0.1.1:9").is_ok() {
            let own = outward.local_addr().unwrap().ip();
            assert!(is_here(own), "{own}");
            assert!(guard(&[]).check_form(&format!("https://{own}/").parse().unwrap()).is_err(), "{own}");
        }
        assert!(is_here("127.0.0.9".parse().unwrap()) && is_here("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!is_here("192.0.1.1".parse().unwrap()) && !is_here("2606:4700::1".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_name_is_judged_by_where_it_leads() {
        // By a network for another, so that the name is resolved at all.
        let refused = guard(&["10.20.0.0/16"]).addresses(&"https://localhost/".parse().unwrap()).await.unwrap_err();
        assert!(refused.contains("a loopback address") && refused.contains("callback_allow") && !refused.contains("127."), "{refused}");
    }
}
