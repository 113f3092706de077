use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

const PATIENCE: Duration = Duration::from_secs(2);

/// These tests need to open an ICMP socket; where that is not allowed they fail and say how to allow it.
fn socket(icmp: &Icmp, address: IpAddr, ttl: Option<u8>) -> Arc<IcmpSocket> {
    icmp.socket(address, ttl).expect("no ICMP socket; allow it with: sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"")
}

#[tokio::test]
async fn this_machine_replies() {
    let icmp = Icmp::default();
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let echo = socket(&icmp, address, None).echo(address, &[7; 56].into(), PATIENCE).await;
        let Echo::Reply { rtt, bytes, from, .. } = echo else { panic!("{address}: {echo:?}") };
        assert_eq!((bytes, from), (64, address));
        assert!(!rtt.is_zero() && rtt < PATIENCE);
    }
}

#[tokio::test]
async fn many_requests_to_one_host_do_not_disturb_each_other() {
    let icmp = Icmp::default();
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    let socket = socket(&icmp, address, None);
    let payload = [0; 8].into();
    let echoes = futures_util::future::join_all((0..500).map(|_| socket.echo(address, &payload, PATIENCE))).await;
    assert!(
        echoes.iter().all(|echo| matches!(echo, Echo::Reply { .. })),
        "{:?}",
        echoes.iter().find(|echo| !matches!(echo, Echo::Reply { .. }))
    );
}

#[tokio::test]
async fn a_socket_is_shared_while_in_use_and_closed_after() {
    let icmp = Icmp::default();
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    let (first, second) = (socket(&icmp, address, Some(9)), socket(&icmp, address, Some(9)));
    assert!(Arc::ptr_eq(&first, &second));
    assert!(!Arc::ptr_eq(&first, &socket(&icmp, address, Some(10))));
    drop((first, second));
    drop(socket(&icmp, address, None));
    assert!(icmp.sockets.lock().unwrap().len() <= 2);
}
