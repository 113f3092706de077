//! What some tests need of the machine. Where it is missing they fail, and say how to get it.

use std::net::{Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// An ICMP socket, of either kind that `ping` can use.
#[track_caller]
pub fn icmp() {
    let open = |kind| socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).map(drop);
    if let Err(error) = open(SockType::Datagram).or_else(|_| open(SockType::Raw)) {
        panic!(
            "this test pings, and no ICMP socket can be opened ({error}); \
             run `sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"`, or run the tests with CAP_NET_RAW (as root)"
        );
    }
}

/// IPv6 on this machine itself.
#[track_caller]
pub fn ipv6_loopback() {
    if let Err(error) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
        panic!(
            "this test needs the address ::1, which cannot be used ({error}); \
             run `sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0`, \
             and start a container with these as its --sysctl"
        );
    }
}

/// Time zones of these sources, compiled into `folder` by zic(8).
#[track_caller]
pub fn time_zones(folder: &Path, sources: &str) -> PathBuf {
    let (from, to) = (folder.join("zones"), folder.join("zoneinfo"));
    std::fs::write(&from, sources).expect("a file");
    // Debian keeps it where only root looks.
    let compilers = ["zic", "/usr/sbin/zic", "/sbin/zic"];
    let compiled = compilers.iter().find_map(|zic| Command::new(zic).arg("-d").arg(&to).arg(&from).output().ok());
    let Some(compiled) = compiled else {
        panic!(
            "this test makes a time zone whose clock is changed in a moment, and zic is not there; run `apt-get install libc-bin` (Alpine: tzdata-utils)"
        );
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    to
}

/// What makes this machine another than a copy of it (machine-id(5)).
#[track_caller]
pub fn machine_id() {
    let is_there = |path: &str| std::fs::read_to_string(path).is_ok_and(|id| !id.trim().is_empty());
    assert!(
        ["/etc/machine-id", "/var/lib/dbus/machine-id"].into_iter().any(is_there),
        "this test makes a copy of a machine, and this one has no /etc/machine-id by which it would know; \
         run `systemd-machine-id-setup`, or write 32 hexadecimal digits into it"
    );
}
