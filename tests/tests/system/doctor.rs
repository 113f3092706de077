//! `probeops-agent doctor` against a real broker, with each failure made for real.

use std::path::Path;
use std::process::{Command, Stdio};

use probeops_tests::fabric::{AgentOptions, Fabric, free_port, program};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use serde_json::Value;

/// What the doctor says of a node with this credential, and its exit code.
fn doctor(fabric: &Fabric, servers: &str, ca: &Path, creds: &Path) -> (Option<i32>, Value) {
    let mut command = asked(servers, ca, creds);
    // Whether an agent of the package runs on this machine is not the test's.
    command.arg("--health-file").arg(fabric.data().join("no-health")).arg("--json");
    let said = command.output().unwrap();
    let found = serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    (said.status.code(), found)
}

fn asked(servers: &str, ca: &Path, creds: &Path) -> Command {
    let mut command = program();
    command.args(["agent", "doctor", "--servers", servers, "--ca"]).arg(ca).arg("--creds").arg(creds).stdin(Stdio::null());
    command
}

/// The check that failed, which must be one and of this kind; its detail and its cure.
#[track_caller]
fn failure(found: &Value, check: &str) -> (String, String) {
    // What this machine can do for ping is not what these tests are about.
    let failed: Vec<&Value> = checks(found).iter().filter(|one| one["verdict"] == "failed" && !is_of_ping(one)).collect();
    assert!(failed.len() == 1 && failed[0]["check"] == check, "{check} alone should have failed: {found:#}");
    (failed[0]["detail"].as_str().unwrap().to_owned(), failed[0]["cure"].as_str().unwrap().to_owned())
}

fn checks(found: &Value) -> &[Value] {
    found["checks"].as_array().map_or(&[], Vec::as_slice)
}

fn is_of_ping(one: &Value) -> bool {
    one["check"] == "icmp sockets" || (one["check"] == "tools" && one["detail"].as_str().is_some_and(|detail| detail.starts_with("ping")))
}

#[test]
fn the_doctor_names_each_failure_with_its_cure_and_tells_no_secret() {
    let mut fabric = Fabric::start();
    let creds = fabric.enrol("d", 2, "eu");
    let (ca, tls) = (fabric.ca(), fabric.url());
    let both = format!("{tls},{}", fabric.wss_url());

    // No API is there yet.
    let (code, found) = doctor(&fabric, &tls, &ca, &creds[0]);
    let (detail, cure) = failure(&found, "control plane");
    assert!(code == Some(1) && detail.contains("no API is connected") && cure.contains("/readyz"), "{detail}; {cure}");
    let api = fabric.api();
    let (code, found) = doctor(&fabric, &both, &ca, &creds[0]);
    let ok = |check: &str| checks(&found).iter().filter(|one| one["check"] == check && one["verdict"] == "ok").count();
    assert_eq!((ok("network"), ok("tls"), ok("broker"), ok("control plane"), ok("clock"), ok("policy")), (2, 2, 2, 1, 1, 1), "{found:#}");
    assert_eq!(code, Some(i32::from(checks(&found).iter().any(is_of_ping_and_failed))), "{found:#}");
    let who = checks(&found).iter().find(|one| one["check"] == "credential").unwrap()["detail"].as_str().unwrap();
    assert!(who.starts_with("node d-1 in region eu, tools echo, ping") && who.contains(", until 20"), "{who}");
    // It asked for the time in the node's name, and did not announce the node.
    assert!(api.admin().get("/v1/nodes").expect(200)["nodes"].as_array().unwrap().iter().all(|node| node["online"] == false));
    let text = asked(&both, &ca, &creds[0]).output().unwrap();
    let seed = std::fs::read_to_string(&creds[0]).unwrap().lines().find(|line| line.starts_with("SU")).unwrap().to_owned();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("ok      broker") && !text.contains(&seed) && !found.to_string().contains(&seed), "{text}");

    // While an agent has the credential it is not used a second time.
    let agent = fabric.agent_with_credential("d-1", &AgentOptions::default());
    let (_, found) = doctor(&fabric, &tls, &ca, &creds[0]);
    let broker = checks(&found).iter().find(|one| one["check"] == "broker").unwrap();
    assert!(broker["verdict"] == "ok" && broker["detail"].as_str().unwrap().contains("an agent runs here"), "{broker}");
    agent.terminate();
    assert_eq!(agent.wait(), Some(0), "{}", agent.log());

    // Another authority; it is said which one is missing.
    let other = fabric.file("other.pem", &rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap().cert.pem());
    let (detail, cure) = failure(&doctor(&fabric, &tls, &other, &creds[0]).1, "tls");
    assert!(detail.contains("signed by `CN=ProbeOps authority`") && cure.contains("install -m 644 ca.pem"), "{detail}; {cure}");
    // A port at which nobody listens, and one of somebody else.
    let closed = free_port();
    let (detail, cure) = failure(&doctor(&fabric, &format!("tls://{closed}"), &ca, &creds[0]).1, "network");
    assert!(detail.contains("Connection refused") && cure.starts_with("nc -vz -w 5 127.0.0.1 "), "{detail}; {cure}");
    let (detail, _) = failure(&doctor(&fabric, &format!("tls://{}", api.url().trim_start_matches("http://")), &ca, &creds[0]).1, "network");
    assert!(detail.contains("does not answer as a broker"), "{detail}");
    let (detail, _) = failure(&doctor(&fabric, "tls://no-such-broker.invalid:4222", &ca, &creds[0]).1, "network");
    assert!(detail.contains("the name no-such-broker.invalid cannot be resolved"), "{detail}");
    // A credential that was revoked.
    fabric.revoke(fabric.entry("NODES", "d-2")["public_key"].as_str().unwrap());
    let (detail, cure) = failure(&doctor(&fabric, &tls, &ca, &creds[1]).1, "broker");
    assert!(
        detail.contains("does not accept the credential") && cure.starts_with("probeops nodes add d-2 --region eu --tools echo,"),
        "{detail}; {cure}"
    );
    // Settings that cannot be.
    let (detail, _) = failure(&doctor(&fabric, "nats://127.0.0.1:4222", &ca, &creds[0]).1, "configuration");
    assert!(detail.contains("begins with tls:// or wss://"), "{detail}");

    // A certificate that has ended.
    drop(api);
    let (certificate, key) = fabric.certificate();
    let authority = KeyPair::from_pem(&std::fs::read_to_string(fabric.data().join("keys/ca.key")).unwrap()).unwrap();
    let mut of_authority = CertificateParams::default();
    of_authority.distinguished_name = rcgen::DistinguishedName::new();
    of_authority.distinguished_name.push(DnType::CommonName, "ProbeOps authority");
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 2, 3));
    let own = KeyPair::generate().unwrap();
    let ended = params.signed_by(&own, &Issuer::new(of_authority, authority)).unwrap();
    std::fs::write(&certificate, ended.pem()).unwrap();
    std::fs::write(&key, own.serialize_pem()).unwrap();
    fabric.restart_broker();
    let (detail, cure) = failure(&doctor(&fabric, &tls, &ca, &creds[0]).1, "tls");
    assert!(detail.contains("expired on") && cure.contains("renew its certificate") && cure.contains("timedatectl"), "{detail}; {cure}");
}

fn is_of_ping_and_failed(one: &Value) -> bool {
    is_of_ping(one) && one["verdict"] == "failed"
}
