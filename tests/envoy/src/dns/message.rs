//! Messages with one question and at most one answer (RFC 1035, section 4).

use std::net::Ipv4Addr;

/// Longest message that is read.
pub(super) const LONGEST: usize = 512;

const HEADER: usize = 12;
/// Query with recursion desired.
const QUERY_FLAGS: u16 = 0x0100;
/// Response, recursion desired and available, no error.
const REPLY_FLAGS: u16 = 0x8180;
/// Type A, class IN.
const A_IN: [u8; 4] = [0, 1, 0, 1];
/// Points to the name in the question, right after the header.
const SAME_NAME: [u8; 2] = [0xc0, HEADER as u8];

/// A question for the IPv4 address of `name`.
pub(super) fn query(name: &str) -> Vec<u8> {
    // The identifier need only be the same in the reply: every question has a socket of its own.
    let mut message = header(*b"tk", QUERY_FLAGS, 0);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&A_IN);
    message
}

/// The reply to `query` that the name has `address`.
pub(super) fn reply(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let mut message = header([*query.first()?, *query.get(1)?], REPLY_FLAGS, 1);
    message.extend_from_slice(query.get(HEADER..)?);
    message.extend_from_slice(&SAME_NAME);
    message.extend_from_slice(&A_IN);
    // Not to be kept by anybody; four bytes of address.
    message.extend_from_slice(&[0, 0, 0, 0, 0, 4]);
    message.extend_from_slice(&address.octets());
    Some(message)
}

/// The name that `query` asks for.
pub(super) fn name(query: &[u8]) -> Option<String> {
    let mut rest = query.get(HEADER..)?;
    let mut labels = Vec::new();
    loop {
        let (&length, after) = rest.split_first()?;
        if length == 0 {
            return Some(labels.join("."));
        }
        let (label, after) = after.split_at_checked(length.into())?;
        labels.push(String::from_utf8_lossy(label).into_owned());
        rest = after;
    }
}

/// The address in `message`, if it is a reply to `query`.
pub(super) fn answer(message: &[u8], query: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = *message.last_chunk()?;
    let address = Ipv4Addr::from(octets);
    (reply(query, address)? == message).then_some(address)
}

fn header(id: [u8; 2], flags: u16, answers: u16) -> Vec<u8> {
    let counts = [1, answers, 0, 0];
    let numbers = std::iter::once(flags).chain(counts).flat_map(u16::to_be_bytes);
    id.into_iter().chain(numbers).collect()
}
