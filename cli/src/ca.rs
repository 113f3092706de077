//! `probeops ca`: the authority that signs the broker's certificate, and its successor.

use std::time::Duration;

use clap::{Args, Subcommand};
use probeops_nats::reload::reload;
use probeops_nats::tls::rotation::{self, Stage};

use crate::control::{Control, DataArgs};
use crate::exit::Failed;
use crate::terminal::{note, say};

/// Within so long every node that is on has renewed its credential, and got the authorities with it.
const KNOWN_AFTER: Duration = Duration::from_hours(24);

/// The authority that signs the broker's certificate
#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Say which step of a rotation is next
    Show(DataArgs),
    Rotate(RotateArgs),
}

/// Do the next step of replacing the authority; three times it is done
#[derive(Args, Debug)]
#[command(after_help = "\
Steps, one each time:
  1. a new authority is made, and trusted beside the old one   (give tls/ca.pem to those that read a copy of it)
  2. the broker gets a certificate of the new one, and its servers read it; no connection ends
  3. the old one is trusted no more
Programs read the authorities again at every connection, so none is started again. Step 2 waits until a day after step 1, as nodes
get the authorities when they renew their credentials.")]
pub(crate) struct RotateArgs {
    /// Do not wait a day before the second step: everybody has the new ca.pem
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    data: DataArgs,
}

/// Runs `ca`.
pub(crate) fn run(command: &Ca) -> Result<(), Failed> {
    probeops_nats::process::install_tls_provider();
    match command {
        Ca::Show(data) => show(&Control::open(data)?),
        Ca::Rotate(args) => {
            let runtime = tokio::runtime::Runtime::new().map_err(Failed::work)?;
            runtime.block_on(rotate(&Control::open(&args.data)?, args.now))
        }
    }
}

fn show(control: &Control) -> Result<(), Failed> {
    let ca = control.layout.ca_certificate();
    say(match stage(control)? {
        Stage::Settled => format!("one authority, in use: {}\nnext step: make another (probeops ca rotate)", ca.display()),
        Stage::Added { age } => format!(
            "a second authority is trusted since {} h and not used yet: {}\nnext step: sign the broker's certificate by it (probeops ca rotate)",
            age.as_secs() / 3600,
            ca.display()
        ),
        Stage::Switched => {
            format!(
                "the second authority is in use, and the first still trusted: {}\nnext step: trust it no more (probeops ca rotate)",
                ca.display()
            )
        }
    });
    Ok(())
}

async fn rotate(control: &Control, now: bool) -> Result<(), Failed> {
    let layout = &control.layout;
    let done = match stage(control)? {
        Stage::Settled => {
            let ca = rotation::add(layout).map_err(failed)?;
            note(format!("Who reads a copy of it needs the new {}; nodes get it when they renew their credentials.", ca.display()));
            "a second authority is trusted; its turn comes in a day (or with --now, when everybody has the new ca.pem)"
        }
        Stage::Added { age } if age < KNOWN_AFTER && !now => {
            let hours = KNOWN_AFTER.saturating_sub(age).as_secs().div_ceil(3600);
            return Err(Failed::usage(format!(
                "nodes get the new authority when they renew their credentials, which all have done in {hours} h; \
                 --now goes on at once, and leaves outside who does not have the new {}",
                layout.ca_certificate().display()
            )));
        }
        Stage::Added { .. } => {
            rotation::switch(layout).map_err(failed)?;
            let told = reload(layout, &control.servers, control.ca()).await.map_err(failed)?;
            note(format!("Servers that show the new certificate: {}.", told.join(", ")));
            "the broker's certificate is by the new authority; the old one is trusted until the next step"
        }
        Stage::Switched => {
            // A server that was away at the second step still shows the old certificate, and would be left outside.
            reload(layout, &control.servers, control.ca()).await.map_err(failed)?;
            rotation::remove(layout).map_err(failed)?;
            "the old authority is trusted no more; the rotation is complete"
        }
    };
    say(done);
    control.session().await?.record("ca", done.to_owned()).await
}

fn stage(control: &Control) -> Result<Stage, Failed> {
    rotation::stage(&control.layout).map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err calls")]
fn failed(error: anyhow::Error) -> Failed {
    Failed::work(format!("{error:#}"))
}
