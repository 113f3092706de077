//! `tls` with STARTTLS beside `openssl s_client -starttls`, on the servers that Debian has for each protocol: the same chain, the same verdict.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;

use super::beside_openssl::same;
use super::network::Network;
use super::server::{Folder, Server, await_start};
use super::{must, ours};
use crate::testing::{Authority, Identity, self_signed, valid};

const HOST: &str = "10.9.1.2";

const EXIM: &str = "primary_hostname = good.test\nlocal_interfaces = 10.9.1.2\ndaemon_smtp_ports = 25\ntls_advertise_hosts = *\n\
    tls_certificate = FOLDER/good.pem\ntls_privatekey = FOLDER/good.key\nspool_directory = FOLDER/spool\nlog_file_path = FOLDER/spool/%slog\n\
    pid_file_path = FOLDER/spool/pid\nkeep_environment =\nrfc1413_query_timeout = 0s\n";

const DOVECOT: &str = "base_dir = FOLDER/run\nstate_dir = FOLDER/state\nlog_path = FOLDER/dovecot.log\nprotocols = imap pop3\nlisten = 10.9.1.2\n\
    hostname = good.test\nssl = required\nssl_cert = <FOLDER/good.pem\nssl_key = <FOLDER/good.key\n\
    service imap-login {\n inet_listener imaps {\n port = 0\n }\n}\nservice pop3-login {\n inet_listener pop3s {\n port = 0\n }\n}\n\
    service stats {\n unix_listener stats-writer {\n mode = 0666\n }\n}\n\
    passdb {\n driver = static\n args = nopassword=y\n}\nuserdb {\n driver = static\n args = uid=65534 gid=65534 home=FOLDER\n}\n";

const VSFTPD: &str = "listen=YES\nlisten_ipv6=NO\nlisten_address=10.9.1.2\nlisten_port=21\nbackground=NO\nanonymous_enable=YES\n\
    secure_chroot_dir=FOLDER/empty\nseccomp_sandbox=NO\nssl_enable=YES\nssl_ciphers=HIGH\nrsa_cert_file=FOLDER/expired.pem\n\
    rsa_private_key_file=FOLDER/expired.key\n";

/// Servers of every protocol, with certificates that are each good or bad in a way of their own.
struct Servers {
    folder: Folder,
    // They end before the folder goes.
    running: Vec<Server>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.running.clear();
    }
}

impl Servers {
    fn start(network: &Network) -> Self {
        let folder = Folder::new();
        let root = Authority::root("Root");
        let middle = root.below("Middle");
        folder.write("root.pem", &root.certificate.pem());
        let keep = |name: &str, identity: &Identity, links: &str| {
            folder.write(&format!("{name}.pem"), &(identity.certificate.pem() + links));
            folder.write(&format!("{name}.key"), &identity.key.serialize_pem());
        };
        let link = middle.certificate.pem();
        keep("good", &middle.certify(&["good.test"]), &link);
        keep("expired", &middle.certify_with(&["good.test"], |params| valid(params, -9, -1)), &link);
        keep("other", &middle.certify(&["other.test"]), &link);
        keep("self", &self_signed(&["good.test"]), "");
        fs::set_permissions(folder.join(""), Permissions::from_mode(0o755)).unwrap();
        let mut servers = Self { folder, running: Vec::new() };
        servers.start_mail(network);
        servers.configure("vsftpd.conf", VSFTPD);
        servers.folder("empty", "root");
        servers.run(network, "vsftpd", &["vsftpd.conf"], "vsftpd");
        servers.start_postgres(network);
        servers.start_mariadb(network);
        for port in [25, 110, 143, 21, 5432, 3306] {
            await_start(
                || ours(network, "tcp", HOST, json!({"port": port})).report["ports"][0]["state"] == "open",
                || servers.logs(&format!("nobody listens on port {port}")),
            );
        }
        servers
    }

    fn start_mail(&mut self, network: &Network) {
        self.folder("spool", "Debian-exim");
        must(Command::new("chown").arg("Debian-exim").args(["good.pem", "good.key"]).current_dir(&self.folder));
        self.configure("exim.conf", EXIM);
        let configuration = self.folder.path("exim.conf");
        self.run(network, "exim4", &["-bdf", "-C", &configuration], "exim4-daemon-light");
        self.configure("dovecot.conf", DOVECOT);
        self.run(network, "dovecot", &["-F", "-c", "dovecot.conf"], "dovecot-imapd dovecot-pop3d");
    }

    /// It wants to be no root, and its key to be its own.
    fn start_postgres(&mut self, network: &Network) {
        let programs = postgres_programs();
        self.folder("postgres", "postgres");
        must(Command::new("chown").args(["postgres", "other.key"]).current_dir(&self.folder));
        fs::set_permissions(self.folder.join("other.key"), Permissions::from_mode(0o600)).unwrap();
        let as_postgres = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"];
        let (data, socket) = (self.folder.path("postgres/data"), self.folder.path("postgres"));
        let mut prepare = Command::new("setpriv");
        prepare.args(as_postgres).arg(programs.join("initdb")).args(["-D", &data, "-A", "trust", "--no-sync", "--locale=C"]);
        must(prepare.current_dir("/"));
        let settings = [
            "listen_addresses=10.9.1.2",
            "ssl=on",
            &format!("ssl_cert_file={}", self.folder.path("other.pem")),
            &format!("ssl_key_file={}", self.folder.path("other.key")),
            &format!("unix_socket_directories={socket}"),
            "fsync=off",
        ];
        let program = programs.join("postgres").display().to_string();
        let settings = settings.iter().flat_map(|setting| ["-c", setting]);
        let arguments: Vec<&str> = as_postgres.into_iter().chain([program.as_str(), "-D", &data]).chain(settings).collect();
        self.run(network, "setpriv", &arguments, "postgresql");
    }

    /// Without tables of who may what: nobody logs in.
    fn start_mariadb(&mut self, network: &Network) {
        self.folder("mariadb", "root");
        let option = |name: &str, file: &str| format!("--{name}={}", self.folder.path(file));
        let files = [
            option("datadir", "mariadb"),
            option("socket", "mariadb.socket"),
            option("pid-file", "mariadb.pid"),
            option("ssl-cert", "self.pem"),
            option("ssl-key", "self.key"),
        ];
        let others =
            ["--user=root", "--bind-address=10.9.1.2", "--skip-grant-tables", "--skip-name-resolve", "--innodb-buffer-pool-size=8M"];
        let arguments: Vec<&str> = ["--no-defaults"].into_iter().chain(files.iter().map(String::as_str)).chain(others).collect();
        self.run(network, "mariadbd", &arguments, "mariadb-server-core");
    }

    fn configure(&self, name: &str, text: &str) {
        // Without the dot that some of them take for a part of a name.
        self.folder.write(name, &text.replace("FOLDER", self.folder.path("").trim_end_matches('/')));
    }

    fn folder(&self, name: &str, owner: &str) {
        fs::create_dir(self.folder.join(name)).unwrap();
        must(Command::new("chown").args([owner, name]).current_dir(&self.folder));
    }

    fn run(&mut self, network: &Network, program: &str, arguments: &[&str], package: &str) {
        let log = |kind: &str| fs::File::create(self.folder.join(&format!("{package}.{kind}.log"))).unwrap();
        let mut command = network.host_command(program);
        command.current_dir(&self.folder).args(arguments).stdin(Stdio::null()).stdout(log("out")).stderr(log("err"));
        self.running.push(Server::start(&mut command, package));
    }

    fn logs(&self, what: &str) -> String {
        let files = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path());
        let logs = files.filter(|path| path.display().to_string().ends_with("log")).chain([self.folder.join("spool/mainlog")]);
        let texts = logs.map(|path| format!("{}:\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default()));
        format!(
            "{what}; apt-get install exim4-daemon-light dovecot-imapd dovecot-pop3d vsftpd postgresql mariadb-server-core\n{}",
            texts.collect::<String>()
        )
    }
}

/// Debian keeps them by version.
fn postgres_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap_or_else(|error| panic!("{error}; apt-get install postgresql"));
    versions.map(|entry| entry.unwrap().path().join("bin")).find(|programs| programs.join("postgres").exists()).unwrap()
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn real_servers_show_the_same_behind_starttls() {
    let network = Network::new();
    let servers = Servers::start(&network);
    for (protocol, port, expected) in [
        ("smtp", 25, &[][..]),
        ("imap", 143, &[]),
        ("pop3", 110, &[]),
        ("ftp", 21, &["expired"]),
        ("postgres", 5432, &["name_mismatch"]),
        ("mysql", 3306, &["self_signed"]),
    ] {
        let report = same(&network, &servers.folder, port, &["-starttls", protocol], json!({"starttls": protocol}));
        let problems = report["problems"].as_array().into_iter().flatten();
        let codes: Vec<&str> = problems.map(|problem| problem["code"].as_str().unwrap()).collect();
        assert_eq!((codes.as_slice(), &report["verified"]), (expected, &json!(expected.is_empty())), "{protocol}: {report}");
        assert!(report["timings"]["starttls_ms"].is_number(), "{protocol}: {report}");
    }
}
