//! Terms as words.

use facts::Selector;
use facts::labels::{Operator, Requirement};
use facts::networkpolicy::{Block, Entries, NumberOrName, PolicyProtocol, Port};

use super::words::{SnapshotWords, SnapshotWriter};
use crate::index::PeerSet;
use crate::terms::{NamespaceTerm, PeerTerm, PodTerm, RuleAction, RuleTerms};

const ANY: &str = "any";

pub(super) fn write_pods(term: &PodTerm, out: &mut SnapshotWriter) {
    match &term.namespaces {
        NamespaceTerm::Named(name) => {
            out.word("named");
            out.word(name);
        }
        NamespaceTerm::Labelled(selector) => {
            out.word("labelled");
            write_selector(selector, out);
        }
        NamespaceTerm::Any => out.word(ANY),
    }
    write_selector(&term.labels, out);
}

pub(super) fn read_pods(words: &mut SnapshotWords<'_>) -> Option<PodTerm> {
    let namespaces = match words.raw()? {
        "named" => NamespaceTerm::Named(words.text()?),
        "labelled" => NamespaceTerm::Labelled(read_selector(words)?),
        ANY => NamespaceTerm::Any,
        _ => return None,
    };
    Some(PodTerm { namespaces, labels: read_selector(words)? })
}

fn write_selector(selector: &Selector, out: &mut SnapshotWriter) {
    out.list(selector.requirements(), |requirement, out| {
        out.word(&requirement.key);
        let (word, values) = match &requirement.operator {
            Operator::In(values) => ("in", Some(values)),
            Operator::NotIn(values) => ("notin", Some(values)),
            Operator::Exists => ("exists", None),
            Operator::DoesNotExist => ("absent", None),
        };
        out.word(word);
        if let Some(values) = values {
            out.list(values, |value, out| out.word(value));
        }
    });
}

fn read_selector(words: &mut SnapshotWords<'_>) -> Option<Selector> {
    let values = |words: &mut SnapshotWords<'_>| {
        let mut values = words.list(SnapshotWords::text)?;
        // As a selector has them.
        values.sort_unstable();
        values.dedup();
        Some(values.into_boxed_slice())
    };
    let requirements = words.list(|words| {
        let key = words.text()?;
        let operator = match words.raw()? {
            "in" => Operator::In(values(words)?),
            "notin" => Operator::NotIn(values(words)?),
            "exists" => Operator::Exists,
            "absent" => Operator::DoesNotExist,
            _ => return None,
        };
        Some(Requirement { key, operator })
    })?;
    Some(Selector::new(requirements))
}

pub(super) fn write_rule(rule: &RuleTerms, out: &mut SnapshotWriter) {
    out.word(match rule.action {
        RuleAction::Accept => "accept",
        RuleAction::Deny => "deny",
        RuleAction::Reject => "reject",
        RuleAction::Audit => "audit",
        RuleAction::Next => "next",
    });
    out.word(&rule.name);
    write_entries(&rule.own, out, write_peer);
    write_entries(&rule.peers, out, write_peer);
    write_entries(&rule.ports, out, |port, out| match port {
        Port::All(protocol) => {
            out.word("all");
            out.word(protocol.name());
        }
        Port::Range(protocol, (first, last)) => {
            out.word("range");
            out.word(protocol.name());
            out.show(first);
            out.show(last);
        }
        Port::Named(protocol, name) => {
            out.word("name");
            out.word(protocol.name());
            out.word(name);
        }
    });
}

pub(super) fn read_rule(words: &mut SnapshotWords<'_>) -> Option<RuleTerms> {
    let action = match words.raw()? {
        "accept" => RuleAction::Accept,
        "deny" => RuleAction::Deny,
        "reject" => RuleAction::Reject,
        "audit" => RuleAction::Audit,
        "next" => RuleAction::Next,
        _ => return None,
    };
    let name = words.text()?;
    let (own, peers) = (read_entries(words, read_peer)?, read_entries(words, read_peer)?);
    let ports = read_entries(words, |words| {
        let kind = words.raw()?;
        let protocol = words.raw()?;
        let (port, end) = match kind {
            "all" => (None, None),
            "range" => (Some(NumberOrName::Number(words.number()?)), Some(words.number()?)),
            "name" => (Some(NumberOrName::Name(words.text()?)), None),
            _ => return None,
        };
        Port::parse(Some(protocol), port, end).ok()
    })?;
    Some(RuleTerms { name, own, peers, ports, action })
}

fn write_peer(peer: &PeerTerm, out: &mut SnapshotWriter) {
    match peer {
        PeerTerm::Pods(term) => {
            out.word("pods");
            write_pods(term, out);
        }
        PeerTerm::Block(block) => {
            out.word("block");
            out.show(&block.net);
            out.list(&block.except, |part, out| out.show(part));
        }
        PeerTerm::Outside(inside) => {
            out.word("outside");
            out.list(inside, |net, out| out.show(net));
        }
    }
}

fn read_peer(words: &mut SnapshotWords<'_>) -> Option<PeerTerm> {
    match words.raw()? {
        "pods" => read_pods(words).map(PeerTerm::Pods),
        "block" => {
            let net = words.raw()?;
            let except = words.list(|words| words.raw().map(str::to_owned))?;
            Block::parse(net, &except).ok().map(PeerTerm::Block)
        }
        "outside" => {
            let inside = words.list(SnapshotWords::number)?;
            Some(PeerTerm::Outside(inside.into()))
        }
        _ => None,
    }
}

pub(super) fn write_set(set: &PeerSet, out: &mut SnapshotWriter) {
    match set {
        PeerSet::Pods(term) => {
            out.word("pods");
            write_pods(term, out);
        }
        PeerSet::Ports(term, name, protocol) => {
            out.word("ports");
            out.word(name);
            out.word(protocol.name());
            match term {
                None => out.word(ANY),
                Some(term) => write_pods(term, out),
            }
        }
        PeerSet::OwnPorts(name, protocol) => {
            out.word("own");
            out.word(name);
            out.word(protocol.name());
        }
    }
}

pub(super) fn read_set(words: &mut SnapshotWords<'_>) -> Option<PeerSet> {
    let kind = words.raw()?;
    if kind == "pods" {
        return read_pods(words).map(PeerSet::Pods);
    }
    let name = words.text()?;
    let protocol = PolicyProtocol::parse(Some(words.raw()?)).ok()?;
    match kind {
        "ports" => {
            let term = if words.takes(ANY) { None } else { Some(read_pods(words)?) };
            Some(PeerSet::Ports(term, name, protocol))
        }
        "own" => Some(PeerSet::OwnPorts(name, protocol)),
        _ => None,
    }
}

fn write_entries<T>(
    entries: &Entries<T>,
    out: &mut SnapshotWriter,
    write: impl FnMut(&T, &mut SnapshotWriter),
) {
    match entries {
        Entries::Any => out.word(ANY),
        Entries::Of(entries) => out.list(entries, write),
    }
}

fn read_entries<T>(
    words: &mut SnapshotWords<'_>,
    read: impl FnMut(&mut SnapshotWords<'_>) -> Option<T>,
) -> Option<Entries<T>> {
    if words.takes(ANY) {
        return Some(Entries::Any);
    }
    words.list(read).map(|entries| Entries::Of(entries.into()))
}
