//! The words of ping(8) with `-M do` for each probe, and a last line like that of tracepath(8).

use std::net::IpAddr;

use super::{BlackHole, PmtuHop, PmtuProbe, PmtuProbeStatus, PmtuProtocol, PmtuReport, PmtuVerdict};
use crate::host::Host;

pub(super) fn heading(target: &Host, address: IpAddr, protocol: PmtuProtocol) -> String {
    let with = if protocol == PmtuProtocol::Udp { "UDP datagrams" } else { "ICMP echo requests" };
    format!("PMTU {target} ({address}) by {with} that must not be fragmented\n")
}

pub(super) fn probe(probe: &PmtuProbe) -> String {
    let from = probe.icmp.as_ref().and_then(|icmp| icmp.from).map_or_else(String::new, |from| format!("From {from}: "));
    let took = probe.rtt_ms.map_or_else(String::new, |rtt_ms| format!("  time={rtt_ms:.3} ms"));
    let mtu = probe.mtu_bytes.unwrap_or(0);
    let what = match probe.status {
        PmtuProbeStatus::Reply => "arrived".to_owned(),
        PmtuProbeStatus::TooBig => format!("{from}{}", probe.icmp.as_ref().map_or("too big", |icmp| icmp.meaning.as_str())),
        PmtuProbeStatus::NotSent => format!("local error: message too long, mtu={mtu}"),
        PmtuProbeStatus::Expired => format!("{from}{}", probe.icmp.as_ref().map_or("time to live exceeded", |icmp| icmp.meaning.as_str())),
        PmtuProbeStatus::Timeout => "no answer".to_owned(),
        PmtuProbeStatus::Unreachable => {
            format!("{from}{}", probe.reason.as_deref().unwrap_or("cannot be reached"))
        }
    };
    let ttl = probe.ttl.map_or_else(String::new, |ttl| format!(", ttl={ttl}"));
    format!("{:>5} bytes{ttl}: {what}{took}\n", probe.size_bytes)
}

pub(super) fn summary(report: &PmtuReport) -> String {
    let mtu = report.mtu_bytes.unwrap_or(0);
    match report.verdict {
        PmtuVerdict::Interface => format!("     Resume: pmtu {mtu}, as the interface of this node\n"),
        PmtuVerdict::Hop => {
            let hop = report.limited_by.map_or_else(|| "a hop".to_owned(), |hop| hop.to_string());
            format!("     Resume: pmtu {mtu}, limited by {hop}\n")
        }
        PmtuVerdict::BlackHole => {
            let hole = report.black_hole.as_ref().map_or_else(String::new, place);
            format!("     Resume: pmtu {mtu}, black hole{hole}: larger packets vanish and nobody says so\n")
        }
        PmtuVerdict::Capped => format!("     Resume: pmtu {mtu} or more; nothing larger was tried\n"),
        PmtuVerdict::Silent => "     Resume: no answer, even to the smallest packets\n".to_owned(),
        PmtuVerdict::Unreachable => "     Resume: the target cannot be reached\n".to_owned(),
    }
}

/// Between which hops.
fn place(hole: &BlackHole) -> String {
    let named = |hop: PmtuHop| format!("hop {} ({})", hop.ttl, hop.address);
    match (hole.after.map(named), hole.before.map(named)) {
        (Some(after), Some(before)) => format!(" between {after} and {before}"),
        (Some(after), None) => format!(" behind {after}"),
        (None, Some(before)) => format!(" before {before}"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::network::{Family, IcmpMessage};

    #[test]
    fn output_reads_like_ping_and_tracepath() {
        let (target, address): (Host, IpAddr) = ("example.com".parse().unwrap(), "10.9.1.2".parse().unwrap());
        let hop = Some("10.9.0.1".parse().unwrap());
        let too_big = PmtuProbe {
            size_bytes: 1500,
            status: PmtuProbeStatus::TooBig,
            rtt_ms: Some(0.5),
            mtu_bytes: Some(1400),
            icmp: Some(IcmpMessage::new(Family::V4, 3, 4, hop).with_mtu(1400)),
            ..PmtuProbe::default()
        };
        let arrived = PmtuProbe { size_bytes: 1400, status: PmtuProbeStatus::Reply, rtt_ms: Some(1.25), ..PmtuProbe::default() };
        let report = PmtuReport {
            address,
            family: Family::V4,
            resolve_ms: None,
            protocol: PmtuProtocol::Icmp,
            mtu_bytes: Some(1400),
            verdict: PmtuVerdict::Hop,
            limited_by: hop,
            black_hole: None,
            interface_mtu_bytes: None,
            probes: Vec::new(),
        };
        let text = heading(&target, address, report.protocol) + &probe(&too_big) + &probe(&arrived) + &summary(&report);
        assert_eq!(
            text,
            "PMTU example.com (10.9.1.2) by ICMP echo requests that must not be fragmented\n\
             \x20\x20 1500 bytes: From 10.9.0.1: Frag needed and DF set (mtu = 1400)  time=0.500 ms\n\
             \x20\x20 1400 bytes: arrived  time=1.250 ms\n\
             \x20    Resume: pmtu 1400, limited by 10.9.0.1\n"
                .replace("\x20\x20 1", " 1")
        );
        let v6 = PmtuProbe { icmp: Some(IcmpMessage::new(Family::V6, 2, 0, "fd09::1".parse().ok()).with_mtu(1400)), ..too_big };
        assert_eq!(probe(&v6), " 1500 bytes: From fd09::1: Packet too big: mtu=1400  time=0.500 ms\n");
    }

    #[test]
    fn a_black_hole_is_said_to_be_between_the_hops_that_are_known() {
        let hop = |ttl, address: &str| Some(PmtuHop { ttl, address: address.parse().unwrap() });
        for (after, before, expected) in [
            (hop(1, "10.9.0.1"), hop(2, "10.9.1.2"), " between hop 1 (10.9.0.1) and hop 2 (10.9.1.2)"),
            (hop(1, "fd09::1"), None, " behind hop 1 (fd09::1)"),
            (None, hop(1, "10.9.0.1"), " before hop 1 (10.9.0.1)"),
            (None, None, ""),
        ] {
            assert_eq!(place(&BlackHole { after, before }), expected);
        }
        let icmp = Some(IcmpMessage::new(Family::V4, 11, 0, "10.9.0.1".parse().ok()));
        let expired = PmtuProbe { size_bytes: 1401, ttl: Some(1), status: PmtuProbeStatus::Expired, icmp, ..PmtuProbe::default() };
        assert_eq!(probe(&expired), " 1401 bytes, ttl=1: From 10.9.0.1: Time to live exceeded\n");
    }
}
