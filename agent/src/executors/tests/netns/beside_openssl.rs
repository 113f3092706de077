//! `tls` beside `openssl s_client`, on servers of openssl's own: the same verdict, the same chain, the same lines.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::network::Network;
use super::server::{Folder, Server, await_start};
use super::{must, ours, theirs};
use crate::testing::{Authority, Identity, self_signed, valid};

const HOST: &str = "10.9.1.2";
/// Which signatures we like best; openssl has an order of its own, and a server follows its client's.
const SIGNATURES: &str = "ecdsa_secp384r1_sha384:ecdsa_secp256r1_sha256:ed25519:rsa_pss_rsae_sha512:rsa_pss_rsae_sha384:rsa_pss_rsae_sha256:\
    rsa_pkcs1_sha512:rsa_pkcs1_sha384:rsa_pkcs1_sha256";

/// Runs openssl in a folder; words are split at spaces.
fn make(folder: &Folder, arguments: &str) {
    must(Command::new("openssl").current_dir(folder).args(arguments.split(' ')));
}

/// Keeps a certificate, what links it, and its key, as files of this name.
fn keep(folder: &Folder, name: &str, identity: &Identity, others: &[&Authority]) {
    folder.write(&format!("{name}.pem"), &identity.certificate.pem());
    folder.write(&format!("{name}.key"), &identity.key.serialize_pem());
    folder.write(&format!("{name}.chain"), &others.iter().map(|authority| authority.certificate.pem()).collect::<String>());
}

/// Starts `openssl s_server` with the files of this name.
fn serve(network: &Network, folder: &Folder, name: &str, port: u16, more: &[&str]) -> Server {
    let mut command = network.host_command("openssl");
    command.current_dir(folder).args(["s_server", "-quiet", "-naccept", "1000", "-accept", &port.to_string()]);
    command.args(["-cert", &format!("{name}.pem"), "-key", &format!("{name}.key")]);
    if std::fs::metadata(folder.path(&format!("{name}.chain"))).is_ok_and(|file| file.len() > 0) {
        command.args(["-cert_chain", &format!("{name}.chain")]);
    }
    command.args(more).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server::start(&mut command, "openssl");
    await_start(
        || ours(network, "tcp", HOST, json!({"port": port})).report["ports"][0]["state"] == "open",
        || format!("openssl s_server {name} {more:?} does not listen"),
    );
    server
}

/// What is compared of openssl's output: the lines of `-brief`, and the numbers of the errors.
#[derive(Debug, PartialEq)]
struct Said {
    lines: Vec<String>,
    errors: BTreeSet<u32>,
}

impl Said {
    fn of(text: &str) -> Self {
        let wanted = ["Protocol version", "Ciphersuite", "Peer certificate", "Hash used", "Signature type", "Verif", "Server Temp Key"];
        let lines = text.lines().filter(|line| wanted.iter().any(|start| line.starts_with(start)) && !line.starts_with("Verified"));
        // openssl 3.0 prints spaces in names, 3.2 and later do not; our own note after the words is left out.
        let lines = lines.map(|line| line.replace(" = ", "=")).collect();
        let number = |line: &str| line.split_once("verify error:num=")?.1.split(':').next()?.parse::<u32>().ok();
        // 21 says of the first certificate what 20 has said of the chain; 19 is 20 for an authority that was sent too.
        let errors = text.lines().filter_map(number).filter(|number| *number != 21).map(|number| if number == 19 { 20 } else { number });
        Self { lines, errors: errors.collect() }
    }
}

/// The certificates in a text.
fn certificates(text: &str) -> Vec<String> {
    let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    blocks.map(|block| block.split("-----END").next().unwrap().replace('\n', "")).collect()
}

/// Asks both for the same; returns ours.
#[track_caller]
pub(super) fn same(network: &Network, folder: &Folder, port: u16, openssl: &[&str], mut parameters: Value) -> Value {
    let (connect, root) = (format!("{HOST}:{port}"), folder.path("root.pem"));
    let base =
        ["s_client", "-connect", &connect, "-servername", "good.test", "-verify_hostname", "good.test", "-CAfile", &root, "-no-CApath"];
    let brief = theirs(network, "openssl", &[&base[..], &["-brief", "-sigalgs", SIGNATURES], openssl].concat());
    let shown = theirs(network, "openssl", &[&base[..], &["-showcerts"], openssl].concat());
    let more = json!({"port": port, "server_name": "good.test", "ca_certificates": std::fs::read_to_string(&root).unwrap(), "pem": true});
    for (name, value) in more.as_object().unwrap() {
        parameters[name] = value.clone();
    }
    let found = ours(network, "tls", HOST, parameters);
    let (mut ours, mut theirs) = (Said::of(&found.output), Said::of(&brief));
    // Which number stands last when there are several is openssl's own affair.
    if theirs.errors.len() > 1 || theirs.errors.contains(&20) {
        for said in [&mut ours, &mut theirs] {
            said.lines.retain(|line| !line.starts_with("Verification error"));
        }
    }
    assert_eq!(ours, theirs, "port {port}:\n{}\n{brief}", found.output);
    let pem: Vec<String> =
        found.report["chain"].as_array().unwrap().iter().flat_map(|link| certificates(link["pem"].as_str().unwrap())).collect();
    assert_eq!(pem, certificates(&shown), "port {port}");
    found.report
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn the_same_chain_gets_the_same_verdict() {
    let (network, folder) = (Network::new(), Folder::new());
    let root = Authority::root("Root");
    let middle = root.below("Middle");
    folder.write("root.pem", &root.certificate.pem());
    keep(&folder, "good", &middle.certify(&["good.test"]), &[&middle]);
    keep(&folder, "expired", &middle.certify_with(&["good.test"], |params| valid(params, -9, -1)), &[&middle]);
    keep(&folder, "early", &middle.certify_with(&["good.test"], |params| valid(params, 1, 9)), &[&middle]);
    keep(&folder, "other", &middle.certify(&["other.test"]), &[&middle]);
    keep(&folder, "both", &middle.certify_with(&["other.test"], |params| valid(params, -9, -1)), &[&middle]);
    keep(&folder, "lonely", &middle.certify(&["good.test"]), &[]);
    keep(&folder, "self", &self_signed(&["good.test"]), &[]);
    let stranger = Authority::root("Stranger");
    keep(&folder, "stranger", &stranger.certify(&["good.test"]), &[&stranger]);
    let cases: [(&str, &[&str]); 8] = [
        ("good", &[]),
        ("expired", &["expired"]),
        ("early", &["not_yet_valid"]),
        ("other", &["name_mismatch"]),
        ("both", &["name_mismatch", "expired"]),
        ("lonely", &["unknown_issuer"]),
        ("self", &["self_signed"]),
        ("stranger", &["unknown_issuer"]),
    ];
    for (port, (name, expected)) in (4430..).zip(cases) {
        let _server = serve(&network, &folder, name, port, &[]);
        let report = same(&network, &folder, port, &[], json!({}));
        let codes: Vec<&str> =
            report["problems"].as_array().into_iter().flatten().map(|problem| problem["code"].as_str().unwrap()).collect();
        assert_eq!((codes.as_slice(), &report["verified"]), (expected, &json!(expected.is_empty())), "{name}");
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn versions_ciphers_keys_and_protocols_are_agreed_alike() {
    let (network, folder) = (Network::new(), Folder::new());
    make(
        &folder,
        "req -x509 -newkey rsa:2048 -nodes -keyout rsa.key -out rsa.pem -days 9 -subj /C=DE/O=Example/CN=good.test -addext subjectAltName=DNS:good.test -addext basicConstraints=critical,CA:FALSE",
    );
    make(
        &folder,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout p384.key -out p384.pem -days 9 -subj /CN=good.test -addext subjectAltName=DNS:good.test",
    );
    make(
        &folder,
        "req -x509 -newkey ed25519 -nodes -keyout ed.key -out ed.pem -days 9 -subj /CN=good.test -addext subjectAltName=DNS:good.test",
    );
    for (port, (name, server, client, options)) in (4430..).zip([
        ("rsa", &[][..], &[][..], json!({})),
        ("rsa", &["-tls1_2"], &[], json!({})),
        ("rsa", &[], &["-tls1_2"], json!({"max_version": "1.2"})),
        ("p384", &[], &[], json!({})),
        ("ed", &[], &[], json!({})),
        ("rsa", &["-alpn", "h2,http/1.1"], &["-alpn", "http/1.1"], json!({"alpn": ["http/1.1"]})),
        ("rsa", &["-curves", "P-384"], &[], json!({})),
        ("rsa", &["-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"], &[], json!({})),
    ]) {
        std::fs::copy(folder.path(&format!("{name}.pem")), folder.path("root.pem")).unwrap();
        let _server = serve(&network, &folder, name, port, server);
        let report = same(&network, &folder, port, client, options.clone());
        assert_eq!(report["verified"], true, "{name} {server:?}: {report}");
        assert_eq!(report.get("alpn"), options.get("alpn").map(|alpn| &alpn[0]), "{report}");
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn what_is_too_old_to_be_spoken_is_shown_all_the_same() {
    let (network, folder) = (Network::new(), Folder::new());
    make(
        &folder,
        "req -x509 -newkey rsa:2048 -nodes -keyout rsa.key -out rsa.pem -days 9 -subj /CN=good.test -addext subjectAltName=DNS:good.test",
    );
    make(
        &folder,
        "req -x509 -newkey rsa:1024 -nodes -keyout weak.key -out weak.pem -days 9 -subj /CN=good.test -addext subjectAltName=DNS:good.test",
    );
    std::fs::copy(folder.path("rsa.pem"), folder.path("root.pem")).unwrap();
    let weakest = ["-cipher", "ALL:@SECLEVEL=0"];
    for (port, (name, flag, version, accepted)) in (4430..).zip([
        ("rsa", "-tls1", "1.0", [false, false, false, true]),
        ("rsa", "-tls1_1", "1.1", [false, false, true, false]),
        ("rsa", "-no_tls1_3", "1.2", [false, true, true, true]),
        ("weak", "-tls1", "1.0", [false, false, false, true]),
    ]) {
        let _server = serve(&network, &folder, name, port, &[&weakest[..], &[flag]].concat());
        let options = json!({"port": port, "server_name": "good.test", "pem": true, "versions": true,
            "ca_certificates": folder.read("root.pem")});
        let report = ours(&network, "tls", HOST, options).report;
        let shown = if version == "1.2" { "completed" } else { "shown" };
        assert_eq!((&report["handshake"], &report["version"]), (&json!(shown), &json!(version)), "{flag}: {report}");
        let connect = format!("{HOST}:{port}");
        let theirs = theirs(&network, "openssl", &["s_client", "-connect", &connect, "-showcerts", "-cipher", "ALL:@SECLEVEL=0"]);
        assert_eq!(certificates(report["chain"][0]["pem"].as_str().unwrap()), certificates(&theirs)[..1], "{flag}");
        let says: Vec<bool> = report["versions"].as_array().unwrap().iter().map(|offer| offer["accepted"] == true).collect();
        assert_eq!(says, accepted, "{flag}: {report}");
        let codes: Vec<&str> =
            report["problems"].as_array().into_iter().flatten().map(|problem| problem["code"].as_str().unwrap()).collect();
        assert_eq!(codes, if name == "weak" { vec!["self_signed", "weak_key"] } else { vec![] }, "{report}");
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn certificates_that_nobody_should_make_any_more_are_named() {
    let (network, folder) = (Network::new(), Folder::new());
    let subject = "-nodes -subj /CN=good.test -addext subjectAltName=DNS:good.test";
    make(&folder, "req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.pem -days 9 -subj /CN=Root");
    for name in ["v1", "sha1"] {
        make(&folder, &format!("req -new -newkey rsa:2048 {subject} -keyout {name}.key -out {name}.csr"));
    }
    make(&folder, "x509 -req -in v1.csr -signkey v1.key -out v1.pem -days 9");
    make(&folder, "x509 -req -in sha1.csr -sha1 -CA root.pem -CAkey root.key -CAcreateserial -copy_extensions copy -out sha1.pem -days 9");
    std::fs::copy(folder.path("root.pem"), folder.path("sha1.chain")).unwrap();
    for (port, (name, expected)) in (4430..).zip([("v1", &["unsupported", "self_signed"][..]), ("sha1", &["weak_signature"])]) {
        let _server = serve(&network, &folder, name, port, &["-cipher", "ALL:@SECLEVEL=0"]);
        let authority = folder.read("root.pem");
        let options = json!({"port": port, "server_name": "good.test", "pem": true, "ca_certificates": authority});
        let report = ours(&network, "tls", HOST, options).report;
        let connect = format!("{HOST}:{port}");
        let theirs = theirs(&network, "openssl", &["s_client", "-connect", &connect, "-showcerts", "-cipher", "ALL:@SECLEVEL=0"]);
        assert_eq!(certificates(report["chain"][0]["pem"].as_str().unwrap()), certificates(&theirs)[..1], "{report}");
        let codes: Vec<&str> =
            report["problems"].as_array().into_iter().flatten().map(|problem| problem["code"].as_str().unwrap()).collect();
        assert_eq!((codes.as_slice(), &report["handshake"]), (expected, &json!("completed")), "{report}");
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_staple_is_read_and_a_revoked_certificate_is_not_trusted() {
    let (network, folder) = (Network::new(), Folder::new());
    let root = Authority::root("Root");
    let identity = root.certify_with(&["good.test"], |params| params.serial_number = Some(vec![0x10, 0x01].into()));
    folder.write("root.pem", &root.certificate.pem());
    folder.write("root.key", &root.key_pem());
    keep(&folder, "leaf", &identity, &[&root]);
    for (port, (name, line, status)) in (4430..).zip([
        ("good", "V\t400101000000Z\t\t1001\tunknown\t/CN=good.test\n", "good"),
        ("revoked", "R\t400101000000Z\t260101000000Z\t1001\tunknown\t/CN=good.test\n", "revoked"),
        ("unknown", "", "unknown"),
    ]) {
        folder.write(&format!("{name}.index"), line);
        make(
            &folder,
            &format!(
                "ocsp -index {name}.index -CA root.pem -rsigner root.pem -rkey root.key -issuer root.pem -cert leaf.pem -respout {name}.ocsp -ndays 3"
            ),
        );
        let _server = serve(&network, &folder, "leaf", port, &["-status_file", &format!("{name}.ocsp")]);
        // Of revocation openssl's verdict says nothing, whatever is stapled.
        let more = json!({"port": port, "server_name": "good.test", "ca_certificates": root.certificate.pem()});
        let report = ours(&network, "tls", HOST, more).report;
        assert_eq!((&report["ocsp"]["status"], &report["ocsp"]["signature_valid"]), (&json!(status), &json!(true)), "{report}");
        let theirs = theirs(&network, "openssl", &["s_client", "-connect", &format!("{HOST}:{port}"), "-status"]);
        assert!(theirs.contains(&format!("Cert Status: {status}")), "{theirs}");
        assert_eq!(
            (&report["verified"], report["ocsp"]["revoked_at"].is_string()),
            (&json!(status != "revoked"), status == "revoked"),
            "{report}"
        );
        // The same for a server that is greeted by hand.
        let by_hand =
            ours(&network, "tls", HOST, json!({"port": port, "server_name": "good.test", "max_version": "1.2", "min_version": "1.2"}))
                .report;
        assert_eq!(by_hand["ocsp"]["status"], status, "{by_hand}");
    }
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn a_server_that_wants_a_certificate_is_told_and_satisfied() {
    let (network, folder) = (Network::new(), Folder::new());
    let root = Authority::root("Root");
    let client =
        root.certify_with(&["client.test"], |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]);
    folder.write("root.pem", &root.certificate.pem());
    keep(&folder, "server", &root.certify(&["good.test"]), &[]);
    let _server =
        serve(&network, &folder, "server", 4430, &["-Verify", "1", "-CAfile", &folder.path("root.pem"), "-verify_return_error", "-tls1_2"]);
    let options = |more: Value| {
        let mut options = json!({"port": 4430, "server_name": "good.test", "ca_certificates": root.certificate.pem()});
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        options
    };
    let without = ours(&network, "tls", HOST, options(json!({}))).report;
    assert_eq!((&without["client_certificate_requested"], &without["failure"]["code"]), (&json!(true), &json!("alert")), "{without}");
    assert_eq!(without["verified"], true, "the chain was seen: {without}");
    let shown = json!({"client_certificate": client.certificate.pem(), "client_key": client.key.serialize_pem()});
    let with = ours(&network, "tls", HOST, options(shown.clone())).report;
    assert_eq!((&with["client_certificate_requested"], &with["handshake"]), (&json!(true), &json!("completed")), "{with}");
    // The same for a talk over TLS.
    for (shown, failed) in [(json!({"tls": true}), true), (shown, false)] {
        let mut parameters = options(shown);
        parameters["tls"] = json!(true);
        let talk = ours(&network, "tcp", HOST, parameters).report;
        let tls = &talk["ports"][0]["tls"];
        assert_eq!((&tls["client_certificate_requested"], tls["failure"].is_object()), (&json!(true), failed), "{talk}");
    }
}
