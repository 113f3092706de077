//! Nodes, services and keys: granting, listing, revoking.

mod keys;
mod nodes;
mod services;

use std::path::Path;

use clap::Args;
use probeops_nats::vault::credentials::Credentials;
use probeops_shared::access::{AtOnce, Rate};
use probeops_shared::selector::{Term, read_terms};
use probeops_shared::timestamp::Timestamp;

use crate::control::{Control, DataArgs};
use crate::exit::Failed;
use crate::terminal::{Form, note, pretty, say, table};

pub(crate) use self::keys::{Keys, keys};
pub(crate) use self::nodes::{Nodes, grant_node, label, nodes};
pub(crate) use self::services::{Services, services};

/// How to list.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    data: DataArgs,
}

/// What is to hold of labels, as one option says it.
#[derive(Clone, Debug)]
pub(crate) struct Terms(pub(crate) Vec<Term>);

fn terms(text: &str) -> Result<Terms, String> {
    read_terms(text).map(Terms)
}

/// Limits as a list shows them.
fn limits(rate: Option<Rate>, at_once: Option<AtOnce>) -> String {
    let limits: Vec<String> =
        rate.iter().map(ToString::to_string).chain(at_once.iter().map(|at_once| format!("{at_once} at once"))).collect();
    if limits.is_empty() { "-".to_owned() } else { limits.join(", ") }
}

fn refuse_second(held: bool, renew: bool, kind: &str, name: &str) -> Result<(), Failed> {
    if held && !renew {
        return Err(Failed::usage(format!(
            "{kind} `{name}` has a credential already; --renew makes it again, `probeops {kind}s revoke {name}` takes it back"
        )));
    }
    Ok(())
}

/// Voids all credentials of a key; the servers that have taken it.
pub(crate) async fn revoke(control: &Control, public_key: &str) -> Result<String, Failed> {
    tell_revoked(control, &sign_revoked(control, public_key)?).await
}

/// Signs that all credentials of a key are void.
pub(crate) fn sign_revoked(control: &Control, public_key: &str) -> Result<Vec<String>, Failed> {
    control.vault.revoke_anywhere(public_key).map_err(|error| Failed::work(format!("{error:#}")))
}

/// Tells the servers of what was signed so; those that have taken it.
pub(crate) async fn tell_revoked(control: &Control, claims: &[String]) -> Result<String, Failed> {
    let told = probeops_nats::revoke::tell(&control.layout, &control.servers, control.ca(), claims).await;
    told.map(|pushed| pushed.servers.join(", ")).map_err(|error| {
        Failed::work(format!("{error:#}; the revocation is signed, and the keymaster, where one runs, tells the servers until each has it"))
    })
}

/// What a new credential is about to replace.
pub(crate) struct Held<'a> {
    /// The key of the one in force.
    pub public_key: &'a str,
    /// Whether the new one grants the same.
    pub same_rights: bool,
}

/// Voids a credential that the new one would leave in force beside it: of another key than lies where the new one is written, because its file
/// was carried away, or with other rights, because the broker honours the older claims of a key as long as they last.
pub(crate) async fn void_what_would_stay(control: &Control, held: &Held<'_>, path: &Path) -> Result<(), Failed> {
    let there = Credentials::read_if_exists(path).map_err(|error| Failed::work(format!("{error:#}")))?;
    if held.same_rights && there.is_some_and(|there| there.public_key == held.public_key) {
        return Ok(());
    }
    let _servers = revoke(control, held.public_key).await?;
    note("The credential it had before is void from now on; whoever uses it is cut off.");
    Ok(())
}

pub(crate) fn joined<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn state(expires_at: Timestamp, revoked_at: Option<Timestamp>) -> String {
    match revoked_at {
        Some(revoked_at) => format!("revoked {revoked_at}"),
        None if expires_at <= Timestamp::now() => format!("expired {expires_at}"),
        None => format!("until {expires_at}"),
    }
}

fn list<T: serde::Serialize, const COLUMNS: usize>(
    form: Form,
    headings: [&str; COLUMNS],
    items: &[T],
    name: &str,
    row: impl Fn(&T) -> [String; COLUMNS],
) {
    match form {
        Form::Json => say(pretty(&serde_json::json!({ name: items }))),
        Form::Text if items.is_empty() => note(format!("no {name}")),
        Form::Text => say(table(headings, &items.iter().map(row).collect::<Vec<_>>()).trim_end()),
    }
}
