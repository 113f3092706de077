//! `pmtu` on this machine, whose path is wider than any other.

use serde_json::json;

use super::{LOCAL, Live, execute, finds, open_node, spec};

#[tokio::test]
async fn loopback_carries_the_largest_packet_that_is_to_be_tried() {
    for address in LOCAL {
        for protocol in ["auto", "udp"] {
            let found = finds(&open_node(&[]), "pmtu", &address.to_string(), json!({"protocol": protocol, "max_bytes": 9000})).await;
            let report = &found.report;
            assert_eq!((&report["mtu_bytes"], &report["verdict"]), (&json!(9000), &json!("capped")), "{report}");
            assert_eq!(report["probes"].as_array().unwrap().len(), 1, "{report}");
        }
    }
}

#[tokio::test]
async fn what_is_told_is_what_is_printed_before_the_last_line() {
    let (live, mut heard) = Live::heard();
    let found = execute(&open_node(&[]), spec("pmtu", "127.0.0.1", json!({"protocol": "udp"})), &live).await.unwrap();
    drop(live);
    let mut told = String::new();
    while let Some(news) = heard.recv().await {
        told.push_str(&news.output);
    }
    assert_eq!(found.output.strip_prefix(&told), Some("     Resume: pmtu 65535 or more; nothing larger was tried\n"), "{told}");
}
