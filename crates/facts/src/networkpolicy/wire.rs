//! A policy as it is written, and what it means.

use serde::Deserialize;

use super::{
    Block, Entries, EntryRefusal, MAX_ENTRIES, MODE, NetworkPolicy, PolicyDirection, PolicyPeer, PolicyRule,
    Port, Refused, port::NumberOrName,
};
use crate::labels::{Selector, WireSelector};
use crate::mapping::Mapping;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Policy {
    metadata: Mapping<Metadata>,
    spec: Option<Mapping<Spec>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    namespace: Option<Box<str>>,
    name: Option<Box<str>>,
    generation: Option<u64>,
    annotations: Mapping<Annotations>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    // The name of `MODE`.
    #[serde(rename = "policy.cni.istio.io/mode")]
    mode: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    pod_selector: Option<WireSelector>,
    policy_types: Option<Vec<String>>,
    ingress: Option<Vec<Mapping<IngressRule>>>,
    egress: Option<Vec<Mapping<EgressRule>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IngressRule {
    from: Option<Vec<Mapping<WirePeer>>>,
    ports: Option<Vec<Mapping<WirePort>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EgressRule {
    to: Option<Vec<Mapping<WirePeer>>>,
    ports: Option<Vec<Mapping<WirePort>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WirePeer {
    pod_selector: Option<WireSelector>,
    namespace_selector: Option<WireSelector>,
    ip_block: Option<Mapping<WireBlock>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireBlock {
    cidr: Option<String>,
    except: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WirePort {
    protocol: Option<String>,
    port: Option<NumberOrName>,
    end_port: Option<i64>,
}

/// What is read so far.
#[derive(Default)]
struct Reader {
    entries: usize,
    refused: Refused,
}

// === impl Policy ===

impl Policy {
    pub(super) fn read(self) -> NetworkPolicy {
        let Metadata { namespace, name, generation, annotations } = self.metadata.0;
        let Mapping(spec) = self.spec.unwrap_or_default();
        let mut reader = Reader::default();
        let (subjects, whole_subjects) = reader.subjects(spec.pod_selector.unwrap_or_default());
        let types = reader.types(spec.policy_types.unwrap_or_default(), spec.egress.as_deref());
        let ingress = spec.ingress.into_iter().flatten().map(|rule| (rule.0.from, rule.0.ports));
        let egress = spec.egress.into_iter().flatten().map(|rule| (rule.0.to, rule.0.ports));
        let allows = |says: bool| says && whole_subjects;
        let rules = [
            reader.rules(["ingress", "from"], allows(types.ingress), ingress),
            reader.rules(["egress", "to"], allows(types.egress), egress),
        ];
        let closed = types.refused || !whole_subjects;
        let [ingress, egress] = rules;
        NetworkPolicy {
            namespace: namespace
                .filter(|namespace| !namespace.is_empty())
                .unwrap_or_else(|| "default".into()),
            name: name.unwrap_or_default(),
            generation: generation.unwrap_or_default(),
            is_tried_out: annotations.0.mode.is_some_and(|mode| mode == MODE.1),
            subjects,
            ingress: PolicyDirection { isolates: types.ingress || closed, rules: ingress },
            egress: PolicyDirection { isolates: types.egress || closed, rules: egress },
            refused: reader.refused,
        }
    }
}

/// What `policyTypes` says.
#[derive(Default)]
struct Types {
    ingress: bool,
    egress: bool,
    refused: bool,
}

/// Peers and ports of a rule, as they are written.
type Written = (Option<Vec<Mapping<WirePeer>>>, Option<Vec<Mapping<WirePort>>>);

// === impl Reader ===

impl Reader {
    /// What the policy's own selector says, and whether the API server would take all of it.
    fn subjects(&mut self, selector: WireSelector) -> (Selector, bool) {
        if self.is_full(selector.size()) {
            self.refused.add(|| "spec.podSelector".into(), EntryRefusal::TooMany);
            return (Selector::default(), false);
        }
        let (subjects, refused) = selector.read();
        let whole = refused.is_empty();
        for error in refused {
            self.refused.add(|| "spec.podSelector".into(), EntryRefusal::Subjects(error));
        }
        (subjects, whole)
    }

    /// Missing or empty types mean ingress, and egress if there is a rule for it.
    fn types(&mut self, types: Vec<String>, egress: Option<&[Mapping<EgressRule>]>) -> Types {
        if types.is_empty() {
            let egress = egress.is_some_and(|rules| !rules.is_empty());
            return Types { ingress: true, egress, refused: false };
        }
        let mut found = Types::default();
        for (number, name) in types.into_iter().enumerate() {
            match name.as_str() {
                "Ingress" => found.ingress = true,
                "Egress" => found.egress = true,
                _ => {
                    found.refused = true;
                    self.refused.add(|| format!("spec.policyTypes[{number}]"), EntryRefusal::Type);
                }
            }
        }
        found
    }

    /// The rules of a direction, none where they have no effect. `words` are the field of the rules and that of their peers.
    fn rules(
        &mut self,
        words: [&str; 2],
        have_effect: bool,
        written: impl Iterator<Item = Written>,
    ) -> Box<[PolicyRule]> {
        if !have_effect {
            return Box::default();
        }
        let [rules, peers_of] = words;
        let mut read = Vec::new();
        for (number, (peers, ports)) in written.enumerate() {
            if self.is_full(1) {
                self.refused.add(|| format!("spec.{rules}[{number}]"), EntryRefusal::TooMany);
                break;
            }
            let place = |list: &str| format!("spec.{rules}[{number}].{list}");
            let peers = self.list(|| place(peers_of), peers, WirePeer::size, WirePeer::read);
            let ports = self.list(|| place("ports"), ports, |_| 1, WirePort::read);
            read.push(PolicyRule { peers, ports });
        }
        read.into()
    }

    /// Peers or ports of a rule.
    fn list<W, T>(
        &mut self,
        place: impl Fn() -> String,
        written: Option<Vec<Mapping<W>>>,
        size: impl Fn(&W) -> usize,
        read: impl Fn(W) -> Result<T, EntryRefusal>,
    ) -> Entries<T> {
        let written = written.unwrap_or_default();
        if written.is_empty() {
            return Entries::Any;
        }
        let mut entries = Vec::new();
        for (number, Mapping(one)) in written.into_iter().enumerate() {
            let at = || format!("{}[{number}]", place());
            if self.is_full(size(&one)) {
                self.refused.add(at, EntryRefusal::TooMany);
                break;
            }
            match read(one) {
                Ok(entry) => entries.push(entry),
                Err(refusal) => self.refused.add(at, refusal),
            }
        }
        Entries::Of(entries.into())
    }

    /// Counts entries; whether they are too many.
    fn is_full(&mut self, more: usize) -> bool {
        self.entries = self.entries.saturating_add(more);
        self.entries > MAX_ENTRIES
    }
}

// === impl WirePeer ===

impl WirePeer {
    fn size(&self) -> usize {
        let selectors = [&self.pod_selector, &self.namespace_selector].into_iter().flatten();
        let except = self.ip_block.as_ref().and_then(|block| block.0.except.as_ref()).map_or(0, Vec::len);
        1 + except + selectors.map(WireSelector::size).sum::<usize>()
    }

    fn read(self) -> Result<PolicyPeer, EntryRefusal> {
        let whole = |selector: WireSelector| selector.read_whole().map_err(EntryRefusal::Selector);
        match (self.pod_selector, self.namespace_selector, self.ip_block) {
            (None, None, None) => Err(EntryRefusal::Empty),
            (None, None, Some(Mapping(WireBlock { cidr, except }))) => {
                let block = Block::parse(&cidr.unwrap_or_default(), &except.unwrap_or_default());
                Ok(PolicyPeer::Block(block.map_err(EntryRefusal::Block)?))
            }
            (_, _, Some(_)) => Err(EntryRefusal::BlockAndSelector),
            (Some(pods), None, None) => Ok(PolicyPeer::Pods(whole(pods)?)),
            (pods, Some(namespaces), None) => {
                let pods = whole(pods.unwrap_or_default())?;
                Ok(PolicyPeer::PodsIn { namespaces: whole(namespaces)?, pods })
            }
        }
    }
}

impl WirePort {
    fn read(self) -> Result<Port, EntryRefusal> {
        Port::parse(self.protocol.as_deref(), self.port, self.end_port).map_err(EntryRefusal::Port)
    }
}
