//! Single packets from raw sockets, and what comes back: protocols that the kernel need not speak, and nothing that it adds by itself.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ruleset::Protocol;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with, sockopt,
};
use testkit::TestNetns;

/// The longest that an answer takes; all is on one machine.
const PATIENCE: Duration = Duration::from_millis(500);
/// After this nothing is expected any more where nothing was expected.
const SILENCE: Duration = Duration::from_millis(25);
/// `ETH_P_ALL` of linux/if_ether.h.
const ALL_FRAMES: u16 = 3;

/// A packet to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shot {
    /// Protocol.
    pub protocol: Protocol,
    /// Source; for ICMP the port is the identifier of an echo.
    pub from: SocketAddr,
    /// Destination; without a port for ICMP.
    pub to: SocketAddr,
    /// Type and code of an ICMP message.
    pub icmp: (u8, u8),
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A TCP connection was accepted.
    SynAck,
    /// A TCP reset.
    Reset,
    /// An answer of ICMP to the packet, of this type and code.
    Icmp(u8, u8),
    /// Another packet of the protocol.
    Other,
    /// Nothing.
    Nothing,
}

impl Shot {
    /// Sends it from a namespace, and waits for the answer there; only a little where `quiet` is expected.
    ///
    /// # Errors
    /// When the kernel refuses a socket, or to send.
    pub fn fire(&self, from: &TestNetns, quiet: bool) -> Result<Answer> {
        let payload = self.payload();
        from.enter(|_| {
            let ear = open(AddressFamily::PACKET, SocketType::DGRAM, ALL_FRAMES.to_be().into())?;
            self.send(&payload)?;
            let end = Instant::now() + if quiet { SILENCE } else { PATIENCE };
            let mut frame = [0; 2048];
            while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                sockopt::set_socket_timeout(&ear, sockopt::Timeout::Recv, Some(left))?;
                let Ok((length, _)) = recv(&ear, &mut frame[..], RecvFlags::empty()) else { break };
                if let Some(answer) = self.answer(&payload, &frame[..length.min(frame.len())]) {
                    return Ok(answer);
                }
            }
            Ok(Answer::Nothing)
        })?
    }

    fn send(&self, payload: &[u8]) -> Result<()> {
        let family = if self.to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = open(family, SocketType::RAW, self.protocol.number().into())?;
        bind(&socket, &SocketAddr::new(self.from.ip(), 0)).context("bind a raw socket")?;
        sendto(&socket, payload, SendFlags::empty(), &SocketAddr::new(self.to.ip(), 0))
            .with_context(|| format!("send {self:?}"))?;
        Ok(())
    }

    /// What is after the header of IP.
    pub(crate) fn payload(&self) -> Vec<u8> {
        let ports = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        match self.protocol {
            Protocol::Tcp => {
                // Sequence, acknowledgement, five words and SYN, window, checksum, urgent.
                let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
                self.summed([ports, rest.to_vec()].concat(), 16)
            }
            Protocol::Udp => self.summed([ports, vec![0, 10, 0, 0, b'h', b'i']].concat(), 6),
            Protocol::Sctp => {
                // No tag yet, the checksum, and a chunk INIT: tag, window, streams out and in, sequence.
                let rest = [
                    0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 7, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1,
                ];
                let mut packet = [ports, rest.to_vec()].concat();
                let sum = crc32c(&packet).to_le_bytes();
                packet[8..12].copy_from_slice(&sum);
                packet
            }
            Protocol::Icmp | Protocol::Icmpv6 => {
                let [a, b] = self.from.port().to_be_bytes();
                // An identifier and a number, then what a request for a time has, too.
                let packet = [&[self.icmp.0, self.icmp.1, 0, 0, a, b, 0, 1][..], &[0; 12]].concat();
                self.summed(packet, 2)
            }
        }
    }

    /// With the checksum of the Internet in its place.
    fn summed(&self, mut packet: Vec<u8>, at: usize) -> Vec<u8> {
        let mut covered = Vec::new();
        if self.protocol != Protocol::Icmp {
            for ip in [self.from.ip(), self.to.ip()] {
                match ip {
                    IpAddr::V4(v4) => covered.extend(v4.octets()),
                    IpAddr::V6(v6) => covered.extend(v6.octets()),
                }
            }
            let length = u16::try_from(packet.len()).unwrap_or(u16::MAX).to_be_bytes();
            covered.extend([0, self.protocol.number(), length[0], length[1]]);
        }
        covered.extend(&packet);
        let mut sum: u32 = covered
            .chunks(2)
            .map(|two| u32::from(u16::from_be_bytes([two[0], *two.get(1).unwrap_or(&0)])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        packet[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        packet
    }

    /// Whether a packet answers this one.
    fn answer(&self, payload: &[u8], packet: &[u8]) -> Option<Answer> {
        let (source, protocol, data) = parts(packet)?;
        let echo = matches!(self.protocol, Protocol::Icmp | Protocol::Icmpv6);
        let (port, from, to) = (self.from.port().to_be_bytes(), data.get(0..2)?, data.get(2..4)?);
        if protocol == Protocol::Icmp.number() || protocol == Protocol::Icmpv6.number() {
            let is_error = if protocol == 1 { matches!(data[0], 3 | 11 | 12) } else { data[0] < 128 };
            let about = || parts(data.get(8..)?).map(|(_, _, inner)| inner.get(..8) == payload.get(..8));
            let answers =
                if is_error { about()? } else { echo && source == self.to.ip() && data.get(4..6)? == port };
            return (answers && data[0] != self.icmp.0).then_some(Answer::Icmp(data[0], data[1]));
        }
        let mine = protocol == self.protocol.number()
            && source == self.to.ip()
            && to == port
            && from == self.to.port().to_be_bytes();
        match data.get(13) {
            _ if !mine => None,
            Some(flags) if self.protocol == Protocol::Tcp && flags & 4 != 0 => Some(Answer::Reset),
            Some(flags) if self.protocol == Protocol::Tcp && flags & 0x12 == 0x12 => Some(Answer::SynAck),
            _ => Some(Answer::Other),
        }
    }
}

/// Source, protocol and payload of a packet of either family, without extensions of IPv6.
fn parts(packet: &[u8]) -> Option<(IpAddr, u8, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            Some((source.into(), packet[9], packet.get(usize::from(packet[0] & 15) * 4..)?))
        }
        _ => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            Some((source.into(), packet[6], packet.get(40..)?))
        }
    }
}

fn open(family: AddressFamily, kind: SocketType, protocol: u32) -> Result<OwnedFd> {
    let protocol = NonZeroU32::new(protocol).map(rustix::net::Protocol::from_raw);
    socket_with(family, kind, SocketFlags::CLOEXEC, protocol).context("open a raw socket (run as root)")
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}
