//! Where packets of this node's pods enter it: which source addresses their interfaces bring, and whether the node's rules see them.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::nft::{PartedTable, Thoroughness};
use kernel::pair::{ChangedLink, LinkWatch, NodeEnd, NodeEnds, send_frame};
use kernel::{Change, sysctl};
use netns::{Host, Inside};
use policy::compile::{ENTRY_CHAIN, ENTRY_TABLE, EntryInterface, EntryProbe, NodeEntry, POLICY_OWNER};
use policy::index::LocalName;
use ruleset::{Family, InterfaceName};
use tokio::sync::Notify;

use super::point::{PointError, PointLook};
use super::sight::{AttachedPod, NodeSight, UnseenReason};
use super::waking::Waker;

/// How often a datagram is sent, and how long each may take.
const TRIES: usize = 3;
const PATIENCE: Duration = Duration::from_millis(5);
/// How long what an earlier agent left may stay where pods cannot be looked at.
const TAKEN_OVER: Duration = Duration::from_secs(60);
/// How long it waits before it looks again.
const PAUSE: Duration = Duration::from_millis(1);
/// What shows netfilter the packets between ports of all bridges.
const BRIDGE_CALLS: [(Family, &str); 2] =
    [(Family::V4, "net/bridge/bridge-nf-call-iptables"), (Family::V6, "net/bridge/bridge-nf-call-ip6tables")];

/// Opens the node's network namespace.
pub type HostOpener = Box<dyn Fn() -> Result<Host, netns::Error> + Send + Sync>;

/// Makes what stands where packets of pods enter the node.
pub type EntryMaker = Box<dyn Fn() -> EntryPoint + Send + Sync>;

/// The table of the node that has these rules, and what is to be in it.
pub struct EntryPoint {
    open: HostOpener,
    disturbed: Arc<Notify>,
    kernel: Option<EntryKernel>,
    entry: NodeEntry,
    /// Where pods' interfaces were found.
    found: BTreeMap<LocalName, NodeEnd>,
    /// Whether the kernel has the table.
    loaded: bool,
    /// Since when it has what an earlier agent left there, too.
    taken_over: Option<Instant>,
    /// Ports that nobody can guess.
    secrets: RandomState,
    tests: u64,
}

/// Sockets of the node's namespace.
struct EntryKernel {
    host: Host,
    table: PartedTable,
    ends: NodeEnds,
    links: LinkWatch,
    _waker: Waker,
}

// === impl EntryPoint ===

impl EntryPoint {
    /// Nothing is looked at or made yet. `disturbed` is told when somebody commits rules, or the node's interfaces change.
    pub fn new(open: HostOpener, disturbed: Arc<Notify>) -> Self {
        Self {
            open,
            disturbed,
            kernel: None,
            entry: NodeEntry::default(),
            found: BTreeMap::new(),
            loaded: false,
            taken_over: None,
            secrets: RandomState::new(),
            tests: 0,
        }
    }

    /// Finds the node's end of a pod's interface, which from then on brings the pod's addresses only, and tests whether packets come by.
    pub(super) fn look(&mut self, at: &AttachedPod) -> NodeSight {
        match self.try_look(at) {
            Ok(sight) => sight,
            Err(error) => {
                // What the kernel has is compared before the next.
                self.loaded = false;
                NodeSight::Unseen(UnseenReason::Failed(fault::chain(&error)))
            }
        }
    }

    fn try_look(&mut self, at: &AttachedPod) -> Result<NodeSight, PointError> {
        self.load()?;
        self.tests += 1;
        let secret = self.secrets.hash_one(self.tests);
        let Some(kernel) = &mut self.kernel else { return Ok(NodeSight::Unseen(UnseenReason::NoPair)) };
        let sees = |inside: &Inside| kernel.see(inside, at, secret);
        let (end, counted) = at.netns.enter(sees).map_err(PointError::new)??;
        let Some(end) = end else {
            self.forget(&at.pod)?;
            return Ok(NodeSight::Unseen(UnseenReason::NoPair));
        };
        self.found.insert(at.pod.clone(), end.clone());
        let interface = InterfaceName::new(&end.name).filter(|_| end.bridge.is_none());
        let addresses = at.addresses.clone().into();
        self.set(&at.pod, interface.map(|name| EntryInterface { name, index: end.index, addresses }))?;
        if !counted {
            return Ok(NodeSight::Unseen(UnseenReason::NotCounted));
        }
        Ok(match self.hidden(&end)? {
            Some(reason) => NodeSight::Unseen(reason),
            None => NodeSight::Seen,
        })
    }

    /// A pod is gone.
    pub(super) fn forget(&mut self, pod: &LocalName) -> Result<(), PointError> {
        self.found.remove(pod);
        self.set(pod, None)
    }

    /// The pods whose interfaces have come to something else since the last call, such as a bridge.
    pub(super) fn moved(&mut self) -> Result<Vec<LocalName>, PointError> {
        let Some(kernel) = &mut self.kernel else { return Ok(Vec::new()) };
        let heard = kernel.links.heard().map_err(PointError::new)?;
        let is_other = |end: &NodeEnd, link: &ChangedLink| match &end.bridge {
            _ if link.index == end.index => link.master != end.bridge.as_ref().map(|bridge| bridge.index),
            Some(bridge) => {
                link.index == bridge.index && link.calls.is_some_and(|calls| calls != bridge.calls)
            }
            None => false,
        };
        let has_moved = |end: &NodeEnd| match &heard {
            Some(links) => links.iter().any(|link| is_other(end, link)),
            None => true,
        };
        Ok(self.found.iter().filter(|(_, end)| has_moved(end)).map(|(pod, _)| pod.clone()).collect())
    }

    /// Compares what the kernel has, and puts it right. Whether it had to. `are_tested`: no pod is to be looked at any more.
    pub(super) fn verify(&mut self, look: PointLook, are_tested: bool) -> Result<bool, PointError> {
        match self.taken_over {
            Some(since) if !are_tested && since.elapsed() < TAKEN_OVER => return Ok(false),
            // What is left of an earlier agent's interfaces goes. That says nothing of others.
            Some(_) => return self.ensure(Thoroughness::Everything).map(|_| false),
            None => {}
        }
        if !self.loaded {
            return if self.entry.is_empty() {
                Ok(false)
            } else {
                Ok(self.ensure(Thoroughness::Everything)? != Change::None)
            };
        }
        let Some(kernel) = &mut self.kernel else { return Ok(false) };
        let others =
            |heard: kernel::watch::Noticed| heard.lost || heard.commits.iter().any(|one| !one.is_own());
        let has_changed = kernel.table.heard().map(others).map_err(PointError::new)?;
        let thoroughness = match look {
            PointLook::Everything => Thoroughness::Everything,
            PointLook::Disturbed if has_changed => Thoroughness::Rules,
            PointLook::Disturbed => return Ok(false),
        };
        Ok(self.ensure(thoroughness)? != Change::None)
    }

    /// Nothing is to be there.
    pub(super) fn clear(&mut self) -> Result<(), PointError> {
        self.entry = NodeEntry::default();
        self.found.clear();
        // What an earlier agent left goes, too; it is not waited for any more.
        (self.loaded, self.taken_over) = (false, None);
        // A kernel without nf_tables has nothing of ours.
        let Ok(kernel) = self.kernel() else { return Ok(()) };
        kernel.table.remove().map(drop).map_err(PointError::new)
    }

    /// Another owner of the same tables has removed them all.
    pub(super) fn distrust(&mut self) {
        self.loaded = false;
    }

    fn kernel(&mut self) -> Result<&mut EntryKernel, PointError> {
        let opened = match self.kernel.take() {
            Some(opened) => opened,
            None => EntryKernel::open((self.open)().map_err(PointError::new)?, self.disturbed.clone())?,
        };
        Ok(self.kernel.insert(opened))
    }

    fn load(&mut self) -> Result<(), PointError> {
        if self.loaded {
            return Ok(());
        }
        // An earlier agent's interfaces bring their pods' addresses only until each was looked at.
        let takes_over = self.entry.is_empty() && self.taken_over.is_none();
        if takes_over && self.kernel()?.table.change(&NodeEntry::expect(&[])).is_ok() {
            (self.loaded, self.taken_over) = (true, Some(Instant::now()));
            return Ok(());
        }
        self.ensure(Thoroughness::Everything).map(drop)
    }

    fn ensure(&mut self, thoroughness: Thoroughness) -> Result<Change, PointError> {
        let (rules, contents) = (self.entry.rules(), self.entry.contents());
        self.loaded = false;
        let change = self.kernel()?.table.ensure(&rules, &contents, thoroughness).map_err(PointError::new)?;
        (self.loaded, self.taken_over) = (true, None);
        Ok(change)
    }

    fn set(&mut self, pod: &LocalName, now: Option<EntryInterface>) -> Result<(), PointError> {
        let delta = self.entry.set(pod, now);
        if delta.is_empty() || !self.loaded {
            return Ok(());
        }
        if self.kernel()?.table.change(&delta).is_err() {
            // Somebody else has changed the table.
            self.ensure(Thoroughness::Everything)?;
        }
        Ok(())
    }

    /// The pods whose packets are not seen any more because of a setting of the node.
    pub(super) fn hidden_by_now(&mut self) -> Result<Vec<LocalName>, PointError> {
        let of_bridges = self.found.iter().filter(|(_, end)| end.bridge.is_some());
        let of_bridges: Vec<(LocalName, NodeEnd)> =
            of_bridges.map(|(pod, end)| (pod.clone(), end.clone())).collect();
        let mut found = Vec::new();
        for (pod, end) in of_bridges {
            if self.hidden(&end)?.is_some() {
                found.push(pod);
            }
        }
        Ok(found)
    }

    /// Why packets between ports of the bridge are not seen, if they are not.
    fn hidden(&mut self, end: &NodeEnd) -> Result<Option<UnseenReason>, PointError> {
        let Some(bridge) = &end.bridge else { return Ok(None) };
        let read = |inside: &netns::InsideHost<'_>| {
            BRIDGE_CALLS.map(|(_, setting)| sysctl::read(inside.inside(), setting).ok().flatten())
        };
        let settings = self.kernel()?.host.enter(read).map_err(PointError::new)?;
        let of_all = settings.iter().map(|value| value.as_deref() == Some("1"));
        let is_hidden =
            BRIDGE_CALLS.iter().zip(of_all.zip(bridge.calls)).find(|(_, (all, own))| !all && !own);
        Ok(is_hidden
            .map(|((family, _), _)| UnseenReason::Bridge { bridge: bridge.name.clone(), family: *family }))
    }
}

// === impl EntryKernel ===

impl EntryKernel {
    fn open(host: Host, disturbed: Arc<Notify>) -> Result<Self, PointError> {
        let opened = host.enter(|inside| -> Result<_, PointError> {
            let table = PartedTable::open(inside, POLICY_OWNER, ENTRY_TABLE).map_err(PointError::new)?;
            let ends = NodeEnds::open(inside).map_err(PointError::new)?;
            Ok((table, ends, LinkWatch::open(inside).map_err(PointError::new)?))
        });
        let (table, ends, links) = opened.map_err(PointError::new)??;
        let descriptors = [table.descriptor(), links.descriptor()];
        let waker = Waker::start("policy-entry", &descriptors, disturbed).map_err(PointError::new)?;
        Ok(Self { host, table, ends, links, _waker: waker })
    }

    /// The node's end of the interface of the pod that the thread is in, and whether a datagram from there was counted.
    fn see(
        &mut self,
        inside: &Inside,
        at: &AttachedPod,
        secret: u64,
    ) -> Result<(Option<NodeEnd>, bool), PointError> {
        let end = self.ends.of(inside, &at.netns, &at.interface).map_err(PointError::new)?;
        let Some(end) = end else { return Ok((None, false)) };
        let arrives_by = end.bridge.as_ref().map_or(&end.name, |bridge| &bridge.name);
        let Some(interface) = InterfaceName::new(arrives_by) else { return Ok((Some(end), false)) };
        let [a, b, c, d, e, ..] = secret.to_be_bytes();
        // No well-known ports, lest somebody on the way mean something by them.
        let high = |one: u8, two: u8| u16::from_be_bytes([one | 0x80, two]);
        let probe = EntryProbe {
            interface,
            source_port: high(a, b),
            destination: Ipv4Addr::new(192, 0, 2, e),
            port: high(c, d),
        };
        self.table.change(&NodeEntry::expect(std::slice::from_ref(&probe))).map_err(PointError::new)?;
        let counted = self.send(inside, &end, &probe, &at.addresses);
        self.table.change(&NodeEntry::expect(&[])).map_err(PointError::new)?;
        Ok((Some(end), counted?))
    }

    fn send(
        &mut self,
        inside: &Inside,
        end: &NodeEnd,
        probe: &EntryProbe,
        addresses: &[IpAddr],
    ) -> Result<bool, PointError> {
        let own = addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        // A pod without IPv4 sends from an address of the same range.
        let packet = probe.packet(own.unwrap_or(Ipv4Addr::new(192, 0, 2, 1)));
        for _ in 0..TRIES {
            send_frame(inside, end, &packet).map_err(PointError::new)?;
            let begun = Instant::now();
            loop {
                let counted = self.table.counted(ENTRY_CHAIN, 1).map_err(PointError::new)?;
                if counted.first().is_some_and(|packets| *packets > 0) {
                    return Ok(true);
                }
                if begun.elapsed() >= PATIENCE {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
        }
        Ok(false)
    }
}
