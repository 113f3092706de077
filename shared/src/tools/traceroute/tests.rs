use serde_json::json;

use super::*;
use crate::tools::network::{IcmpMessage, MplsLabel};
use crate::tools::trace::ProbeStatus;
use crate::tools::{Spec, ToolName};

fn answer(from: &str, rtt_ms: f64) -> TraceProbe {
    TraceProbe { status: ProbeStatus::Answered, from: Some(from.parse().unwrap()), rtt_ms: Some(rtt_ms), ..TraceProbe::default() }
}

fn error(from: &str, kind: u8, code: u8) -> TraceProbe {
    let address: IpAddr = from.parse().unwrap();
    TraceProbe { icmp: Some(IcmpMessage::new(Family::of(address), kind, code, Some(address))), ..answer(from, 1.0) }
}

fn hop(ttl: u8, probes: Vec<TraceProbe>) -> TraceHop {
    TraceHop { ttl, probes, ..TraceHop::default() }
}

#[test]
fn output_reads_like_traceroute() {
    let silent = TraceProbe::default;
    let labelled =
        |label| TraceProbe { mpls: vec![MplsLabel { label, traffic_class: 0, bottom: true, ttl: 1 }], ..answer("192.0.2.4", 20.0) };
    let report = TracerouteReport {
        address: "198.51.100.7".parse().unwrap(),
        family: Family::V4,
        resolve_ms: Some(1.0),
        method: TraceMethod::IcmpDatagram,
        port: None,
        packet_bytes: 60,
        flow: TraceFlow::Constant,
        end: TraceEnd::Unreachable,
        hops: vec![
            hop(1, vec![answer("192.0.2.1", 0.1), answer("192.0.2.1", 0.25), silent()]),
            hop(2, vec![silent(), silent(), silent()]),
            hop(3, vec![answer("192.0.2.2", 12.3456), answer("192.0.2.3", 1.5), silent()]),
            hop(4, vec![labelled(16), labelled(16), labelled(17)]),
            hop(10, vec![error("192.0.2.9", 3, 1), error("192.0.2.9", 3, 13), error("192.0.2.9", 3, 3)]),
        ],
        elapsed_ms: 100.0,
    };
    assert_eq!(
        Traceroute::default().output(&"Example.com".parse().unwrap(), &report),
        "traceroute to example.com (198.51.100.7), 30 hops max, 60 byte packets\n \
         1  192.0.2.1  0.100 ms  0.250 ms *\n \
         2  * * *\n \
         3  192.0.2.2  12.346 ms 192.0.2.3  1.500 ms *\n \
         4  192.0.2.4 <MPLS:L=16,E=0,S=1,T=1>  20.000 ms  20.000 ms 192.0.2.4 <MPLS:L=17,E=0,S=1,T=1>  20.000 ms\n\
         10  192.0.2.9  1.000 ms !H  1.000 ms !X  1.000 ms\n"
    );
}

#[test]
fn names_stand_before_their_addresses() {
    let names = vec![HopName { address: "192.0.2.1".parse().unwrap(), name: "gate.example".to_owned() }];
    let hop = TraceHop { names, ..hop(1, vec![answer("192.0.2.1", 1.0), answer("192.0.2.2", 1.0)]) };
    let text =
        Traceroute { names: true, ..Traceroute::default() }.progress_output(&"192.0.2.9".parse().unwrap(), &TracerouteProgress::Hop(hop));
    assert_eq!(text, " 1  gate.example (192.0.2.1)  1.000 ms 192.0.2.2 (192.0.2.2)  1.000 ms\n");
}

#[test]
fn origins_stand_behind_addresses_as_traceroute_prints_them() {
    let origins = vec![HopOrigin { address: "192.0.2.1".parse().unwrap(), asn: vec![64500, 64501] }];
    let hop = TraceHop { origins, ..hop(1, vec![answer("192.0.2.1", 1.0), answer("192.0.2.2", 1.0)]) };
    let told = |options: Traceroute| options.progress_output(&"192.0.2.9".parse().unwrap(), &TracerouteProgress::Hop(hop.clone()));
    assert_eq!(
        told(Traceroute { asn: true, ..Traceroute::default() }),
        " 1  192.0.2.1 [AS64500/AS64501]  1.000 ms 192.0.2.2 [*]  1.000 ms\n"
    );
    assert_eq!(told(Traceroute::default()), " 1  192.0.2.1  1.000 ms 192.0.2.2  1.000 ms\n");
}

#[test]
fn errors_have_the_marks_of_traceroute() {
    let mark = |from, kind, code| error(from, kind, code).mark();
    for (code, wanted) in [(0, "!N"), (1, "!H"), (2, "!P"), (4, "!F-0"), (5, "!S"), (9, "!X"), (10, "!X"), (13, "!X"), (16, "!<16>")] {
        assert_eq!(mark("192.0.2.1", 3, code).as_deref(), Some(wanted));
    }
    for (kind, code, wanted) in [(1, 0, "!N"), (1, 1, "!X"), (1, 3, "!H"), (1, 5, "!<5>"), (2, 0, "!F-0")] {
        assert_eq!(mark("2001:db8::1", kind, code).as_deref(), Some(wanted));
    }
    assert_eq!((mark("192.0.2.1", 3, 3), mark("2001:db8::1", 1, 4)), (None, None));
}

#[test]
fn the_most_answers_there_may_be_fit_an_outcome() {
    let probe = answer("2001:db8:1234:5678:9abc:def0:1234:5678", 59_999.999);
    let hops: Vec<TraceHop> = (1..=32).map(|ttl| hop(ttl, vec![probe.clone(); 64])).collect();
    assert_eq!(hops.iter().map(|hop| hop.probes.len()).sum::<usize>(), usize::try_from(PROBES_MAX).unwrap());
    assert!(serde_json::to_vec(&hops).unwrap().len() < crate::outcome::OUTCOME_BYTES_MAX * 3 / 4);
}

#[test]
fn a_run_has_the_time_that_waiting_for_all_its_packets_takes() {
    let longest = |parameters: serde_json::Value| serde_json::from_value::<Traceroute>(parameters).unwrap().longest();
    // Five silent hops are 320 packets, of which 32 are under way at once: ten times two seconds instead of one.
    assert!(longest(json!({"queries": 64})) >= longest(json!({})) + Duration::from_secs(9 * 2));
}

#[test]
fn what_means_nothing_together_is_refused() {
    let parse = |parameters: serde_json::Value| Spec::parse(ToolName::Traceroute, "example.com", parameters.as_object().unwrap().clone());
    let refuses = |parameters: serde_json::Value, pointer: &str, part: &str| {
        let invalid = parse(parameters).unwrap_err();
        assert!(invalid.pointer == pointer && invalid.detail.contains(part), "{invalid}");
    };
    refuses(json!({"port": 80}), "/parameters/port", "ICMP has no ports");
    refuses(json!({"protocol": "udp", "port": 0}), "/parameters/port", "from 1 to 65535 for UDP");
    assert!(parse(json!({"protocol": "tcp", "port": 0, "max_ttl": 5})).is_ok());
    refuses(json!({"protocol": "tcp", "payload_bytes": 32}), "/parameters/payload_bytes", "carries nothing");
    refuses(json!({"protocol": "tcp", "flow": "per_probe", "flows": 2}), "/parameters/flows", "a flow of its own");
    refuses(json!({"flow": "per_probe"}), "/parameters/flow", "ICMP has no ports to vary");
    refuses(json!({"protocol": "tcp", "queries": 16}), "/parameters/queries", "set `flow` to \"per_probe\"");
    refuses(json!({"first_ttl": 5, "max_ttl": 4}), "/parameters/first_ttl", "the first hop (5) lies behind the last (4)");
    refuses(
        json!({"queries": 64, "max_ttl": 33}),
        "/parameters/queries",
        "64 packets to each of the hops 1 to 33 are 2112; a run may send 2048",
    );
    refuses(json!({"queries": 65}), "/parameters/queries", "from 1 to 64");
    refuses(json!({"timeout": 60}), "/parameters/timeout", "60000 ms for 3 packets to each of the hops 1 to 30 may take");
    assert!(parse(json!({"timeout": 60, "max_ttl": 10})).is_ok() && parse(json!({"queries": 64, "flows": 64})).is_ok());
    refuses(json!({"flows": 4}), "/parameters/flows", "3 queries cannot be spread over 4 flows");
    refuses(json!({"max_ttl": 255, "timeout": 10}), "/parameters/timeout", "a run may take at most 300 s");
    assert!(parse(json!({"max_ttl": 255})).unwrap().budget() < Duration::from_mins(6));
    assert!(parse(json!({})).unwrap().budget() < Duration::from_secs(30));
}
