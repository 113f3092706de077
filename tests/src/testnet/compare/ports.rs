//! `tcp` beside nc(1): which ports are open, and what greets there.

use serde_json::json;

use super::super::reference::{both, says};
use super::super::registry::{GREETING, GREETING_PORT, REGISTRY};
use super::super::table::Row;
use super::super::{Asker, Testnet};
use super::text;

/// Ports, and what becomes of a connection to them.
const PORTS: [(u16, &str); 5] = [(GREETING_PORT, "open"), (43, "open"), (81, "refused"), (4444, "filtered"), (4445, "unreachable")];

/// Every port.
pub(super) fn states(_: &Testnet, asker: &Asker) -> Row {
    let mut row = Row::new("ports: open, refused, filtered, unreachable; a banner", "nc");
    let mut agreed = 0;
    for (port, state) in PORTS {
        let port_text = port.to_string();
        let options = json!({"port": port, "timeout": 2});
        let theirs = || says("nc.openbsd", &["-n", "-v", "-z", "-w", "2", REGISTRY, &port_text]);
        let ((report, _), said) = both(|| asker.ask("tcp", REGISTRY, &options), theirs);
        let words = [("succeeded", "open"), ("refused", "refused"), ("timed out", "filtered"), ("No route to host", "unreachable")];
        let theirs = words.into_iter().find(|(words, _)| said.contains(words)).map_or(said.as_str(), |(_, state)| state).to_owned();
        let ours = text(&report["ports"][0]["state"]);
        row.same(format!("port {port}"), &ours, &theirs);
        row.check(ours == state, || format!("port {port} is built to be {state}: {report}"));
        agreed += usize::from(ours == theirs);
    }
    let options = json!({"port": GREETING_PORT, "banner": true});
    let port = GREETING_PORT.to_string();
    let ((report, _), said) =
        both(|| asker.ask("tcp", REGISTRY, &options), || says("nc.openbsd", &["-n", "-d", "-w", "2", REGISTRY, &port]));
    let banner = report["ports"][0]["banner"].to_string();
    row.check(banner.contains(GREETING) && said.contains(GREETING), || format!("the banner: {banner} {said}"));
    row.found(format!("{agreed} of {}", PORTS.len()), PORTS.len())
}
