//! Agents that may only leave through a web port, and brokers that are not who they say.

use probeops_tests::fabric::{AgentOptions, Fabric};
use serde_json::json;

#[test]
fn an_agent_on_wss_runs_jobs() {
    let fabric = Fabric::start();
    let api = fabric.api();
    fabric.agent_with("w-1", "eu", &AgentOptions { server: Some(fabric.wss_url()), ..AgentOptions::default() });
    api.wait_for_nodes(1);
    let outcome = api.admin().job("echo", "over wss", "eu", &json!({})).outcome();
    assert_eq!(outcome["node"]["id"], "w-1", "{outcome}");
}

#[test]
fn an_agent_does_not_talk_to_a_broker_of_another_authority() {
    let fabric = Fabric::start();
    let other = Fabric::start();
    let options = AgentOptions { ca: Some(other.ca()), wait_ready: false, ..AgentOptions::default() };
    let agent = fabric.agent_with("w-1", "eu", &options);
    agent.wait_for_log("certificate");
    assert!(!agent.log().contains("the agent is ready"), "{}", agent.log());
}
