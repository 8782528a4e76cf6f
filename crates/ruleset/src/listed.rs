//! Rules as a kernel lists them, whoever made them: what of them can be read, in one form for both backends.
//!
//! The rule language says what rules of ours can say. Others use more, so this is a form of its own: each condition is a field of the
//! packet that lies in ranges of numbers, or it could not be read. What could not be read may hold for a packet or not, and nothing is
//! concluded from it. [`shadow`] tells what such rules do to the packets that a plan captures.

pub mod beside;
mod iptables;
mod planned;
pub mod samples;
pub mod shadow;
mod text;
pub mod walk;

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::rule::{Base, Families, Family};

pub use iptables::{chain_of, empty, parse_line, parse_tables};
pub use planned::{attribute, planned};

/// A table with all its chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTable {
    /// As an operator finds it: `ip nat`, `inet mesh`, `ip nat (legacy)`.
    pub name: String,
    /// The families whose packets meet its chains.
    pub families: Families,
    /// The program that lists and changes it.
    pub lister: Lister,
    /// A number that is greater for tables made later in this namespace; absent where the kernel gives none.
    pub age: Option<u64>,
    /// The netlink port of the program that owns it (`NFT_TABLE_F_OWNER`): nobody else can change it, and it goes with that program.
    pub owner: Option<u32>,
    /// Rules of the plan are in it.
    pub ours: bool,
    /// Chains.
    pub chains: Vec<ListedChain>,
}

/// The program by which a table is listed and changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lister {
    /// `nft`.
    Nft,
    /// `iptables` and `ip6tables` whose tables are nf_tables'.
    IptablesNft,
    /// `iptables-legacy` and `ip6tables-legacy`.
    IptablesLegacy,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedChain {
    /// Name.
    pub name: String,
    /// Present on a chain that is attached to the packet path.
    pub base: Option<Base>,
    /// Whether packets that no rule decides are dropped.
    pub drops: bool,
    /// Rules in order.
    pub rules: Vec<ListedRule>,
}

/// A rule: where all conditions hold, its acts happen in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListedRule {
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// What happens.
    pub acts: Vec<ListedAct>,
    /// As its program prints it; empty where only the parts are known, see [`ListedRule::to_string`].
    pub text: Cow<'static, str>,
    /// The number by which nf_tables knows it in its table; iptables has none.
    pub handle: Option<u64>,
    /// The reason that the plan gives for it, which may be empty; absent of a rule of others.
    pub why: Option<Cow<'static, str>>,
}

/// A property of a packet that a condition asks for. Addresses and names of interfaces are numbers, most significant byte first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Field {
    /// 2 or 10, `NFPROTO_IPV4` and `NFPROTO_IPV6`.
    Family,
    /// IANA number of the transport protocol.
    Protocol,
    Source(Family),
    Destination(Family),
    SourcePort,
    DestinationPort,
    /// 16 bytes, padded with zeros.
    InInterface,
    /// 16 bytes, padded with zeros.
    OutInterface,
    /// Of the sending socket; there may be none.
    Uid,
    /// Of the sending socket; there may be none.
    Gid,
    Mark,
    /// Of the connection; there may be none.
    CtMark,
    /// A set of bits, see [`state`]; a condition holds if one of its bits is set.
    CtState,
    /// Where the first packet of the connection wanted to go; there may be no connection.
    OriginalDestination(Family),
    /// See above.
    OriginalPort,
    /// 1 for answers to the first packet of the connection, 0 for others; there may be no connection.
    Reply,
    /// 1 where a socket of this namespace sent the packet.
    Socket,
    /// What sort of address the destination is at the interface that the packet came in by: `RTN_*` of linux/rtnetlink.h, see
    /// [`OWN_ADDRESS`].
    DestinationType,
}

/// `RTN_LOCAL`: an address of the interface.
pub const OWN_ADDRESS: u128 = 2;

/// Bits of [`Field::CtState`], as nf_tables has them.
pub mod state {
    /// Fits no connection.
    pub const INVALID: u128 = 1;
    /// Belongs to a known connection.
    pub const ESTABLISHED: u128 = 2;
    /// Announced by a known connection.
    pub const RELATED: u128 = 4;
    /// The first packet of a connection.
    pub const NEW: u128 = 8;
    /// Not tracked.
    pub const UNTRACKED: u128 = 64;
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The field, under the mask, lies in one of the ranges; both ends belong to a range.
    In {
        /// Field.
        field: Field,
        /// Bits that are compared.
        mask: u128,
        /// Ranges.
        ranges: Vec<(u128, u128)>,
        /// Holds if it does not lie in one.
        not: bool,
    },
    /// Could not be read.
    Unread,
}

/// What a rule does. The last four may be followed by other acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListedAct {
    /// Ends this base chain.
    Accept,
    /// Ends the packet.
    Drop,
    /// Back to the calling chain.
    Return,
    /// On in another chain, and back.
    Jump(String),
    /// On in another chain, not back.
    Goto(String),
    /// To another destination; a part that is absent stays, or could not be read.
    Dnat {
        /// Address.
        to: Option<IpAddr>,
        /// Port.
        port: Option<u16>,
    },
    /// To a port of this namespace; absent: the same one.
    Redirect {
        /// Port.
        port: Option<u16>,
    },
    /// To a transparent socket.
    Tproxy {
        /// Port; absent: the same one.
        port: Option<u16>,
    },
    /// From another source address; a part that is absent stays, or could not be read.
    Snat {
        /// Address.
        to: Option<IpAddr>,
    },
    /// From the address of the interface that it leaves by.
    Masquerade,
    /// Connection tracking leaves the packet alone.
    Notrack,
    /// The connection is looked up in this zone.
    SetZone(u16),
    /// The packet's mark becomes `(mark & keep) ^ xor`.
    SetMark {
        /// Bits that stay.
        keep: u32,
        /// Bits that change.
        xor: u32,
    },
    /// The same with the connection's mark.
    SetCtMark {
        /// Bits that stay.
        keep: u32,
        /// Bits that change.
        xor: u32,
    },
    /// The packet's mark becomes the connection's.
    RestoreMark,
    /// The connection's mark becomes the packet's.
    SaveMark,
    /// Could not be read: may end the packet's way here, or not.
    Unread,
}

// === impl Lister ===

impl Lister {
    /// Whether rules mean what iptables' mean.
    pub fn is_iptables(self) -> bool {
        self != Self::Nft
    }
}

// === impl ListedTable ===

impl ListedTable {
    /// A table of nf_tables without chains, such as `inet mesh`.
    pub fn nft(name: impl Into<String>, families: Families) -> Self {
        Self {
            name: name.into(),
            families,
            lister: Lister::Nft,
            age: None,
            owner: None,
            ours: false,
            chains: Vec::new(),
        }
    }

    /// The chain of a name.
    pub fn chain(&self, name: &str) -> Option<&ListedChain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// Whether nobody else has rules in it: tables of iptables are everybody's.
    pub fn is_only_ours(&self) -> bool {
        self.ours && !self.lister.is_iptables()
    }

    /// Whether a rule of it is somebody else's.
    pub fn is_foreign(&self, rule: &ListedRule) -> bool {
        rule.why.is_none() && !self.is_only_ours()
    }

    /// Whether a rule in it could change what becomes of a packet elsewhere: one that ends a chain or drops does not.
    pub fn matters(&self) -> bool {
        let harmless = |act: &ListedAct| {
            matches!(
                act,
                ListedAct::Accept
                    | ListedAct::Drop
                    | ListedAct::Return
                    | ListedAct::Jump(_)
                    | ListedAct::Goto(_)
                    | ListedAct::Snat { .. }
                    | ListedAct::Masquerade
                    | ListedAct::SetZone(_)
            )
        };
        let rules = self.chains.iter().flat_map(|chain| &chain.rules);
        self.ours || rules.flat_map(|rule| &rule.acts).any(|act| !harmless(act))
    }
}

// === impl Condition ===

impl Condition {
    /// The field has this value.
    pub fn is(field: Field, value: u128) -> Self {
        Self::In { field, mask: u128::MAX, ranges: vec![(value, value)], not: false }
    }
}

/// The number of an address.
pub fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The address of a number.
pub fn address_of(number: u128, family: Family) -> IpAddr {
    match family {
        // Only numbers of that length come here.
        Family::V4 => Ipv4Addr::from(number as u32).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

/// The number of an interface's name.
pub fn number_of_name(name: &str) -> u128 {
    let mut bytes = [0; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    u128::from_be_bytes(bytes)
}

/// The range of names that begin so.
pub fn names_from(prefix: &[u8]) -> (u128, u128) {
    let (mut low, mut high) = ([0; 16], [0xff; 16]);
    let len = prefix.len().min(16);
    low[..len].copy_from_slice(&prefix[..len]);
    high[..len].copy_from_slice(&prefix[..len]);
    (u128::from_be_bytes(low), u128::from_be_bytes(high))
}

#[cfg(test)]
mod tests;
