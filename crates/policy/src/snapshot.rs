//! What is kept on disk of policies: for the plugin, which asks which of them select a pod while no agent is there, and for the next agent, which
//! begins with it while the API server is away.
//!
//! A file of lines, and a line of words with a blank between them; see [`words`]. First comes the head, all that the plugin reads: the own node's
//! addresses, the labels of namespaces, whom each policy selects in which directions. Then the rules of policies, who is in the sets that they look
//! into, pods, and Services. The last line says how many there were before it. A reader takes all of it or nothing, and no other version.

mod head;
mod known;
mod pods;
mod services;
mod terms;
#[cfg(test)]
pub(crate) mod tests;
mod words;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use facts::LabelSet;
use facts::networkpolicy::PolicyProtocol;

use crate::index::{PeerMember, PeerSet, PolicyIndex};
use crate::plain::PlainPod;
use crate::terms::{PolicyTerms, RuleTerms, TrafficDirection};
pub use head::{PodIsolation, SubjectPod, find_isolation};
pub use services::SnapshotServices;
use words::{SnapshotWords, SnapshotWriter};

/// The first line. Its number is another one with every change of what the lines after it say, also where a line is only new: plugin, agent and
/// `cnictl` of a node need not be of one version, and who took a line for another one would open or close what policies do not.
const MAGIC: &str = "istio-cni policies 3";
/// The largest snapshot, in bytes: some hundred thousand addresses, and as many rules.
pub const MAX_SNAPSHOT: usize = 64 << 20;
/// The largest part of it that the plugin reads, in bytes.
pub const MAX_HEAD: usize = 16 << 20;

/// The first words of lines.
const NODE: &str = "node";
const NAMESPACE: &str = "namespace";
const POLICY: &str = "policy";
/// Ends the head. What is known of a kind, its resource version, follows.
const SEEN: &str = "seen";
const RULE: &str = "rule";
const SET: &str = "set";
const POD: &str = "pod";
/// Services are known: those that follow.
const SERVICES: &str = "services";
const SERVICE: &str = "service";
const SLICE: &str = "slice";
const END: &str = "end";

/// What is known of policies, their namespaces and their peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicySnapshot {
    /// Addresses of the own node, those of its bridges among them: kubelet's probes come from there.
    pub node: Vec<IpAddr>,
    /// Labels of the namespaces whose objects are known.
    pub namespaces: BTreeMap<Box<str>, LabelSet>,
    /// The policies, each once.
    pub policies: Vec<Arc<PolicyTerms>>,
    /// Resource versions of what it was made from, by kind.
    pub seen: BTreeMap<Box<str>, Box<str>>,
    /// The sets that rules look into on this node, with their members.
    pub sets: Vec<(PeerSet, Vec<PeerMember>)>,
    /// Pods: on disk those of this node, for people who ask without the agent.
    pub pods: Vec<PlainPod>,
    /// Services; nothing where the agent does not watch them.
    pub services: Option<SnapshotServices>,
}

/// What is read so far.
#[derive(Default)]
struct Reader {
    snapshot: PolicySnapshot,
    /// Rules of each policy, to it and from it.
    rules: Vec<[Vec<RuleTerms>; 2]>,
}

/// A file that is no snapshot, or not a whole one. Where it is counts from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Another version, or something else.
    #[error("it does not begin with {MAGIC:?}: it is of another version, or no snapshot of policies")]
    Version,
    /// A line cannot be read.
    #[error("line {0} is not one of a snapshot of policies")]
    Line(usize),
    /// It is cut short, or goes on after its end.
    #[error("it is not whole: its last line does not say that it has {0} lines")]
    Cut(usize),
    /// It has more than is read.
    #[error("it is larger than a snapshot of policies can be")]
    TooLarge,
    /// It cannot be read.
    #[error("it cannot be read")]
    Unreadable,
}

// === impl PolicySnapshot ===

impl PolicySnapshot {
    /// As a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = SnapshotWriter::new(MAGIC);
        out.line(NODE, |out| self.node.iter().for_each(|address| out.show(address)));
        for (name, labels) in &self.namespaces {
            out.line(NAMESPACE, |out| {
                out.word(name);
                head::write_labels(labels, out);
            });
        }
        for policy in &self.policies {
            out.line(POLICY, |out| head::write(policy, out));
        }
        out.line(SEEN, |out| {
            self.seen.iter().for_each(|(kind, version)| {
                out.word(kind);
                out.word(version);
            });
        });
        for (number, policy) in self.policies.iter().enumerate() {
            for direction in [TrafficDirection::Ingress, TrafficDirection::Egress] {
                for rule in &policy.direction(direction).rules {
                    out.line(RULE, |out| {
                        out.show(&number);
                        out.word(direction_word(direction));
                        terms::write_rule(rule, out);
                    });
                }
            }
        }
        for (set, members) in &self.sets {
            out.line(SET, |out| {
                terms::write_set(set, out);
                out.show(&members.len());
                for member in members {
                    out.show(&member.address);
                    member.port.iter().for_each(|(_, port)| out.show(port));
                }
            });
        }
        for pod in &self.pods {
            out.line(POD, |out| pods::write(pod, out));
        }
        if let Some(known) = &self.services {
            out.line(SERVICES, |_| {});
            known.services.iter().for_each(|one| out.line(SERVICE, |out| services::write_service(one, out)));
            known.slices.iter().for_each(|one| out.line(SLICE, |out| services::write_slice(one, out)));
        }
        out.finish(END)
    }

    /// Of what an index knows, without pods.
    #[must_use]
    pub fn of(
        index: &PolicyIndex,
        node: Vec<IpAddr>,
        namespaces: BTreeMap<Box<str>, LabelSet>,
        seen: BTreeMap<Box<str>, Box<str>>,
    ) -> Self {
        let sets = index.sets().map(|(set, members)| ((**set).clone(), members.collect())).collect();
        let policies = index.policies().cloned().collect();
        Self { node, namespaces, policies, seen, sets, pods: Vec::new(), services: None }
    }

    /// Reads such a file.
    ///
    /// # Errors
    /// It is not a whole snapshot of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        if bytes.len() > MAX_SNAPSHOT {
            return Err(SnapshotError::TooLarge);
        }
        let rest = bytes.strip_prefix(MAGIC.as_bytes()).and_then(|rest| rest.strip_prefix(b"\n"));
        let rest = rest.ok_or(SnapshotError::Version)?;
        let text = std::str::from_utf8(rest).map_err(|_| SnapshotError::Unreadable)?;
        let (mut reader, mut known) = (Reader::default(), 1);
        let mut lines = text.split_terminator('\n');
        for line in lines.by_ref() {
            let mut words = SnapshotWords::new(line);
            let kind = words.raw();
            if kind == Some(END) {
                let is_end = words.number() == Some(known) && words.is_over();
                // The last line is whole, too.
                let is_whole = is_end && text.ends_with('\n') && lines.next().is_none();
                return if is_whole { Ok(reader.finish()) } else { Err(SnapshotError::Cut(known)) };
            }
            known += 1;
            let read = kind.and_then(|kind| reader.read(kind, &mut words));
            read.filter(|()| words.is_over()).ok_or(SnapshotError::Line(known))?;
        }
        Err(SnapshotError::Cut(known))
    }
}

// === impl Reader ===

impl Reader {
    fn read(&mut self, kind: &str, words: &mut SnapshotWords<'_>) -> Option<()> {
        let snapshot = &mut self.snapshot;
        match kind {
            NODE => snapshot.node.extend(head::read_node(words)?),
            NAMESPACE => {
                let (name, labels) = head::read_namespace(words)?;
                snapshot.namespaces.insert(name, labels);
            }
            POLICY => {
                snapshot.policies.push(Arc::new(head::read(words)?));
                self.rules.push(Default::default());
            }
            SEEN => {
                while !words.is_over() {
                    snapshot.seen.insert(words.text()?, words.text()?);
                }
            }
            RULE => {
                let number: usize = words.number()?;
                let direction = match words.raw()? {
                    INGRESS => TrafficDirection::Ingress,
                    EGRESS => TrafficDirection::Egress,
                    _ => return None,
                };
                snapshot.policies.get(number).filter(|policy| policy.direction(direction).applies)?;
                let place = usize::from(direction == TrafficDirection::Egress);
                self.rules.get_mut(number)?[place].push(terms::read_rule(words)?);
            }
            SET => {
                let set = terms::read_set(words)?;
                let members = read_members(&set, words)?;
                snapshot.sets.push((set, members));
            }
            POD => snapshot.pods.push(pods::read(words)?),
            SERVICES => snapshot.services = Some(SnapshotServices::default()),
            SERVICE => snapshot.services.as_mut()?.services.push(services::read_service(words)?),
            SLICE => snapshot.services.as_mut()?.slices.push(services::read_slice(words)?),
            _ => return None,
        }
        Some(())
    }

    fn finish(mut self) -> PolicySnapshot {
        for (policy, [ingress, egress]) in self.snapshot.policies.iter_mut().zip(self.rules) {
            let policy = Arc::make_mut(policy);
            policy.ingress.rules = ingress.into();
            policy.egress.rules = egress.into();
        }
        self.snapshot
    }
}

const INGRESS: &str = "ingress";
const EGRESS: &str = "egress";

fn direction_word(direction: TrafficDirection) -> &'static str {
    match direction {
        TrafficDirection::Ingress => INGRESS,
        TrafficDirection::Egress => EGRESS,
    }
}

fn read_members(set: &PeerSet, words: &mut SnapshotWords<'_>) -> Option<Vec<PeerMember>> {
    let protocol: Option<PolicyProtocol> = match set {
        PeerSet::Pods(_) => None,
        PeerSet::Ports(_, _, protocol) | PeerSet::OwnPorts(_, protocol) => Some(*protocol),
    };
    words.list(|words| {
        let address = words.number()?;
        let port = match protocol {
            None => None,
            Some(protocol) => Some((protocol, words.number()?)),
        };
        Some(PeerMember { address, port })
    })
}
