//! What this machine lets the agent do.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use probeops_nats::connect::Credential;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use probeops_shared::tools::network::Family;

use super::Finding;
use crate::capability;
use crate::net::icmp;

/// What clocks of signers may be ahead of ours.
const SKEW: Duration = Duration::from_secs(60);

/// The tools, and what they are made of.
pub(super) fn examine(granted: &[ToolName]) -> Vec<Finding> {
    let (tools, unavailable) = capability::probe(granted);
    let mut found = vec![icmp_sockets(granted.contains(&ToolName::Ping))];
    let tools: Vec<&str> = tools.iter().map(|tool| tool.as_str()).collect();
    found.push(Finding::ok("tools", format!("this machine can run {}", tools.join(", "))));
    found.extend(unavailable.into_iter().map(|lacks| Finding::failed("tools", format!("{}: {}", lacks.tool, lacks.missing), lacks.grant)));
    found
}

/// Which sockets may be opened. Traces by UDP and TCP need none of them; ping and traces by ICMP need one of either kind.
fn icmp_sockets(needed: bool) -> Finding {
    let [datagram, raw] = icmp::try_both(Family::V4);
    let [datagram_v6, raw_v6] = icmp::try_both(Family::V6);
    let word = |opened: &std::io::Result<()>| opened.as_ref().map_or_else(|error| format!("no ({error})"), |()| "yes".to_owned());
    let v6 = if datagram_v6.is_ok() || raw_v6.is_ok() { "yes" } else { "no" };
    let detail = format!(
        "datagram {}, raw {}, over IPv6 {v6}; CAP_NET_RAW {}",
        word(&datagram),
        word(&raw),
        if has_net_raw() { "yes" } else { "no" }
    );
    match (datagram.is_ok() || raw.is_ok(), needed) {
        (true, _) => Finding::ok("icmp sockets", detail),
        (false, true) => Finding::failed("icmp sockets", detail, capability::grant_icmp()),
        (false, false) => Finding::note("icmp sockets", detail, capability::grant_icmp()),
    }
}

/// Whether this process has the capability for raw sockets (capabilities(7), number 13).
fn has_net_raw() -> bool {
    const CAP_NET_RAW: u32 = 13;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_some_and(|mask| mask & (1 << CAP_NET_RAW) != 0)
}

/// A credential that everybody on this machine can read.
pub(super) fn open_to_others(path: &Path) -> Option<Finding> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let open = mode & 0o007 != 0;
    open.then(|| {
        let shown = path.display();
        Finding::note(
            "credential",
            format!("everybody on this machine can read {shown} (mode {:o})", mode & 0o777),
            format!("chmod o= {shown}"),
        )
    })
}

/// A clock that is behind the moment at which the credential was signed.
pub(super) fn clock_behind(credential: &Credential) -> Option<Finding> {
    let issued_at = credential.issued_at?;
    (Timestamp::now().plus(SKEW) < issued_at).then(|| {
        Finding::failed(
            "clock",
            format!("it is {} here, and the credential was signed at {issued_at}", Timestamp::now()),
            "timedatectl set-ntp true   # in a container, on its host",
        )
    })
}
