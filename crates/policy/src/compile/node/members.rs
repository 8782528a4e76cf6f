//! The members of a node's sets, taken from the index when they are asked for.

use std::collections::BTreeMap;

use ruleset::{Contents, Element, Family, KeptMembers, Key};

use super::peer_names;
use crate::index::{PeerMember, PeerSet, PolicyIndex};

/// See the module.
#[derive(Debug)]
pub struct NodeMembers<'a> {
    index: &'a PolicyIndex,
    /// Those that are about pods of the node.
    own: Contents,
    /// By their names.
    peers: BTreeMap<String, (&'a PeerSet, Family)>,
}

// === impl NodeMembers ===

impl<'a> NodeMembers<'a> {
    pub(super) fn new(index: &'a PolicyIndex, own: Contents) -> Self {
        let names =
            |set: &'a PeerSet| peer_names(set).into_iter().zip([(set, Family::V4), (set, Family::V6)]);
        let peers = index.sets().flat_map(|(set, _)| names(set)).collect();
        Self { index, own, peers }
    }

    /// The names of the sets that have members, or may have.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.own.names().map(str::to_owned).chain(self.peers.keys().cloned())
    }

    fn peers(&self, set: &PeerSet, family: Family) -> impl Iterator<Item = PeerMember> + '_ {
        self.index.members(set).filter(move |member| Family::of_address(member.address) == family)
    }
}

impl KeptMembers for NodeMembers<'_> {
    fn of<'s>(&'s self, set: &str) -> Box<dyn Iterator<Item = Element> + 's> {
        match self.peers.get(set) {
            Some((set, family)) => {
                Box::new(self.peers(set, *family).map(|member| Element::from(Key::from(member))))
            }
            None => KeptMembers::of(&self.own, set),
        }
    }

    fn count(&self, set: &str) -> usize {
        match self.peers.get(set) {
            Some((set, family)) => self.peers(set, *family).count(),
            None => KeptMembers::count(&self.own, set),
        }
    }

    fn may_be_older(&self, set: &str) -> bool {
        self.peers.contains_key(set)
    }
}
