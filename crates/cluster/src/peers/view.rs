//! A pod as it is looked at.

use std::net::IpAddr;

use facts::networkpolicy::PolicyProtocol;
use facts::peer::{AddressRight, NamedPort, Peer, Phase};

use super::{Label, Peers, Port, Slot};
use crate::news::Uid;

/// A pod of [`Peers`].
#[derive(Debug, Clone, Copy)]
pub struct PeerView<'a> {
    peers: &'a Peers,
    slot: &'a Slot,
}

impl<'a> PeerView<'a> {
    pub(super) fn new(peers: &'a Peers, slot: &'a Slot) -> Self {
        Self { peers, slot }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &'a str {
        self.peers.texts.get(self.slot.namespace)
    }

    /// Its name.
    pub fn name(&self) -> &'a str {
        self.peers.texts.get(self.slot.name)
    }

    /// Its labels, in the order of their keys.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a str)> {
        let texts = &self.peers.texts;
        self.label_ids().iter().map(|(key, value)| (texts.get(*key), texts.get(*value)))
    }

    /// The value of a label, if it is there.
    pub fn label(&self, key: &str) -> Option<&'a str> {
        let (texts, labels) = (&self.peers.texts, self.label_ids());
        let at = labels.binary_search_by(|(known, _)| texts.get(*known).cmp(key)).ok()?;
        Some(texts.get(labels[at].1))
    }

    /// Its addresses.
    pub fn addresses(&self) -> &'a [IpAddr] {
        self.slot.addresses.all()
    }

    /// The ports that its containers name: name, protocol and number.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = (&'a str, PolicyProtocol, u16)> {
        let texts = &self.peers.texts;
        self.port_ids().iter().map(|(name, protocol, number)| (texts.get(*name), *protocol, *number))
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.slot.phase
    }

    /// Whether it is being deleted.
    pub fn is_deleting(&self) -> bool {
        self.slot.is_deleting
    }

    /// Whether it shares its node's network.
    pub fn host_network(&self) -> bool {
        self.slot.host_network
    }

    /// Whether policies are about it; see [`Peer::is_live`].
    pub fn is_live(&self) -> bool {
        let Slot { addresses, host_network, phase, .. } = self.slot;
        !addresses.all().is_empty() && !host_network && !phase.is_terminal()
    }

    /// The node that it runs on; empty before it has one.
    pub fn node(&self) -> &'a str {
        self.peers.texts.get(self.slot.node)
    }

    /// When it was created, see [`Peer::created`].
    pub fn created(&self) -> u64 {
        self.slot.created
    }

    /// Which of its name.
    pub fn uid(&self) -> Uid {
        self.slot.uid
    }

    /// Its right to its addresses.
    pub fn right(&self) -> AddressRight {
        let Slot { phase, is_deleting, created, .. } = self.slot;
        AddressRight::new(*phase, *is_deleting, *created)
    }

    /// Whether it is just as this.
    pub(super) fn is(&self, peer: &Peer) -> bool {
        let Slot { created, phase, host_network, is_deleting, .. } = self.slot;
        let plain = (*created, *phase, *host_network, *is_deleting);
        let same_ports = || {
            let ports = peer.ports.iter().map(|port| (&*port.name, port.protocol, port.number));
            self.ports().eq(ports)
        };
        plain == (peer.created, peer.phase, peer.host_network, peer.is_deleting)
            && *self.addresses() == *peer.addresses
            && self.labels().eq(peer.labels.iter())
            && *self.node() == *peer.node
            && same_ports()
    }

    /// The same by itself.
    pub fn to_peer(&self) -> Peer {
        let port = |(name, protocol, number): (&str, _, _)| NamedPort { name: name.into(), protocol, number };
        Peer {
            labels: self.labels().collect(),
            addresses: self.addresses().into(),
            ports: self.ports().map(port).collect(),
            phase: self.slot.phase,
            host_network: self.slot.host_network,
            is_deleting: self.slot.is_deleting,
            created: self.slot.created,
            node: self.node().into(),
        }
    }

    fn label_ids(&self) -> &'a [Label] {
        self.peers.labels.get(self.slot.labels)
    }

    fn port_ids(&self) -> &'a [Port] {
        self.peers.ports.get(self.slot.ports)
    }
}
