//! A path as traceroute(8) prints it.

use std::net::IpAddr;

use super::{TraceHop, Traceroute};
use crate::host::Host;
use crate::tools::network::MplsLabel;

pub(super) fn opening(options: &Traceroute, target: &Host, address: IpAddr) -> String {
    let packet_bytes = options.packet_bytes(address);
    format!("traceroute to {target} ({address}), {} hops max, {packet_bytes} byte packets\n", options.max_ttl)
}

/// A line. An address is named where it is another than that of the packet before, or under other labels.
pub(super) fn hop(hop: &TraceHop, options: &Traceroute) -> String {
    let mut text = format!("{:2} ", hop.ttl);
    let mut before = None;
    for probe in &hop.probes {
        let Some(from) = probe.from else {
            text.push_str(if probe.error.is_some() { " !" } else { " *" });
            continue;
        };
        if before != Some((from, &probe.mpls)) {
            text.push(' ');
            text.push_str(&address(hop, from, options.names));
            if options.asn {
                text.push_str(&origins(hop, from));
            }
            text.push_str(&labels(&probe.mpls));
        }
        before = Some((from, &probe.mpls));
        text.push_str(&probe.rtt_ms.map_or_else(String::new, |rtt_ms| format!("  {rtt_ms:.3} ms")));
        text.push_str(&probe.mark().map_or_else(String::new, |mark| format!(" {mark}")));
    }
    text.push('\n');
    // traceroute(8) would end here, with these words.
    let error = hop.probes.iter().find_map(|probe| probe.error.as_ref());
    text + &error.map_or_else(String::new, |error| format!("send: {error}\n"))
}

fn address(hop: &TraceHop, from: IpAddr, names: bool) -> String {
    if !names {
        return from.to_string();
    }
    let name = hop.names.iter().find(|name| name.address == from).map_or_else(|| from.to_string(), |name| name.name.clone());
    format!("{name} ({from})")
}

/// As `traceroute -A` prints them.
fn origins(hop: &TraceHop, from: IpAddr) -> String {
    let origin = hop.origins.iter().find(|origin| origin.address == from);
    let asn = origin.map_or_else(|| "*".to_owned(), |origin| origin.asn.iter().map(|asn| format!("AS{asn}")).collect::<Vec<_>>().join("/"));
    format!(" [{asn}]")
}

fn labels(labels: &[MplsLabel]) -> String {
    let label = |label: &MplsLabel| {
        let MplsLabel { label, traffic_class, bottom, ttl } = label;
        format!("L={label},E={traffic_class},S={},T={ttl}", u8::from(*bottom))
    };
    if labels.is_empty() { String::new() } else { format!(" <MPLS:{}>", labels.iter().map(label).collect::<Vec<_>>().join("/")) }
}
