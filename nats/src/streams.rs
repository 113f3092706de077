//! Streams and buckets: what they are, and making them.

pub mod definitions;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use async_nats::Client;
use probeops_shared::subjects::broker;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::connect::{Link, connect};
use crate::keymaster;
use crate::layout::Layout;
use crate::permissions::{AccountName, Role};
use crate::server::version::{self, Version};
use crate::streams::definitions::{Definition, application, audit};
use crate::vault::Vault;

/// How long a credential of the provisioner lasts.
const PROVISION_LIFETIME: Duration = Duration::from_mins(10);
/// How long one request to the broker may take.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// How long after its claims have arrived an account may take until it can have streams: servers of a cluster first agree on who leads.
const ACCOUNT_READY_MAX: Duration = Duration::from_secs(30);
/// How long to wait before asking again.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// From this many servers on everything is kept three times.
const SERVERS_FOR_REPLICAS: usize = 3;

/// What provisioning found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provisioned {
    /// The servers' version.
    pub version: Version,
    /// Their names.
    pub servers: Vec<String>,
    /// The streams that were made now.
    pub created: Vec<String>,
    /// The streams that were changed now.
    pub changed: Vec<String>,
}

/// Brings a running broker to what this version wants: pushes the accounts' claims, makes or changes streams and buckets. Doing it again
/// changes nothing.
pub async fn provision(layout: &Layout, vault: &Vault, servers: &[String], ca: Option<&Path>) -> Result<Provisioned> {
    let session = Session { layout, vault, servers, ca };
    let system = session.connect(&Role::Keymaster).await?;
    let version = version::require(&system.server_info().version, "the broker")?;
    let mut servers = Vec::new();
    for name in AccountName::PUSHED {
        let pushed = keymaster::push(&system, &vault.account_jwt(name)?).await;
        servers = pushed.with_context(|| format!("the claims of account {} cannot be pushed", name.as_str()))?.servers;
    }
    session.close(system, &Role::Keymaster).await?;

    let mut provisioned = Provisioned { version, servers, created: Vec::new(), changed: Vec::new() };
    let replicas = if provisioned.servers.len() >= SERVERS_FOR_REPLICAS { 3 } else { 1 };
    for (role, definitions) in [(Role::AuditProvisioner, vec![audit(replicas)]), (Role::Provisioner, application(replicas))] {
        let client = session.connect(&role).await?;
        for definition in definitions {
            ensure(&client, &definition, &mut provisioned).await.with_context(|| format!("cannot make stream {}", definition.name))?;
        }
        session.close(client, &role).await?;
    }
    Ok(provisioned)
}

struct Session<'a> {
    layout: &'a Layout,
    vault: &'a Vault,
    servers: &'a [String],
    ca: Option<&'a Path>,
}

impl Session<'_> {
    async fn connect(&self, role: &Role) -> Result<Client> {
        let creds = self.layout.creds(&role.name());
        self.vault.mint_to(&creds, role, PROVISION_LIFETIME)?;
        let link = Link { servers: self.servers.to_vec(), ca: self.ca.map(Path::to_owned), creds };
        let (client, _events) = connect(&link, &role.name(), &role.inbox_prefix()).await?;
        Ok(client)
    }

    /// Credentials that can change streams are not left lying about.
    async fn close(&self, client: Client, role: &Role) -> Result<()> {
        timeout(REQUEST_MAX, client.drain()).await.context("the connection to the broker does not close")??;
        let creds = self.layout.creds(&role.name());
        std::fs::remove_file(&creds).with_context(|| format!("cannot remove {}", creds.display()))
    }
}

/// The stream's configuration with what has to change, if anything has.
fn changed(held: &Map<String, Value>, wanted: &Map<String, Value>) -> Option<Map<String, Value>> {
    let differs = wanted.iter().any(|(key, value)| held.get(key) != Some(value));
    differs.then(|| {
        let mut config = held.clone();
        config.extend(wanted.clone());
        config
    })
}

async fn ensure(client: &Client, definition: &Definition, provisioned: &mut Provisioned) -> Result<()> {
    let deadline = Instant::now() + ACCOUNT_READY_MAX;
    loop {
        match ensure_once(client, definition, provisioned).await? {
            Step::Done => return ensure_consumers(client, definition).await,
            // The account's claims have arrived and its storage is being opened.
            Step::NotReady(why) if Instant::now() >= deadline => {
                bail!("its account is not ready after {} s: {why}", ACCOUNT_READY_MAX.as_secs())
            }
            Step::NotReady(_) => sleep(RETRY_AFTER).await,
        }
    }
}

enum Step {
    Done,
    NotReady(String),
}

async fn ensure_once(client: &Client, definition: &Definition, provisioned: &mut Provisioned) -> Result<Step> {
    let name = &definition.name;
    match ask(client, broker::stream_info(name), &Map::new()).await? {
        Answer::Config(held) => {
            let Some(config) = changed(&held, &definition.config) else { return Ok(Step::Done) };
            match ask(client, broker::stream_update(name), &config).await? {
                Answer::Config(_) => provisioned.changed.push(name.clone()),
                Answer::Refused { code, description } => bail!("the broker refused to change it: {description} (code {code})"),
                Answer::Silent(why) => return Ok(Step::NotReady(why)),
            }
        }
        Answer::Refused { code: STREAM_NOT_FOUND, .. } => match ask(client, broker::stream_create(name), &definition.config).await? {
            Answer::Config(_) => provisioned.created.push(name.clone()),
            Answer::Refused { code, description } => bail!("the broker refused it: {description} (code {code})"),
            Answer::Silent(why) => return Ok(Step::NotReady(why)),
        },
        Answer::Refused { code: JETSTREAM_NOT_ENABLED | JETSTREAM_NOT_ENABLED_FOR_ACCOUNT, description } => {
            return Ok(Step::NotReady(description));
        }
        Answer::Refused { code, description } => bail!("the broker does not say whether it exists: {description} (code {code})"),
        Answer::Silent(why) => return Ok(Step::NotReady(why)),
    }
    Ok(Step::Done)
}

/// Makes the durable consumers of a stream, or changes what differs.
async fn ensure_consumers(client: &Client, definition: &Definition) -> Result<()> {
    for consumer in &definition.consumers {
        let [usual, spare] = consumer.names;
        if ensure_consumer(client, &definition.name, usual, &consumer.config).await? == Usable::No
            && ensure_consumer(client, &definition.name, spare, &consumer.config).await? == Usable::No
        {
            bail!(
                "the broker can read neither consumer {usual} nor {spare} of it; remove their folders (`obs`) from its data and start it again"
            );
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum Usable {
    Yes,
    /// What the broker had written of it is damaged.
    No,
}

async fn ensure_consumer(client: &Client, stream: &str, name: &str, wanted: &Map<String, Value>) -> Result<Usable> {
    let mut wanted = wanted.clone();
    wanted.insert("durable_name".to_owned(), json!(name));
    let config = match ask(client, broker::consumer_info(stream, name), &Map::new()).await? {
        Answer::Config(held) => changed(&held, &wanted),
        Answer::Refused { code: CONSUMER_NOT_FOUND, .. } => Some(wanted),
        Answer::Refused { code, description } => {
            bail!("the broker does not say whether consumer {name} exists: {description} (code {code})")
        }
        Answer::Silent(why) => bail!("the broker does not say whether consumer {name} exists: {why}"),
    };
    let Some(config) = config else { return Ok(Usable::Yes) };
    let request = [("stream_name".to_owned(), json!(stream)), ("config".to_owned(), Value::Object(config))].into_iter().collect();
    match ask(client, broker::consumer_create_named(stream, name), &request).await? {
        Answer::Config(_) => Ok(Usable::Yes),
        Answer::Refused { code: CONSUMER_STORE_FAILED, .. } => Ok(Usable::No),
        Answer::Refused { code, description } => bail!("the broker refused consumer {name}: {description} (code {code})"),
        Answer::Silent(why) => bail!("consumer {name} could not be made: {why}"),
    }
}

/// The broker's code for a stream that does not exist.
const STREAM_NOT_FOUND: u64 = 10059;
/// The broker's code for a consumer that does not exist.
const CONSUMER_NOT_FOUND: u64 = 10014;
/// The broker's code for a consumer whose files it cannot use.
const CONSUMER_STORE_FAILED: u64 = 10012;
/// The broker's code for a server without streams.
const JETSTREAM_NOT_ENABLED: u64 = 10076;
/// The broker's code for an account without streams.
const JETSTREAM_NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;

enum Answer {
    Config(Map<String, Value>),
    Refused { code: u64, description: String },
    Silent(String),
}

async fn ask(client: &Client, subject: String, body: &Map<String, Value>) -> Result<Answer> {
    let body = serde_json::to_vec(body).context("cannot write the request")?;
    let message = match timeout(REQUEST_MAX, client.request(subject, body.into())).await {
        Ok(Ok(message)) => message,
        Ok(Err(error)) => return Ok(Answer::Silent(error.to_string())),
        Err(_) => return Ok(Answer::Silent(format!("no answer within {} s", REQUEST_MAX.as_secs()))),
    };
    let mut answer: Map<String, Value> =
        serde_json::from_slice(&message.payload).map_err(|error| anyhow!("the broker's answer cannot be understood: {error}"))?;
    if let Some(Value::Object(error)) = answer.remove("error") {
        let code = error.get("err_code").and_then(Value::as_u64).unwrap_or_default();
        let description = error.get("description").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
        return Ok(Answer::Refused { code, description });
    }
    match answer.remove("config") {
        Some(Value::Object(config)) => Ok(Answer::Config(config)),
        Some(_) | None => bail!("the broker's answer has no configuration in it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let held = object(&json!({"name": "S", "max_age": 1, "metadata": {"x": "y"}}));
        assert_eq!(changed(&held, &object(&json!({"name": "S", "max_age": 1}))), None);
        let wanted = object(&json!({"name": "S", "max_age": 2}));
        assert_eq!(changed(&held, &wanted), Some(object(&json!({"name": "S", "max_age": 2, "metadata": {"x": "y"}}))));
    }
}
