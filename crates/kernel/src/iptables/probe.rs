//! Which iptables rules a namespace may hold, asked of the kernel without running a program.

use std::io::ErrorKind;

use ruleset::{Family, TableKind};
use rustix::io::Errno;

use super::FAMILIES;
use super::error::Error;
use super::program::Variant;
use crate::netlink::wire::MessageWriter;
use crate::netlink::{self, NetlinkSocket, flags};
use crate::watch::KeptSockets;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`, `linux/netfilter/nf_tables.h`.
const GET_CHAIN: u16 = 10 << 8 | 4;
/// `NFTA_CHAIN_TABLE` and `NFTA_CHAIN_NAME`.
const TABLE: u16 = 1;
const NAME: u16 = 3;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;
/// The tables that iptables-nft calls its own.
const TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// What there is in one family.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// Whether the legacy variant has a table. The kernel makes it when it is first asked about, so it may be empty; the legacy
    /// program counts as in use then too, as `iptables-legacy-save` prints something.
    pub(super) legacy: bool,
    /// Table and name of the chains of the nft variant; `None` on a kernel without nf_tables, where its programs can only fail.
    pub(super) nft: Option<Vec<(String, String)>>,
}

impl Present {
    /// Asks about the namespace of the calling thread.
    pub(super) fn ask(family: Family) -> Result<Self, Error> {
        let chains = NetlinkSocket::netfilter().and_then(|mut socket| nft_chains(&mut socket, Some(family)));
        let legacy = !legacy_tables(family)?.is_empty();
        Ok(Self { legacy, nft: present(chains)?.map(|chains| of_family(&chains, family)) })
    }

    /// Asks about both families over sockets that are kept in a namespace.
    pub(super) fn over(kept: &mut KeptSockets) -> Result<[Self; 2], Error> {
        let chains = present(nft_chains(kept.netfilter(), None))?;
        Ok(FAMILIES.map(|family| Self {
            legacy: kept.has_legacy(family),
            nft: chains.as_ref().map(|chains| of_family(chains, family)),
        }))
    }

    /// Whether the variant has a table at all.
    pub(super) fn has(&self, variant: Variant) -> bool {
        match variant {
            Variant::Legacy => self.legacy,
            Variant::Nft => !self.nft_chains().is_empty(),
        }
    }

    /// Whether the variant may have a chain in a table whose name begins so; legacy does not name its chains without a program.
    pub(super) fn has_chain_of(&self, variant: Variant, kind: TableKind, beginning: &str) -> bool {
        let is_it = |(table, chain): &(String, String)| table == kind.name() && chain.starts_with(beginning);
        match variant {
            Variant::Legacy => self.legacy,
            Variant::Nft => self.nft_chains().iter().any(is_it),
        }
    }

    /// The chains of the nft variant.
    pub(super) fn nft_chains(&self) -> &[(String, String)] {
        self.nft.as_deref().unwrap_or_default()
    }
}

/// Where the kernel names the tables of the legacy variant, IPv4 and IPv6. Without legacy iptables, or before its module is loaded, there is no such
/// file.
pub(crate) const LEGACY_NAMES: [&str; 2] =
    ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];

/// The tables of the legacy variant in the namespace of the calling thread.
pub(crate) fn legacy_tables(family: Family) -> Result<Vec<String>, Error> {
    let path = LEGACY_NAMES[usize::from(family == Family::V6)];
    match std::fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Names { path, source }),
    }
}

/// How many chains are read; a node may have several for each Service.
const MOST: usize = 256 << 10;

/// A chain by its family's number, its table and its name.
type NftChain = (u8, String, String);

/// Those in the tables of the nft variant, of one family or of all.
fn nft_chains(socket: &mut NetlinkSocket, family: Option<Family>) -> Result<Vec<NftChain>, netlink::Error> {
    let mut request = MessageWriter::default();
    let header = [family.map_or(0, number), 0, 0, 0];
    request.message(GET_CHAIN, flags::REQUEST | flags::DUMP, 1, &header, |_| {});
    let mut chains = Vec::new();
    socket.dump_most(request.bytes(), (MOST, "chains"), |message| {
        let Some(message) = message else { return chains.clear() };
        let text = |kind| message.attributes(HEADER).find(kind).map(|a| a.text().into_owned());
        if let (Some(family), Some(table), Some(name)) = (message.payload.first(), text(TABLE), text(NAME))
            && TABLES.contains(&table.as_str())
        {
            chains.push((*family, table, name));
        }
    })?;
    Ok(chains)
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn of_family(chains: &[NftChain], family: Family) -> Vec<(String, String)> {
    let chains = chains.iter().filter(|(of, ..)| *of == number(family));
    chains.map(|(_, table, name)| (table.clone(), name.clone())).collect()
}

/// A kernel without nf_tables has none of its rules. It refuses the message, the protocol or the socket.
fn present(chains: Result<Vec<NftChain>, netlink::Error>) -> Result<Option<Vec<NftChain>>, Error> {
    match chains {
        Ok(chains) => Ok(Some(chains)),
        Err(error) => match error.errno() {
            Some(Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::INVAL) => Ok(None),
            _ => Err(Error::Chains(error)),
        },
    }
}
