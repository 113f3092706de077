use serde_json::json;

use super::report::{judge_loss, limit_rtts};
use super::*;
use crate::timestamp::Timestamp;
use crate::tools::network::Family;
use crate::tools::trace::{ProbeStatus, TraceEnd, TraceFlow, TraceMethod, TraceProbe};
use crate::tools::{Spec, ToolName};

fn answer(from: &str, rtt_ms: f64) -> TraceProbe {
    TraceProbe { status: ProbeStatus::Answered, from: Some(from.parse().unwrap()), rtt_ms: Some(rtt_ms), ..TraceProbe::default() }
}

fn hop(ttl: u8, probes: &[TraceProbe]) -> MtrHop {
    MtrHop::of(ttl, probes.iter())
}

#[test]
fn statistics_are_those_of_mtr() {
    // As mtr(8) printed for these two: 0.104 0.127 0.104 0.151 0.032 with its own rounding.
    let hop = hop(1, &[answer("192.0.2.1", 0.151), answer("192.0.2.1", 0.104), TraceProbe::default()]);
    assert_eq!((hop.sent, hop.received, hop.loss_pct), (3, 2, Some(33.333)));
    assert_eq!((hop.last_ms, hop.avg_ms, hop.best_ms, hop.worst_ms), (Some(0.104), Some(0.128), Some(0.104), Some(0.151)));
    assert_eq!((hop.stdev_ms, hop.jitter_ms), (Some(0.033), Some(0.047)));
    assert_eq!((hop.jitter_min_ms, hop.jitter_max_ms, &hop.rtts_ms), (Some(0.047), Some(0.047), &vec![Some(0.151), Some(0.104), None]));
    let hop = self::hop(1, &[10.0, 13.0, 12.5, 22.5].map(|rtt| answer("192.0.2.1", rtt)));
    assert_eq!((hop.jitter_min_ms, hop.jitter_ms, hop.jitter_max_ms), (Some(0.5), Some(4.5), Some(10.0)));
}

#[test]
fn what_was_not_measured_is_absent() {
    let silent = serde_json::to_value(hop(3, &[TraceProbe::default()])).unwrap();
    assert_eq!(silent, json!({"ttl": 3, "addresses": [], "sent": 1, "received": 0, "loss_pct": 100.0, "limited": false}));
    let unsent =
        hop(1, &[TraceProbe { status: ProbeStatus::Error, error: Some("Network is unreachable".into()), ..TraceProbe::default() }]);
    assert_eq!((unsent.sent, unsent.loss_pct, unsent.error.as_deref()), (0, None, Some("Network is unreachable")));
}

#[test]
fn single_round_trips_are_left_out_where_they_are_too_many() {
    let rounds: Vec<TraceProbe> = vec![answer("192.0.2.1", 123.456); 100];
    let told = |hops: u8| {
        let mut hops: Vec<MtrHop> = (1..=hops).map(|ttl| hop(ttl, &rounds)).collect();
        limit_rtts(&mut hops);
        (hops.iter().map(|hop| hop.rtts_ms.len()).sum::<usize>(), serde_json::to_vec(&hops).unwrap().len())
    };
    assert_eq!((told(128).0, told(129).0), (12_800, 0));
    assert!(told(128).1 < crate::outcome::OUTCOME_BYTES_MAX * 3 / 4 && told(255).1 < crate::outcome::OUTCOME_BYTES_MAX * 3 / 4);
}

#[test]
fn loss_on_the_path_is_told_from_a_routers_silence() {
    let of = |losses: &[f64]| {
        let mut hops: Vec<MtrHop> = losses.iter().map(|loss| MtrHop { loss_pct: Some(*loss), ..MtrHop::default() }).collect();
        judge_loss(&mut hops);
        hops.into_iter().map(|hop| hop.limited).collect::<Vec<_>>()
    };
    assert_eq!(of(&[0.0, 100.0, 0.0, 0.0]), [false, true, false, false], "a silent router");
    assert_eq!(of(&[0.0, 60.0, 10.0, 10.0]), [false, true, false, false], "a limited one before a lossy link");
    assert_eq!(of(&[0.0, 20.0, 20.0, 20.0]), [false; 4], "a lossy link");
    assert_eq!(of(&[0.0, 100.0, 100.0]), [false; 3], "a path that ends in silence");
}

#[test]
fn output_reads_like_mtr() {
    let report = MtrReport {
        started_at: Timestamp::parse("2026-11-25T09:26:11.123456Z").unwrap(),
        address: "198.51.100.7".parse().unwrap(),
        family: Family::V4,
        resolve_ms: None,
        method: TraceMethod::IcmpDatagram,
        port: None,
        packet_bytes: 60,
        flow: TraceFlow::Constant,
        rounds: 2,
        end: TraceEnd::Reached,
        loss_pct: Some(50.0),
        hops: vec![
            hop(1, &[answer("10.8.0.2", 0.06), answer("10.8.0.2", 0.08)]),
            hop(2, &[TraceProbe::default(), TraceProbe::default()]),
            hop(3, &[answer("10.8.1.2", 12.0), answer("10.8.51.2", 123.4)]),
            hop(14, &[answer("198.51.100.7", 20.0), TraceProbe::default()]),
        ],
        elapsed_ms: 1_100.0,
    };
    assert_eq!(
        Mtr::default().output(&"example.com".parse().unwrap(), &report),
        "Start: 2026-11-25T09:26:11+0000\n\
         HOST: node                        Loss%   Snt   Last   Avg  Best  Wrst StDev\n\
         \x20 1.|-- 10.8.0.2                   0.0%     2    0.1   0.1   0.1   0.1   0.0\n\
         \x20 2.|-- ???                       100.0     2    0.0   0.0   0.0   0.0   0.0\n\
         \x20 3.|-- 10.8.1.2                   0.0%     2  123.4  67.7  12.0 123.4  78.8\n\
         \x20       10.8.51.2\n\
         \x2014.|-- 198.51.100.7              50.0%     2   20.0  20.0  20.0  20.0   0.0\n"
    );
    let mut hops = report.hops;
    for (hop, address, asn) in [(0, 0, vec![64500]), (2, 0, vec![4_200_000_001, 64501]), (2, 1, vec![64502])] {
        hops[hop].addresses[address].asn = asn;
    }
    assert_eq!(
        Mtr { asn: true, ..Mtr::default() }.output(&"example.com".parse().unwrap(), &MtrReport { hops, ..report }),
        "Start: 2026-11-25T09:26:11+0000\n\
         HOST: node                           Loss%   Snt   Last   Avg  Best  Wrst StDev\n\
         \x20 1. AS64500            10.8.0.2      0.0%     2    0.1   0.1   0.1   0.1   0.0\n\
         \x20 2. AS???              ???          100.0     2    0.0   0.0   0.0   0.0   0.0\n\
         \x20 3. AS4200000001 64501 10.8.1.2      0.0%     2  123.4  67.7  12.0 123.4  78.8\n\
         \x20    AS64502            10.8.51.2\n\
         \x2014. AS???              198.51.100.7 50.0%     2   20.0  20.0  20.0  20.0   0.0\n"
    );
}

#[test]
fn the_budget_covers_every_round_and_a_run_without_end_is_refused() {
    let parse = |parameters: serde_json::Value| Spec::parse(ToolName::Mtr, "example.com", parameters.as_object().unwrap().clone());
    let refuses = |parameters: serde_json::Value, pointer: &str, part: &str| {
        let invalid = parse(parameters).unwrap_err();
        assert!(invalid.pointer == pointer && invalid.detail.contains(part), "{invalid}");
    };
    let budget = parse(json!({"rounds": 100})).unwrap().budget();
    assert!((Duration::from_secs(110)..Duration::from_secs(140)).contains(&budget), "{budget:?}");
    refuses(json!({"rounds": 100, "interval_ms": 10_000}), "/parameters/interval_ms", "a run may take at most 300 s");
    refuses(json!({"timeout": 60}), "/parameters/timeout", "waiting 60000 ms in 10 rounds for the hops 1 to 30 may take");
    refuses(json!({"timeout": 61, "max_ttl": 5}), "/parameters/timeout", "from 0.1 to 60");
    assert!(parse(json!({"rounds": 100, "max_ttl": 255})).is_ok());
    // Five silent hops are 500 packets, of which 128 are under way at once: four times half a minute, and twice for the first and the last round.
    let held_up = parse(json!({"timeout": 30, "max_ttl": 5, "rounds": 100})).unwrap().budget();
    assert!(held_up >= Duration::from_secs(4 * 30 + 2 * 30), "{held_up:?}");
    refuses(json!({"protocol": "tcp", "flows": 2}), "/parameters/flows", "a flow of its own");
    refuses(json!({"rounds": 3, "flows": 4}), "/parameters/flows", "3 rounds cannot be spread over 4 flows");
    refuses(json!({"port": 80}), "/parameters/port", "ICMP has no ports");
    refuses(json!({"first_ttl": 9, "max_ttl": 8}), "/parameters/first_ttl", "the first hop (9) lies behind the last (8)");
}
