//! A node, routers in a row and a host, each in a network namespace that goes with the test.
//!
//! ```text
//! node ── router 1 ── router 2 ── … ── router n ── host
//! link i: 10.8.i.1 left, 10.8.i.2 right; fd08:i::1, fd08:i::2
//! ```

use std::process::Command;

use super::namespace::Namespace;

pub(super) struct Path {
    /// The node, the routers and the host.
    places: Vec<Namespace>,
    /// Beside router 2, where packets are shared out.
    twin: Option<Namespace>,
}

impl Path {
    /// Makes it. The last router answers 10.8.20x.0/24 and `fd08:20x::/64` in its own ways: 1 no such host, 2 no such network, 3 forbidden, 4
    /// silence. Routers answer as often as they are asked, unless told otherwise.
    pub(super) fn new(routers: usize) -> Self {
        Self::make(routers, false)
    }

    /// The same with a second router 2 beside the first, and packets shared out between them by their ports.
    pub(super) fn with_twin(routers: usize) -> Self {
        Self::make(routers, true)
    }

    fn make(routers: usize, twin: bool) -> Self {
        let prefix = format!("po-{:08x}", rand::random::<u32>());
        let last = routers + 1;
        let places: Vec<Namespace> = (0..=last).map(|place| Self::add(format!("{prefix}-{place}"))).collect();
        let twin = twin.then(|| Self::add(format!("{prefix}-2b")));
        let path = Self { places, twin };
        for link in 0..=routers {
            Self::link((&path.places[link], "right"), (&path.places[link + 1], "left"), link);
        }
        for (place, namespace) in path.places.iter().enumerate() {
            if place < last {
                namespace.ip(&format!("route add 10.8.0.0/16 via 10.8.{place}.2"));
                namespace.ip(&format!("-6 route add fd08::/16 via fd08:{place}::2"));
            }
            for (link, back) in (0..place.saturating_sub(1)).map(|link| (link, place - 1)) {
                namespace.ip(&format!("route add 10.8.{link}.0/24 via 10.8.{back}.1"));
                namespace.ip(&format!("-6 route add fd08:{link}::/64 via fd08:{back}::1"));
            }
        }
        if let Some(twin) = &path.twin {
            path.link_twin(twin);
        }
        for rule in [
            "ip daddr 10.8.201.0/24 reject with icmpx type host-unreachable",
            "ip daddr 10.8.202.0/24 reject with icmpx type no-route",
            "ip daddr 10.8.203.0/24 reject with icmpx type admin-prohibited",
            "ip daddr 10.8.204.0/24 drop",
            "ip6 daddr fd08:201::/64 reject with icmpx type host-unreachable",
            "ip6 daddr fd08:202::/64 reject with icmpx type no-route",
            "ip6 daddr fd08:203::/64 reject with icmpx type admin-prohibited",
            "ip6 daddr fd08:204::/64 drop",
        ] {
            path.filter(routers, "forward", rule);
        }
        path.ping_groups("0 2147483647");
        for address in [path.host(), path.host_v6()] {
            path.places[0].await_way_to(&address);
        }
        path
    }

    fn add(name: String) -> Namespace {
        let namespace = Namespace::new(name);
        namespace.sysctl(&[
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            // A router limits its errors to one a second for each destination, unless told otherwise.
            "net.ipv4.icmp_ratelimit=0",
            "net.ipv6.icmp.ratelimit=0",
            // By addresses, protocol and ports as they are in the packet: what the system knows of its sender's socket does not leave a machine.
            "net.ipv4.fib_multipath_hash_policy=3",
            "net.ipv4.fib_multipath_hash_fields=55",
        ]);
        namespace
    }

    fn link((left, left_device): (&Namespace, &str), (right, right_device): (&Namespace, &str), number: usize) {
        left.join(left_device, right, right_device);
        for (namespace, device, side) in [(left, left_device, 1), (right, right_device, 2)] {
            namespace.start(device, [&format!("10.8.{number}.{side}/24"), &format!("fd08:{number}::{side}/64")]);
        }
    }

    /// Router 1 reaches what is behind router 3 over both.
    fn link_twin(&self, twin: &Namespace) {
        let (first, third) = (&self.places[1], &self.places[3]);
        Self::link((first, "right2"), (twin, "left"), 51);
        Self::link((twin, "right"), (third, "left2"), 52);
        twin.ip("route add 10.8.0.0/16 via 10.8.52.2");
        twin.ip("route add 10.8.0.0/24 via 10.8.51.1");
        first.ip("route replace 10.8.0.0/16 nexthop via 10.8.1.2 nexthop via 10.8.51.2");
    }

    fn routers(&self) -> usize {
        self.places.len() - 2
    }

    /// The host's address.
    pub(super) fn host(&self) -> String {
        format!("10.8.{}.2", self.routers())
    }

    /// The host's IPv6 address.
    pub(super) fn host_v6(&self) -> String {
        format!("fd08:{}::2", self.routers())
    }

    /// Adds a rule of nftables at a place of the path: 0 is the node, then the routers, last the host.
    pub(super) fn filter(&self, place: usize, hook: &str, rule: &str) {
        self.places[place].filter(hook, rule);
    }

    /// Makes a router tell nobody that it drops a packet.
    pub(super) fn silence(&self, router: usize) {
        self.filter(router, "output", "icmp type time-exceeded drop");
        self.filter(router, "output", "icmpv6 type time-exceeded drop");
    }

    /// Makes a router tell it as often as Linux does by default: six times, then once a second.
    pub(super) fn limit(&self, router: usize) {
        self.places[router].sysctl(&["net.ipv4.icmp_ratelimit=1000", "net.ipv6.icmp.ratelimit=1000"]);
    }

    /// Gives a router the host's address, too.
    pub(super) fn take_over(&self, router: usize) {
        self.places[router].ip(&format!("addr add {}/32 dev lo", self.host()));
    }

    /// Makes the last link narrow.
    pub(super) fn narrow(&self, mtu_bytes: u32) {
        self.places[self.routers()].ip(&format!("link set right mtu {mtu_bytes}"));
        self.places[self.routers() + 1].ip(&format!("link set left mtu {mtu_bytes}"));
    }

    /// Which groups of the node may open datagram ICMP sockets.
    pub(super) fn ping_groups(&self, range: &str) {
        self.places[0].ping_groups(range);
    }

    /// What the node's programs read as the file of this name in /etc.
    pub(super) fn node_etc(&self, name: &str, text: &str) {
        self.places[0].etc(name, text);
    }

    /// A program in the node's namespace.
    pub(super) fn node_command(&self, program: &str) -> Command {
        self.places[0].command(program)
    }

    /// Runs what we wrote at a place of the path.
    pub(super) fn at<T: Send + 'static>(&self, place: usize, run: impl FnOnce() -> T + Send + 'static) -> T {
        self.places[place].run(run)
    }
}
