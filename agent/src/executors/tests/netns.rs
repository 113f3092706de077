//! Each executor beside the program that everybody knows, on networks of our own. Run as root: see `netns` in the manifest.

mod beside_curl;
mod beside_dig;
mod beside_nc;
mod beside_openssl;
mod beside_ping;
mod beside_tracepath;
mod beside_whois;
mod network;

use std::process::Command;

use network::Network;
use serde_json::Value;

use super::{Context, Found, finds, policy};

/// A node that may touch whatever is in the network.
fn node() -> Context {
    Context::new(policy("allow_loopback = true"), &[]).unwrap()
}

/// Runs a tool of ours in the node's namespace, to its end.
fn ours(network: &Network, tool: &str, target: &str, parameters: Value) -> Found {
    let (tool, target) = (tool.to_owned(), target.to_owned());
    network.in_node(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async { finds(&node(), &tool, &target, parameters).await })
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
