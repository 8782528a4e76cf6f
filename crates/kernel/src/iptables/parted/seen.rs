//! The rules of a table in a form that only tells whether they have changed, asked of the kernel without running a program.

use std::hash::{Hash as _, Hasher as _};

use netns::Inside;
use ruleset::TableKind;

use super::PartsError;
use crate::netlink::wire::MessageWriter;
use crate::netlink::{self, NetlinkSocket, flags};
use crate::watch::{self, Fingerprint};

/// `NFNL_SUBSYS_NFTABLES << 8` and `NFT_MSG_GETCHAIN`, `NFT_MSG_GETRULE`, `linux/netfilter/nf_tables.h`.
const GET_CHAIN: u16 = 10 << 8 | 4;
const GET_RULE: u16 = 10 << 8 | 7;
/// `NFTA_CHAIN_TABLE` and `NFTA_CHAIN_NAME`, `NFTA_RULE_TABLE`, `NFTA_RULE_CHAIN` and `NFTA_RULE_HANDLE`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const FAMILIES: [u8; 2] = [2, 10];
/// Rules that are read. Of more, only programs tell.
const MOST: usize = 256 << 10;

/// What there was. A rule of nf_tables has a number that no other one gets, and is never changed.
#[derive(Debug)]
pub(super) struct SeenRules {
    /// Nothing where there was too much to read.
    nft: Option<u64>,
    legacy: Fingerprint,
}

impl PartialEq for SeenRules {
    fn eq(&self, other: &Self) -> bool {
        self.nft.is_some() && self.nft == other.nft && self.legacy.has_legacy_of(&other.legacy)
    }
}

// === impl SeenRules ===

impl SeenRules {
    pub(super) fn look(inside: &Inside, kind: TableKind) -> Result<Self, PartsError> {
        let mut hasher = crate::keyed::hasher();
        let read = NetlinkSocket::netfilter().and_then(|mut socket| {
            FAMILIES.iter().try_for_each(|family| read(&mut socket, *family, kind, &mut hasher))
        });
        let is_read = match read {
            Ok(()) => true,
            Err(netlink::Error::TooMany { .. }) => false,
            Err(error) if crate::nft::is_absent(&error) => true,
            Err(source) => return Err(watch::Error::Netlink { operation: "list the rules", source }.into()),
        };
        Ok(Self { nft: is_read.then(|| hasher.finish()), legacy: watch::fingerprint(inside)? })
    }
}

/// Which chains and rules a table of the nft variant has.
fn read(
    socket: &mut NetlinkSocket,
    family: u8,
    kind: TableKind,
    hasher: &mut std::hash::DefaultHasher,
) -> Result<(), netlink::Error> {
    for (question, table, name, handle) in
        [(GET_CHAIN, CHAIN_TABLE, CHAIN_NAME, None), (GET_RULE, RULE_TABLE, RULE_CHAIN, Some(RULE_HANDLE))]
    {
        let mut request = MessageWriter::default();
        request.message(question, flags::REQUEST | flags::DUMP, 1, &[family, 0, 0, 0], |w| {
            w.text(table, kind.name());
        });
        let mut found = Vec::new();
        let listed = socket.dump_most(request.bytes(), (MOST, "chains and rules"), |message| {
            let Some(message) = message else { return found.clear() };
            let attributes = message.attributes(HEADER);
            let text = |kind| attributes.find(kind).map(|a| a.text().into_owned());
            // Not every kernel leaves chains of other tables out.
            if text(table).as_deref() == Some(kind.name()) {
                let number = handle.and_then(|handle| attributes.find(handle)).map(|a| a.data.to_vec());
                found.push((text(name), number));
            }
        });
        match listed {
            Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => found.clear(),
            listed => listed?,
        }
        found.hash(hasher);
    }
    Ok(())
}
