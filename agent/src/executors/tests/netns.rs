//! Each executor beside the program that everybody knows, on networks of our own: `cargo test --workspace --lib -- --ignored netns`, as root. It
//! needs iproute2, nftables, iputils-ping, iputils-tracepath, traceroute, mtr-tiny, netcat-openbsd, openssl, curl, nginx-light, whois, bind9,
//! bind9-dnsutils, bind9-utils, unbound, exim4-daemon-light, dovecot-imapd, dovecot-pop3d, vsftpd, postgresql and mariadb-server-core.

mod beside_curl;
mod beside_delv;
mod beside_dig;
mod beside_dig_resolvers;
mod beside_dig_trace;
mod beside_mtr;
mod beside_nc;
mod beside_openssl;
mod beside_openssl_starttls;
mod beside_ping;
mod beside_tracepath;
mod beside_traceroute;
mod beside_whois;
mod denials;
mod ending;
mod names;
mod namespace;
mod network;
mod path;
mod responder;
mod router;
mod server;
mod ways;

use std::process::Command;

use network::Network;
use path::Path;
use serde_json::Value;

use super::{Context, Found, Live, execute, finds, policy, spec};

/// A node that may touch whatever is in the network.
fn node() -> Context {
    Context::new(policy("allow_loopback = true"), &[]).unwrap()
}

/// Runs a tool of ours in the node's namespace, to its end.
fn ours(network: &Network, tool: &str, target: &str, parameters: Value) -> Found {
    ours_on(network, node, tool, target, parameters)
}

/// The same on a node that `make` makes.
fn ours_on(network: &Network, make: fn() -> Context, tool: &str, target: &str, parameters: Value) -> Found {
    network.in_node(to_its_end(make, tool, target, parameters))
}

/// The same at the beginning of a path.
fn on(path: &Path, tool: &str, target: &str, parameters: Value) -> Found {
    path.at(0, to_its_end(node, tool, target, parameters))
}

fn to_its_end(
    make: impl FnOnce() -> Context + Send + 'static,
    tool: &str,
    target: &str,
    parameters: Value,
) -> impl FnOnce() -> Found + Send + 'static {
    let (tool, target) = (tool.to_owned(), target.to_owned());
    move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async { finds(&make(), &tool, &target, parameters).await })
    }
}

/// Runs a tool in the node's namespace to its end; also what is printed while it goes on.
fn told_on(network: &Network, make: fn() -> Context, tool: &str, target: &str, parameters: Value) -> (String, Found) {
    let spec = spec(tool, target, parameters);
    network.in_node(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (live, mut heard) = Live::heard();
        let found = runtime.block_on(async { execute(&make(), spec, &live).await.unwrap() });
        drop(live);
        (std::iter::from_fn(|| heard.try_recv()).map(|news| news.output).collect(), found)
    })
}

/// What a program prints in the node's namespace, both streams.
fn theirs(network: &Network, program: &str, arguments: &[&str]) -> String {
    let output = network.node_command(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a program that must do well.
#[track_caller]
fn must(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; apt-get install iproute2 nftables"));
    assert!(output.status.success(), "{command:?}: {} (these tests need root)", String::from_utf8_lossy(&output.stderr));
}
