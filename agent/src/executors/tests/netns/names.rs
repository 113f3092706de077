//! A DNS of our own: a signed root, `test.` below it, and zones below that, some as they should be and each of the others broken in a way
//! of its own. BIND has the zones, each level on an address of its own; Unbound asks them and validates, over UDP, TCP, TLS and HTTPS.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::network::Network;
use super::server::{Folder, Server, await_start};
use super::{must, theirs};

/// The root's server.
pub(super) const ROOT: &str = "10.9.1.54";
/// The validating resolver.
pub(super) const RESOLVER: &str = "10.9.1.53";
/// The same, but it does not validate, and it knows `probe.test.` wrongly.
pub(super) const OTHER_RESOLVER: &str = "10.9.1.52";

/// The zones below `test.`: name, how `dnssec-signzone` is to sign it (nothing: not at all), and what `test.` says of it.
const ZONES: [(&str, &[&str], Delegation); 10] = [
    ("probe", &[], Delegation::Signed),
    ("hashed", &["-3", "aabb", "-H", "5"], Delegation::Signed),
    ("optout", &["-3", "-", "-A"], Delegation::Signed),
    ("plain", &[], Delegation::Unsigned),
    ("wrongkey", &[], Delegation::OtherKey),
    ("expired", &["-s", "20200101000000", "-e", "20200201000000"], Delegation::Signed),
    ("future", &["-s", "20370101000000", "-e", "20371201000000"], Delegation::Signed),
    ("stripped", &[], Delegation::Stripped),
    ("altered", &[], Delegation::Altered),
    ("island", &[], Delegation::Island),
];

/// How a zone and its parent agree.
#[derive(Clone, Copy, PartialEq)]
enum Delegation {
    /// The parent has the zone's DS.
    Signed,
    /// Neither is there a DS, nor is the zone signed.
    Unsigned,
    /// The DS is that of another key.
    OtherKey,
    /// There is a DS, and the zone is not signed.
    Stripped,
    /// A record was altered after it was signed.
    Altered,
    /// The zone is signed, and the parent has no DS.
    Island,
}

/// Delegations that lead nowhere good, as `test.` has them.
const STRAY: &str = "denied NS ns.denied\nns.denied A 169.254.169.254\nns.denied A 127.0.0.1\nns.denied A 0.0.0.0\n\
    ns.denied A 224.0.0.1\nns.denied A 255.255.255.255\nns.denied A 10.9.0.255\nns.denied AAAA ::1\nns.denied AAAA ::ffff:7f00:1\n\
    ns.denied AAAA 64:ff9b::a9fe:a9fe\nns.denied AAAA 2002:7f00:1::\nns.denied AAAA 2001:0:7f00:1::\nns.denied AAAA fe80::1\n\
    ns.denied AAAA ff02::1\n\
    private NS ns.private\nns.private A 10.9.66.1\n\
    mixed NS ns.mixed\nns.mixed A 127.0.0.1\nns.mixed A 10.9.1.56\n\
    lame NS ns1.probe.test.\n\
    silent NS quiet.probe.test.\n\
    far NS ns1.probe.test.\n\
    nowhere NS ns.nowhere.invalid.\n\
    rebound NS metadata.probe.test.\n\
    sideways NS again.probe.test.\n\
    upwards NS above.probe.test.\n";

const ZONE: &str = "$TTL 300\n@ SOA ns1 hostmaster 1 3600 900 604800 60\n@ NS ns1\nns1 A 10.9.1.56\nwww A 192.0.2.80\nalias CNAME www\n\
    outside CNAME www.plain.test.\n*.wild A 192.0.2.81\nquiet A 10.9.1.57\nagain A 10.9.1.58\nabove A 10.9.1.54\na.inner A 192.0.2.82\nunder NS ns1.plain.test.\nmoved DNAME plain.test.\nrenamed DNAME hashed.test.\ndangling CNAME nope\nastray CNAME nope.hashed.test.\nfarther CNAME astray.hashed.test.\n*.wildalias CNAME www\nchain CNAME outside.hashed.test.\nmetadata A 169.254.169.254\nlarge TXT LARGE\n@ MX 10 www\n";

pub(super) struct Names {
    servers: Vec<Server>,
    folder: Folder,
}

impl Names {
    pub(super) fn start(network: &Network) -> Self {
        network.node_etc("resolv.conf", &format!("nameserver {RESOLVER}\n"));
        let mut names = Self { servers: Vec::new(), folder: Folder::new() };
        for last in [52, 53, 54, 55, 56, 57, 58] {
            network.host_address(&format!("10.9.1.{last}/32"));
        }
        network.host_filter("ip daddr 10.9.1.57 meta l4proto { tcp, udp } th dport 53 drop");
        names.write_zones();
        names.folder.write("named.conf", &bind_configuration(&names.folder));
        names.folder.write("unbound.conf", &unbound_configuration(&names.folder));
        names.write_certificate();
        names.spawn(network, "named", &["-g", "-c", "named.conf"], "bind9");
        names.spawn(network, "unbound", &["-d", "-p", "-c", "unbound.conf"], "unbound");
        names.wait(network, ROOT, "test", "NS", "ns1.test.");
        names.wait(network, OTHER_RESOLVER, "www.probe.test", "A", "192.0.2.99");
        names.wait(network, RESOLVER, "www.probe.test", "A", "192.0.2.80");
        names
    }

    /// The root's key, as a DNSKEY or a DS record in a line.
    pub(super) fn anchor(&self, kind: &str) -> String {
        let text = match kind {
            "DS" => self.folder.read("dsset-."),
            _ => fs::read_to_string(self.root_key()).unwrap(),
        };
        let line = text.lines().find(|line| !line.starts_with(';')).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The root's key as delv(1) takes it.
    pub(super) fn delv_anchor(&self) -> PathBuf {
        let anchor = self.anchor("DNSKEY");
        let words: Vec<&str> = anchor.split(' ').collect();
        let [_, _, _, flags, protocol, algorithm, key @ ..] = words.as_slice() else { panic!("{anchor}") };
        self.folder
            .write("bind.keys", &format!("trust-anchors {{ . static-key {flags} {protocol} {algorithm} \"{}\"; }};\n", key.concat()));
        self.folder.join("bind.keys")
    }

    /// Where the certificate of the resolver is, which signs itself.
    pub(super) fn certificate(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    fn root_key(&self) -> PathBuf {
        let keys = fs::read_dir(self.folder.join("keys")).unwrap().map(|entry| entry.unwrap().path());
        let is_anchor = |path: &PathBuf| {
            path.file_name().unwrap().to_str().unwrap().starts_with("K.+")
                && path.extension().is_some_and(|extension| extension == "key")
                && fs::read_to_string(path).unwrap().contains("DNSKEY 257")
        };
        keys.into_iter().find(is_anchor).unwrap()
    }

    /// Children first: their parents carry their DS.
    fn write_zones(&self) {
        fs::create_dir(self.folder.join("keys")).unwrap();
        let large = format!("( {} )", format!("\"{}\" ", "x".repeat(200)).repeat(10));
        for (name, how, delegation) in ZONES {
            let (origin, text) = (format!("{name}.test"), ZONE.replace("LARGE", &large));
            self.folder.write(&origin, &text);
            if delegation != Delegation::Unsigned {
                self.sign(&origin, how);
            }
            let signed = self.folder.join(&format!("{origin}.signed"));
            let ds = self.folder.join(&format!("dsset-{origin}."));
            match delegation {
                Delegation::Signed => {}
                Delegation::Unsigned | Delegation::Stripped => drop(fs::copy(self.folder.join(&origin), signed).unwrap()),
                Delegation::Island => fs::remove_file(ds).unwrap(),
                Delegation::OtherKey => {
                    let other = self.folder.read("dsset-probe.test.").replace("probe", name);
                    fs::write(ds, other).unwrap();
                }
                Delegation::Altered => {
                    let altered = fs::read_to_string(&signed).unwrap().replace("192.0.2.80", "192.0.2.66");
                    fs::write(signed, altered).unwrap();
                }
            }
        }
        let delegations = ZONES.map(|(name, ..)| format!("{name} NS ns1.{name}\nns1.{name} A 10.9.1.56\n")).concat();
        self.folder
            .write("test", &format!("$TTL 300\n@ SOA ns1 host 1 3600 900 604800 60\n@ NS ns1\nns1 A 10.9.1.55\n{delegations}{STRAY}"));
        self.sign("test", &["-3", "-"]);
        self.folder.write("root", "$TTL 300\n@ SOA ns1.root. host. 1 3600 900 604800 60\n@ NS ns1.root.\nns1.root. A 10.9.1.54\ntest. NS ns1.test.\nns1.test. A 10.9.1.55\n");
        self.sign("root", &[]);
        self.folder.write("sideways", "$TTL 300\n@ SOA ns1.test. host. 1 3600 900 604800 60\n@ NS ns1.test.\nns1.test. A 10.9.1.55\nsideways.test. NS again.probe.test.\nagain.probe.test. A 10.9.1.58\n");
        self.folder.write("wrong", "$TTL 300\n@ SOA ns1 host 1 3600 900 604800 60\n@ NS ns1\nns1 A 10.9.1.56\nwww A 192.0.2.99\n");
    }

    fn sign(&self, file: &str, how: &[&str]) {
        let origin = if file == "root" { "." } else { file };
        for use_of_key in [&["-f", "KSK"][..], &[]] {
            let mut command = Command::new("dnssec-keygen");
            command.current_dir(&self.folder).args(["-q", "-K", "keys", "-a", "ECDSAP256SHA256"]).args(use_of_key).arg(origin);
            must(&mut command);
        }
        let mut command = Command::new("dnssec-signzone");
        // Without a check of its own: what it signs may have expired.
        command.current_dir(&self.folder).args(["-q", "-P", "-S", "-g", "-K", "keys", "-o", origin]).args(how);
        must(command.args(["-f", &format!("{file}.signed"), file]));
    }

    fn write_certificate(&self) {
        must(Command::new("openssl").current_dir(&self.folder).args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "certificate.pem",
            "-days",
            "30",
            "-subj",
            "/CN=resolver.test",
            "-addext",
            "subjectAltName=DNS:resolver.test,IP:10.9.1.53",
        ]));
    }

    fn spawn(&mut self, network: &Network, program: &str, arguments: &[&str], package: &str) {
        let log = fs::File::create(self.folder.join(&format!("{program}.log"))).unwrap();
        let mut command = network.host_command(program);
        command.current_dir(&self.folder).args(arguments).stdin(Stdio::null()).stderr(log);
        self.servers.push(Server::start(&mut command, package));
    }

    fn wait(&self, network: &Network, server: &str, name: &str, kind: &str, answer: &str) {
        let question = ["+noall", "+answer", "+authority", "+tries=1", "+time=1", &format!("@{server}"), name, kind];
        let log = |program: &str| fs::read_to_string(self.folder.join(&format!("{program}.log"))).unwrap_or_default();
        await_start(
            || theirs(network, "dig", &question).contains(answer),
            || format!("{name} at {server}\n{}\n{}", log("named"), log("unbound")),
        );
    }
}

/// One server for each level, told apart by the address that it is asked on.
fn bind_configuration(folder: &Folder) -> String {
    let zone = |origin: &str, file: &str| format!("zone \"{origin}\" {{ type primary; file \"{file}\"; }};");
    let below: String = ZONES.iter().map(|(name, ..)| zone(&format!("{name}.test"), &format!("{name}.test.signed"))).collect();
    // The server of `far.test`, and the one that `mixed.test` has beside a denied one.
    let plain = ["far.test", "mixed.test"].map(|origin| zone(origin, "plain.test")).concat();
    let view = |name: &str, last: u8, zones: &str| format!("view {name} {{ match-destinations {{ 10.9.1.{last}; }}; {zones} }};\n");
    let views = [
        view("root", 54, &zone(".", "root.signed")),
        view("test", 55, &zone("test", "test.signed")),
        view("below", 56, &(below + &plain)),
        view("sideways", 58, &zone(".", "sideways")),
    ];
    let other = "recursion yes; zone \".\" { type hint; file \"hints\"; }; zone \"probe.test\" { type primary; file \"wrong\"; };";
    let hints = ". 3600 NS ns1.root.\nns1.root. 3600 A 10.9.1.54\n";
    folder.write("hints", hints);
    let addresses = [52, 54, 55, 56, 58].map(|last| format!("10.9.1.{last}; ")).concat();
    format!(
        "options {{ directory \"{}\"; pid-file none; session-keyfile none; listen-on {{ {addresses} }};\n\
         listen-on-v6 {{ none; }}; recursion no;\n\
         dnssec-validation no; minimal-responses no-auth; allow-query {{ any; }}; allow-recursion {{ any; }}; }};\ncontrols {{ }};\n{}{}",
        folder.path("."),
        views.concat(),
        view("other", 52, other)
    )
}

fn unbound_configuration(folder: &Folder) -> String {
    let folder = folder.path(".");
    format!(
        "server:\n directory: \"{folder}\"\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n use-syslog: no\n num-threads: 1\n\
         interface: 10.9.1.53@53\n interface: 10.9.1.53@853\n interface: 10.9.1.53@443\n tls-port: 853\n https-port: 443\n\
         tls-service-key: \"key.pem\"\n tls-service-pem: \"certificate.pem\"\n access-control: 0.0.0.0/0 allow\n root-hints: \"hints\"\n\
         trust-anchor-file: \"dsset-.\"\n module-config: \"validator iterator\"\n local-zone: \"test.\" nodefault\n nsid: ascii_unbound\n\
         remote-control:\n control-enable: no\n"
    )
}
