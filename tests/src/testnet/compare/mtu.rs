//! `pmtu` beside tracepath(8): the same size, and who limits it.

use serde_json::json;

use super::super::path::MTU_BYTES;
use super::super::reference::{both, says};
use super::super::table::Row;
use super::super::{Asker, Testnet};
use super::{HOST, HOST_V6, text};

/// Over both versions of IP.
pub(super) fn paths(_: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("path MTU over IPv4 and IPv6, and the hop that limits it", "tracepath");
    let mut found = [String::new(), String::new()];
    for (target, router) in [(HOST, "10.77.4.2"), (HOST_V6, "fd77:4::2")] {
        // What the system has learnt of the path would show in what is asked of it.
        says("ip", &["-4", "route", "flush", "cache"]);
        says("ip", &["-6", "route", "flush", "cache"]);
        let theirs = || says("tracepath", &["-n", "-m", "10", target]);
        let ((report, output), said) = both(|| asker.ask("pmtu", target, &json!({})), theirs);
        let resume = said.lines().find_map(|line| line.trim().strip_prefix("Resume: pmtu ")).and_then(|rest| rest.split(' ').next());
        let theirs = resume.and_then(|size| size.parse::<u64>().ok());
        row.same(format!("{target}\n{output}\n{said}"), &report["mtu_bytes"].as_u64(), &theirs);
        row.check(theirs == Some(MTU_BYTES), || format!("{target} is built otherwise:\n{said}"));
        // tracepath learns of it from the system where the other has been told first, and then cannot say by whom.
        let limiting = said.lines().find(|line| line.trim_end().ends_with(&format!("pmtu {MTU_BYTES}")));
        let limiting = limiting.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default();
        row.check([router, "[LOCALHOST]"].contains(&limiting), || format!("{target} is limited by another:\n{said}"));
        row.same("who limits it", &text(&report["limited_by"]), &router.to_owned());
        found[0] += &format!(" {}", report["mtu_bytes"]);
        found[1] += &format!(" {}", theirs.unwrap_or_default());
    }
    row.found(found[0].trim(), found[1].trim())
}
