//! What a raw ICMP socket lets through: the replies to its own requests, not the rest of this machine's ICMP.

use std::io;
use std::os::fd::AsFd;

use probeops_shared::tools::network::Family;
use socket2::{SockFilter, SockRef};

use crate::net::icmp::packet;

/// Load a byte or two at a fixed place; at a place after the length in the index register; that length from an IPv4 header
/// (`linux/bpf_common.h`).
const LOAD_BYTE_AT: u16 = 0x30;
const LOAD_BYTE_AFTER: u16 = 0x50;
const LOAD_PAIR_AT: u16 = 0x28;
const LOAD_PAIR_AFTER: u16 = 0x48;
const INDEX_IPV4_HEADER: u16 = 0xb1;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Let through whole.
const ALL: u32 = u32::MAX;
/// Where the identifier of an echo is.
const IDENTIFIER_AT: u32 = 4;

/// Puts the filter on the socket.
pub(super) fn attach(socket: &impl AsFd, family: Family, identifier: u16) -> io::Result<()> {
    // A raw IPv6 socket sees no IP header.
    let (index, byte, pair) = match family {
        Family::V6 => (None, LOAD_BYTE_AT, LOAD_PAIR_AT),
        Family::V4 => (Some(SockFilter::new(INDEX_IPV4_HEADER, 0, 0, 0)), LOAD_BYTE_AFTER, LOAD_PAIR_AFTER),
    };
    let (_, reply) = packet::types(family);
    let program: Vec<SockFilter> = index
        .into_iter()
        .chain([
            SockFilter::new(byte, 0, 0, 0),
            SockFilter::new(JUMP_IF_EQUAL, 0, 3, u32::from(reply)),
            SockFilter::new(pair, 0, 0, IDENTIFIER_AT),
            SockFilter::new(JUMP_IF_EQUAL, 0, 1, u32::from(identifier)),
            SockFilter::new(RETURN, 0, 0, ALL),
            SockFilter::new(RETURN, 0, 0, 0),
        ])
        .collect();
    SockRef::from(socket).attach_filter(&program)
}
