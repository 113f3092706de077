//! What a run leaves and tells, whatever the tool.

use std::collections::BTreeMap;
use std::time::Duration;

use probeops_shared::host::Host;
use probeops_shared::outcome::FailureKind;
use probeops_shared::tools::network::{Family, Resolved};
use probeops_shared::tools::ping::{Ping, PingProgress};
use probeops_shared::tools::{Class, Tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LOCAL, Live};
use crate::executors::Found;

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
    assert!(heard.try_recv().is_err());
    let packet = PingProgress::Resolved(Resolved { address: LOCAL[0], family: Family::V4, resolve_ms: None });
    live.tell(&Ping::default(), &target, &packet);
    assert_eq!(heard.try_recv().unwrap().missed, 1);
}
