//! The programs that everybody knows, as Debian has them.

use std::process::{Command, Stdio};

/// What a program prints on both streams.
#[track_caller]
pub fn says(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}; `.ci/run` names the Debian packages"));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs both at the same time.
pub fn both<A: Send, B: Send>(ours: impl FnOnce() -> A + Send, theirs: impl FnOnce() -> B + Send) -> (A, B) {
    std::thread::scope(|scope| {
        let theirs = scope.spawn(theirs);
        let ours = ours();
        (ours, theirs.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Runs the same for each at the same time.
pub fn each<T: Sync, A: Send>(of: &[T], run: impl Fn(&T) -> A + Sync) -> Vec<A> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = of.iter().map(|one| scope.spawn(|| run(one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}
