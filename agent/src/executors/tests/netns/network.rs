//! A node, a router and a host, each in a network namespace that goes with the test.
//!
//! ```text
//! node 10.9.0.2 ── 10.9.0.1 router 10.9.1.1 ── 10.9.1.2 host
//!      fd09::2     fd09::1         fd09:1::1   fd09:1::2
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use super::must;

pub(super) struct Network {
    node: String,
    router: String,
    host: String,
}

impl Network {
    /// Makes it. The router forwards, forbids 10.9.66.0/24 and `fd09:66::/64`, and does not reach 10.9.77.0/24; the node itself knows no way to
    /// anything outside.
    pub(super) fn new() -> Self {
        let number: u32 = rand::random();
        let name = |part: &str| format!("po-{number:08x}-{part}");
        let network = Self { node: name("node"), router: name("router"), host: name("host") };
        let Self { node, router, host } = &network;
        for namespace in [node, router, host] {
            must(Command::new("ip").args(["netns", "add", namespace]));
            // Without duplicate address detection an address is usable at once.
            must(command(namespace, "sysctl").args(["-qw", "net.ipv6.conf.default.accept_dad=0"]));
            ip(namespace, "link set lo up");
        }
        ip(node, &format!("link add eth0 type veth peer name west netns {router}"));
        ip(host, &format!("link add eth0 type veth peer name east netns {router}"));
        for (namespace, device, v4, v6) in [
            (node, "eth0", "10.9.0.2/24", "fd09::2/64"),
            (router, "west", "10.9.0.1/24", "fd09::1/64"),
            (router, "east", "10.9.1.1/24", "fd09:1::1/64"),
            (host, "eth0", "10.9.1.2/24", "fd09:1::2/64"),
        ] {
            ip(namespace, &format!("addr add {v4} dev {device}"));
            ip(namespace, &format!("addr add {v6} dev {device}"));
            ip(namespace, &format!("link set {device} up"));
        }
        for (namespace, via4, via6) in [(node, "10.9.0.1", "fd09::1"), (host, "10.9.1.1", "fd09:1::1")] {
            ip(namespace, &format!("route add 10.9.0.0/16 via {via4}"));
            ip(namespace, &format!("-6 route add fd09::/16 via {via6}"));
        }
        ip(router, "route add 10.9.0.0/16 via 10.9.1.2");
        ip(router, "-6 route add fd09::/16 via fd09:1::2");
        must(command(router, "nft").args(["add", "table", "inet", "t"]));
        must(command(router, "nft").arg("add chain inet t on { type filter hook forward priority 0 ; }"));
        // By rules and not by routes, whose errors the system limits to one a second.
        for rule in [
            "ip daddr 10.9.66.0/24 reject with icmpx type admin-prohibited",
            "ip6 daddr fd09:66::/64 reject with icmpx type admin-prohibited",
            "ip daddr 10.9.77.0/24 reject with icmpx type host-unreachable",
        ] {
            must(command(router, "nft").arg(format!("add rule inet t on {rule}")));
        }
        // A router limits its errors to one a second for each destination, unless told otherwise.
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]
        {
            must(command(router, "sysctl").args(["-qw", setting]));
        }
        must(command(host, "sysctl").args(["-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]));
        network.ping_groups("0 2147483647");
        // A link that has just been made carries nothing for up to a second.
        for address in ["10.9.1.2", "fd09:1::2"] {
            must(network.node_command("ping").args(["-n", "-c", "1", "-W", "10", address]));
        }
        network
    }

    /// Which groups of the node may open datagram ICMP sockets.
    pub(super) fn ping_groups(&self, range: &str) {
        must(self.node_command("sysctl").args(["-qw", &format!("net.ipv4.ping_group_range={range}")]));
    }

    /// Adds a rule of nftables on what the host receives.
    pub(super) fn host_filter(&self, rule: &str) {
        must(self.host_command("nft").args(["add", "table", "inet", "t"]));
        must(self.host_command("nft").arg("add chain inet t in { type filter hook input priority 0 ; }"));
        must(self.host_command("nft").arg(format!("add rule inet t in {rule}")));
    }

    /// Lets the router send as many errors at once as it has reasons to; by default they are fifty, and then one a millisecond.
    pub(super) fn errors_without_limit(&self) {
        must(command(&self.router, "sysctl").args(["-qw", "net.ipv4.icmp_msgs_per_sec=100000", "net.ipv4.icmp_msgs_burst=10000"]));
    }

    /// Makes the host's own system answer no echo requests over IPv4.
    pub(super) fn host_is_silent(&self) {
        must(self.host_command("sysctl").args(["-qw", "net.ipv4.icmp_echo_ignore_all=1"]));
    }

    /// Makes the link between router and host carry no more than this.
    pub(super) fn narrow_the_far_link(&self, mtu: u16) {
        ip(&self.router, &format!("link set east mtu {mtu}"));
        ip(&self.host, &format!("link set eth0 mtu {mtu}"));
    }

    /// Makes the router a black hole: what it cannot pass on for its size it drops without a word.
    pub(super) fn router_says_nothing_of_size(&self) {
        must(command(&self.router, "nft").arg("add chain inet t out { type filter hook output priority 0 ; }"));
        for rule in ["icmp type destination-unreachable icmp code frag-needed drop", "icmpv6 type packet-too-big drop"] {
            must(command(&self.router, "nft").arg(format!("add rule inet t out {rule}")));
        }
    }

    /// Counts the packets that leave the node, its own loopback included, and match the rule of nftables.
    pub(super) fn count_leaving(&self, rule: &str) {
        must(self.node_command("nft").args(["add", "table", "inet", "t"]));
        must(self.node_command("nft").arg("add chain inet t out { type filter hook output priority 0 ; }"));
        must(self.node_command("nft").arg(format!("add rule inet t out {rule} counter")));
    }

    /// How many there were.
    pub(super) fn leaving(&self) -> u64 {
        let text =
            String::from_utf8(self.node_command("nft").args(["list", "chain", "inet", "t", "out"]).output().unwrap().stdout).unwrap();
        let counts = text.split("packets ").skip(1).map(|rest| rest.split_whitespace().next().unwrap());
        counts.map(|count| count.parse::<u64>().unwrap()).sum()
    }

    /// Gives the host one more address, with the length of its network.
    pub(super) fn host_address(&self, address: &str) {
        ip(&self.host, &format!("addr add {address} dev eth0"));
    }

    /// What the node's programs read as /etc/hosts.
    pub(super) fn node_hosts(&self, text: &str) {
        let directory = self.node_directory();
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("hosts"), text).unwrap();
    }

    fn node_directory(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.node)
    }

    /// Counts the packets that leave the node for this network of IPv4, to which there is a way.
    pub(super) fn count_what_leaves_for(&self, network: &str) {
        ip(&self.node, &format!("route add {network} via 10.9.0.1"));
        self.count_leaving(&format!("ip daddr {network}"));
    }

    /// What programs in the node's namespace find as /etc/resolv.conf. The file is to be removed with its folder.
    pub(super) fn node_resolv_conf(&self, text: &str) -> PathBuf {
        let folder = self.node_directory();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("resolv.conf"), text).unwrap();
        folder.join("resolv.conf")
    }

    /// A program in the node's namespace.
    pub(super) fn node_command(&self, program: &str) -> Command {
        command(&self.node, program)
    }

    /// A program in the host's namespace.
    pub(super) fn host_command(&self, program: &str) -> Command {
        command(&self.host, program)
    }

    /// Runs what we wrote in the node's namespace: all threads that it starts are there too.
    pub(super) fn in_node<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        inside(&self.node, run)
    }

    /// Runs what we wrote in the host's.
    pub(super) fn in_host<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        inside(&self.host, run)
    }
}

pub(super) fn inside<T: Send + 'static>(namespace: &str, run: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        run()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(super) fn command(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]).env("LC_ALL", "C").env("TZ", "UTC");
    command
}

pub(super) fn ip(namespace: &str, arguments: &str) {
    must(Command::new("ip").args(["-n", namespace]).args(arguments.split(' ')));
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(self.node_directory()));
        for namespace in [&self.node, &self.router, &self.host] {
            drop(Command::new("ip").args(["netns", "del", namespace]).status());
        }
    }
}
