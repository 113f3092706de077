//! `echo`: nothing is sent.

use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::echo::{Echo, EchoReport};

use crate::executors::Context;

pub(super) fn run(context: &Context, options: &Echo) -> EchoReport {
    EchoReport {
        node_time: Timestamp::now(),
        version: probeops_shared::VERSION.to_owned(),
        dispatch_ms: context.dispatch_ms,
        clock_offset_ms: context.clock_offset_ms,
        payload: "x".repeat(options.payload_bytes.get_usize()),
    }
}
