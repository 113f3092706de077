//! A broker with a certificate that was made elsewhere, from `init` to an answer.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_nats::rustls::crypto::ring::default_provider;
use async_nats::rustls::{ClientConfig, RootCertStore};
use async_nats::{Client, ConnectError, ConnectOptions};
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use probeops_nats::layout::Layout;
use probeops_tests::fabric::free_port;
use probeops_tests::up::Home;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);
/// Where its certificate says the broker is.
const HOST: &str = "127.0.0.1";

/// Somebody who signs certificates.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// One that trusts in itself.
    fn new(name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    /// One that this one vouches for.
    fn below(&self, name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        Self { certificate: params.signed_by(&key, &self.issuer).unwrap(), issuer: Issuer::new(params, key) }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// Connects as a client that trusts this authority and no other.
async fn connect(server: &str, creds: &Path, trusted: &Certificate) -> Result<Client, ConnectError> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    ConnectOptions::with_credentials_file(creds).await.unwrap().require_tls(true).tls_client_config(config).connect(server).await
}

#[test]
fn a_broker_with_a_given_certificate_is_provisioned_joined_and_asked_by_those_who_trust_its_authority() {
    let home = Home::new();
    let (root, other) = (Authority::new("a company's root"), Authority::new("another root"));
    let between = root.below("a company's servers");
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([HOST.to_owned()]).unwrap().signed_by(&key, &between.issuer).unwrap();
    home.file("cert.pem", &(certificate.pem() + &between.certificate.pem()));
    home.file("key.pem", &key.serialize_pem());
    home.file("root.pem", &root.certificate.pem());

    let (listen, monitoring) = (free_port(), free_port().port().to_string());
    let address = listen.to_string();
    let init = ["init", "--data", "data", "--listen", &address, "--monitoring", &monitoring, "--log-to-stderr"];
    let given = ["--tls-cert", "cert.pem", "--tls-key", "key.pem", "--tls-ca", "root.pem"];
    home.run(&[&init[..], &given].concat()).good();
    let layout = Layout::new(home.path("data"));
    assert_eq!(std::fs::read_to_string(layout.ca_certificate()).unwrap(), root.certificate.pem(), "what others are told to trust");
    assert!(!layout.ca_key().exists() && !layout.server_certificate().exists(), "nothing of an authority of our own");

    let mut broker = Command::new(home.nats_server());
    broker.arg("--config").arg(layout.server_conf());
    let mut broker = home.start("broker", broker, "Server is ready");
    home.run(&["provision", "--data", "data"]).good();
    home.run(&["nodes", "add", "n-1", "--region", "eu", "--tools", "echo", "--data", "data"]).good();
    home.run(&["services", "add", "billing", "--regions", "eu", "--tools", "echo", "--data", "data"]).good();
    let server = std::fs::read_to_string(home.path("data/servers")).unwrap().trim().to_owned();
    assert_eq!(server, format!("tls://{address}"));
    let agent = ["agent", "--servers", &server, "--ca", "root.pem", "--creds", "data/nodes/n-1.creds"];
    let mut agent = home.start("agent", home.probeops(&agent), "the agent is ready");

    let creds = layout.service_creds(&"billing".parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let refused = connect(&server, &creds, &other.certificate).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnknownIssuer"), "{refused:?}");
        let client = connect(&server, &creds, &root.certificate).await.unwrap();
        let mut answers = client.subscribe("_INBOX.billing.once.*").await.unwrap();
        let job = json!({"request_id": "r-1", "tool": "echo", "target": "x"}).to_string();
        client.publish_with_reply("job.v1.eu.echo.billing", "_INBOX.billing.once._", job.into()).await.unwrap();
        let answer = tokio::time::timeout(HANG, answers.next()).await.expect("an answer").unwrap();
        let outcome: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!((&outcome["status"], &outcome["node"]["id"]), (&json!("success"), &json!("n-1")), "{outcome}");
    });
    assert_eq!(agent.end(Signal::SIGTERM), Some(0), "{}", agent.log());
    broker.end(Signal::SIGTERM);
}
