//! Bugs to be found: what `tests/fuzz/run.sh planted` compiles into the parsers, and no other build.
//!
//! `planted!("dns" if CONDITION)` is true where the parser is to go wrong: in a build with `--cfg planted`, which only `tests/fuzz/rustc.sh` gives,
//! in a process that runs this target, and if the condition holds. In every other build it is `false`, and nothing is left of it. A parser
//! that goes wrong says nothing: the assertions of the target have to notice, and only then is it told that what they noticed was planted.

/// Whether to go wrong here; see [`planted`](mod@crate::planted).
#[macro_export]
macro_rules! planted {
    ($target:literal if $condition:expr) => {
        cfg!(planted) && $condition && $crate::planted::reached($target)
    };
}

/// Whether this process is to find it; if so, it has been reached.
#[cfg(planted)]
pub fn reached(target: &str) -> bool {
    static WANTED: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let wanted = WANTED.get_or_init(|| std::env::var("PROBEOPS_FUZZ_TARGET").unwrap_or_default()) == target;
    REACHED.fetch_or(wanted, std::sync::atomic::Ordering::Relaxed);
    wanted
}

/// Never: nothing is planted.
#[cfg(not(planted))]
pub const fn reached(_target: &str) -> bool {
    false
}

#[cfg(planted)]
static REACHED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Whether a parser has gone wrong since this was last asked.
#[cfg(planted)]
pub fn take_reached() -> bool {
    REACHED.swap(false, std::sync::atomic::Ordering::Relaxed)
}
