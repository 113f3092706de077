//! A report as `mtr --report` prints it, with all addresses of a hop (`--show-ips` where names are shown) and as wide as the longest of them.

use std::fmt::Write as _;

use super::Mtr;
use super::report::{MtrAddress, MtrHop, MtrReport};
use crate::tools::network::MplsLabel;

/// How wide the column of the hops is at least, and what stands in it before the name.
const HOP_WIDTH_MIN: usize = 34;
const TREE: &str = "|-- ";
/// How wide the column of the origins is at least.
const ORIGIN_WIDTH_MIN: usize = 9;
/// An address that nobody is known to announce.
const UNKNOWN: &str = "AS???";
/// A hop that nobody answers for.
const NOBODY: &str = "???";

pub(super) fn of(report: &MtrReport, options: &Mtr) -> String {
    let column = Column::of(report, options);
    let width = report.hops.iter().map(|hop| column.hop(hop).len() + 1).max().unwrap_or_default().max(HOP_WIDTH_MIN);
    let mut text = format!("Start: {}\n", started(report));
    // The first column says from where; the node is known by other means.
    let _ = writeln!(text, "HOST: {:width$}Loss%   Snt   Last   Avg  Best  Wrst StDev", "node", width = width - 6);
    for hop in &report.hops {
        // As mtr(8) leaves the sign out where there is no room for it.
        let loss =
            hop.loss_pct.map_or_else(|| "0.0%".to_owned(), |loss| if loss >= 100.0 { "100.0".to_owned() } else { format!("{loss:.1}%") });
        let of = |ms: Option<f64>| ms.unwrap_or_default();
        let _ = writeln!(
            text,
            "{:width$}{loss:>5}{:6}{:7.1}{:6.1}{:6.1}{:6.1}{:6.1}",
            column.hop(hop),
            hop.sent,
            of(hop.last_ms),
            of(hop.avg_ms),
            of(hop.best_ms),
            of(hop.worst_ms),
            of(hop.stdev_ms)
        );
        for (index, address) in hop.addresses.iter().enumerate() {
            if index > 0 {
                let _ = writeln!(text, "{}", column.address(address));
            }
            text.extend(address.mpls.iter().copied().map(label));
        }
    }
    text
}

/// The first column.
struct Column {
    names: bool,
    /// How wide the origins in it are, where they are shown.
    origins: Option<usize>,
}

impl Column {
    fn of(report: &MtrReport, options: &Mtr) -> Self {
        let addresses = report.hops.iter().flat_map(|hop| &hop.addresses);
        // Two numbers run into the name in mtr(8).
        let widest = || addresses.map(|address| origins(&address.asn).len() + 1).max().unwrap_or_default().max(ORIGIN_WIDTH_MIN);
        Self { names: options.names, origins: options.asn.then(widest) }
    }

    /// Whoever answered first.
    fn hop(&self, hop: &MtrHop) -> String {
        let first = hop.addresses.first();
        let before =
            self.origins.map_or_else(|| TREE.to_owned(), |width| format!(" {:width$}", origins(first.map_or(&[], |address| &address.asn))));
        format!("{:3}.{before}{}", hop.ttl, first.map_or_else(|| NOBODY.to_owned(), |address| name(address, self.names)))
    }

    /// A further one, below.
    fn address(&self, address: &MtrAddress) -> String {
        let before = self.origins.map_or_else(|| " ".repeat(TREE.len()), |width| format!(" {:width$}", origins(&address.asn)));
        format!("    {before}{}", name(address, self.names))
    }
}

/// As `mtr --aslookup` prints them.
fn origins(asn: &[u32]) -> String {
    if asn.is_empty() { UNKNOWN.to_owned() } else { format!("AS{}", asn.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")) }
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
