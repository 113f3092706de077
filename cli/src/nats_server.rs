//! `probeops nats-server`: the server that `up` would use, for those who start it themselves.

use std::path::PathBuf;

use clap::Args;
use probeops_nats::layout::Layout;
use probeops_nats::server::Search;

use crate::client::DATA_DEFAULT;
use crate::exit::Failed;
use crate::terminal::{note, say};

/// Find nats-server, or fetch it, and print where it is
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  $(probeops nats-server) --config .probeops/broker/server.conf")]
pub(crate) struct NatsServerArgs {
    /// The one to use and no other
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    nats_server: Option<PathBuf>,
    /// The data folder; a fetched one is kept there if the user's cache folder cannot be written to
    #[arg(long, env = "PROBEOPS_DATA", value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
}

/// Runs `nats-server`.
pub(crate) fn run(args: NatsServerArgs) -> Result<(), Failed> {
    probeops_nats::process::install_tls_provider();
    let search = Search::usual(args.nats_server, &Layout::new(args.data));
    let program = search.find_or_fetch(&|line| note(line)).map_err(Failed::work)?;
    say(program.path.display());
    Ok(())
}
