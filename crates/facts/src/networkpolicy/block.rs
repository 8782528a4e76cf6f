//! `ipBlock` of a policy's peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Addresses, with parts taken out. All of one family.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Block {
    /// The whole of it, without host bits.
    pub net: IpNet,
    /// Smaller parts of it that do not belong to it. They say nothing about other entries.
    pub except: Box<[IpNet]>,
}

/// Why the API server would refuse a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// No range of addresses.
    #[error("a range is not written as an address and a length, such as 10.0.0.0/8")]
    Cidr,
    /// An exception that is not a smaller part of the block.
    #[error("an exception is not a smaller part of its block")]
    Except,
}

impl Block {
    /// From the texts of a peer.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn parse(net: &str, except: &[String]) -> Result<Self, BlockError> {
        let net = parse_net(net).ok_or(BlockError::Cidr)?;
        let part = |text: &String| {
            let part = parse_net(text).ok_or(BlockError::Cidr)?;
            let is_part = net.contains(&part) && part.prefix_len() > net.prefix_len();
            is_part.then_some(part).ok_or(BlockError::Except)
        };
        let except = except.iter().map(part).collect::<Result<_, _>>()?;
        Ok(Self { net, except })
    }

    /// Whether an address belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.net.contains(&address) && !self.except.iter().any(|part| part.contains(&address))
    }
}

/// A range as Go reads it (`net.ParseCIDR` before Go 1.17, which read what is stored): leading zeros are decimal, host bits are dropped,
/// and an IPv4 address in an IPv6 one is the IPv4 range.
fn parse_net(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let is_short_number =
        !length.is_empty() && length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = is_short_number.then(|| length.parse().ok())??;
    if address.contains(':') {
        let net = Ipv6Net::new(address.parse::<Ipv6Addr>().ok()?, length).ok()?.trunc();
        let mapped = net.addr().to_ipv4_mapped().filter(|_| length >= MAPPED);
        return Some(match mapped {
            Some(address) => Ipv4Net::new(address, length - MAPPED).ok()?.into(),
            None => net.into(),
        });
    }
    Some(Ipv4Net::new(parse_ipv4(address)?, length).ok()?.trunc().into())
}

/// Length of `::ffff:0:0`, in which IPv4 addresses are written as IPv6 ones (RFC 4291, 2.5.5.2).
const MAPPED: u8 = 96;

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part =
            parts.next().filter(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then_some(octets.into())
}
