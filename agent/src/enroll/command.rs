//! `probeops-agent enroll` and `probeops-agent rotate`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use probeops_nats::process::exit;
use probeops_shared::ids::NodeId;

use crate::config::ProxySetting;

use super::{Done, EnrollError, Folder, Given, TokenSource, Wanted, authority, default_state, enroll, rotate};

/// What the agent does besides running.
#[derive(Clone, Debug, Subcommand)]
#[expect(missing_docs, reason = "the commands say it themselves, and their own words would be replaced")]
pub enum Command {
    Enroll(EnrollArgs),
    Rotate(RotateArgs),
}

/// Make this machine a node: its key is made here and stays here, and only its public half is sent. Doing it again changes nothing
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The token (`probeops enroll-tokens add` makes one) is asked for at a terminal, or read from a file, from standard input, or from the file
`token` of the service manager's $CREDENTIALS_DIRECTORY; never from the command line, which everybody on the machine can read.

Examples:
  probeops-agent enroll https://probeops.example.com
  probeops-agent enroll https://probeops.example.com --ca ca.pem --token-file token.txt --node fra-1
  probeops-agent enroll https://probeops.example.com --proxy http://fra-1@proxy.example:3128 --proxy-password-file /etc/probeops/proxy.password
  probeops-agent enroll https://probeops.example.com --no-token      # its public key was registered: probeops nodes add NAME --public-key U…")]
pub struct EnrollArgs {
    /// The API's address
    url: String,
    /// Where the node's key and credential are kept
    #[arg(long, env = "PROBEOPS_STATE", value_name = "FOLDER", default_value_os_t = default_state())]
    state: PathBuf,
    /// The authority that signed the API's certificate (PEM); the system's own unless given
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Where the token is; `-` for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "no_token")]
    token_file: Option<PathBuf>,
    /// There is none: an operator has registered this machine's key
    #[arg(long)]
    no_token: bool,
    /// Its name, where the token leaves it open [default: this machine's own]
    #[arg(long, value_name = "NAME")]
    node: Option<NodeId>,
    /// The broker's addresses, where they are not those that the API says
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    servers: Option<Vec<String>>,
    #[command(flatten)]
    proxy: ProxySetting,
    /// Forget who this machine was and make it another node
    #[arg(long)]
    new_identity: bool,
    /// Make the key, print its public half for the operator, and stop
    #[arg(long, conflicts_with_all = ["token_file", "no_token"])]
    print_key: bool,
    #[arg(long, hide = true, env = "CREDENTIALS_DIRECTORY")]
    credentials_directory: Option<PathBuf>,
}

/// Put a new key in the place of the node's, without losing a job. The old key is revoked once the broker has taken the new one
#[derive(Args, Clone, Debug)]
pub struct RotateArgs {
    /// Where the node's key and credential are kept
    #[arg(long, env = "PROBEOPS_STATE", value_name = "FOLDER", default_value_os_t = default_state())]
    state: PathBuf,
}

impl Command {
    /// Does it. Exit codes: 0 done, 1 not now or not here, 78 refused.
    pub fn run(self) -> ExitCode {
        match self {
            Self::Enroll(args) => waited_for(enrolled(args)),
            Self::Rotate(args) => waited_for(async move { rotated(&args).await }),
        }
    }
}

fn waited_for(doing: impl Future<Output = Result<String, EnrollError>>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => ended(runtime.block_on(doing)),
        Err(error) => ended(Err(EnrollError::here(error))),
    }
}

async fn enrolled(args: EnrollArgs) -> Result<String, EnrollError> {
    let folder = Folder::new(&args.state);
    let token = match (args.token_file, args.no_token) {
        (Some(path), _) => TokenSource::File(path),
        (None, true) => TokenSource::Nowhere,
        (None, false) => TokenSource::Usual(args.credentials_directory),
    };
    // What only root may read is read while this still is root.
    let (ca, token) = (authority(args.ca.as_deref()), token.taken_along());
    folder.become_owner()?;
    if args.new_identity {
        let _lock = folder.lock().await?;
        folder.clear()?;
    }
    if args.print_key {
        let _lock = folder.lock().await?;
        return folder.key_or_new()?.public_key().map(|key| key.to_string()).map_err(EnrollError::here);
    }
    let servers = args.servers.as_deref();
    let wanted = Wanted { api: &args.url, ca, node: args.node.as_ref(), token: &token, servers, proxy: &args.proxy };
    Ok(match enroll(&folder, &wanted, &note).await? {
        Done::Enrolled(given) => format!(
            "node {} in region {} is enrolled; its credential is renewed by the agent that runs: systemctl enable --now probeops-agent, or \
             probeops-agent --state {}",
            given.node,
            given.region,
            folder.path().display()
        ),
        Done::Already(given) => format!("nothing to do: this machine is {}; no token was used", shown(&given)),
    })
}

async fn rotated(args: &RotateArgs) -> Result<String, EnrollError> {
    let folder = Folder::new(&args.state);
    folder.become_owner()?;
    let given = rotate(&folder, &note).await?;
    Ok(format!("{}, with its new key", shown(&given)))
}

fn shown(given: &Given) -> String {
    format!("node {} in region {}, with a credential until {}", given.node, given.region, given.expires_at)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what is told each line")]
fn note(line: String) {
    // With nowhere to say it to, the exit code has to do.
    drop(writeln!(std::io::stderr(), "{line}"));
}

fn ended(done: Result<String, EnrollError>) -> ExitCode {
    match done {
        Ok(text) => {
            drop(writeln!(std::io::stdout(), "{text}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            note(format!("probeops-agent: {error}"));
            ExitCode::from(if matches!(error, EnrollError::Refused(_)) { exit::REVOKED } else { 1 })
        }
    }
}
