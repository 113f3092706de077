//! Input that wants to hurt, made by libFuzzer: what reads from a wire or a file is called with it, and what must hold of the answer is asserted.
//!
//! `PROBEOPS_FUZZ_TARGET` says which target this process runs; `run.sh` starts all of them. Whatever an input is, reading it may take neither
//! more memory nor more time than its length explains ([`bounds`]).

#![no_main]

mod bounds;
mod broker;
mod files;
mod messages;
mod network;
mod plane;
mod web;

use std::ffi::{c_char, c_int};
use std::sync::OnceLock;

use bounds::Bounds;
use serde_json::Value;

#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// A target: its name, what it does with an input, and how much memory each byte of that may cost.
type Target = (&'static str, fn(&[u8]), usize);

/// All of them. A message of JSON may be as many values as it has bytes, each of them 32 and more in memory.
const TARGETS: [Target; 23] = [
    ("job", messages::job, 512),
    ("request", messages::request, 512),
    ("outcome", messages::outcome, 512),
    ("events", messages::events, 512),
    ("subjects", messages::subjects, 64),
    ("audit", messages::audit, 512),
    ("selector", messages::selector, 512),
    ("target", messages::target, 256),
    ("policy", files::policy, 512),
    ("settings", files::settings, 512),
    ("jwt", files::jwt, 512),
    ("dns", network::dns, 512),
    ("icmp", network::icmp, 64),
    ("tls", network::tls, 512),
    ("whois", web::whois, 1024),
    ("http", web::http, 512),
    ("broker", broker::broker, 512),
    ("collector", plane::collector, 512),
    ("headers", plane::headers, 256),
    ("enroll", plane::enroll, 512),
    ("registers", plane::registers, 512),
    ("schedule", plane::schedule, 512),
    ("spool", plane::spool, 512),
];

fn target() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("PROBEOPS_FUZZ_TARGET").unwrap_or_default();
        let names = || TARGETS.map(|(name, ..)| name).join(", ");
        TARGETS.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| panic!("PROBEOPS_FUZZ_TARGET must be one of {}", names()))
    })
}

/// Called by libFuzzer before anything else.
#[unsafe(no_mangle)]
extern "C" fn LLVMFuzzerInitialize(_count: *mut c_int, _arguments: *mut *mut *mut c_char) -> c_int {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        // What run.sh looks for: what has been noticed here is what a parser was made to do wrong.
        #[cfg(planted)]
        if probeops_shared::planted::take_reached() {
            eprintln!("planted: {}", target().0);
        }
        // libFuzzer keeps the input of whatever ends the process.
        std::process::abort();
    }));
    0
}

/// Called by libFuzzer with each input.
#[unsafe(no_mangle)]
extern "C" fn LLVMFuzzerTestOneInput(input: *const u8, length: usize) -> c_int {
    // SAFETY: libFuzzer gives as many bytes as it says, and leaves them as they are while this goes on.
    let input = if length == 0 { &[] } else { unsafe { std::slice::from_raw_parts(input, length) } };
    let (_, run, bytes_per_byte) = target();
    #[cfg(planted)]
    probeops_shared::planted::take_reached();
    let bounds = Bounds::begin();
    run(input);
    bounds.end(input.len(), *bytes_per_byte);
    0
}

/// Takes the first byte of an input to choose by, and leaves the rest.
fn chosen(input: &[u8]) -> (u8, &[u8]) {
    input.split_first().map_or((0, input), |(first, rest)| (*first, rest))
}

/// Whether two documents are the same; of numbers with fractions the last bits do not count.
fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => match (one.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) => one == other || (one - other).abs() <= one.abs().max(other.abs()) * 1e-12,
            _ => one == other,
        },
        (Value::Array(one), Value::Array(other)) => one.len() == other.len() && one.iter().zip(other).all(|(one, other)| alike(one, other)),
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| alike(one, other)))
        }
        _ => one == other,
    }
}
