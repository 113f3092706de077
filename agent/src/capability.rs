//! Which tools this process can really run, found out by trying.

use std::path::Path;

use probeops_shared::presence::Unavailable;
use probeops_shared::tools::ToolName;

use crate::net::icmp;

/// Where the groups that may open datagram ICMP sockets are set, for IPv4 and IPv6 both (icmp(7)).
const PING_GROUP_RANGE: &str = "/proc/sys/net/ipv4/ping_group_range";

/// Of the granted tools those that can run, and what is missing for the others.
pub(crate) fn probe(granted: &[ToolName]) -> (Vec<ToolName>, Vec<Unavailable>) {
    let (mut tools, mut unavailable) = (Vec::new(), Vec::new());
    for tool in granted {
        match missing(*tool) {
            None => tools.push(*tool),
            Some((missing, grant)) => unavailable.push(Unavailable { tool: *tool, missing, grant }),
        }
    }
    (tools, unavailable)
}

/// What a tool lacks, and the command that grants it.
fn missing(tool: ToolName) -> Option<(String, String)> {
    match tool {
        // A trace by UDP or TCP needs nothing.
        ToolName::Echo
        | ToolName::Traceroute
        | ToolName::Mtr
        | ToolName::Dns
        | ToolName::Tcp
        | ToolName::Tls
        | ToolName::Http
        | ToolName::Pmtu
        | ToolName::Whois => None,
        ToolName::Ping => icmp::try_open().err().map(|error| (format!("no ICMP socket can be opened ({error})"), grant_icmp())),
    }
}

/// What this process lacks for ICMP, and the command that grants it, in one line.
pub(crate) fn icmp_lacks() -> Option<String> {
    icmp::try_open().err().map(|error| format!("no ICMP socket can be opened ({error}); allow it with: {}", grant_icmp()))
}

pub(crate) fn grant_icmp() -> String {
    let group = nix::unistd::getegid().as_raw();
    let sysctl = sysctl(group, &std::fs::read_to_string(Path::new(PING_GROUP_RANGE)).unwrap_or_default());
    let program = std::env::current_exe().map_or_else(|_| "PATH/TO/AGENT".to_owned(), |path| path.display().to_string());
    format!("{sysctl} (or: setcap cap_net_raw+ep {program})")
}

/// The command that lets this group ping, and whoever could before too.
fn sysctl(group: u32, range: &str) -> String {
    let bounds: Vec<u32> = range.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let (first, last) = match bounds.as_slice() {
        [first, last] if first <= last => (*first.min(&group), *last.max(&group)),
        _ => (group, group),
    };
    format!("sysctl -w net.ipv4.ping_group_range=\"{first} {last}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_keeps_the_groups_that_could_ping_before() {
        assert_eq!(sysctl(1000, "1\t0\n"), "sysctl -w net.ipv4.ping_group_range=\"1000 1000\"");
        assert_eq!(sysctl(1000, "100 200"), "sysctl -w net.ipv4.ping_group_range=\"100 1000\"");
        assert_eq!(sysctl(0, ""), "sysctl -w net.ipv4.ping_group_range=\"0 0\"");
    }

    #[test]
    fn what_needs_no_privilege_can_always_run_and_nothing_is_lost() {
        let (tools, unavailable) = probe(ToolName::ALL);
        assert!(ToolName::ALL.iter().filter(|tool| **tool != ToolName::Ping).all(|tool| tools.contains(tool)));
        assert_eq!(tools.len() + unavailable.len(), ToolName::ALL.len());
        assert!(probe(&[]).0.is_empty());
    }
}
