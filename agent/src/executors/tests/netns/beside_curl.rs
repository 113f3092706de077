//! `http` beside curl(1), on an nginx of our own: the same verdict, status, headers, body and chain of redirects.

use std::process::Stdio;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::network::Network;
use super::server::{Folder, Server, await_start};
use super::{ours, theirs};
use crate::testing::{Authority, Identity, valid};

const HOST: &str = "10.9.1.2";
const HOST_V6: &str = "fd09:1::2";

const CONFIGURATION: &str = r#"
daemon off; master_process off; pid FOLDER/pid; error_log FOLDER/log;
events { }
http {
    access_log off; client_body_temp_path FOLDER/a; proxy_temp_path FOLDER/b; fastcgi_temp_path FOLDER/c; uwsgi_temp_path FOLDER/d;
    scgi_temp_path FOLDER/e; default_type text/plain; gzip_types text/plain; gzip_min_length 1;
    server {
        listen 8000; listen [::]:8000;
        root FOLDER/pages; add_header X-Server "one two"; add_header x-lower 1;
        location /gzip/ { gzip on; alias FOLDER/pages/; }
        location /empty { return 204; }
        location /gone { return 410 "gone\n"; }
        location /1 { return 301 /2; }
        location /2 { return 302 ../3?x=y; }
        location /3 { return 303 http://$http_host/4; }
        location /4 { return 307 /page; }
        location /loop { return 302 /loop; }
        location /https { return 302 https://good.test:8443/; }
        location /method { return 200 "$request_method $http_x_test $remote_user\n"; }
        location /hang-up { return 444; }
        location /auth { auth_basic "x"; auth_basic_user_file FOLDER/users; }
    }
    server { listen 8443 ssl http2; listen [::]:8443 ssl http2; ssl_certificate FOLDER/good.pem; ssl_certificate_key FOLDER/good.key;
             root FOLDER/pages; location /clear { return 302 http://10.9.1.2:8000/page; } }
    server { listen 8444 ssl; ssl_certificate FOLDER/expired.pem; ssl_certificate_key FOLDER/expired.key; root FOLDER/pages; }
    server { listen 8445 ssl; ssl_certificate FOLDER/other.pem; ssl_certificate_key FOLDER/other.key; root FOLDER/pages; }
    server { listen 8446 ssl; ssl_certificate FOLDER/lonely.pem; ssl_certificate_key FOLDER/lonely.key; root FOLDER/pages; }
    server { listen 8447 ssl; ssl_certificate FOLDER/good.pem; ssl_certificate_key FOLDER/good.key; root FOLDER/pages;
             ssl_client_certificate FOLDER/root.pem; ssl_verify_client on; }
    server { listen 8448 ssl; ssl_certificate FOLDER/good.pem; ssl_certificate_key FOLDER/good.key; root FOLDER/pages; ssl_protocols TLSv1.2; }
}
"#;

/// A running nginx.
struct Nginx {
    _server: Server,
    folder: Folder,
    root: Authority,
}

impl Nginx {
    fn start(network: &Network) -> Self {
        let folder = Folder::new();
        std::fs::create_dir(folder.join("pages")).unwrap();
        let write = |name: &str, text: &str| folder.write(name, text);
        let root = Authority::root("Root");
        let middle = root.below("Middle");
        let keep = |name: &str, identity: &Identity, with: &str| {
            write(&format!("{name}.pem"), &(identity.certificate.pem() + with));
            write(&format!("{name}.key"), &identity.key.serialize_pem());
        };
        let middle_pem = middle.certificate.pem();
        keep("good", &middle.certify(&["good.test", HOST, HOST_V6]), &middle_pem);
        keep("expired", &middle.certify_with(&["good.test"], |params| valid(params, -9, -1)), &middle_pem);
        keep("other", &middle.certify(&["other.test"]), &middle_pem);
        keep("lonely", &middle.certify(&["good.test"]), "");
        let client =
            root.certify_with(&["client.test"], |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]);
        keep("client", &client, "");
        write("root.pem", &root.certificate.pem());
        write("users", "user:{PLAIN}secret\n");
        write("pages/page", &"a page\n".repeat(1000));
        write("pages/index.html", "index\n");
        std::fs::write(folder.join("pages/large"), vec![7; 700_000]).unwrap();
        write("nginx.conf", &CONFIGURATION.replace("FOLDER", &folder.path(".")));
        let mut command = network.host_command("nginx");
        command.arg("-c").arg(folder.join("nginx.conf")).stdin(Stdio::null()).stderr(Stdio::null());
        let server = Server::start(&mut command, "nginx-light");
        await_start(
            || ours(network, "tcp", HOST, json!({"port": 8448})).report["ports"][0]["state"] == "open",
            || std::fs::read_to_string(folder.join("log")).unwrap_or_default(),
        );
        Self { _server: server, folder, root }
    }
}

/// What is compared.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Of each request its status and its header lines.
    heads: Vec<(u16, Vec<String>)>,
    url: String,
    version: String,
    sha256: String,
    /// What curl's exit status means (curl(1), EXIT CODES).
    failure: Option<&'static str>,
}

fn by_curl(network: &Network, nginx: &Nginx, url: &str, options: &[&str]) -> Seen {
    let (head, body) = (nginx.folder.path("head"), nginx.folder.path("body"));
    for file in [&head, &body] {
        std::fs::write(file, "").unwrap();
    }
    let root = nginx.folder.path("root.pem");
    let base = ["-s", "--max-time", "3", "--cacert", &root, "-D", &head, "-o", &body, "-w", "%{exitcode} %{http_version} %{url_effective}"];
    let said = theirs(network, "curl", &[&base[..], options, &[url]].concat());
    let [exit, version, effective] = said.split(' ').collect::<Vec<_>>()[..] else { panic!("{said}") };
    let failure = match exit {
        "0" => None,
        "7" => Some("connect"),
        "28" => Some("timed_out"),
        "47" => Some("too many redirects"),
        "52" => Some("closed"),
        "60" => Some("tls"),
        other => panic!("curl {options:?} {url} exits with {other}"),
    };
    let heads = nginx.folder.read("head").replace('\r', "");
    let head = |head: &str| {
        let mut lines = head.lines().map(str::to_owned);
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        (status, lines.filter(|line| !line.to_ascii_lowercase().starts_with("date: ")).collect())
    };
    Seen {
        heads: heads.split("\n\n").filter(|head| !head.is_empty()).map(head).collect(),
        url: effective.to_owned(),
        version: if version == "0" { String::new() } else { format!("HTTP/{version}") },
        sha256: HEXLOWER.encode(&Sha256::digest(std::fs::read(body).unwrap())),
        failure,
    }
}

fn by_us(network: &Network, nginx: &Nginx, url: &str, mut parameters: Value) -> (Seen, Value) {
    parameters["ca_certificates"] = nginx.root.certificate.pem().into();
    parameters["timeout"] = json!(3);
    let report = ours(network, "http", url, parameters).report;
    let requests = report["requests"].as_array().unwrap();
    let head = |request: &Value| {
        let fields = request["headers"]
            .as_array()?
            .iter()
            .map(|field| format!("{}: {}", field["name"].as_str().unwrap(), field["value"].as_str().unwrap()));
        let fields = fields.filter(|line| !line.to_ascii_lowercase().starts_with("date: ")).collect();
        Some((u16::try_from(request["status"].as_u64()?).unwrap(), fields))
    };
    let last = requests.last().unwrap();
    let failure = match (report["failure"]["code"].as_str(), report["redirect_not_followed"].as_str()) {
        (Some("connect"), _) => Some("connect"),
        (Some("timed_out"), _) => Some("timed_out"),
        (Some("closed"), _) => Some("closed"),
        (Some("tls"), _) => Some("tls"),
        (Some(other), _) => panic!("{other}: {report}"),
        (None, Some(_)) => Some("too many redirects"),
        (None, None) => None,
    };
    let seen = Seen {
        heads: requests.iter().filter_map(head).collect(),
        url: last["url"].as_str().unwrap().to_owned(),
        version: last["protocol"].as_str().unwrap_or_default().to_owned(),
        sha256: last["body"]["sha256"].as_str().map_or_else(|| HEXLOWER.encode(&Sha256::digest(b"")), str::to_owned),
        failure,
    };
    (seen, report)
}

#[track_caller]
fn same(network: &Network, nginx: &Nginx, url: &str, curl: &[&str], parameters: Value) -> Value {
    let mut theirs = by_curl(network, nginx, url, curl);
    let (mut ours, report) = by_us(network, nginx, url, parameters);
    // curl writes the head for a body with -I, and nothing of the answer at which it gives up.
    if curl.contains(&"-I") || theirs.failure == Some("too many redirects") {
        (ours.sha256, theirs.sha256) = (String::new(), String::new());
    }
    assert_eq!(ours, theirs, "{url} {curl:?}: {report}");
    report
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn answers_in_clear_are_the_same() {
    let network = Network::new();
    let nginx = Nginx::start(&network);
    let url = |path: &str| format!("http://{HOST}:8000{path}");
    same(&network, &nginx, &url("/"), &[], json!({}));
    same(&network, &nginx, &url("/page"), &[], json!({}));
    same(&network, &nginx, &format!("http://[{HOST_V6}]:8000/page"), &[], json!({}));
    same(&network, &nginx, &url("/page"), &["-I"], json!({"method": "HEAD"}));
    same(&network, &nginx, &url("/large"), &[], json!({}));
    same(&network, &nginx, &url("/nothing"), &[], json!({}));
    same(&network, &nginx, &url("/empty"), &[], json!({}));
    same(&network, &nginx, &url("/gone"), &[], json!({}));
    same(&network, &nginx, &url("/method"), &["-X", "DELETE", "-H", "X-Test: a"], json!({"method": "DELETE", "headers": ["X-Test: a"]}));
    same(&network, &nginx, &url("/method"), &["-d", "body"], json!({"method": "POST", "body": "body"}));
    same(&network, &nginx, &url("/method"), &["-u", "user:secret"], json!({"basic_auth": "user:secret"}));
    same(&network, &nginx, &url("/auth"), &[], json!({}));
    same(&network, &nginx, &url("/auth/"), &["-u", "user:secret"], json!({"basic_auth": "user:secret"}));
    same(&network, &nginx, &url("/gzip/page"), &["--compressed"], json!({"compression": true}));
    same(&network, &nginx, &url("/gzip/page"), &["-H", "Accept-Encoding: gzip"], json!({"headers": ["Accept-Encoding: gzip"]}));
    same(&network, &nginx, &url("/hang-up"), &[], json!({}));
    same(&network, &nginx, &format!("http://{HOST}:8001/"), &[], json!({}));
    network.host_filter("tcp dport 8002 drop");
    same(&network, &nginx, &format!("http://{HOST}:8002/"), &[], json!({}));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn redirects_lead_the_same_way() {
    let network = Network::new();
    let nginx = Nginx::start(&network);
    let url = |path: &str| format!("http://{HOST}:8000{path}");
    let report = same(&network, &nginx, &url("/1"), &["-L"], json!({"redirects_max": 10}));
    assert_eq!(report["redirects"], 4, "{report}");
    same(&network, &nginx, &url("/1"), &[], json!({}));
    same(&network, &nginx, &url("/1"), &["-L", "--max-redirs", "2"], json!({"redirects_max": 2}));
    same(&network, &nginx, &url("/loop"), &["-L", "--max-redirs", "10"], json!({"redirects_max": 10}));
    same(&network, &nginx, &url("/1"), &["-L", "-d", "x"], json!({"redirects_max": 10, "method": "POST", "body": "x"}));
    // We go from https to http only when told to.
    let clear = format!("https://{HOST}:8443/clear");
    same(&network, &nginx, &clear, &["-L"], json!({"redirects_max": 3, "redirect_to_clear": true}));
    let (seen, report) = by_us(&network, &nginx, &clear, json!({"redirects_max": 3}));
    assert_eq!((seen.heads.len(), report["redirect_not_followed"].is_string()), (1, true), "{report}");
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn certificates_get_the_same_verdict() {
    let network = Network::new();
    let nginx = Nginx::start(&network);
    for (port, trusted) in [(8443, true), (8444, false), (8445, false), (8446, false), (8448, true)] {
        let (url, resolve) = (format!("https://good.test:{port}/page"), format!("good.test:{port}:{HOST}"));
        let report = same(&network, &nginx, &url, &["--resolve", &resolve], json!({"resolve": HOST}));
        assert_eq!(report["requests"][0]["tls"]["verified"], trusted, "{report}");
        same(&network, &nginx, &url, &["--resolve", &resolve, "-k"], json!({"resolve": HOST, "verify": false}));
    }
    let url = format!("https://{HOST}:8443/page");
    assert_eq!(same(&network, &nginx, &url, &[], json!({}))["requests"][0]["protocol"], "HTTP/2");
    same(&network, &nginx, &url, &["--http1.1"], json!({"http_version": "1.1"}));
    same(&network, &nginx, &format!("https://[{HOST_V6}]:8443/page"), &[], json!({}));
    let url = format!("https://{HOST}:8448/page");
    same(&network, &nginx, &url, &["--tls-max", "1.2"], json!({"tls_max_version": "1.2"}));
    let (cert, key) = (nginx.folder.path("client.pem"), nginx.folder.path("client.key"));
    let url = format!("https://{HOST}:8447/page");
    let shown = json!({"client_certificate": nginx.folder.read("client.pem"), "client_key": nginx.folder.read("client.key")});
    same(&network, &nginx, &url, &["--cert", &cert, "--key", &key], shown);
    same(&network, &nginx, &url, &[], json!({}));
}

#[test]
#[ignore = "on networks of its own, beside real tools: see `netns`"]
fn the_transcript_reads_as_curl_prints_it() {
    let network = Network::new();
    let _nginx = Nginx::start(&network);
    let url = format!("http://{HOST}:8000/page");
    let real = theirs(&network, "curl", &["-sv", "-A", "x", "-o", "/dev/null", &url]).replace('\r', "");
    let found = ours(&network, "http", &url, json!({"headers": ["User-Agent: x"], "body_bytes": 0}));
    let lines = |text: &str| -> Vec<String> {
        let kept =
            text.lines().filter(|line| line.starts_with(['>', '<']) || line.starts_with("*   Trying") || line.starts_with("* Connected"));
        // curl numbers its connections, and separates with a space where nothing follows.
        kept.map(|line| line.split(" (#").next().unwrap().trim_end().to_owned()).filter(|line| !line.contains("Date:")).collect()
    };
    let sorted = |mut lines: Vec<String>| {
        // Where a line that the caller gives stands is each one's own affair.
        lines.sort();
        lines
    };
    assert_eq!(sorted(lines(&found.output)), sorted(lines(&real)), "{}\n{real}", found.output);
}
