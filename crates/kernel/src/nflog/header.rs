//! The beginning of a packet: who sends what to whom.

use std::net::IpAddr;

/// Most headers between that of IPv6 and that of the transport.
const MOST_EXTENSIONS: usize = 8;
/// Headers of IPv6 that others follow (RFC 8200): options for each hop, routing, fragment, options for the destination.
const HOPS: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const OPTIONS: u8 = 60;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// TCP, UDP, DCCP, SCTP, UDP-Lite: each begins with its ports.
const WITH_PORTS: [u8; 5] = [TCP, 17, 33, 132, 136];

/// What the headers of a packet say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedHeader {
    /// Who sent it, as it was where it was logged.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Of source and destination; nothing where the protocol has none or the packet is a later part of another one.
    pub ports: Option<(u16, u16)>,
    /// Of ICMP or ICMPv6.
    pub icmp: Option<LoggedIcmp>,
    /// Of TCP.
    pub tcp_flags: Option<TcpFlags>,
}

/// What an ICMP message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoggedIcmp {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
}

/// The flags of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TcpFlags(u8);

// === impl LoggedHeader ===

impl LoggedHeader {
    /// Reads the beginning of a packet; nothing where it is cut off before its addresses, or is no IP packet.
    #[must_use]
    pub fn read(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::read_v4(packet),
            6 => Self::read_v6(packet),
            _ => None,
        }
    }

    fn read_v4(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<20>()?;
        let length = usize::from(header[0] & 15) * 4;
        let is_later_part = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
        let source = <[u8; 4]>::try_from(&header[12..16]).ok()?;
        let destination = <[u8; 4]>::try_from(&header[16..20]).ok()?;
        let transport = packet.get(length.max(20)..).filter(|_| !is_later_part);
        Some(Self::of(source.into(), destination.into(), header[9], transport))
    }

    fn read_v6(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<40>()?;
        let source = <[u8; 16]>::try_from(&header[8..24]).ok()?;
        let destination = <[u8; 16]>::try_from(&header[24..40]).ok()?;
        let (mut protocol, mut rest) = (header[6], packet.get(40..));
        for _ in 0..MOST_EXTENSIONS {
            if ![HOPS, ROUTING, FRAGMENT, OPTIONS].contains(&protocol) {
                break;
            }
            let Some(extension) = rest.and_then(|rest| rest.first_chunk::<8>()) else { break };
            let is_part = protocol == FRAGMENT;
            let is_later_part = is_part && u16::from_be_bytes([extension[2], extension[3]]) & !7 != 0;
            let length = if is_part { 8 } else { 8 + usize::from(extension[1]) * 8 };
            protocol = extension[0];
            rest = rest.and_then(|rest| rest.get(length..)).filter(|_| !is_later_part);
        }
        Some(Self::of(source.into(), destination.into(), protocol, rest))
    }

    fn of(source: IpAddr, destination: IpAddr, protocol: u8, transport: Option<&[u8]>) -> Self {
        let beginning = transport.and_then(|transport| transport.first_chunk::<4>());
        let ports = beginning.filter(|_| WITH_PORTS.contains(&protocol));
        let icmp = beginning.filter(|_| [ICMP, ICMPV6].contains(&protocol));
        let flags = transport.filter(|_| protocol == TCP).and_then(|transport| transport.get(13));
        Self {
            source,
            destination,
            protocol,
            ports: ports.map(|[a, b, c, d]| (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))),
            icmp: icmp.map(|[kind, code, ..]| LoggedIcmp { kind: *kind, code: *code }),
            tcp_flags: flags.map(|flags| TcpFlags(*flags)),
        }
    }
}

// === impl TcpFlags ===

impl std::fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 6] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
        let set: Vec<&str> = NAMES
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.0 >> bit & 1 == 1)
            .map(|(_, name)| *name)
            .collect();
        f.write_str(&set.join(","))
    }
}
