//! The folder in which a node keeps who it is: its key, its credential, and what they are good for.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use probeops_nats::layout::files::{self, Secrecy};
use probeops_nats::node_key::NodeKey;
use probeops_shared::enroll::{Digest, Mark};
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

use super::EnrollError;
use crate::config::ProxySetting;
use crate::way::proxy::Proxies;

/// A node's folder.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// What a node knows of its enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The API that it enrolled with.
    pub api: String,
    /// A digest of what identified the machine then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Digest>,
    /// The mark of the newest credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// The mark of the next one, which is asked for with it until it has come.
    pub next_mark: Mark,
    /// The broker's addresses, where they are not those that the API says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<Vec<String>>,
    /// The proxy on the way to the API and the broker, where it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxySetting>,
    /// The newest credential; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
}

/// What a credential is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// The node's id.
    pub node: NodeId,
    /// Its region.
    pub region: Region,
    /// The broker's addresses.
    pub servers: Vec<String>,
    /// When the credential ends, by the control plane's clock.
    pub expires_at: Timestamp,
    /// When it was got, by this machine's clock.
    pub obtained_at: Timestamp,
    /// How long it lasts from then on, in milliseconds.
    pub valid_for_ms: u64,
    /// Whether the API is still to be told that the broker takes it.
    pub to_confirm: bool,
}

impl Record {
    /// Of a machine that is about to enrol.
    pub(super) fn new(api: &str, machine: Option<Digest>) -> Self {
        let api = api.trim_end_matches('/').to_owned();
        Self { api, machine, mark: None, next_mark: Mark::new(), servers: None, proxy: None, given: None }
    }

    /// What stands between the machine and the API.
    pub(crate) fn proxies(&self) -> Result<Proxies, EnrollError> {
        Proxies::new(&self.proxy.clone().unwrap_or_default()).map_err(EnrollError::Here)
    }

    /// Goes this way from now on, where one is set; whether that is another than before.
    pub(super) fn goes_by(&mut self, setting: &ProxySetting) -> bool {
        let setting = Some(setting.absolute()).filter(|setting| setting.proxy.is_some() && self.proxy.as_ref() != Some(setting));
        let is_other = setting.is_some();
        self.proxy = setting.or_else(|| self.proxy.take());
        is_other
    }

    /// Of a node that has got the credential that it asked for with the next mark.
    pub(super) fn with_next_mark(self) -> Self {
        Self { mark: Some(self.next_mark), next_mark: Mark::new(), ..self }
    }
}

impl Folder {
    /// At this path; touches nothing.
    pub fn new(path: &Path) -> Self {
        Self(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The private key.
    pub fn key_path(&self) -> PathBuf {
        self.0.join("node.nk")
    }

    /// The credential, as the broker's clients read it.
    pub fn creds_path(&self) -> PathBuf {
        self.0.join("node.creds")
    }

    /// The credential of a key that is to take the place of the one there is.
    pub(super) fn next_creds_path(&self) -> PathBuf {
        self.0.join("next.creds")
    }

    fn next_key_path(&self) -> PathBuf {
        self.0.join("next.nk")
    }

    fn record_path(&self) -> PathBuf {
        self.0.join("enrollment.json")
    }

    /// The authority of the API's certificate, where it is not one that the system knows.
    pub(super) fn api_authority(&self) -> Option<PathBuf> {
        Some(self.0.join("api-ca.pem")).filter(|path| path.exists())
    }

    /// The authority of the broker's certificate, likewise.
    pub(super) fn broker_authority(&self) -> Option<PathBuf> {
        Some(self.0.join("broker-ca.pem")).filter(|path| path.exists())
    }

    /// Where root works in a folder of another user, makes this process that user's for good: links that he put there, and paths that he wrote
    /// there, lead it nowhere that he may not go himself, and what it makes is his.
    pub(crate) fn become_owner(&self) -> Result<(), EnrollError> {
        let failed =
            |error: std::io::Error| EnrollError::Here(format!("cannot become the user whose folder {} is: {error}", self.0.display()));
        let folder = match std::fs::metadata(&self.0) {
            Ok(folder) => folder,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let (user, group) = (Uid::from_raw(folder.uid()), Gid::from_raw(folder.gid()));
        if user.is_root() || !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        let became = setgroups(&[]).and_then(|()| setresgid(group, group, group)).and_then(|()| setresuid(user, user, user));
        became.map_err(|error| failed(error.into()))
    }

    /// Makes the folder where there is none, and waits until no other process changes it.
    pub(super) async fn lock(&self) -> Result<File, EnrollError> {
        // Another process may hold it while it waits for the API.
        let folder = self.clone();
        tokio::task::spawn_blocking(move || folder.lock_now()).await.map_err(EnrollError::here)?
    }

    fn lock_now(&self) -> Result<File, EnrollError> {
        files::make_dir(&self.0).map_err(|error| EnrollError::Here(format!("{error:#}")))?;
        let path = self.0.join("lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|error| EnrollError::Here(format!("cannot open {}: {error}", path.display())))?;
        file.lock().map_err(|error| EnrollError::Here(format!("cannot lock {}: {error}", path.display())))?;
        Ok(file)
    }

    /// What is known of the enrolment, if anything.
    pub fn record(&self) -> Result<Option<Record>, EnrollError> {
        let path = self.record_path();
        let Some(text) = read(&path)? else { return Ok(None) };
        read_record(&text).map(Some).map_err(|error| EnrollError::Here(format!("{} is damaged: {error}; {}", path.display(), self.cure())))
    }

    pub(super) fn keep_record(&self, record: &Record) -> Result<(), EnrollError> {
        let text = serde_json::to_string_pretty(record).map_err(EnrollError::here)?;
        keep(&self.record_path(), &text)
    }

    /// The node's key; a new one where there is none.
    pub(super) fn key_or_new(&self) -> Result<NodeKey, EnrollError> {
        self.load_or_make(&self.key_path())
    }

    /// The key of a node that has enrolled, which must be there: the credential is renewed with it.
    pub(super) fn held_key(&self) -> Result<NodeKey, EnrollError> {
        if self.key_path().exists() {
            return self.key_or_new();
        }
        Err(EnrollError::Here(format!("{} is gone, with which the credential is renewed; {}", self.key_path().display(), self.cure())))
    }

    /// The key that is to take its place; a new one where none was begun with.
    pub(super) fn next_key_or_new(&self) -> Result<NodeKey, EnrollError> {
        self.load_or_make(&self.next_key_path())
    }

    /// Puts the next key in the place of the node's.
    pub(super) fn promote_next_key(&self) -> Result<(), EnrollError> {
        let promoted = std::fs::rename(self.next_key_path(), self.key_path());
        promoted.map_err(|error| EnrollError::Here(format!("cannot replace {}: {error}", self.key_path().display())))?;
        // The trial's copy of it is of no use any more; it is overwritten the next time if it cannot be removed.
        drop(std::fs::remove_file(self.next_creds_path()));
        Ok(())
    }

    fn load_or_make(&self, path: &Path) -> Result<NodeKey, EnrollError> {
        if let Some(seed) = read(path)? {
            let key = NodeKey::from_seed(&seed);
            return key.map_err(|detail| EnrollError::Here(format!("{} is damaged: {detail}; {}", path.display(), self.cure())));
        }
        let key = NodeKey::new();
        keep(path, &key.seed().map_err(EnrollError::Here)?)?;
        Ok(key)
    }

    /// Keeps the authority of the API's certificate, so that it is there when the credential is renewed.
    pub(super) fn keep_api_authority(&self, ca: Option<&str>) -> Result<(), EnrollError> {
        keep_or_remove(&self.0.join("api-ca.pem"), ca)
    }

    pub(super) fn keep_broker_authority(&self, ca: Option<&str>) -> Result<(), EnrollError> {
        keep_or_remove(&self.0.join("broker-ca.pem"), ca)
    }

    /// Forgets who this machine was.
    pub(super) fn clear(&self) -> Result<(), EnrollError> {
        for path in [self.record_path(), self.creds_path(), self.next_creds_path(), self.key_path(), self.next_key_path()] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(EnrollError::Here(format!("cannot remove {}: {error}", path.display())));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn cure(&self) -> String {
        format!("`probeops-agent enroll URL --new-identity --state {}` begins anew, with a token", self.0.display())
    }
}

/// Reads what is known of an enrolment.
pub(crate) fn read_record(text: &str) -> serde_json::Result<Record> {
    serde_json::from_str(text)
}

fn keep_or_remove(path: &Path, text: Option<&str>) -> Result<(), EnrollError> {
    match text {
        // Rewriting what is there would have every reader look at it again.
        Some(text) if read(path)?.as_deref() == Some(text) => Ok(()),
        Some(text) => keep(path, text),
        None if path.exists() => {
            std::fs::remove_file(path).map_err(|error| EnrollError::Here(format!("cannot remove {}: {error}", path.display())))
        }
        None => Ok(()),
    }
}

/// Writes a file as a whole, for its owner's eyes only.
pub(super) fn keep(path: &Path, text: &str) -> Result<(), EnrollError> {
    files::write(path, text.as_bytes(), Secrecy::Secret).map_err(|error| EnrollError::Here(format!("{error:#}")))
}

fn read(path: &Path) -> Result<Option<String>, EnrollError> {
    files::read_if_exists(path).map_err(|error| EnrollError::Here(format!("{error:#}; is this the user whose folder it is?")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn a_key_is_made_once_kept_for_its_owner_and_replaced_as_a_whole() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new();
        let folder = Folder::new(&scratch.path().join("state"));
        drop(folder.lock_now().unwrap());
        let key = folder.key_or_new().unwrap().public_key().unwrap();
        assert_eq!(folder.key_or_new().unwrap().public_key().unwrap(), key);
        assert_eq!(std::fs::metadata(folder.key_path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
        let next = folder.next_key_or_new().unwrap().public_key().unwrap();
        folder.promote_next_key().unwrap();
        assert_eq!(folder.key_or_new().unwrap().public_key().unwrap(), next);
        std::fs::write(folder.key_path(), "x").unwrap();
        assert!(folder.key_or_new().unwrap_err().to_string().contains("--new-identity"));
        folder.clear().unwrap();
        assert_ne!(folder.key_or_new().unwrap().public_key().unwrap(), next);
    }

    /// What a command does in a folder. Root that becomes its owner stays that.
    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn in_a_process_of_its_own() {
        let folder = Folder::new(Path::new(&std::env::var_os("FOLDER").unwrap()));
        folder.become_owner().unwrap();
        drop(folder.lock_now().unwrap());
        drop(folder.key_or_new().unwrap());
        folder.keep_record(&Record::new("https://a", None)).unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn root_does_nothing_in_the_folder_of_another_that_its_owner_could_not_do() {
        const NOBODY: u32 = 65_534;
        assert!(nix::unistd::geteuid().is_root(), "this needs root");
        let scratch = Scratch::new();
        let (state, secret) = (scratch.path().join("state"), scratch.path().join("secret"));
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(scratch.path(), open).unwrap();
        let begin = || {
            drop(std::fs::remove_dir_all(&state));
            std::fs::create_dir(&state).unwrap();
            std::os::unix::fs::chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
        };
        files::write(&secret, b"root's", Secrecy::Secret).unwrap();
        let command = || {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "--ignored", "--nocapture", "enroll::folder::tests::in_a_process_of_its_own"]);
            let output = command.env("FOLDER", &state).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let of = |path: &Path| std::fs::symlink_metadata(path).map(|file| (file.uid(), file.gid())).unwrap();
        for link in [|to: &Path, at: &Path| std::os::unix::fs::symlink(to, at), |to: &Path, at: &Path| std::fs::hard_link(to, at)] {
            for name in ["lock", "node.nk"] {
                begin();
                link(&secret, &state.join(name)).unwrap();
                let (done, said) = command();
                assert!(!done && said.contains(name) && said.contains("Permission denied"), "{name}: {said}");
                assert_eq!((of(&secret), std::fs::read_to_string(&secret).unwrap().as_str()), ((0, 0), "root's"), "{name}");
            }
        }
        begin();
        let (done, said) = command();
        assert!(done, "{said}");
        for name in ["lock", "node.nk", "enrollment.json"] {
            assert_eq!(of(&state.join(name)), (NOBODY, NOBODY), "{name}");
        }
    }

    #[test]
    fn a_record_goes_on_from_mark_to_mark() {
        let scratch = Scratch::new();
        let folder = Folder::new(scratch.path());
        assert_eq!(folder.record().unwrap(), None);
        let record = Record::new("https://a/", None);
        // As it is written.
        let now = Timestamp::from_unix_ms(Timestamp::now().unix_ms()).unwrap();
        let (node, region) = ("n".parse().unwrap(), "r".parse().unwrap());
        let given = Given { node, region, servers: Vec::new(), expires_at: now, obtained_at: now, valid_for_ms: 1, to_confirm: false };
        let next = Record { given: Some(given), ..record.clone().with_next_mark() };
        assert_eq!((next.api.as_str(), next.mark.as_ref()), ("https://a", Some(&record.next_mark)));
        assert_ne!(next.next_mark, record.next_mark);
        folder.keep_record(&next).unwrap();
        assert_eq!(folder.record().unwrap(), Some(next));
    }
}
