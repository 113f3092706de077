//! A network namespace that goes with the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use super::must;

pub(super) struct Namespace(String);

impl Namespace {
    /// Makes it, with a loopback interface, and with chains of nftables for `prerouting`, `input`, `forward` and `output` that let everything pass.
    pub(super) fn new(name: String) -> Self {
        must(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self(name);
        // Without duplicate address detection an address is usable at once.
        namespace.sysctl(&["net.ipv6.conf.default.accept_dad=0"]);
        must(namespace.command("nft").args(["add", "table", "inet", "t"]));
        for hook in ["prerouting", "input", "forward", "output"] {
            must(namespace.command("nft").arg(format!("add chain inet t {hook} {{ type filter hook {hook} priority 0 ; }}")));
        }
        namespace.ip("link set lo up");
        namespace
    }

    /// A program in it.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]).env("LC_ALL", "C").env("TZ", "UTC");
        command
    }

    /// Runs what we wrote in it: all threads that it starts are there too.
    pub(super) fn run<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        let thread = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            run()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// What programs in it read as the file of this name in /etc.
    pub(super) fn etc(&self, name: &str, text: &str) {
        let directory = self.etc_directory();
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(name), text).unwrap();
    }

    fn etc_directory(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.0)
    }

    /// Runs ip(8) on it; words are split at spaces.
    pub(super) fn ip(&self, arguments: &str) {
        must(Command::new("ip").args(["-n", &self.0]).args(arguments.split(' ')));
    }

    pub(super) fn sysctl(&self, settings: &[&str]) {
        must(self.command("sysctl").arg("-qw").args(settings));
    }

    /// Which groups may open datagram ICMP sockets.
    pub(super) fn ping_groups(&self, range: &str) {
        self.sysctl(&[&format!("net.ipv4.ping_group_range={range}")]);
    }

    /// Joins a device of it with one of another.
    pub(super) fn join(&self, device: &str, other: &Self, its_device: &str) {
        self.ip(&format!("link add {device} type veth peer name {its_device} netns {}", other.0));
    }

    /// Gives a device its addresses, with the lengths of their networks, and starts it.
    pub(super) fn start(&self, device: &str, addresses: [&str; 2]) {
        for address in addresses {
            self.ip(&format!("addr add {address} dev {device}"));
        }
        self.ip(&format!("link set {device} up"));
    }

    /// Waits until it reaches an address: a link that has just been made carries nothing for up to a second.
    pub(super) fn await_way_to(&self, address: &str) {
        must(self.command("ping").args(["-n", "-c", "1", "-W", "10", address]));
    }

    /// Adds a rule of nftables to the chain of a hook.
    pub(super) fn filter(&self, hook: &str, rule: &str) {
        must(self.command("nft").arg(format!("add rule inet t {hook} {rule}")));
    }

    /// How many packets the counters of a chain have counted.
    pub(super) fn counted(&self, hook: &'static str) -> u64 {
        self.run(move || counted_here(hook))
    }
}

/// How many they have counted in the namespace of this thread.
pub(super) fn counted_here(hook: &str) -> u64 {
    let output = Command::new("nft").args(["list", "chain", "inet", "t", hook]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let counts = text.split("counter packets ").skip(1).map(|rest| rest.split_whitespace().next().unwrap());
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "del", &self.0]).status());
        drop(std::fs::remove_dir_all(self.etc_directory()));
    }
}
