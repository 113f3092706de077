//! What a run leaves and tells, whatever the tool.

use std::collections::BTreeMap;
use std::time::Duration;

use probeops_shared::host::Host;
use probeops_shared::outcome::FailureKind;
use probeops_shared::tools::ping::report::PingPacket;
use probeops_shared::tools::ping::{Ping, PingProgress};
use probeops_shared::tools::{Class, Tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Live;
use crate::executors::{Found, NEWS_WAITING_MAX};

/// A tool whose findings JSON cannot express: keys of its maps are lists.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
struct Unwritable;

impl Tool for Unwritable {
    const SUMMARY: &'static str = "Finds what cannot be written";
    const CLASS: Class = Class::Light;
    const EXAMPLE_TARGET: &'static str = "x";
    type Target = Host;
    type Report = BTreeMap<Vec<u8>, u8>;
    type Progress = BTreeMap<Vec<u8>, u8>;

    fn budget(&self) -> Duration {
        Duration::ZERO
    }

    fn output(&self, _target: &Host, _report: &Self::Report) -> String {
        "printed".to_owned()
    }
}

#[test]
fn what_cannot_be_written_is_a_fault_of_ours_and_no_run_without_a_report() {
    let (target, found): (Host, _) = ("x".parse().unwrap(), BTreeMap::from([(vec![1], 2)]));
    let failure = Found::of(&Unwritable, &target, &found).unwrap_err();
    assert!(failure.kind == FailureKind::Internal && failure.detail.contains("incident"), "{failure}");
    let (live, mut heard) = Live::heard();
    live.set(&Unwritable, &target, found.clone());
    assert!(live.take().is_none());
    live.tell(&Unwritable, &target, &found);
    assert!(heard.try_recv().is_none());
}

#[test]
fn what_nobody_has_taken_gives_way_to_what_comes_after_it_and_is_counted_to_the_last() {
    const MISSED: u64 = 5;
    let (target, (live, mut heard)): (Host, _) = ("x".parse().unwrap(), Live::heard());
    let tell = |number: u64| {
        let packet = PingPacket { seq: number, ..PingPacket::default() };
        live.tell(&Ping::default(), &target, &PingProgress::Packet(packet));
    };
    let waiting_max = u64::try_from(NEWS_WAITING_MAX).unwrap();
    (0..waiting_max).for_each(tell);
    (0..=MISSED).for_each(|number| tell(waiting_max + number));
    let told: Vec<(Value, u64)> =
        std::iter::from_fn(|| heard.try_recv()).map(|mut news| (news.progress["seq"].take(), news.missed)).collect();
    let (last, before) = told.split_last().unwrap();
    assert!(before.iter().enumerate().all(|(seq, told)| *told == (json!(seq), 0)), "{before:?}");
    // The run ends here, and the newest that it told says how many are missing before it.
    assert_eq!(*last, (json!(waiting_max + MISSED), MISSED));
    // Nothing is missing any more once there is room.
    tell(1_000);
    assert_eq!(heard.try_recv().unwrap().missed, 0);
}
