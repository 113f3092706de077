//! Where an enrolment token comes from: a file, standard input, the service manager, or who sits at the terminal. Never the command line, which
//! everybody on the machine can read.

use std::fmt;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr};

use super::EnrollError;

/// No token is longer.
const TOKEN_BYTES_MAX: u64 = 4 * 1024;
/// The name under which a service manager hands a token over (`LoadCredential=token:…`).
const CREDENTIAL: &str = "token";

/// Where the token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// In this file; standard input for `-`.
    File(PathBuf),
    /// In the folder of the service manager if it is there, else whoever sits at the terminal is asked.
    Usual(Option<PathBuf>),
    /// It was read before.
    Held(Token),
    /// There is none: an operator registered the key.
    Nowhere,
}

/// A token that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a token)")
    }
}

impl TokenSource {
    /// The same, for a process that soon may not read its file any more. What cannot be read now is said when it is needed.
    pub(super) fn taken_along(self) -> Self {
        let path = match &self {
            Self::File(path) if path != Path::new("-") => path.clone(),
            Self::Usual(Some(folder)) if folder.join(CREDENTIAL).exists() => folder.join(CREDENTIAL),
            Self::File(_) | Self::Usual(_) | Self::Held(_) | Self::Nowhere => return self,
        };
        match of_file(&path) {
            Ok(text) => Self::Held(Token(text)),
            Err(_) => self,
        }
    }

    /// The token.
    pub(super) fn read(&self) -> Result<Option<String>, EnrollError> {
        let text = match self {
            Self::Nowhere => return Ok(None),
            Self::Held(Token(text)) => text.clone(),
            Self::File(path) if path == Path::new("-") => of_reader(std::io::stdin().lock(), "standard input")?,
            Self::File(path) => of_file(path)?,
            Self::Usual(folder) => {
                let handed = folder.as_ref().map(|folder| folder.join(CREDENTIAL)).filter(|path| path.exists());
                match handed {
                    Some(path) => of_file(&path)?,
                    None => prompt()?,
                }
            }
        };
        let token = text.trim().to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(EnrollError::Here(
                "there is no enrolment token (pe_…) where it should be; it is one line of printable characters".to_owned(),
            ));
        }
        Ok(Some(token))
    }
}

fn of_file(path: &Path) -> Result<String, EnrollError> {
    let file =
        std::fs::File::open(path).map_err(|error| EnrollError::Here(format!("cannot read the token {}: {error}", path.display())))?;
    of_reader(file, &path.display().to_string())
}

fn of_reader(reader: impl Read, name: &str) -> Result<String, EnrollError> {
    let mut text = String::new();
    let read = reader.take(TOKEN_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| EnrollError::Here(format!("cannot read the token from {name}: {error}")))?;
    Ok(text)
}

/// Asks at the terminal, which does not show what is typed.
fn prompt() -> Result<String, EnrollError> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        let detail = "no enrolment token is given: --token-file FILE, `--token-file -` for standard input, or at a terminal, where it is asked for; \
                      --no-token if an operator has registered this machine's key";
        return Err(EnrollError::Here(detail.to_owned()));
    }
    let failed = |error: &dyn fmt::Display| EnrollError::Here(format!("the terminal cannot be used: {error}"));
    let shown = tcgetattr(input.as_fd()).map_err(|error| failed(&error))?;
    let mut hidden = shown.clone();
    // Ctrl-C ends the line and not this program, which would leave a terminal that shows nothing.
    let interrupt = shown.control_chars[SpecialCharacterIndices::VINTR as usize];
    hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
    hidden.control_chars[SpecialCharacterIndices::VEOL as usize] = interrupt;
    tcsetattr(input.as_fd(), SetArg::TCSAFLUSH, &hidden).map_err(|error| failed(&error))?;
    // A terminal gives one line at a time.
    let line = write!(std::io::stderr(), "Enrolment token (pe_…, not shown): ").and_then(|()| Ok(input.lock().fill_buf()?.to_vec()));
    let restored = tcsetattr(input.as_fd(), SetArg::TCSAFLUSH, &shown);
    drop(writeln!(std::io::stderr()));
    restored.map_err(|error| failed(&error))?;
    let line = line.map_err(|error| failed(&error))?;
    if line.ends_with(&[interrupt]) {
        return Err(EnrollError::Here("interrupted before the token was typed; nothing has been done".to_owned()));
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn a_token_is_read_from_where_it_is_and_never_repeated() {
        let scratch = Scratch::new();
        let file = scratch.path().join("token");
        std::fs::write(&file, " pe_x\n").unwrap();
        assert_eq!(TokenSource::File(file).read().unwrap().as_deref(), Some("pe_x"));
        assert_eq!(TokenSource::Usual(Some(scratch.path().to_owned())).read().unwrap().as_deref(), Some("pe_x"));
        let held = TokenSource::File(scratch.path().join("token")).taken_along();
        std::fs::remove_file(scratch.path().join("token")).unwrap();
        assert_eq!((held.read().unwrap().as_deref(), format!("{held:?}").as_str()), (Some("pe_x"), "Held((a token))"));
        assert_eq!(TokenSource::Nowhere.read().unwrap(), None);
        for bad in ["", "two words", "pe_é"] {
            let file = scratch.path().join("bad");
            std::fs::write(&file, bad).unwrap();
            let refused = TokenSource::File(file).read().unwrap_err().to_string();
            assert!(refused.contains("there is no enrolment token") && (bad.is_empty() || !refused.contains(bad)), "{refused}");
        }
        assert!(TokenSource::File("/nowhere".into()).read().unwrap_err().to_string().contains("/nowhere"));
    }
}
