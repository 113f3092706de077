//! A terminal that somebody sits at: he types, and sees what it shows.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::process::{HANG, LOOK_EVERY};

/// Both ends of a pseudo-terminal (pty(7)).
#[derive(Debug)]
pub struct Terminal {
    person: File,
    program: OwnedFd,
}

impl Terminal {
    /// A new one, as it comes: what is typed is shown.
    pub fn open() -> Self {
        let ends = openpty(None, None).expect("a terminal");
        Self { person: ends.master.into(), program: ends.slave }
    }

    /// What a program reads that is started at it.
    pub fn input(&self) -> Stdio {
        self.program.try_clone().expect("a file").into()
    }

    /// Types this.
    pub fn types(&mut self, text: &str) {
        self.person.write_all(text.as_bytes()).expect("a terminal");
    }

    /// Whether it shows what is typed.
    pub fn shows(&self) -> bool {
        tcgetattr(self.program.as_fd()).expect("a terminal").local_flags.contains(LocalFlags::ECHO)
    }

    /// All that it has shown since it was last asked, once this is in it.
    #[track_caller]
    pub fn shown(&mut self, words: &str) -> String {
        let (mut shown, started) = (Vec::new(), Instant::now());
        loop {
            let text = String::from_utf8_lossy(&shown).into_owned();
            if text.contains(words) {
                return text;
            }
            assert!(started.elapsed() < HANG, "`{words}` is never shown: {text}");
            let mut readable = [PollFd::new(self.person.as_fd(), PollFlags::POLLIN)];
            let wait = PollTimeout::try_from(LOOK_EVERY).expect("short");
            if poll(&mut readable, wait).expect("a terminal") > 0 {
                let mut piece = [0; 1024];
                let length = self.person.read(&mut piece).expect("a terminal");
                shown.extend_from_slice(&piece[..length]);
            }
        }
    }
}
