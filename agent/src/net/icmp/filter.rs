//! What a raw ICMP socket lets through: replies and errors, not the rest of this machine's ICMP.

use std::io;
use std::os::fd::AsFd;

use probeops_shared::tools::network::Family;
use socket2::{SockFilter, SockRef};

/// Load a byte at a fixed place; at a place after the length in the index register; that length from an IPv4 header (`linux/bpf_common.h`).
const LOAD_BYTE_AT: u16 = 0x30;
const LOAD_BYTE_AFTER: u16 = 0x50;
const INDEX_IPV4_HEADER: u16 = 0xb1;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Let through whole.
const ALL: u32 = u32::MAX;

/// Echo reply, unreachable, time exceeded, parameter problem (RFC 792).
const TYPES_V4: [u8; 4] = [0, 3, 11, 12];
/// Echo reply, unreachable, too big, time exceeded, parameter problem (RFC 4443).
const TYPES_V6: [u8; 5] = [129, 1, 2, 3, 4];

/// Puts the filter on the socket.
pub(super) fn attach(socket: &impl AsFd, family: Family) -> io::Result<()> {
    let program = match family {
        // A raw IPv6 socket sees no IP header.
        Family::V6 => program(vec![SockFilter::new(LOAD_BYTE_AT, 0, 0, 0)], &TYPES_V6),
        Family::V4 | Family::Any => {
            program(vec![SockFilter::new(INDEX_IPV4_HEADER, 0, 0, 0), SockFilter::new(LOAD_BYTE_AFTER, 0, 0, 0)], &TYPES_V4)
        }
    };
    SockRef::from(socket).attach_filter(&program)
}

/// Loads the type, compares it, and returns all of the packet or nothing.
fn program(mut program: Vec<SockFilter>, types: &[u8]) -> Vec<SockFilter> {
    // Behind the comparisons stand "return nothing" and "return all"; a match jumps over what is between, the last one over one.
    let jumps = (1..=types.len()).rev().filter_map(|jump| u8::try_from(jump).ok());
    program.extend(types.iter().zip(jumps).map(|(kind, jump)| SockFilter::new(JUMP_IF_EQUAL, jump, 0, u32::from(*kind))));
    program.extend([SockFilter::new(RETURN, 0, 0, 0), SockFilter::new(RETURN, 0, 0, ALL)]);
    program
}
