//! What changes by an event.

use std::net::IpAddr;

use facts::peer::Peer;

use crate::news::ObjectDelta;

/// A pod before and after a change.
pub type Effect = ObjectDelta<Peer>;

impl Effect {
    /// Addresses at which selectors mean it now, and did not before.
    pub fn added(&self) -> Vec<IpAddr> {
        beyond(self.after.as_ref(), self.before.as_ref())
    }

    /// Addresses at which selectors meant it before, and do not now.
    pub fn removed(&self) -> Vec<IpAddr> {
        beyond(self.before.as_ref(), self.after.as_ref())
    }

    /// Whether it was there before, is there now, and has other labels.
    pub fn labels_changed(&self) -> bool {
        self.before.as_ref().zip(self.after.as_ref()).is_some_and(|(one, other)| one.labels != other.labels)
    }

    /// Whether it was there before, is there now, and names other ports.
    pub fn ports_changed(&self) -> bool {
        self.before.as_ref().zip(self.after.as_ref()).is_some_and(|(one, other)| one.ports != other.ports)
    }
}

/// The addresses of one that the other does not have, as far as they live.
fn beyond(one: Option<&Peer>, other: Option<&Peer>) -> Vec<IpAddr> {
    let live = |peer: Option<&Peer>| {
        let live = peer.filter(|peer| peer.is_live());
        live.map(|peer| peer.addresses.to_vec()).unwrap_or_default()
    };
    let others = live(other);
    live(one).into_iter().filter(|address| !others.contains(address)).collect()
}
