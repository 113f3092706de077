//! Files that are whole or absent: written aside, flushed, then renamed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The largest file of ours that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// Its owner.
    Secret,
    /// Everybody who may enter the folder.
    Public,
}

/// Writes a file as a whole: whoever reads it, even after a crash, sees the old text or the new one.
pub fn write(path: &Path, content: &[u8], secrecy: Secrecy) -> Result<()> {
    let failed = || format!("cannot write {}; is the data folder writable by this user, and is there space?", path.display());
    // The folder of a bare name is this one.
    let dir = path.parent().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir }).with_context(failed)?;
    let name = path.file_name().with_context(failed)?.to_string_lossy();
    let aside = dir.join(format!(".{name}.{:016x}.tmp", rand::random::<u64>()));
    let mode = match secrecy {
        Secrecy::Secret => 0o600,
        Secrecy::Public => 0o644,
    };
    let written = write_aside(&aside, content, mode).and_then(|()| fs::rename(&aside, path)).and_then(|()| File::open(dir)?.sync_all());
    if written.is_err() {
        // Best effort: the file may never have been made.
        drop(fs::remove_file(&aside));
    }
    written.with_context(failed)
}

fn write_aside(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    // A new file, never one that somebody else put there, nor what his link leads to.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The mode above is narrowed by the umask.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads a file of text, if it exists.
pub fn read_if_exists(path: &Path) -> Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{} has more than {FILE_BYTES_MAX} bytes and cannot be what it should be", path.display());
    }
    String::from_utf8(bytes).map(Some).with_context(|| format!("{} is damaged: it is not text", path.display()))
}

/// Makes a folder, and those above it, that only its owner may enter.
pub fn make_dir(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the folder {}; name a data folder that this user may write to", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn a_secret_is_readable_by_its_owner_only_and_leaves_nothing_aside() {
        let scratch = Scratch::new();
        let path = scratch.path().join("a.nk");
        fs::write(&path, "old").unwrap();
        write(&path, b"new", Secrecy::Secret).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_if_exists(&path).unwrap().as_deref(), Some("new"));
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        assert_eq!(read_if_exists(&scratch.path().join("b")).unwrap(), None);
    }

    #[test]
    fn nothing_that_lies_in_the_folder_is_written_through() {
        let scratch = Scratch::new();
        let (path, other) = (scratch.path().join("a.nk"), scratch.path().join("other"));
        fs::write(&other, "untouched").unwrap();
        // In the place of the file, and where one could expect it to be written aside.
        for link in [path.clone(), scratch.path().join(format!(".a.nk.{}.tmp", std::process::id()))] {
            std::os::unix::fs::symlink(&other, link).unwrap();
        }
        write(&path, b"new", Secrecy::Secret).unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::read(&other).unwrap()), (b"new".to_vec(), b"untouched".to_vec()));
        assert!(write_aside(&path, b"newer", 0o600).is_err(), "a file that is there is not one of its own");
    }

    #[test]
    fn a_file_that_is_not_ours_is_named() {
        let scratch = Scratch::new();
        let path = scratch.path().join("a");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        let refused = read_if_exists(&path).unwrap_err().to_string();
        assert_eq!(refused, format!("{} is damaged: it is not text", path.display()));
    }
}
