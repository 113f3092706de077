//! A report as `mtr --report` prints it, with all addresses of a hop (`--show-ips` where names are shown) and as wide as the longest of them.

use std::fmt::Write as _;

use super::report::{MtrAddress, MtrHop, MtrReport};
use crate::tools::network::MplsLabel;

/// How wide the first column is at least.
const NAME_WIDTH_MIN: usize = 26;
/// A hop that nobody answers for.
const NOBODY: &str = "???";

pub(super) fn of(report: &MtrReport, names: bool) -> String {
    let name = |hop: &MtrHop| hop.addresses.first().map_or_else(|| NOBODY.to_owned(), |address| name(address, names));
    let width = report.hops.iter().map(|hop| name(hop).len()).max().unwrap_or_default().max(NAME_WIDTH_MIN);
    let mut text = format!("Start: {}\n", started(report));
    // The first column says from where; the node is known by other means.
    let _ = writeln!(text, "HOST: {:width$}Loss%   Snt   Last   Avg  Best  Wrst StDev", "node", width = width + 2);
    for hop in &report.hops {
        // As mtr(8) leaves the sign out where there is no room for it.
        let loss =
            hop.loss_pct.map_or_else(|| "0.0%".to_owned(), |loss| if loss >= 100.0 { "100.0".to_owned() } else { format!("{loss:.1}%") });
        let of = |ms: Option<f64>| ms.unwrap_or_default();
        let _ = writeln!(
            text,
            "{:3}.|-- {:width$}{loss:>5}{:6}{:7.1}{:6.1}{:6.1}{:6.1}{:6.1}",
            hop.ttl,
            name(hop),
            hop.sent,
            of(hop.last_ms),
            of(hop.avg_ms),
            of(hop.best_ms),
            of(hop.worst_ms),
            of(hop.stdev_ms)
        );
        for (index, address) in hop.addresses.iter().enumerate() {
            if index > 0 {
                let _ = writeln!(text, "        {}", self::name(address, names));
            }
            text.extend(address.mpls.iter().copied().map(label));
        }
    }
    text
}

fn started(report: &MtrReport) -> String {
    // RFC 3339 with fractions and `Z` to what mtr prints: whole seconds and an offset.
    let text = report.started_at.to_string();
    format!("{}+0000", text.split(['.', 'Z']).next().unwrap_or_default())
}

fn name(address: &MtrAddress, names: bool) -> String {
    match &address.name {
        Some(name) if names => format!("{name} ({})", address.address),
        Some(_) | None => address.address.to_string(),
    }
}

fn label(label: MplsLabel) -> String {
    let MplsLabel { label, traffic_class, bottom, ttl } = label;
    format!("       [MPLS: Lbl {label} TC {traffic_class} S {} TTL {ttl}]\n", u8::from(bottom))
}
