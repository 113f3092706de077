//! What choosing a node costs as nodes grow: the API's processor time for a job, and for an explanation that looks at every node.

use std::net::SocketAddr;
use std::time::Duration;

use probeops_shared::presence::{Beat, Slots};
use probeops_shared::registry::NodeGrant;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;
use probeops_tests::fabric::{AgentOptions, Api, Fabric};
use serde_json::json;

use crate::cpu;
use crate::load::{self, Question};
use crate::runtime;

/// How many nodes there are.
const NODES: [usize; 3] = [100, 1_000, 5_000];
/// Over how many regions they are spread.
const REGIONS: usize = 10;
/// How many different values their label has.
const ZONES: usize = 20;
/// How many connections ask at once.
const CONNECTIONS: usize = 8;

/// Where, and what an answer to it must say. One agent is there in truth, and all these find it.
const QUESTIONS: [(&str, &str, &str); 6] = [
    ("its region", "/v1/jobs", "region-0"),
    ("the node", "/v1/jobs", "node:bench-1"),
    ("a label of it alone", "/v1/jobs", "site=bench"),
    ("a label of all, one of it alone", "/v1/jobs", "zone!=z-1,site=bench"),
    ("explained: five of all", "/v1/jobs?explain=true", "*5"),
    ("explained: one of a label", "/v1/jobs?explain=true", "zone=z-1"),
];

/// Measures every question at every number of nodes.
pub(crate) fn run(round: Duration) -> anyhow::Result<()> {
    let fabric = Fabric::start();
    let api = fabric.api();
    let labels = vec![("site", "bench")];
    let _agent = fabric.agent_with("bench-1", "region-0", &AgentOptions { labels, ..AgentOptions::default() });
    api.wait_for_nodes(1);
    println!("roster: the API's CPU for one answer, {CONNECTIONS} connections, {} s each", round.as_secs_f64());
    for count in NODES {
        // The agent is one of them.
        let crowd: Vec<(NodeGrant, Beat)> = (1..count).map(node).collect::<Result<_, String>>().map_err(anyhow::Error::msg)?;
        let (grants, beats): (Vec<NodeGrant>, Vec<Beat>) = crowd.into_iter().unzip();
        fabric.grant_all(&grants);
        for (what, path, from) in QUESTIONS {
            fabric.announce_all(&beats);
            wait_for_nodes(&api, count);
            let micros = measure(&api, (path, from), round)?;
            println!("  {count:>5} nodes   {what:<32} {micros:>8.0} \u{b5}s");
        }
    }
    Ok(())
}

fn measure(api: &Api, (path, from): (&'static str, &str), round: Duration) -> anyhow::Result<f64> {
    let address: SocketAddr = api.url().trim_start_matches("http://").parse()?;
    let body = json!({"tool": "echo", "target": "bench", "from": from}).to_string().into();
    let expect = if path.ends_with("true") { "\"runs\":" } else { "\"status\":\"success\"" };
    let question = Question { address, path, body, token: Some(api.admin_key().to_owned()), expect };
    let before = cpu::used(api.process_id())?;
    let measured = runtime()?.block_on(load::run(&question, CONNECTIONS, round))?;
    let spent = cpu::used(api.process_id())?.saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "a count of answers")]
    Ok(spent.as_secs_f64() * 1e6 / measured.answers as f64)
}

/// Waits until so many are online; nodes are listed page by page, regions at once.
pub(crate) fn wait_for_nodes(api: &Api, count: usize) {
    api.wait_until(&format!("{count} nodes are online"), || {
        let regions = api.admin().get("/v1/regions").expect(200);
        let online = regions["regions"].as_array().into_iter().flatten().filter_map(|region| region["online"].as_u64());
        usize::try_from(online.sum::<u64>()).is_ok_and(|online| online >= count)
    });
}

/// A node that is only spoken of.
fn node(index: usize) -> Result<(NodeGrant, Beat), String> {
    let (id, region) = (format!("crowd-{index:05}").parse()?, format!("region-{}", index % REGIONS).parse()?);
    let now = Timestamp::now();
    let tools = vec![ToolName::Echo, ToolName::Ping, ToolName::Dns];
    let grant = NodeGrant {
        labels: [("zone".parse()?, format!("z-{}", index % ZONES).parse()?)].into(),
        ..NodeGrant::new(id, region, tools.clone(), "U", now.plus(Duration::from_hours(1)))
    };
    let slots = [ToolName::Echo, ToolName::Ping].map(|tool| (tool.class(), Slots { free: 32 - index % 7, total: 32 }));
    let beat = Beat {
        node: grant.id.clone(),
        region: grant.region.clone(),
        boot_id: "crowd".to_owned(),
        started_at: now,
        counter: 1,
        version: probeops_shared::VERSION.to_owned(),
        tools,
        unavailable: Vec::new(),
        slots: slots.into(),
        draining: false,
        clock_offset_ms: Some(0.1),
        rtt_ms: Some(1.0),
        policy: probeops_shared::presence::PolicyReport::new("allow all"),
    };
    Ok((grant, beat))
}
