//! `dns`: what an answer has to be like, and where it is asked from.

use data_encoding::BASE64;
use hickory_proto::op::Message;
use probeops_shared::outcome::FailureKind;
use serde_json::{Value, json};

use super::dns_server::DnsServer;
use super::{Live, execute, fails, finds, open_node, run, spec};

#[tokio::test]
async fn an_answer_is_judged_by_what_it_has_to_be_like() {
    let server = DnsServer::start().await;
    let context = open_node(&[server.address]);
    for (name, assertions, passed) in [
        (
            "local.test",
            json!([{"type": "rcode", "one_of": ["NOERROR"]}, {"type": "records", "all_match": "127\\.0\\.0\\.1$"}]),
            [true, true],
        ),
        ("local.test", json!([{"type": "records", "none_match": "127"}, {"type": "records", "section": "authority"}]), [false, true]),
        ("nowhere.test", json!([{"type": "rcode", "one_of": ["NXDOMAIN"]}, {"type": "records", "some_match": "."}]), [true, false]),
    ] {
        let (live, mut heard) = Live::heard();
        let spec = spec("dns", name, json!({"assertions": assertions}));
        let found = execute(&context, spec.clone(), &live).await.unwrap();
        let verdicts = found.report["assertions"].as_array().unwrap();
        assert_eq!(verdicts.iter().map(|verdict| verdict["passed"] == true).collect::<Vec<_>>(), passed, "{verdicts:?}");
        assert_eq!(spec.is_bad(&found.report), Ok(passed.contains(&false)));
        assert!(found.output.contains("\n;; ASSERTION 0 ("), "{}", found.output);
        drop(live);
        let told: Vec<Value> = std::iter::from_fn(|| heard.try_recv()).map(|news| news.progress).collect();
        assert_eq!(told.iter().filter(|progress| progress["type"] == "assertion").count(), 2, "{told:?}");
    }
    // A code that is wanted is not bad.
    let nowhere = spec("dns", "nowhere.test", json!({"assertions": [{"type": "rcode", "one_of": ["NXDOMAIN"]}]}));
    assert_eq!(nowhere.is_bad(&execute(&context, nowhere.clone(), &Live::default()).await.unwrap().report), Ok(false));
}

#[tokio::test]
async fn query_and_answer_are_told_as_they_were_on_the_wire() {
    let server = DnsServer::start().await;
    let context = open_node(&[server.address]);
    for protocol in ["udp", "tcp"] {
        let report = finds(&context, "dns", "local.test", json!({"raw": true, "protocol": protocol})).await.report;
        let message = |name: &str| Message::from_vec(&BASE64.decode(report[name].as_str().unwrap().as_bytes()).unwrap()).unwrap();
        let (query, answer) = (message("query_wire"), message("answer_wire"));
        assert_eq!(query.queries, answer.queries);
        assert_eq!((json!(query.metadata.id), json!(answer.metadata.id)), (report["id"].clone(), report["id"].clone()));
        assert_eq!(answer.answers[0].data.to_string(), report["answer"][0]["value"]);
        assert_eq!(json!(answer.to_vec().unwrap().len()), report["size_bytes"]);
    }
    let plain = finds(&context, "dns", "local.test", json!({})).await.report;
    assert!(plain.get("query_wire").is_none() && plain.get("answer_wire").is_none(), "{plain}");
}

#[tokio::test]
async fn a_question_is_asked_from_the_source_that_is_given() {
    let server = DnsServer::start().await;
    let context = open_node(&[server.address]);
    fails(
        run(&context, "dns", "local.test", json!({"source": "192.0.2.9"})).await,
        FailureKind::Invalid,
        "192.0.2.9 in `source` is not an address of this node",
    );
    for protocol in ["udp", "tcp"] {
        let found = finds(&context, "dns", "local.test", json!({"source": "127.0.0.1", "protocol": protocol})).await;
        assert_eq!(found.report["answered"], true, "{}", found.report);
    }
    // None of the node's own servers can be asked from there.
    let other = run(&context, "dns", "local.test", json!({"source": "::1"})).await;
    fails(other, FailureKind::Unresolved, "no name server of its own");
}
