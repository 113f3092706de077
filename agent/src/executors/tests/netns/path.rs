//! A node, routers in a row and a host, each in a network namespace that goes with the test.
//!
//! ```text
//! node ── router 1 ── router 2 ── … ── router n ── host
//! link i: 10.8.i.1 left, 10.8.i.2 right; fd08:i::1, fd08:i::2
//! ```

use std::process::Command;

use super::must;
use super::network::{command, inside, ip};

pub(super) struct Path {
    prefix: String,
    routers: usize,
    /// Beside router 2, where packets are shared out.
    twin: bool,
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
        let path = Self { prefix: format!("po-{:08x}", rand::random::<u32>()), routers, twin };
        let last = routers + 1;
        for place in 0..=last {
            Self::add(&path.name(place));
        }
        for link in 0..=routers {
            Self::link((&path.name(link), "right"), (&path.name(link + 1), "left"), link);
        }
        for place in 0..=last {
            let name = path.name(place);
            if place < last {
                ip(&name, &format!("route add 10.8.0.0/16 via 10.8.{place}.2"));
                ip(&name, &format!("-6 route add fd08::/16 via fd08:{place}::2"));
            }
            for (link, back) in (0..place.saturating_sub(1)).map(|link| (link, place - 1)) {
                ip(&name, &format!("route add 10.8.{link}.0/24 via 10.8.{back}.1"));
                ip(&name, &format!("-6 route add fd08:{link}::/64 via fd08:{back}::1"));
            }
        }
        if twin {
            path.add_twin();
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
        must(path.node_command("sysctl").args(["-qw", "net.ipv4.ping_group_range=0 2147483647"]));
        // A link that has just been made carries nothing for up to a second.
        for address in [path.host(), path.host_v6()] {
            must(path.node_command("ping").args(["-n", "-c", "1", "-W", "10", &address]));
        }
        path
    }

    fn add(name: &str) {
        must(Command::new("ip").args(["netns", "add", name]));
        must(command(name, "sysctl").args([
            "-qw",
            // Without duplicate address detection an address is usable at once.
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            // A router limits its errors to one a second for each destination, unless told otherwise.
            "net.ipv4.icmp_ratelimit=0",
            "net.ipv6.icmp.ratelimit=0",
            "net.ipv4.fib_multipath_hash_policy=1",
        ]));
        must(command(name, "nft").args(["add", "table", "inet", "t"]));
        for hook in ["input", "forward", "output"] {
            must(command(name, "nft").arg(format!("add chain inet t {hook} {{ type filter hook {hook} priority 0 ; }}")));
        }
        ip(name, "link set lo up");
    }

    fn link((left, left_device): (&str, &str), (right, right_device): (&str, &str), number: usize) {
        ip(left, &format!("link add {left_device} type veth peer name {right_device} netns {right}"));
        for (name, device, side) in [(left, left_device, 1), (right, right_device, 2)] {
            ip(name, &format!("addr add 10.8.{number}.{side}/24 dev {device}"));
            ip(name, &format!("addr add fd08:{number}::{side}/64 dev {device}"));
            ip(name, &format!("link set {device} up"));
        }
    }

    /// Router 1 reaches what is behind router 3 over both.
    fn add_twin(&self) {
        let (twin, first, third) = (self.twin_name(), self.name(1), self.name(3));
        Self::add(&twin);
        Self::link((&first, "right2"), (&twin, "left"), 51);
        Self::link((&twin, "right"), (&third, "left2"), 52);
        ip(&twin, "route add 10.8.0.0/16 via 10.8.52.2");
        ip(&twin, "route add 10.8.0.0/24 via 10.8.51.1");
        ip(&first, "route replace 10.8.0.0/16 nexthop via 10.8.1.2 nexthop via 10.8.51.2");
    }

    fn name(&self, place: usize) -> String {
        format!("{}-{place}", self.prefix)
    }

    fn twin_name(&self) -> String {
        format!("{}-2b", self.prefix)
    }

    /// The host's address.
    pub(super) fn host(&self) -> String {
        format!("10.8.{}.2", self.routers)
    }

    /// The host's IPv6 address.
    pub(super) fn host_v6(&self) -> String {
        format!("fd08:{}::2", self.routers)
    }

    /// Adds a rule of nftables at a place of the path: 0 is the node, then the routers, last the host.
    pub(super) fn filter(&self, place: usize, hook: &str, rule: &str) {
        must(command(&self.name(place), "nft").arg(format!("add rule inet t {hook} {rule}")));
    }

    /// Makes a router tell nobody that it drops a packet.
    pub(super) fn silence(&self, router: usize) {
        self.filter(router, "output", "icmp type time-exceeded drop");
        self.filter(router, "output", "icmpv6 type time-exceeded drop");
    }

    /// Makes a router tell it as often as Linux does by default: six times, then once a second.
    pub(super) fn limit(&self, router: usize) {
        must(command(&self.name(router), "sysctl").args(["-qw", "net.ipv4.icmp_ratelimit=1000", "net.ipv6.icmp.ratelimit=1000"]));
    }

    /// Counts what leaves the node and can be a probe of any tool, on whatever interface.
    pub(super) fn count_probes(&self) {
        for what in ["meta l4proto { tcp, udp }", "icmp type echo-request", "icmpv6 type echo-request"] {
            self.filter(0, "output", &format!("{what} counter"));
        }
    }

    /// How many have left.
    pub(super) fn probes_counted(&self) -> u64 {
        let output = self.node_command("nft").args(["list", "chain", "inet", "t", "output"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let counts = text.lines().filter_map(|line| line.split_once("counter packets ")?.1.split(' ').next()?.parse::<u64>().ok());
        counts.sum()
    }

    /// Gives a router the host's address, too.
    pub(super) fn take_over(&self, router: usize) {
        ip(&self.name(router), &format!("addr add {}/32 dev lo", self.host()));
    }

    /// Makes the last link narrow.
    pub(super) fn narrow(&self, mtu_bytes: u32) {
        ip(&self.name(self.routers), &format!("link set right mtu {mtu_bytes}"));
        ip(&self.name(self.routers + 1), &format!("link set left mtu {mtu_bytes}"));
    }

    /// Which groups of the node may open datagram ICMP sockets.
    pub(super) fn ping_groups(&self, range: &str) {
        must(self.node_command("sysctl").args(["-qw", &format!("net.ipv4.ping_group_range={range}")]));
    }

    /// A program in the node's namespace.
    pub(super) fn node_command(&self, program: &str) -> Command {
        command(&self.name(0), program)
    }

    /// Runs what we wrote at a place of the path.
    pub(super) fn at<T: Send + 'static>(&self, place: usize, run: impl FnOnce() -> T + Send + 'static) -> T {
        inside(&self.name(place), run)
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let places = (0..=self.routers + 1).map(|place| self.name(place));
        for name in places.chain(self.twin.then(|| self.twin_name())) {
            drop(Command::new("ip").args(["netns", "del", &name]).status());
        }
    }
}
