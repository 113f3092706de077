//! `probeops revoke`: voids a credential of any part, by its key.

use std::path::Path;

use clap::Args;
use probeops_nats::connect::Credential;
use probeops_nats::permissions::AccountName;

use crate::control::{Control, DataArgs, block_on};
use crate::exit::Failed;
use crate::register::{sign_revoked, tell_revoked};
use crate::terminal::{note, say};

/// Void a credential that is in wrong hands, whoever's: of an API, a collector, a copy of the trail …
#[derive(Args, Debug)]
#[command(after_help = "\
A node, a service or an API key is taken back by its name: probeops nodes revoke, services revoke, keys revoke.
Of what is the control plane's own another credential is made by `probeops up` when it starts, or `probeops provision`.

Examples:
  probeops revoke ./stolen/store.creds
  probeops revoke UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4")]
pub(crate) struct RevokeArgs {
    /// The credential's file, or its public key (U…)
    #[arg(value_name = "FILE|KEY")]
    credential: String,
    #[command(flatten)]
    data: DataArgs,
}

/// What ends a credential of the servers' own account, whose claims are in their configuration.
const ENDS: &str = "ends when its 30 days are over, or with a new data folder";

/// Runs `revoke`.
pub(crate) fn run(args: &RevokeArgs) -> Result<(), Failed> {
    let control = Control::open(&args.data)?;
    let public_key = match probeops_nats::node_key::check(&args.credential) {
        Ok(()) => args.credential.clone(),
        Err(_no_key) => {
            let credential = Credential::read(Path::new(&args.credential)).map_err(|error| Failed::usage(error.to_string()))?;
            if credential.account == control.vault.account_key(AccountName::System) {
                return Err(Failed::usage(format!("{} is of the servers' own account, and {ENDS}", args.credential)));
            }
            credential.public_key
        }
    };
    let signed = control.vault.signed(&public_key).map_err(|error| Failed::work(format!("{error:#}")))?;
    block_on(async {
        let session = control.session().await?;
        let claims = sign_revoked(&control, &public_key)?;
        let told = tell_revoked(&control, &claims).await;
        let whose = signed.as_ref().map_or("somebody of whom nothing is known here", |signed| signed.name.as_str());
        let by = told.as_ref().map_or("not yet taken by every server".to_owned(), |servers| format!("taken by {servers}"));
        session.record(whose, format!("credential revoked: key {public_key}, {by}")).await?;
        say(format!("every credential of {public_key} ({whose}) is void on {}", told?));
        if signed.is_none() {
            note(format!("If it is of the servers' own account it is not, and {ENDS}."));
        }
        Ok(())
    })
}
