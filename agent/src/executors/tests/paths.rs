//! `ping` over TCP, `traceroute` and `mtr`, as far as one machine goes.

use probeops_shared::outcome::FailureKind;
use serde_json::{Value, json};

use super::{Found, LOCAL, Live, execute, fails, finds, open_node, run, spec};

#[tokio::test]
async fn this_machine_answers_a_tcp_ping_with_yes_or_no() {
    for address in LOCAL {
        let listener = std::net::TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let options = json!({"protocol": "tcp", "port": port, "count": 2, "interval_ms": 100});
        let states = |found: &Found| {
            let packets = found.report["packets"].as_array().unwrap();
            packets.iter().map(|packet| packet["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (context, target) = (open_node(&[]), address.to_string());
        assert_eq!(states(&finds(&context, "ping", &target, options.clone()).await), ["open", "open"]);
        drop(listener);
        let refused = finds(&context, "ping", &target, options).await;
        assert_eq!(
            (states(&refused), &refused.report["stats"]["received"]),
            (vec!["refused".to_owned(); 2], &json!(2)),
            "{}",
            refused.output
        );
    }
}

#[tokio::test]
async fn a_source_that_is_not_the_nodes_is_refused() {
    for tool in ["ping", "traceroute", "mtr"] {
        let refused = run(&open_node(&[]), tool, "127.0.0.1", json!({"source": "192.0.2.9"})).await;
        fails(refused, FailureKind::Invalid, "192.0.2.9 in `source` is not an address of this node");
        let mut own = json!({"source": "127.0.0.1"});
        own[if tool == "ping" {
            "count"
        } else if tool == "mtr" {
            "rounds"
        } else {
            "queries"
        }] = json!(1);
        assert!(run(&open_node(&[]), tool, "127.0.0.1", own).await.is_ok());
    }
}

#[tokio::test]
async fn the_way_to_this_machine_is_one_hop_by_every_protocol() {
    let context = open_node(&[]);
    for address in LOCAL {
        for protocol in ["icmp", "udp", "tcp"] {
            // A port where nobody listens.
            let port = std::net::UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap().port();
            let mut parameters = json!({"protocol": protocol});
            if protocol != "icmp" {
                parameters["port"] = json!(port);
            }
            let found = finds(&context, "traceroute", &address.to_string(), parameters).await;
            assert_eq!(
                (&found.report["end"], &found.report["hops"].as_array().unwrap().len()),
                (&json!("reached"), &1),
                "{}",
                found.output
            );
            let from = |probe: &Value| (probe["from"].clone(), probe["status"].clone());
            let probes = found.report["hops"][0]["probes"].as_array().unwrap();
            assert_eq!(probes.iter().map(from).collect::<Vec<_>>(), vec![(json!(address), json!("answered")); 3], "{}", found.output);
        }
    }
}

#[tokio::test]
async fn this_machine_is_one_hop_that_loses_nothing() {
    let context = open_node(&[]);
    for address in LOCAL {
        let found = finds(&context, "mtr", &address.to_string(), json!({"rounds": 3, "interval_ms": 200})).await;
        let (report, hop) = (&found.report, &found.report["hops"][0]);
        assert_eq!((&report["end"], &report["loss_pct"], &report["rounds"]), (&json!("reached"), &json!(0.0), &json!(3)), "{report}");
        assert_eq!((&hop["sent"], &hop["received"], &hop["limited"]), (&json!(3), &json!(3), &json!(false)), "{report}");
        assert!(hop["jitter_ms"].is_number() && found.output.lines().count() == 3, "{}", found.output);
    }
}

#[tokio::test]
async fn a_trace_cut_short_leaves_the_hops_it_found() {
    let (context, (live, mut news)) = (open_node(&[]), Live::heard());
    let run = execute(&context, spec("mtr", "127.0.0.1", json!({"rounds": 100})), &live);
    let first_round = async { while news.recv().await.is_some_and(|news| news.progress["type"] != "round") {} };
    tokio::select! {
        _ = run => panic!("a hundred seconds have passed"),
        () = first_round => {}
    }
    let found = live.taken().unwrap();
    assert_eq!((&found.report["hops"][0]["received"], &found.report["end"]), (&json!(1), &json!("reached")), "{}", found.report);
}
