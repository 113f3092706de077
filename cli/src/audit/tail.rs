//! The trail as it comes.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use probeops_shared::audit::Record;
use probeops_shared::timestamp::Timestamp;
use serde_json::Value;

use super::chained::{Page, page};
use super::{Wanted, row};
use crate::client::{Client, ClientArgs};
use crate::exit::Failed;
use crate::terminal::Form;

/// How long one look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// How often one looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Show what is recorded from now on, as it comes
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  probeops audit tail\n  probeops audit tail --verdict refused -o json")]
pub(super) struct TailArgs {
    #[command(flatten)]
    wanted: Wanted,
    /// What to print; json is one record a line
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) fn run(args: &TailArgs) -> Result<(), Failed> {
    let client = Client::open(&args.client)?;
    let newest = client.get("/v1/audit", &[("limit", "1".to_owned())], LOOK_TIMEOUT)?.body;
    let mut cursor = newest.pointer("/records/0/cursor").and_then(Value::as_str).map(str::to_owned);
    // Where nothing is to be seen yet, what is stored from now on.
    let since = Timestamp::now().to_string();
    loop {
        let since = cursor.is_none().then(|| since.clone());
        let Page { records, next, end, .. } = page(&client, &[("cursor", cursor.clone()), ("since", since)])?;
        for exported in records {
            // One of another version is shown, whatever is wanted.
            let fits = serde_json::from_str::<Record>(exported.record.get()).map_or(true, |record| args.wanted.fits(&record));
            if fits && !say_on(&shown(exported.record.get(), &exported.writer, args.output)) {
                return Ok(());
            }
        }
        cursor = next.or(cursor);
        if end {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn shown(record: &str, writer: &str, form: Form) -> String {
    match form {
        Form::Json => record.to_owned(),
        Form::Text => row(&serde_json::from_str(record).unwrap_or_default(), writer).join("  "),
    }
}

/// Writes a line; false when nobody reads any more.
fn say_on(line: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}
