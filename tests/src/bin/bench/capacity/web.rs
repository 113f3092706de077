//! Checks of a web page, each over a connection of its own, beside prometheus-blackbox-exporter.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use probeops_tests::fabric::free_port;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;

use super::asker::{Job, address};
use super::yard::{self, Held, PEER};
use super::{Site, executors, median, micros_each, on_one_core, print_costs};
use crate::cpu;
use crate::load::{self, Question};

/// How many checks are under way at once.
const UNDER_WAY: usize = 50;
/// The name in the certificate.
const NAME: &str = "web.test";
/// The size of the page.
const PAGE_BYTES: usize = 1024;

/// With TLS or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

pub(super) fn measure(site: &mut Site, scheme: Scheme) -> anyhow::Result<()> {
    let (rounds, round) = site.scale.of((5, Duration::from_secs(4)), (1, Duration::from_secs(1)));
    let server = serve(site, scheme)?;
    let (exporter, question) = blackbox(site, scheme, &server.authority)?;
    let (mut ours, mut alone, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = cpu::used(exporter.id())?;
        let measured = site.fabric.block_on(load::run(&question, UNDER_WAY, round)).context("prometheus-blackbox-exporter")?;
        theirs.push(micros_each(cpu::used(exporter.id())?.saturating_sub(before), measured.answers));
        let before = site.spent()?;
        let checks = site.asker.keep(|index| server.check(&address(index), "/1k"), UNDER_WAY, round, executors::is_right);
        let checked = site.fabric.block_on(checks)?;
        ours.push(micros_each(site.spent()?.saturating_sub(before), checked));
        alone.push(executors::cost(&server.check(executors::ADDRESS, "/1k"), UNDER_WAY, round)?);
    }
    let how = match scheme {
        Scheme::Http => "",
        Scheme::Https => " with a full handshake and the chain verified",
    };
    println!("{}: on one core, {UNDER_WAY} checks under way, each a connection{how}", scheme.as_str());
    print_costs(median(ours), median(alone), ("prometheus-blackbox-exporter", median(theirs)));
    Ok(())
}

/// A web server of the peer's.
pub(super) struct Server {
    scheme: Scheme,
    authority: String,
    _nginx: Held,
}

impl Server {
    /// A check of one of its pages: `/1k`, or `/slow`, which takes ten seconds.
    pub(super) fn check(&self, address: &str, page: &str) -> Job {
        let parameters = match self.scheme {
            Scheme::Http => json!({}),
            Scheme::Https => json!({"server_name": NAME, "ca_certificates": self.authority}),
        };
        Job { tool: "http", target: format!("{}://{address}{page}", self.scheme.as_str()), parameters }
    }
}

/// Starts nginx.
pub(super) fn serve(site: &Site, scheme: Scheme) -> anyhow::Result<Server> {
    let folder = site.fabric.file("1k", &"x".repeat(PAGE_BYTES)).parent().context("a folder")?.to_string_lossy().into_owned();
    site.file("slow", &"x".repeat(PAGE_BYTES));
    let (key, authority_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Of another name than what it signs, which would look as if signed by itself.
    authority.distinguished_name.push(DnType::CommonName, "authority");
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let certificate = CertificateParams::new([NAME.to_owned()])?.signed_by(&key, &Issuer::new(authority, authority_key))?;
    let (certificate, key) = (site.file("web.pem", &certificate.pem()), site.file("web.key", &key.serialize_pem()));
    let listen = match scheme {
        Scheme::Http => "listen 80 backlog=4096;".to_owned(),
        Scheme::Https => format!("listen 443 ssl backlog=4096; ssl_certificate {certificate}; ssl_certificate_key {key};"),
    };
    let settings = format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log /dev/null; worker_rlimit_nofile 8192;
         events {{ worker_connections 4096; }}
         http {{ access_log off; client_body_temp_path {folder}/body; server {{ {listen} root {folder}; keepalive_timeout 30; location /slow {{ limit_rate 100; }} }} }}"
    );
    let mut command = site.peer("nginx");
    command.args(["-e", "/dev/null", "-c", &site.file("nginx.conf", &settings)]);
    let nginx = Held::start(command)?;
    let listens = SocketAddr::new(PEER.parse()?, scheme.port());
    yard::wait_until("nginx listens (apt-get install nginx-light)", || TcpStream::connect(listens).is_ok())?;
    Ok(Server { scheme, authority: authority_pem, _nginx: nginx })
}

/// Starts the exporter, and what to ask it.
fn blackbox(site: &Site, scheme: Scheme, authority: &str) -> anyhow::Result<(Held, Question)> {
    let settings = json!({"modules": {"page": {"prober": "http", "timeout": "5s", "http": {
        "preferred_ip_protocol": "ip4",
        "tls_config": {"ca_file": site.file("authority.pem", authority), "server_name": NAME},
    }}}});
    // JSON is YAML.
    let settings = site.file("blackbox.yml", &settings.to_string());
    let listen = free_port();
    let mut command = on_one_core("prometheus-blackbox-exporter");
    command.env("GOMAXPROCS", "1").arg(format!("--config.file={settings}")).arg(format!("--web.listen-address={listen}"));
    let exporter = Held::start(command)?;
    yard::wait_until("prometheus-blackbox-exporter listens", || TcpStream::connect(listen).is_ok())?;
    let path = format!("/probe?module=page&target={}://{}/1k", scheme.as_str(), address(1));
    Ok((exporter, Question { address: listen, path: path.leak(), body: Vec::new().into(), token: None, expect: "probe_success 1" }))
}
