//! A node, a router and a host, each in a network namespace that goes with the test.
//!
//! ```text
//! node 10.9.0.2 ── 10.9.0.1 router 10.9.1.1 ── 10.9.1.2 host
//!      fd09::2     fd09::1         fd09:1::1   fd09:1::2
//! ```

use std::process::Command;

use super::namespace::Namespace;

pub(super) struct Network {
    node: Namespace,
    router: Namespace,
    host: Namespace,
}

impl Network {
    /// Makes it. The router forwards, forbids 10.9.66.0/24 and `fd09:66::/64`, and does not reach 10.9.77.0/24; the node itself knows no way to
    /// anything outside.
    pub(super) fn new() -> Self {
        let number: u32 = rand::random();
        let [node, router, host] = ["node", "router", "host"].map(|part| Namespace::new(format!("po-{number:08x}-{part}")));
        node.join("eth0", &router, "west");
        host.join("eth0", &router, "east");
        node.start("eth0", ["10.9.0.2/24", "fd09::2/64"]);
        router.start("west", ["10.9.0.1/24", "fd09::1/64"]);
        router.start("east", ["10.9.1.1/24", "fd09:1::1/64"]);
        host.start("eth0", ["10.9.1.2/24", "fd09:1::2/64"]);
        for (namespace, via4, via6) in
            [(&node, "10.9.0.1", "fd09::1"), (&host, "10.9.1.1", "fd09:1::1"), (&router, "10.9.1.2", "fd09:1::2")]
        {
            namespace.ip(&format!("route add 10.9.0.0/16 via {via4}"));
            namespace.ip(&format!("-6 route add fd09::/16 via {via6}"));
        }
        // By rules and not by routes, whose errors the system limits to one a second.
        for rule in [
            "ip daddr 10.9.66.0/24 reject with icmpx type admin-prohibited",
            "ip6 daddr fd09:66::/64 reject with icmpx type admin-prohibited",
            "ip daddr 10.9.77.0/24 reject with icmpx type host-unreachable",
        ] {
            router.filter("forward", rule);
        }
        router.sysctl(&["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
        // A router limits its errors to one a second for each destination, unless told otherwise.
        for namespace in [&router, &host] {
            namespace.sysctl(&["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]);
        }
        node.ping_groups("0 2147483647");
        for address in ["10.9.1.2", "fd09:1::2"] {
            node.await_way_to(address);
        }
        Self { node, router, host }
    }

    /// Which groups of the node may open datagram ICMP sockets.
    pub(super) fn ping_groups(&self, range: &str) {
        self.node.ping_groups(range);
    }

    /// Adds a rule of nftables on what the host receives.
    pub(super) fn host_filter(&self, rule: &str) {
        self.host.filter("input", rule);
    }

    /// Lets the router send as many errors at once as it has reasons to; by default they are fifty, and then one a millisecond.
    pub(super) fn errors_without_limit(&self) {
        self.router.sysctl(&["net.ipv4.icmp_msgs_per_sec=100000", "net.ipv4.icmp_msgs_burst=10000"]);
    }

    /// Makes the host's own system answer no echo requests over IPv4.
    pub(super) fn host_is_silent(&self) {
        self.host.sysctl(&["net.ipv4.icmp_echo_ignore_all=1"]);
    }

    /// Makes the link between router and host carry no more than this.
    pub(super) fn narrow_the_far_link(&self, mtu: u16) {
        self.router.ip(&format!("link set east mtu {mtu}"));
        self.host.ip(&format!("link set eth0 mtu {mtu}"));
    }

    /// Makes the router a black hole: what it cannot pass on for its size it drops without a word.
    pub(super) fn router_says_nothing_of_size(&self) {
        for rule in ["icmp type destination-unreachable icmp code frag-needed drop", "icmpv6 type packet-too-big drop"] {
            self.router.filter("output", rule);
        }
    }

    /// Counts the packets that leave the node, its own loopback included, and match the rule of nftables.
    pub(super) fn count_leaving(&self, rule: &str) {
        self.node.filter("output", &format!("{rule} counter"));
    }

    /// How many there were.
    pub(super) fn leaving(&self) -> u64 {
        self.node.counted("output")
    }

    /// Gives the host one more address, with the length of its network.
    pub(super) fn host_address(&self, address: &str) {
        self.host.ip(&format!("addr add {address} dev eth0"));
    }

    /// What the node's programs read as the file of this name in /etc.
    pub(super) fn node_etc(&self, name: &str, text: &str) {
        self.node.etc(name, text);
    }

    /// Gives the node a way to everywhere, so that whatever it sends does leave.
    pub(super) fn node_reaches_everything(&self) {
        self.node.ip("route add default via 10.9.0.1");
        self.node.ip("-6 route add default via fd09::1");
    }

    /// A program in the node's namespace.
    pub(super) fn node_command(&self, program: &str) -> Command {
        self.node.command(program)
    }

    /// A program in the host's namespace.
    pub(super) fn host_command(&self, program: &str) -> Command {
        self.host.command(program)
    }

    /// Runs what we wrote in the node's namespace: all threads that it starts are there too.
    pub(super) fn in_node<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        self.node.run(run)
    }

    /// Runs what we wrote in the host's.
    pub(super) fn in_host<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        self.host.run(run)
    }
}
