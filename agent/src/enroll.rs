//! How this machine becomes a node and stays one: its key, made here and shown to nobody, and the credentials that the API signs for it.
//!
//! Everything is in one folder, each file of which is whole or absent, so that a crash at any point leaves what the next run goes on from. A
//! credential is tried on the broker before the API is told to count on it.

pub mod api;
pub mod command;
mod folder;
mod renewal;
mod secret;

use std::path::{Path, PathBuf};
use std::time::Duration;

use probeops_nats::connect::{Credential, Link, LinkError, backoff};
use probeops_nats::node_key::NodeKey;
use probeops_shared::enroll::{ConfirmRequest, EnrollRequest, NodeCredential};
use probeops_shared::ids::NodeId;
use probeops_shared::subjects;
use probeops_shared::timestamp::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use self::folder::keep;
#[cfg(feature = "fuzzing")]
pub(crate) use self::folder::read_record;
pub use self::folder::{Folder, Given, Record};
pub(crate) use self::renewal::Renewal;
pub use self::secret::{Token, TokenSource};

use self::api::Api;
use crate::agent::AgentError;
use crate::config::{Enrolling, ProxySetting, Settings};
use crate::way::Way;
use crate::way::proxy::Proxies;

/// How often a new credential is tried on the broker.
const TRIES_MAX: usize = 4;
/// How long the broker may take to answer the first word of a new credential.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// Why a machine is no node, or has no newer credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrollError {
    /// The API says no, and why.
    Refused(String),
    /// The API or the broker cannot be reached now; trying again may help.
    Later(String),
    /// Something on this machine.
    Here(String),
}

impl std::fmt::Display for EnrollError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(detail) | Self::Later(detail) | Self::Here(detail) => f.write_str(detail),
        }
    }
}

impl std::error::Error for EnrollError {}

impl EnrollError {
    fn here(detail: impl std::fmt::Display) -> Self {
        Self::Here(detail.to_string())
    }
}

/// What an enrolment came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The machine is a node now.
    Enrolled(Given),
    /// It was one already.
    Already(Given),
}

/// With which API a machine is to enrol, and how.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The API's address.
    pub api: &'a str,
    /// The authority that signed its certificate (PEM), or why it cannot be read; the system's own when absent.
    pub ca: Result<Option<String>, EnrollError>,
    /// The name that the node is to have; the token's, or the machine's, when absent.
    pub node: Option<&'a NodeId>,
    /// Where the token is.
    pub token: &'a TokenSource,
    /// The broker's addresses, where they are not those that the API says.
    pub servers: Option<&'a [String]>,
    /// The proxy on the way to the API and the broker.
    pub proxy: &'a ProxySetting,
}

/// Makes this machine a node. Of one that is a node already it only says so; what a crash left half done is finished.
pub async fn enroll(folder: &Folder, wanted: &Wanted<'_>, say: &(dyn Fn(String) + Sync)) -> Result<Done, EnrollError> {
    let _lock = folder.lock().await?;
    let mut record = folder.record()?.unwrap_or_else(|| Record::new(wanted.api, machine()));
    if let Some(given) = record.given.clone().filter(|given| !given.to_confirm) {
        check_machine(&record)?;
        if record.api != wanted.api.trim_end_matches('/') {
            let detail = format!("this machine is node `{}` of {} already; --new-identity makes it another", given.node, record.api);
            return Err(EnrollError::Here(detail));
        }
        if record.goes_by(wanted.proxy) {
            drop(record.proxies()?);
            folder.keep_record(&record)?;
            say("the way to the API and the broker is another from now on".to_owned());
        }
        if given.expires_at > Timestamp::now() {
            return Ok(Done::Already(given));
        }
        return ask(folder, record, None, None).await.map(Done::Already);
    }
    // What was begun with another API is begun anew.
    wanted.api.trim_end_matches('/').clone_into(&mut record.api);
    record.goes_by(wanted.proxy);
    folder.keep_api_authority(wanted.ca.clone()?.as_deref())?;
    let api = api_of(folder, &record)?;
    let key = folder.key_or_new()?;
    record.servers = wanted.servers.map(<[String]>::to_vec);
    folder.keep_record(&record)?;
    let public_key = key.public_key().map_err(EnrollError::here)?;
    say(format!("node key {public_key}, made here and kept in {}; only this public half is sent", folder.key_path().display()));
    let token = wanted.token.read()?;
    let name = wanted.node.cloned().or_else(host_name);
    let credential = request(&api, &key, &record, (token, name), None).await?;
    say(format!("the API at {} takes this machine as node {} in region {}", record.api, credential.node, credential.region));
    if let Some(wanted) = wanted.node.filter(|wanted| **wanted != credential.node) {
        say(format!("the token gives the name {}, not {wanted}", credential.node));
    }
    complete(folder, &api, &key, record, credential, say).await.map(Done::Enrolled)
}

/// Renews the credential of this node, and finishes what a crash left half done.
pub async fn renew(folder: &Folder) -> Result<Given, EnrollError> {
    let _lock = folder.lock().await?;
    let record = folder.record()?.ok_or_else(|| EnrollError::Here(not_enrolled(folder)))?;
    check_machine(&record)?;
    ask(folder, record, None, None).await
}

/// Puts another key in the place of the one that this node has. The old one is revoked once the broker has taken the new one.
pub async fn rotate(folder: &Folder, say: &(dyn Fn(String) + Sync)) -> Result<Given, EnrollError> {
    let _lock = folder.lock().await?;
    let record = folder.record()?.filter(|record| record.given.is_some()).ok_or_else(|| EnrollError::Here(not_enrolled(folder)))?;
    check_machine(&record)?;
    let api = api_of(folder, &record)?;
    let (key, next) = (folder.key_or_new()?, folder.next_key_or_new()?);
    say(format!("new node key {}, made here", next.public_key().map_err(EnrollError::here)?));
    let node = record.given.as_ref().map(|given| given.node.clone());
    let credential = request(&api, &key, &record, (None, node), Some(&next)).await?;
    // Until the broker has taken it the agent that runs must not find it.
    let trial = folder.next_creds_path();
    keep(&trial, &next.creds_file(&credential.jwt).map_err(EnrollError::here)?)?;
    prove(link_of(folder, &record, &credential, &trial), &record.proxies()?, &credential.node).await?;
    say("the broker takes the new key".to_owned());
    folder.promote_next_key()?;
    let given = complete(folder, &api, &next, record, credential, say).await?;
    say("the old key is revoked".to_owned());
    Ok(given)
}

/// Everything that an agent needs to connect; enrols first where it is told with whom, however long that takes. None when told to stop before.
pub(crate) async fn ready(settings: Settings, stop: &CancellationToken) -> Result<Option<(Settings, Option<Renewal>)>, AgentError> {
    let Some(enrolling) = settings.enrolling.clone() else { return Ok(Some((settings, None))) };
    let folder = Folder::new(&enrolling.state);
    let mut attempt = 1;
    let (record, given) = loop {
        match stop.run_until_cancelled(Box::pin(settle(&folder, &enrolling, &settings))).await {
            None => return Ok(None),
            Some(Ok(done)) => break done,
            Some(Err(EnrollError::Later(why))) => {
                let wait = backoff(attempt);
                tracing::warn!(attempt, wait_ms = wait.as_millis(), "{why}");
                if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    return Ok(None);
                }
                attempt += 1;
            }
            Some(Err(EnrollError::Refused(why))) => return Err(AgentError::Revoked(why)),
            Some(Err(EnrollError::Here(why))) => return Err(AgentError::Start(why)),
        }
    };
    Ok(Some((completed(settings, &folder, record, given), Some(Renewal::new(folder)))))
}

/// The settings, and what they leave open as it was when this node enrolled; with them the API, if it is one that did.
pub(crate) fn known(settings: Settings) -> Result<(Settings, Option<Api>), EnrollError> {
    let Some(enrolling) = &settings.enrolling else { return Ok((settings, None)) };
    let folder = Folder::new(&enrolling.state);
    let mut record = folder.record()?.ok_or_else(|| EnrollError::Here(not_enrolled(&folder)))?;
    let given = record.given.clone().ok_or_else(|| EnrollError::Here(not_enrolled(&folder)))?;
    record.goes_by(&settings.proxy);
    let api = api_of(&folder, &record)?;
    Ok((completed(settings, &folder, record, given), Some(api)))
}

fn completed(settings: Settings, folder: &Folder, record: Record, given: Given) -> Settings {
    let servers = if settings.servers.is_empty() { record.servers.unwrap_or(given.servers) } else { settings.servers.clone() };
    let ca = settings.ca.clone().or_else(|| folder.broker_authority());
    let proxy = record.proxy.filter(|_| settings.proxy.proxy.is_none()).unwrap_or_else(|| settings.proxy.clone());
    let enrolling = settings.enrolling.clone().map(|enrolling| Enrolling { api: Some(record.api), ..enrolling });
    Settings { servers, ca, enrolling, proxy, ..settings }
}

/// The authority of the API's certificate, where one is given; an error names its file.
fn authority(ca: Option<&Path>) -> Result<Option<String>, EnrollError> {
    let Some(ca) = ca else { return Ok(None) };
    api::roots_of(ca).map_err(EnrollError::Here)?;
    let read = std::fs::read_to_string(ca);
    read.map(Some).map_err(|error| EnrollError::Here(format!("cannot read the authority {}: {error}", ca.display())))
}

fn api_of(folder: &Folder, record: &Record) -> Result<Api, EnrollError> {
    Api::new(&record.api, folder.api_authority().as_deref(), &record.proxies()?)
}

/// The credential of this node, got anew where there is none that can be used.
async fn settle(folder: &Folder, enrolling: &Enrolling, settings: &Settings) -> Result<(Record, Given), EnrollError> {
    let held = folder.record()?;
    let given = held.as_ref().and_then(|record| record.given.as_ref());
    let is_node = given.is_some_and(|given| !given.to_confirm);
    match (&enrolling.api, held.as_ref().zip(given)) {
        (Some(api), _) if !is_node => {
            let servers = Some(settings.servers.as_slice()).filter(|servers| !servers.is_empty());
            let (node, token, proxy) = (enrolling.node.as_ref(), &enrolling.token, &settings.proxy);
            enroll(folder, &Wanted { api, ca: authority(enrolling.ca.as_deref()), node, token, servers, proxy }, &|line| {
                tracing::info!("{line}");
            })
            .await?;
        }
        (_, Some((record, given))) => {
            check_machine(record)?;
            // Now, and not in half a day.
            let _key = folder.held_key()?;
            move_to(folder, enrolling, &settings.proxy).await?;
            let unusable = match Credential::read(&folder.creds_path()) {
                Err(error) => Some(error.to_string()),
                Ok(_) if given.to_confirm => Some("it is not confirmed yet".to_owned()),
                Ok(_) => Some("it has expired".to_owned()).filter(|_| given.expires_at <= Timestamp::now()),
            };
            if let Some(why) = unusable {
                tracing::info!(why, "the credential cannot be used as it is; asking for another");
                renew(folder).await?;
            }
        }
        (_, None) => return Err(EnrollError::Here(not_enrolled(folder))),
    }
    let record = folder.record()?.ok_or_else(|| EnrollError::Here(not_enrolled(folder)))?;
    let given = record.given.clone().ok_or_else(|| EnrollError::Here(not_enrolled(folder)))?;
    Ok((record, given))
}

/// Renews at this address of the API, and goes by this proxy, from now on: the owner of the node says so.
async fn move_to(folder: &Folder, enrolling: &Enrolling, proxy: &ProxySetting) -> Result<(), EnrollError> {
    let _lock = folder.lock().await?;
    let Some(mut record) = folder.record()? else { return Ok(()) };
    let mut is_other = record.goes_by(proxy);
    if let Some(api) = &enrolling.api {
        folder.keep_api_authority(authority(enrolling.ca.as_deref())?.as_deref())?;
        let api = api.trim_end_matches('/');
        is_other |= record.api != api;
        api.clone_into(&mut record.api);
    }
    if is_other { folder.keep_record(&record) } else { Ok(()) }
}

/// Asks for a credential by signature alone, and keeps it.
async fn ask(folder: &Folder, record: Record, name: Option<NodeId>, next: Option<&NodeKey>) -> Result<Given, EnrollError> {
    let api = api_of(folder, &record)?;
    let key = folder.key_or_new()?;
    let name = name.or_else(|| record.given.as_ref().map(|given| given.node.clone()));
    let credential = request(&api, &key, &record, (None, name), next).await?;
    complete(folder, &api, &key, record, credential, &|line| tracing::debug!("{line}")).await
}

/// Keeps a credential, and makes one that is only for some minutes lasting, once the broker has taken it.
async fn complete(
    folder: &Folder,
    api: &Api,
    key: &NodeKey,
    record: Record,
    credential: NodeCredential,
    say: &(dyn Fn(String) + Sync),
) -> Result<Given, EnrollError> {
    let mut given = store(folder, key, record.with_next_mark(), &credential)?;
    if given.to_confirm {
        let record = folder.record()?.ok_or_else(|| EnrollError::Here(not_enrolled(folder)))?;
        prove(link_of(folder, &record, &credential, &folder.creds_path()), &record.proxies()?, &credential.node).await?;
        say(format!("the broker takes the credential ({})", record.servers.as_ref().unwrap_or(&credential.servers).join(", ")));
        let confirmed = confirm(api, key, &credential.node).await?;
        given = store(folder, key, record, &confirmed)?;
    }
    tracing::info!(node = %given.node, expires_at = %given.expires_at, "this node has a credential");
    Ok(given)
}

/// Keeps a credential. The record comes last: what it says is there.
fn store(folder: &Folder, key: &NodeKey, record: Record, credential: &NodeCredential) -> Result<Given, EnrollError> {
    folder.keep_broker_authority(credential.ca.as_deref())?;
    keep(&folder.creds_path(), &key.creds_file(&credential.jwt).map_err(EnrollError::here)?)?;
    let given = Given {
        node: credential.node.clone(),
        region: credential.region.clone(),
        servers: credential.servers.clone(),
        expires_at: credential.expires_at,
        obtained_at: Timestamp::now(),
        valid_for_ms: credential.valid_for_ms,
        to_confirm: credential.to_confirm,
    };
    folder.keep_record(&Record { given: Some(given.clone()), ..record })?;
    Ok(given)
}

async fn request(
    api: &Api,
    key: &NodeKey,
    record: &Record,
    (token, node): (Option<String>, Option<NodeId>),
    next: Option<&NodeKey>,
) -> Result<NodeCredential, EnrollError> {
    let public_key = key.public_key().map_err(EnrollError::here)?;
    let challenge = api.challenge(&public_key).await?;
    let new_public_key = next.map(NodeKey::public_key).transpose().map_err(EnrollError::here)?;
    let unsigned = "A".repeat(86).parse().map_err(EnrollError::Here)?;
    let token_digest = token.as_deref().map_or_else(|| "-".to_owned(), sha256);
    let mut request = EnrollRequest {
        token,
        public_key,
        challenge: challenge.challenge,
        signature: unsigned,
        node,
        machine: record.machine.clone(),
        mark: record.mark.clone(),
        next_mark: record.next_mark.clone(),
        new_public_key,
        new_signature: None,
    };
    let statement = request.statement(&token_digest);
    request.signature = key.sign(&statement).map_err(EnrollError::here)?;
    request.new_signature = next.map(|next| next.sign(&statement)).transpose().map_err(EnrollError::here)?;
    api.enroll(&request).await
}

async fn confirm(api: &Api, key: &NodeKey, node: &NodeId) -> Result<NodeCredential, EnrollError> {
    let public_key = key.public_key().map_err(EnrollError::here)?;
    let challenge = api.challenge(&public_key).await?;
    let unsigned = "A".repeat(86).parse().map_err(EnrollError::Here)?;
    let mut request = ConfirmRequest { public_key, challenge: challenge.challenge, signature: unsigned, node: node.clone() };
    request.signature = key.sign(&request.statement()).map_err(EnrollError::here)?;
    api.confirm(&request).await
}

fn link_of(folder: &Folder, record: &Record, credential: &NodeCredential, creds: &Path) -> Link {
    let servers = record.servers.clone().unwrap_or_else(|| credential.servers.clone());
    Link { servers, ca: folder.broker_authority(), creds: creds.to_owned() }
}

/// Connects to the broker as the node will, and hears it answer.
async fn prove(link: Link, proxies: &Proxies, node: &NodeId) -> Result<(), EnrollError> {
    let servers = link.servers.join(", ");
    let way = Way::open(link, proxies).await.map_err(EnrollError::Here)?;
    let mut proven = heard(&way, node).await;
    for attempt in 1..TRIES_MAX {
        match &proven {
            Err(EnrollError::Later(_)) => tokio::time::sleep(backoff(attempt)).await,
            Ok(()) | Err(_) => break,
        }
        proven = heard(&way, node).await;
    }
    way.close().await;
    proven.map_err(|error| match error {
        EnrollError::Later(why) => EnrollError::Later(format!(
            "the broker at {servers} was not reached with the new credential: {why}. Nothing is used up: run this again when it can be"
        )),
        error => error,
    })
}

async fn heard(way: &Way, node: &NodeId) -> Result<(), EnrollError> {
    match way.connect(&format!("enrolment of {node}"), &subjects::node_inbox(node)).await {
        Ok((client, _events)) => match tokio::time::timeout(ANSWERED_WITHIN, client.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(EnrollError::Later(error.to_string())),
            Err(_elapsed) => Err(EnrollError::Later("it does not answer".to_owned())),
        },
        Err(error @ (LinkError::Invalid(_) | LinkError::Credential(_))) => Err(EnrollError::here(error)),
        Err(error) => Err(EnrollError::Later(error.to_string())),
    }
}

/// A copy of a node's disk on another machine is not the node.
fn check_machine(record: &Record) -> Result<(), EnrollError> {
    match (&record.machine, machine()) {
        (Some(held), Some(here)) if *held != here => {
            let node = record.given.as_ref().map_or("the node", |given| given.node.as_str());
            Err(EnrollError::Refused(format!(
                "this disk is a copy of that of `{node}`, which is another machine; make this one a node of its own with a token: \
                 `probeops-agent enroll {} --new-identity`",
                record.api
            )))
        }
        _ => Ok(()),
    }
}

fn not_enrolled(folder: &Folder) -> String {
    format!(
        "this machine is no node yet (nothing is in {}); `probeops-agent enroll URL --state {}` makes it one",
        folder.path().display(),
        folder.path().display()
    )
}

/// A digest of what identifies this machine, which is no secret and says nothing to others.
fn machine() -> Option<probeops_shared::enroll::Digest> {
    let id = ["/etc/machine-id", "/var/lib/dbus/machine-id"].iter().find_map(|path| {
        let id = std::fs::read_to_string(path).ok()?;
        Some(id.trim().to_owned()).filter(|id| !id.is_empty())
    })?;
    sha256(&format!("probeops-machine\n{id}")).parse().ok()
}

fn sha256(text: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()))
}

/// The machine's own name, as far as it can be a node's.
fn host_name() -> Option<NodeId> {
    node_name(&std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?)
}

fn node_name(host: &str) -> Option<NodeId> {
    let first = host.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
    let plain: String = first.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    plain.trim_matches('-').parse().ok()
}

/// Where a folder is, unless told.
pub(crate) fn default_state() -> PathBuf {
    PathBuf::from("/var/lib/probeops-agent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_name_becomes_a_nodes_as_far_as_it_can() {
        for (host, name) in
            [("fra-1\n", Some("fra-1")), ("Fra_1.example.com", Some("fra-1")), ("-x-", Some("x")), ("é", None), ("", None), ("...", None)]
        {
            assert_eq!(node_name(host).map(|name| name.to_string()).as_deref(), name, "{host}");
        }
    }
}
