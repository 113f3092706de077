//! A place in the network: a network namespace.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};

/// A client, a router or a server.
#[derive(Debug)]
pub struct Place {
    name: String,
}

impl Place {
    /// Makes it, with a loopback interface.
    pub(super) fn new(name: &str) -> Self {
        must(Command::new("ip").args(["netns", "add", name]), "");
        let place = Self { name: name.to_owned() };
        // Without duplicate address detection an address is usable at once.
        place.sysctl(&["net.ipv6.conf.default.accept_dad=0"]);
        place.ip("-4", "link set lo up");
        place
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Commands of ip(8), one a line, for `-4` or `-6`.
    pub(super) fn ip(&self, family: &str, commands: &str) {
        must(Command::new("ip").args(["-n", &self.name, family, "-batch", "-"]), commands);
    }

    /// Settings of its system; what this kernel does not know is left out.
    pub(super) fn sysctl(&self, settings: &[&str]) {
        must(self.command("sysctl").args(["-q", "-e", "-w"]).args(settings), "");
    }

    /// Rules of nftables.
    pub(super) fn filter(&self, rules: &str) {
        must(self.command("nft").args(["-f", "-"]), rules);
    }

    /// A program in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).env("LC_ALL", "C").env("TZ", "UTC");
        command
    }

    /// Goes there: whatever this thread opens or starts from now on is in it.
    pub fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("a namespace of ours");
        setns(file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Runs what we wrote in it.
    pub fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let run = || {
            self.enter();
            run()
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Runs a program that must do well, with this on its standard input.
#[track_caller]
pub(super) fn must(command: &mut Command, input: &str) {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // It may end without having read it all, and then says why.
    drop(child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().expect("a child of ours");
    assert!(output.status.success(), "{command:?} < {input:?}: {}", String::from_utf8_lossy(&output.stderr));
}
