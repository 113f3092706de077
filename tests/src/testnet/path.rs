//! The path: places, links, addresses and routes.
//!
//! ```text
//! client ── r1 ─┬─ r2  ─┬─ r3 ── r4 ── r5 ── server
//!               └─ r2b ─┘  silent limited  narrow
//! link n: 10.77.n.1 left, 10.77.n.2 right; fd77:n::1, fd77:n::2
//! ```

use std::fmt::Write;
use std::time::Duration;

use super::place::Place;
use super::wire::{Impairment, Laying, Link, Wire};

/// How long a packet is on each link.
pub const DELAY: Duration = Duration::from_millis(2);
/// The largest packet of the last link.
pub const MTU_BYTES: u64 = 1400;
/// The last numbers of the addresses that the server has, below 10.77.100 and `fd77:100::`.
const SERVICES: [u8; 6] = [43, 53, 54, 55, 56, 80];
/// The links: where they are, and their numbers.
const LINKS: [([(&str, &str); 2], u8); 8] = [
    ([("client", "right"), ("r1", "left")], 0),
    ([("r1", "right"), ("r2", "left")], 1),
    ([("r2", "right"), ("r3", "left")], 2),
    ([("r3", "right"), ("r4", "left")], 3),
    ([("r4", "right"), ("r5", "left")], 4),
    ([("r5", "right"), ("server", "left")], LAST),
    ([("r1", "right2"), ("r2b", "left")], 21),
    ([("r2b", "right"), ("r3", "left2")], 22),
];
/// The number of the last link, which is also that of the last router.
const LAST: u8 = 5;
/// What tells router 1, over IPv4, to use both of the equal pair, or only one.
pub(super) const PAIR_IN_USE: &str = "route replace default nexthop via 10.77.1.2 nexthop via 10.77.21.2";
pub(super) const PAIR_OUT_OF_USE: &str = "route replace default via 10.77.1.2";
/// The place in [`LINKS`] of the one that can be made worse: the fourth, which every packet takes.
const WORSE: usize = 3;

/// A path, which goes with its owner.
#[derive(Debug)]
pub struct Path {
    /// The client, the routers in a row, the server, and at last the twin of router 2.
    places: Vec<Place>,
    links: Vec<Link>,
    _wire: Wire,
}

impl Path {
    /// Makes it.
    pub(super) fn new() -> Self {
        let places: Vec<Place> = ["client", "r1", "r2", "r3", "r4", "r5", "server", "r2b"].map(Place::new).into();
        let place = |name: &str| places.iter().find(|place| place.name() == name).expect("a place of ours");
        let mut laying = Laying::default();
        let mut links = Vec::new();
        for (ends, number) in LINKS {
            links.push(laying.link(ends.map(|(name, device)| (place(name), device)), Impairment { delay: DELAY, ..Impairment::default() }));
            let mtu = if number == LAST { MTU_BYTES } else { 1500 };
            for ((name, device), side) in ends.into_iter().zip([1, 2]) {
                let up = format!("link set {device} mtu {mtu} txqueuelen 10000 up");
                place(name).ip("-4", &format!("{up}\naddr add 10.77.{number}.{side}/30 dev {device}"));
                place(name).ip("-6", &format!("addr add fd77:{number}::{side}/64 dev {device}"));
            }
        }
        let path = Self { _wire: laying.start(), places, links };
        path.set();
        path.route();
        path
    }

    /// Where one stands who asks.
    pub fn client(&self) -> &Place {
        &self.places[0]
    }

    /// Where all services are.
    pub fn server(&self) -> &Place {
        &self.places[usize::from(LAST) + 1]
    }

    /// The place of this name.
    pub(super) fn place(&self, name: &str) -> &Place {
        self.places.iter().find(|place| place.name() == name).expect("a place of ours")
    }

    /// A link that every packet takes, to be made worse.
    pub fn link(&self) -> &Link {
        &self.links[WORSE]
    }

    fn router(&self, number: u8) -> &Place {
        &self.places[usize::from(number)]
    }

    fn twin(&self) -> &Place {
        &self.places[usize::from(LAST) + 2]
    }

    /// What each place's system is told.
    fn set(&self) {
        for place in &self.places {
            place.sysctl(&[
                // Routers answer as often as they are asked, where nothing else is said.
                "net.ipv4.icmp_ratelimit=0",
                "net.ipv6.icmp.ratelimit=0",
                "net.ipv4.icmp_msgs_per_sec=100000",
                "net.ipv4.icmp_msgs_burst=10000",
                // Packets are shared out by their ports.
                "net.ipv4.fib_multipath_hash_policy=1",
                "net.ipv6.fib_multipath_hash_policy=1",
                "net.ipv4.ping_group_range=0 2147483647",
            ]);
        }
        for router in (1..=LAST).map(|number| self.router(number)).chain([self.twin()]) {
            router.sysctl(&["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
        }
        let silent = "type { time-exceeded, destination-unreachable, echo-reply } drop";
        self.router(3).filter(&format!(
            "table inet silent {{ chain out {{ type filter hook output priority 0; icmp {silent}; icmpv6 {silent}; }}; }}"
        ));
        // Six at once, then ten a second, to each who asks.
        self.router(4).sysctl(&["net.ipv4.icmp_ratelimit=100", "net.ipv6.icmp.ratelimit=100"]);
        // By a rule and not by a route, whose errors the system limits to one a second.
        self.router(LAST).filter(
            "table inet nobody { chain pass { type filter hook forward priority 0; \
             ip daddr 10.99.0.0/16 reject with icmpx type host-unreachable; ip6 daddr fd99::/16 reject with icmpx type host-unreachable; }; }",
        );
        self.server().filter(
            "table inet ports { chain in { type filter hook input priority 0; tcp dport 4444 drop; \
             tcp dport 4445 reject with icmpx type host-unreachable; }; }",
        );
    }

    /// To the right by the default route, to the left by the number of each link.
    fn route(&self) {
        for (family, net, end, length, local) in [("-4", "10.77.", ".", "0/30", "10.78.0.0/16"), ("-6", "fd77:", "::", "/64", "fd78::/64")]
        {
            let address = |link: u8, side: u8| format!("{net}{link}{end}{side}");
            let network = |link: u8| format!("{net}{link}{end}{length}");
            for place in 0..=LAST {
                let mut routes = String::new();
                for link in 0..place.saturating_sub(1) {
                    writeln!(routes, "route add {} via {}", network(link), address(place - 1, 1)).expect("a string");
                }
                match place {
                    1 => writeln!(routes, "route add default nexthop via {} nexthop via {}", address(1, 2), address(21, 2)),
                    _ => writeln!(routes, "route add default via {}", address(place, 2)),
                }
                .expect("a string");
                self.router(place).ip(family, &routes);
            }
            let back = |last: u8| format!("route add {} via {}", network(0), address(last, 1));
            self.twin().ip(family, &format!("route add default via {}\n{}", address(22, 2), back(21)));
            let services = SERVICES.map(|last| format!("addr add {net}100{end}{last} dev lo\n")).concat();
            // Any address of this network answers.
            let anybody = format!("route add local {local} dev lo\n");
            self.server().ip(family, &format!("{services}{anybody}route add default via {}", address(LAST, 1)));
        }
    }
}
