//! The trail as a NATS server of somebody else has copied it. Needs neither the API nor our broker.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::{ConnectOptions, ServerAddr, jetstream};
use futures_util::StreamExt;
use probeops_shared::audit::chain::Batch;
use serde_json::json;
use tokio::time::timeout;

use crate::control::block_on;
use crate::exit::Failed;

/// The stream that holds it there, as README has it made.
const STREAM: &str = "AUDIT-COPY";
/// How long that server may take to say anything.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// Writes all of it as it lies there, oldest first.
pub(super) fn export(url: &str, password_file: &Path, out: &mut impl Write) -> Result<(), Failed> {
    let address: ServerAddr =
        url.parse().map_err(|error| Failed::usage(format!("--copy: {url} is no address of a NATS server: {error}")))?;
    let user = address.username().ok_or_else(|| Failed::usage("--copy: say as whom, such as nats://keeper@127.0.0.1:4222"))?.to_owned();
    let password = std::fs::read_to_string(password_file);
    let password = password.map_err(|error| Failed::usage(format!("cannot read {}: {error}", password_file.display())))?;
    let failed = |error: &dyn std::fmt::Display| Failed::work(format!("the copy at {} cannot be read: {error}", address.host()));
    block_on(async {
        let options = ConnectOptions::with_user_and_password(user, password.trim_end().to_owned());
        let client = options.connect(address.clone()).await.map_err(|error| failed(&error))?;
        let mut stream = jetstream::new(client).get_stream(STREAM).await.map_err(|error| failed(&error))?;
        let end = stream.info().await.map_err(|error| failed(&error))?.state.clone();
        if end.messages == 0 {
            return Ok(());
        }
        let consumer = stream.create_consumer(OrderedConfig::default()).await.map_err(|error| failed(&error))?;
        let mut messages = consumer.messages().await.map_err(|error| failed(&error))?;
        loop {
            let silent = |_elapsed| failed(&format!("it says nothing for {} s", ANSWERED_WITHIN.as_secs()));
            let next = timeout(ANSWERED_WITHIN, messages.next()).await.map_err(silent)?;
            let message = next.ok_or_else(|| failed(&"it ends before its end"))?.map_err(|error| failed(&error))?;
            let sequence = message.info().map_err(|error| failed(&error))?.stream_sequence;
            write(out, &message.subject, sequence, &message.payload)
                .map_err(|error| Failed::work(format!("cannot write the export: {error}")))?;
            if sequence >= end.last_sequence {
                return Ok(());
            }
        }
    })
}

fn write(out: &mut impl Write, subject: &str, sequence: u64, payload: &[u8]) -> std::io::Result<()> {
    let Ok(batch) = serde_json::from_slice::<Batch>(payload) else {
        return writeln!(out, "{}", json!({"unreadable_message": sequence}));
    };
    for record in batch.exported(subject, sequence) {
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    }
    Ok(())
}
