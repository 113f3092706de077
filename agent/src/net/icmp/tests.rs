use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);
const ENGINES: [Engine; 2] = [Engine::Own(KIND), Engine::Surge((Family::V4, None))];
const KIND: Kind = Kind { family: Family::V4, source: None, fragments: Fragments::Allowed, flow: 0 };

/// These tests need to open an ICMP socket; where that is not allowed they fail and say how to allow it.
fn socket(icmp: &Icmp, kind: Kind) -> Arc<dyn EchoSocket> {
    of(icmp, Engine::Own(kind))
}

fn of(icmp: &Icmp, engine: Engine) -> Arc<dyn EchoSocket> {
    icmp.of(engine, 1).expect("no ICMP socket; allow it with: sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"")
}

fn request(to: impl Into<IpAddr>) -> Request {
    Request { to: to.into(), ttl: None, dscp: None, payload_bytes: 56 }
}

async fn next(conversation: &mut Conversation) -> Heard {
    tokio::time::timeout(PATIENCE, conversation.next()).await.expect("no answer")
}

#[tokio::test]
async fn this_machine_replies_and_its_kernel_tells_the_time_to_live() {
    let icmp = Icmp::default();
    for (to, family) in [(IpAddr::from(Ipv4Addr::LOCALHOST), Family::V4), (IpAddr::from(Ipv6Addr::LOCALHOST), Family::V6)] {
        let (socket, mut conversation) = (socket(&icmp, Kind { family, source: Some(to), ..KIND }), Conversation::new());
        let request = Request { dscp: Some(46), ttl: Some(9), ..request(to) };
        conversation.send(&socket, 7, &request).await.unwrap();
        let heard = next(&mut conversation).await;
        assert_eq!((heard.tag, &heard.answer), (7, &Answer::Reply { ttl: Some(64), bytes: 64, from: to }));
        assert!(!heard.rtt.is_zero() && heard.rtt < PATIENCE);
    }
}

#[tokio::test]
async fn the_largest_packets_come_back_whole() {
    let icmp = Icmp::default();
    for (to, family) in [(IpAddr::from(Ipv4Addr::LOCALHOST), Family::V4), (IpAddr::from(Ipv6Addr::LOCALHOST), Family::V6)] {
        let (socket, mut conversation) = (socket(&icmp, Kind { family, ..KIND }), Conversation::new());
        // The first is heard by a reader that has no room for the second yet.
        for (tag, payload_bytes) in [(1, 56), (2, 65_507)] {
            conversation.send(&socket, tag, &Request { payload_bytes, ..request(to) }).await.unwrap();
            let heard = next(&mut conversation).await;
            assert_eq!((heard.tag, &heard.answer), (tag, &Answer::Reply { ttl: Some(64), bytes: payload_bytes + 8, from: to }));
        }
    }
}

#[tokio::test]
async fn a_burst_to_one_host_is_answered_whole_whoever_sent_it() {
    const EACH: u64 = 200;
    let icmp = Icmp::default();
    for engine in ENGINES {
        let socket = of(&icmp, engine);
        let run = || async {
            let mut conversation = Conversation::new();
            for tag in 0..EACH {
                conversation.send(&socket, tag, &request(Ipv4Addr::LOCALHOST)).await.unwrap();
            }
            let mut heard = Vec::new();
            while heard.len() < usize::try_from(EACH).unwrap() {
                heard.push(next(&mut conversation).await.tag);
            }
            heard.sort_unstable();
            heard
        };
        for heard in futures_util::future::join_all((0..5).map(|_| run())).await {
            assert!(heard.into_iter().eq(0..EACH), "one answer to each");
        }
    }
}

#[tokio::test]
async fn what_is_dropped_is_forgotten() {
    let icmp = Icmp::default();
    for engine in ENGINES {
        let (socket, mut conversation) = (of(&icmp, engine), Conversation::new());
        for tag in 0..3 {
            conversation.send(&socket, tag, &request(Ipv4Addr::LOCALHOST)).await.unwrap();
        }
        conversation.forget(0);
        assert_eq!(socket.waiting(), 2);
        drop(conversation);
        assert_eq!(socket.waiting(), 0);
    }
}

#[tokio::test]
async fn a_socket_is_shared_while_in_use_and_closed_after() {
    let icmp = Icmp::default();
    let (first, second) = (socket(&icmp, KIND), socket(&icmp, KIND));
    assert!(Arc::ptr_eq(&first, &second));
    assert!(!Arc::ptr_eq(&first, &socket(&icmp, Kind { flow: 1, ..KIND })));
    let third = icmp.socket(KIND, NUMBERS - 1).unwrap();
    assert!(!Arc::ptr_eq(&first, &third), "the first has not so many numbers left");
    assert!(Arc::ptr_eq(&third, &socket(&icmp, KIND)), "further runs get the newest");
    drop((first, second, third));
    drop(socket(&icmp, Kind { fragments: Fragments::Forbidden, ..KIND }));
    assert!(icmp.sockets.lock().unwrap().len() <= 2);
}

#[tokio::test]
async fn both_engines_hear_the_same_from_the_same_machine() {
    let icmp = Icmp::default();
    for (to, family) in [(IpAddr::from(Ipv4Addr::LOCALHOST), Family::V4), (IpAddr::from(Ipv6Addr::LOCALHOST), Family::V6)] {
        let (own, surge) = (socket(&icmp, Kind { family, ..KIND }), of(&icmp, Engine::Surge((family, Some(9)))));
        assert_eq!(own.method(), surge.method());
        let mut conversation = Conversation::new();
        for payload_bytes in [0, 56, surge::PAYLOAD_BYTES_MAX] {
            for socket in [&own, &surge] {
                conversation.send(socket, 7, &Request { payload_bytes, ..request(to) }).await.unwrap();
                let heard = next(&mut conversation).await;
                let Answer::Reply { bytes, from, .. } = heard.answer else { panic!("{heard:?}") };
                assert_eq!((heard.tag, from, bytes), (7, to, payload_bytes + packet::HEADER_BYTES));
                assert!(!heard.rtt.is_zero() && heard.rtt < PATIENCE);
                conversation.forget(7);
            }
        }
    }
}
