//! A program that leaves nothing behind: it starts itself again in a mount and a process namespace of its own, which end with it. In them
//! names are looked up at the network's resolver.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use super::names::RESOLVER;

/// Tells the program that it is already there. Not one of the program's own settings, whose names begin otherwise.
const INSIDE: &str = "TESTNET_INSIDE";
/// Where ip(8) keeps the names of namespaces; with our files below, both in memory.
const FOLDER: &str = "/run/netns";

/// Runs `inside` alone, for so long at most; ends at once when it is told to.
pub fn alone(most: Duration, inside: impl FnOnce() -> ExitCode) -> ExitCode {
    if std::env::var_os(INSIDE).is_some() {
        end_in_time(most);
        return inside();
    }
    std::fs::create_dir_all(FOLDER).unwrap_or_else(|error| panic!("{FOLDER}: {error}; this needs root"));
    let own = std::env::current_exe().expect("our own path");
    let (files, names) = (format!("{FOLDER}/files"), format!("nameserver {RESOLVER}\n"));
    let script = format!(
        "mount -t tmpfs testnet {FOLDER} && mkdir {files} && printf '{names}' >{files}/resolv.conf \
         && mount --bind {files}/resolv.conf /etc/resolv.conf && exec \"$@\""
    );
    // Whoever kills this program kills that one, too.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script, "sh"])
        .arg(own)
        .args(std::env::args_os().skip(1));
    command.env(INSIDE, "1").env("TMPDIR", files);
    let status = command.status().unwrap_or_else(|error| panic!("setpriv: {error}; apt-get install util-linux"));
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// The first process of a process namespace takes all others with it, and it has to see to signals itself.
fn end_in_time(most: Duration) {
    use tokio::signal::unix::{SignalKind, signal};
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else { return };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = tokio::time::sleep(most) => eprintln!("not done after {} s", most.as_secs()),
            }
            std::process::exit(1);
        });
    });
}
