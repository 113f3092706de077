//! `probeops health`: what a container engine or service manager runs to see how an API is, where there is no curl.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::client::{Client, DATA_DEFAULT, local_url};
use crate::exit::Failed;
use crate::terminal::say;

/// How long the API may take to answer; it asks the broker and its storage before it does.
const PATIENCE: Duration = Duration::from_secs(8);

/// Say whether an API can take jobs now; needs no key
#[derive(Args, Debug)]
#[command(after_help = "\
Asks GET /readyz: exit 0 if it is ready, else 3 and why. An agent opens no port; it is asked by `probeops agent --check-health`.

Examples:
  probeops health --url http://127.0.0.1:8080
  HEALTHCHECK CMD [\"probeops\", \"health\", \"--url\", \"http://127.0.0.1:8080\"]")]
pub(crate) struct HealthArgs {
    /// The API's address; a running local `probeops up` unless given
    #[arg(long, env = "PROBEOPS_URL", value_name = "URL")]
    url: Option<String>,
    /// The authority that signed the API's certificate (PEM), if it is a private one
    #[arg(long, env = "PROBEOPS_API_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The data folder of a local `probeops up`
    #[arg(long, env = "PROBEOPS_DATA", value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
}

/// Runs `health`.
pub(crate) fn run(args: &HealthArgs) -> Result<(), Failed> {
    probeops_nats::process::install_tls_provider();
    let url = match &args.url {
        Some(url) => url.clone(),
        None => local_url(&args.data)?,
    };
    Client::anonymous(&url, args.ca.as_deref())?.get("/readyz", &[], PATIENCE)?;
    say(format!("{url} is ready"));
    Ok(())
}
