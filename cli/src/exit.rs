//! How the command ends: its exit codes, and the line that says why.

use std::fmt;

use probeops_shared::problem::Code;

/// Exit codes; `--help` explains them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The tool found nothing good (every packet lost, port refused, no such name), or a command could not do its work.
    Failed,
    /// The command line or the request is wrong.
    Usage,
    /// The API or the broker cannot be reached, or has a fault.
    Transport,
    /// No credential, or one that does not reach so far.
    Access,
    /// No node matches.
    NoNode,
}

impl Exit {
    /// The number the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Transport => 3,
            Self::Access => 4,
            Self::NoNode => 5,
        }
    }

    /// The code for a problem of the HTTP API.
    pub(crate) fn of_problem(code: Code) -> Self {
        match code {
            Code::Unauthorized | Code::Forbidden => Self::Access,
            Code::NoSuchRegion | Code::NoSuchNode | Code::NoNodeAvailable => Self::NoNode,
            Code::Invalid
            | Code::Unprocessable
            | Code::NotFound
            | Code::Conflict
            | Code::IdempotencyMismatch
            | Code::UriTooLong
            | Code::HeadersTooLarge => Self::Usage,
            Code::MethodNotAllowed
            | Code::TooLarge
            | Code::UnsupportedMediaType
            | Code::RequestTimeout
            | Code::RateLimited
            | Code::Unavailable
            | Code::Internal => Self::Transport,
        }
    }
}

/// Why a command did not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// How to end.
    pub exit: Exit,
    /// What went wrong and what would help.
    pub text: String,
}

impl Failed {
    /// A failure that ends with this code.
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    /// The work could not be done.
    pub(crate) fn work(text: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, text.to_string())
    }

    /// The command line is wrong.
    pub(crate) fn usage(text: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, text.to_string())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failed {}

/// What `probeops --help` says of exit codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0   done; a tool found what it looked for
  1   a tool found nothing good (all packets lost, port not open, no such name),
      or the work could not be done
  2   wrong command line or request
  3   the API or the broker cannot be reached, or has a fault
  4   no credential, or one that does not reach so far
  5   no node matches
  78  (agent) the broker does not accept this node's credential any more;
      starting again does not help";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_an_exit_code_and_none_looks_like_success() {
        for code in Code::ALL {
            assert!((2..=5).contains(&Exit::of_problem(code).code()), "{code:?}");
        }
        assert_eq!(Exit::of_problem(Code::Forbidden).code(), 4);
        assert_eq!(Exit::of_problem(Code::NoNodeAvailable).code(), 5);
        assert_eq!(Exit::of_problem(Code::Invalid).code(), 2);
        assert_eq!(Exit::of_problem(Code::Unavailable).code(), 3);
    }
}
