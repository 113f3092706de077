//! A thousand replies in one burst: whoever asked must have room for them.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use super::asker::address;
use super::yard::{self, Held};
use super::{Site, ping};

/// How many.
const REPLIES: usize = 1_000;
/// Room for all requests at once.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// An IPv4 header without options, and the types of ICMP echo.
const HEADER_BYTES: usize = 20;
const REQUEST: u8 = 8;
const REPLY: u8 = 0;

pub(super) fn measure(site: &mut Site) -> anyhow::Result<()> {
    yard::must(site.peer("sysctl").args(["-qw", "net.ipv4.icmp_echo_ignore_all=1"]))?;
    let mut command = site.peer(&std::env::current_exe()?.to_string_lossy());
    command.args(["part", "burst", &REPLIES.to_string()]);
    let answerer = Held::start(command)?;
    yard::wait_until("the peer has a raw socket", || {
        site.peer("cat").arg("/proc/net/raw").output().is_ok_and(|raw| String::from_utf8_lossy(&raw.stdout).lines().count() > 1)
    })?;
    let targets: Vec<String> = (0..REPLIES).map(address).collect();
    let jobs = ping::jobs(&targets, &json!({"count": 1, "timeout": 20}));
    let lost = ping::lost(&site.fabric.block_on(site.asker.all(&jobs, Duration::ZERO))?, 1)?;
    drop(answerer);
    yard::must(site.peer("sysctl").args(["-qw", "net.ipv4.icmp_echo_ignore_all=0"]))?;
    println!("  {REPLIES} replies in one burst: {lost} lost");
    ensure!(lost == 0, "{lost} of {REPLIES} replies look lost");
    Ok(())
}

/// Waits for so many requests, and answers all of them at once.
pub(super) fn answer(count: usize) -> anyhow::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.set_header_included_v4(true)?;
    let mut replies = Vec::new();
    let mut packet = vec![0; 65_536];
    while replies.len() < count {
        let length = (&socket).read(&mut packet)?;
        replies.extend(packet.get(..length).and_then(reply));
    }
    for (to, reply) in replies {
        while let Err(error) = socket.send_to(&reply, &SocketAddr::from((to, 0)).into()) {
            ensure!(error.kind() == ErrorKind::WouldBlock, error);
        }
    }
    Ok(())
}

/// Whom to answer, and what.
fn reply(request: &[u8]) -> Option<(Ipv4Addr, Vec<u8>)> {
    let mut reply = request.to_vec();
    let (header, icmp) = reply.split_at_mut_checked(HEADER_BYTES)?;
    let (from, to) = header.get_mut(12..)?.split_at_mut_checked(4)?;
    from.swap_with_slice(to);
    let to: [u8; 4] = (&*to).try_into().ok()?;
    let [kind, _, high, low, ..] = icmp else { return None };
    if *kind != REQUEST {
        return None;
    }
    *kind = REPLY;
    // The sum over the packet loses what the type was (RFC 1624).
    let (sum, carry) = u16::from_be_bytes([*high, *low]).overflowing_add(u16::from_be_bytes([REQUEST, 0]));
    [*high, *low] = (sum + u16::from(carry)).to_be_bytes();
    Some((to.into(), reply))
}
