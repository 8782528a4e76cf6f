//! The peers and ports of a rule, each once and in order.

use std::collections::BTreeSet;

use facts::networkpolicy::{Entries, PolicyProtocol, Port};
use ipnet::IpNet;

use super::blocks;
use crate::terms::{PeerTerm, PodTerm};

/// Ports of a rule. Nothing, if it has none that counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PortParts<'t> {
    /// By their numbers, so that each packet is of one at most; nothing stands for all packets.
    pub(super) numbers: Vec<Option<Port>>,
    pub(super) names: Vec<(&'t str, PolicyProtocol)>,
}

/// Peers of a rule.
#[derive(Debug, Default)]
pub(super) struct PeerParts<'t> {
    pub(super) any: bool,
    pub(super) pods: BTreeSet<&'t PodTerm>,
    /// All blocks of a family are one, because an exception is of its own block only.
    pub(super) blocks: [BTreeSet<IpNet>; 2],
    /// What is no pod and not in these ranges.
    pub(super) outside: Vec<&'t [IpNet]>,
    /// Whether a block would have been too many prefixes.
    pub(super) has_less: bool,
}

// === impl PortParts ===

impl<'t> PortParts<'t> {
    pub(super) fn of(ports: &'t Entries<Port>) -> Self {
        let mut parts = Self::default();
        let Entries::Of(ports) = ports else {
            parts.numbers.push(None);
            return parts;
        };
        // All ports of a protocol come first, then ranges by their beginnings.
        let sorted: BTreeSet<&Port> = ports.iter().collect();
        let mut whole = Vec::new();
        for port in sorted {
            match port {
                Port::All(of) => {
                    whole.push(*of);
                    parts.numbers.push(Some(port.clone()));
                }
                Port::Range(of, _) if whole.contains(of) => {}
                Port::Range(of, (first, last)) => match parts.numbers.last_mut() {
                    Some(Some(Port::Range(same, (_, end))))
                        if same == of && *first <= end.saturating_add(1) =>
                    {
                        *end = (*end).max(*last);
                    }
                    _ => parts.numbers.push(Some(port.clone())),
                },
                Port::Named(of, name) => parts.names.push((name, *of)),
            }
        }
        parts
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len() + self.names.len()
    }
}

// === impl PeerParts ===

impl<'t> PeerParts<'t> {
    /// `room` is how many prefixes there may be.
    pub(super) fn of(peers: &'t Entries<PeerTerm>, room: &mut usize) -> Self {
        let mut parts = Self::default();
        let Entries::Of(peers) = peers else { return Self { any: true, ..parts } };
        for peer in peers {
            match peer {
                PeerTerm::Pods(term) => drop(parts.pods.insert(term)),
                PeerTerm::Outside(inside) => parts.outside.push(inside),
                PeerTerm::Block(block) => match blocks::prefixes(block, room) {
                    Some(prefixes) => {
                        parts.blocks[usize::from(matches!(block.net, IpNet::V6(_)))].extend(prefixes);
                    }
                    None => parts.has_less = true,
                },
            }
        }
        parts
    }

    /// How many there are, those of blocks by their families.
    pub(super) fn len(&self) -> usize {
        usize::from(self.any) + self.pods.len() + self.block_count()
    }

    pub(super) fn block_count(&self) -> usize {
        self.blocks.iter().filter(|prefixes| !prefixes.is_empty()).count() + 2 * self.outside.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_touch_are_one() {
        let range = |of, first, last| Port::Range(of, (first, last));
        let (tcp, udp) = (PolicyProtocol::Tcp, PolicyProtocol::Udp);
        let name = || Port::Named(tcp, "http".into());
        let written = Entries::Of(
            [
                name(),
                range(udp, 53, 53),
                range(tcp, 90, 99),
                range(tcp, 80, 80),
                range(tcp, 81, 85),
                range(tcp, 95, 95),
                range(tcp, 65535, 65535),
                name(),
                range(tcp, 65000, 65535),
                Port::All(PolicyProtocol::Sctp),
                range(PolicyProtocol::Sctp, 1, 9),
            ]
            .into(),
        );
        let numbers = [
            Port::All(PolicyProtocol::Sctp),
            range(tcp, 80, 85),
            range(tcp, 90, 99),
            range(tcp, 65000, 65535),
            range(udp, 53, 53),
        ];
        let expected = PortParts { numbers: numbers.map(Some).into(), names: vec![("http", tcp)] };
        assert_eq!(PortParts::of(&written), expected);
        assert_eq!(PortParts::of(&Entries::Any).numbers, [None]);
        assert_eq!(PortParts::of(&Entries::Of([].into())).len(), 0);
    }
}
