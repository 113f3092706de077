//! Web servers with certificates of every kind.

use std::fs;
use std::path::Path;
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use super::place::must;

/// Where they are.
pub const WEB: &str = "10.77.100.80";
/// The name in the certificates.
pub const WEB_NAME: &str = "web.probe.test";

/// The years for which a certificate counts.
type Years = (i32, i32);

const NOW: Years = (2020, 2080);

/// Writes the certificates, what is stapled to them, the pages and what nginx needs.
pub(super) fn write(folder: &Path) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("a file");
    let (root_params, root_key) = (authority("Testnet Root"), key());
    write("root.pem", &root_params.self_signed(&root_key).expect("a certificate").pem());
    let root = Issuer::new(root_params, root_key);
    let (middle_params, middle_key) = (authority("Testnet Issuing"), key());
    let middle_pem = middle_params.signed_by(&middle_key, &root).expect("a certificate").pem();
    write("middle.pem", &middle_pem);
    write("middle.key", &middle_key.serialize_pem());
    let middle = Issuer::new(middle_params, middle_key);
    for (serial, (name, subject, years)) in (1..).zip([
        ("good", WEB_NAME, NOW),
        ("expired", WEB_NAME, (2020, 2021)),
        ("future", WEB_NAME, (2070, 2080)),
        ("wrong-name", "other.probe.test", NOW),
        ("incomplete", WEB_NAME, NOW),
        ("revoked", WEB_NAME, NOW),
    ]) {
        let key = key();
        let leaf = leaf(subject, years, serial).signed_by(&key, &middle).expect("a certificate").pem();
        write(&format!("{name}.pem"), &(if name == "incomplete" { leaf } else { leaf + &middle_pem }));
        write(&format!("{name}.key"), &key.serialize_pem());
    }
    let key = key();
    write("self.pem", &leaf(WEB_NAME, NOW, 77).self_signed(&key).expect("a certificate").pem());
    write("self.key", &key.serialize_pem());
    staple(folder, "good", "V\t491231000000Z\t\t01\tunknown\t/CN=web.probe.test\n");
    staple(folder, "revoked", "R\t491231000000Z\t260101000000Z\t06\tunknown\t/CN=web.probe.test\n");

    write("nginx.conf", &include_str!("../../testnet/nginx.conf").replace("FOLDER", &folder.display().to_string()));
    fs::create_dir_all(folder.join("pages")).expect("a folder");
    write("pages/index.html", "index\n");
    write("pages/page", &"a page\n".repeat(1000));
    write("pages/large", &"x".repeat(300_000));
    fs::create_dir_all(folder.join("rdap/domain")).expect("a folder");
    write("rdap/domain/probe.test", include_str!("../../testnet/rdap.json"));
}

/// What a responder says of a certificate, as openssl(1) signs it from its list of certificates.
fn staple(folder: &Path, name: &str, line: &str) {
    fs::write(folder.join(format!("{name}.index")), line).expect("a file");
    let arguments = format!(
        "ocsp -index {name}.index -CA middle.pem -rsigner middle.pem -rkey middle.key -issuer middle.pem -cert {name}.pem -respout {name}.ocsp -ndays 3"
    );
    must(Command::new("openssl").current_dir(folder).args(arguments.split(' ')), "");
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn authority(name: &str) -> CertificateParams {
    let mut params = dated(CertificateParams::default(), NOW);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(name: &str, years: Years, serial: u64) -> CertificateParams {
    let names = [name, WEB, "10.77.100.53"].map(str::to_owned);
    let mut params =
        dated(CertificateParams::new(if name == WEB_NAME { names.to_vec() } else { vec![name.to_owned()] }).expect("names"), years);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial.into());
    params
}

fn dated(mut params: CertificateParams, (from, to): Years) -> CertificateParams {
    (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
    params
}
