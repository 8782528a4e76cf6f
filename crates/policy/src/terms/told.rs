//! Terms as people read them.

use std::fmt;

use facts::Selector;
use facts::labels::{Operator, Requirement};
use facts::networkpolicy::{Block, Entries, Port};

use super::{NamespaceTerm, PeerTerm, PodTerm, RuleTerms};
use crate::tenancy::TENANT_LABEL;

impl RuleTerms {
    /// Whom it means, in words.
    pub fn peers_text(&self) -> String {
        entries(&self.peers, "any peer", ToString::to_string)
    }

    /// Which of the policy's own pods it is about, in words; nothing where it is about all.
    pub fn own_text(&self) -> Option<String> {
        matches!(self.own, Entries::Of(_)).then(|| entries(&self.own, "", ToString::to_string))
    }

    /// On which ports, in words.
    pub fn ports_text(&self) -> String {
        entries(&self.ports, "any port", port_text)
    }
}

fn entries<T>(entries: &Entries<T>, any: &str, text: impl Fn(&T) -> String) -> String {
    match entries {
        Entries::Any => any.to_owned(),
        Entries::Of(entries) if entries.is_empty() => "nothing: each entry is refused".to_owned(),
        Entries::Of(entries) => entries.iter().map(text).collect::<Vec<_>>().join(" or "),
    }
}

impl fmt::Display for PeerTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(term) => term.fmt(f),
            Self::Block(Block { net, except }) => {
                write!(f, "{net}")?;
                if except.is_empty() {
                    return Ok(());
                }
                let parts: Vec<String> = except.iter().map(ToString::to_string).collect();
                write!(f, " except {}", parts.join(", "))
            }
            Self::Outside(inside) if inside.is_empty() => f.write_str("addresses that are no pod's"),
            Self::Outside(inside) => {
                let parts: Vec<String> = inside.iter().map(ToString::to_string).collect();
                write!(f, "addresses that are no pod's, and not of {}", parts.join(", "))
            }
        }
    }
}

impl fmt::Display for PodTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.labels.is_everything() {
            f.write_str("pods")?;
        } else {
            write!(f, "pods {}", self.labels)?;
        }
        match &self.namespaces {
            NamespaceTerm::Named(name) => write!(f, " of namespace {name}"),
            NamespaceTerm::Any => f.write_str(" of all namespaces"),
            NamespaceTerm::Labelled(selector) if selector.is_everything() => {
                f.write_str(" of all namespaces")
            }
            NamespaceTerm::Labelled(selector) => of_tenants(selector, f),
        }
    }
}

/// Which tenant a namespace has is a label that people do not know.
fn of_tenants(selector: &Selector, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let is_tenant = |one: &&Requirement| *one.key == *TENANT_LABEL;
    match selector.requirements().iter().find(is_tenant).map(|one| &one.operator) {
        Some(Operator::In(tenants)) => write!(f, " of tenant {}", tenants.join(" or "))?,
        Some(_) => f.write_str(" without a tenant")?,
        None => return write!(f, " of namespaces {selector}"),
    }
    let others = selector.requirements().iter().filter(|one| !is_tenant(one)).cloned();
    let others = Selector::new(others);
    if others.is_everything() { Ok(()) } else { write!(f, " in namespaces {others}") }
}

/// `TCP 80`, `TCP 8000-8080`, `TCP http`, or `TCP` for all of its ports.
fn port_text(port: &Port) -> String {
    match port {
        Port::All(protocol) => protocol.name().to_owned(),
        Port::Range(protocol, (first, last)) if first == last => format!("{} {first}", protocol.name()),
        Port::Range(protocol, (first, last)) => format!("{} {first}-{last}", protocol.name()),
        Port::Named(protocol, name) => format!("{} {name}", protocol.name()),
    }
}
