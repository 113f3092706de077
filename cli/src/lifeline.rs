//! Programs that `up` starts end with it, however it ends: `up` holds the other end of their standard input and never writes to it.

use std::io::Read;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a program may take to end by itself once its starter is gone. Short: the broker goes with the starter, and nobody can be answered.
const GRACE: Duration = Duration::from_secs(2);
/// The exit code of a program that did not.
const CUT_SHORT: i32 = 1;

/// Tells this process to stop, as by SIGTERM, when its standard input ends.
pub(crate) fn hold() {
    // The thread lives as long as the process, and ends it.
    drop(std::thread::spawn(|| {
        let mut buffer = [0; 64];
        while std::io::stdin().read(&mut buffer).is_ok_and(|read| read > 0) {}
        let _ = kill(Pid::this(), Signal::SIGTERM);
        std::thread::sleep(GRACE);
        std::process::exit(CUT_SHORT);
    }));
}
