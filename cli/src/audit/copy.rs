//! The trail as a NATS server of somebody else has copied it. Needs neither the API nor our broker.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::{ConnectOptions, ServerAddr, jetstream};
use futures_util::StreamExt;
use probeops_shared::audit::chain::Batch;
use tokio::time::timeout;

use super::chained::{Writing, not_written};
use crate::control::block_on;
use crate::exit::Failed;

/// The stream that holds it there, as README has it made.
const STREAM: &str = "AUDIT-COPY";
/// How long that server may take to say anything.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// Writes all of it as it lies there, oldest first.
pub(super) fn export(url: &str, password_file: &Path, writing: &mut Writing<impl Write>) -> Result<(), Failed> {
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
            write(writing, &message.subject, sequence, &message.payload).map_err(|error| not_written(&error))?;
            if sequence >= end.last_sequence {
                return Ok(());
            }
        }
    })
}

fn write(writing: &mut Writing<impl Write>, subject: &str, sequence: u64, payload: &[u8]) -> io::Result<()> {
    match serde_json::from_slice::<Batch>(payload) {
        Ok(batch) => batch.exported(subject, sequence).try_for_each(|record| writing.record(&record)),
        Err(_) => writing.unreadable(sequence),
    }
}
