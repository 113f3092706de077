//! Receivers of callbacks and targets that never come to an end.

use std::net::SocketAddr;
use std::time::Duration;

use probeops_tests::hostile::{endless, endless_datagrams};
use serde_json::json;

use super::{Site, said_by};

/// Servers that begin an answer and never end it.
pub(super) struct Servers {
    heads: SocketAddr,
    bodies: SocketAddr,
    fields: SocketAddr,
    redirects: SocketAddr,
    pub(super) silent: SocketAddr,
    junk: SocketAddr,
    datagrams: SocketAddr,
}

pub(super) async fn servers() -> Servers {
    let (slowly, at_once) = (Duration::from_millis(200), Duration::from_millis(1));
    Servers {
        heads: endless(b"HTTP/1.1 200 OK\r\nX-A: ", b"x", slowly).await,
        bodies: endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"8\r\nendless!\r\n", at_once).await,
        fields: endless(b"HTTP/1.1 200 OK\r\n", b"X-A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n", at_once).await,
        redirects: endless(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n", b"", slowly).await,
        silent: endless(b"", b"", slowly).await,
        junk: endless(&[0xff; 4096], &[0xff; 4096], at_once).await,
        datagrams: endless_datagrams(&[0xff; 512], at_once, Duration::from_secs(10)).await,
    }
}

impl Servers {
    fn all(&self) -> [SocketAddr; 6] {
        [self.heads, self.bodies, self.fields, self.redirects, self.silent, self.junk]
    }
}

/// Each of them as the target of runs, and as the receiver of callbacks.
pub(super) fn never_ending(site: &Site, servers: &Servers) {
    for server in servers.all() {
        let callback = json!({"url": format!("http://{server}/callback"), "max_age_ms": 60_000});
        let answer = site.job(&json!({"tool": "echo", "target": "x", "from": "good", "callback": callback}));
        assert_eq!(answer.outcome()["status"], "success", "whatever becomes of its callback");
    }
    let jobs = servers.all().into_iter().flat_map(|server| {
        let (host, port) = (server.ip(), server.port());
        [
            json!({"tool": "http", "target": format!("http://{server}/"), "from": "good", "parameters": {"timeout": 2}}),
            json!({"tool": "tls", "target": host, "from": "good", "parameters": {"port": port, "timeout": 2}}),
            json!({"tool": "tcp", "target": host, "from": "good", "parameters": {"port": port, "banner": true, "timeout": 2}}),
            json!({"tool": "dns", "target": "a.example", "from": "good", "parameters": {"resolver": host, "port": port, "protocol": "tcp", "timeout": 2, "tries": 1}}),
            json!({"tool": "whois", "target": "a.example", "from": "good", "parameters": {"server": host, "port": port, "protocol": "whois", "recursion": false, "timeout": 2}}),
        ]
    });
    let port = servers.datagrams.port();
    let datagrams = json!({"tool": "dns", "target": "a.example", "from": "good", "parameters": {"resolver": "127.0.0.1", "port": port, "protocol": "udp", "timeout": 2, "tries": 1}});
    let jobs: Vec<String> = jobs.chain([datagrams]).map(|job| job.to_string()).collect();
    let (address, key) = (site.roomy.address(), site.roomy.admin_key());
    std::thread::scope(|threads| {
        let running: Vec<_> = jobs.iter().map(|job| threads.spawn(move || (job, said_by(address, key, job)))).collect();
        for (job, answer) in running.into_iter().map(|job| job.join().unwrap()) {
            assert_eq!(answer["status"], "finished", "{job}: {answer}");
            let outcome = &answer["results"][0];
            let is_told = outcome["status"] == "success" || outcome["failure"]["kind"] == "timed_out";
            assert!(is_told, "that it never ends is told: {job}: {answer}");
        }
    });
}
