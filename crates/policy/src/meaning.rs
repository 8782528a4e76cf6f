//! Names for the kernel by what they stand for.
//!
//! Members of a set survive a change of the rules by the set's name, so a name may never come to mean something else. Tenants write what goes in, so
//! the hash is one for which nobody finds another meaning of a given name.

use facts::labels::Operator;
use facts::networkpolicy::PolicyProtocol;
use sha2::{Digest, Sha256};

use crate::terms::{NamespaceTerm, PodTerm, PolicyName, Section};

/// What is to be named. Each part is written so that no two meanings have the same bytes.
pub(crate) struct Meaning(Sha256);

// === impl Meaning ===

impl Meaning {
    /// Of one kind of thing.
    pub(crate) fn of(kind: u8) -> Self {
        let mut started = Self(Sha256::new());
        started.number(kind);
        started
    }

    pub(crate) fn number(&mut self, number: u8) {
        self.0.update([number]);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    pub(crate) fn count(&mut self, count: usize) {
        // As wide on every machine: a name outlives the process that wrote it.
        self.0.update(u64::try_from(count).unwrap_or(u64::MAX).to_be_bytes());
    }

    pub(crate) fn protocol(&mut self, protocol: PolicyProtocol) {
        self.text(protocol.name());
    }

    pub(crate) fn policy(&mut self, name: &PolicyName) {
        self.number(match name.section {
            Section::Admin => 0,
            Section::Tenant => 1,
            Section::NetworkPolicy => 2,
            Section::Baseline => 3,
        });
        self.text(&name.namespace);
        self.text(&name.name);
    }

    /// No term means every pod.
    pub(crate) fn pods(&mut self, term: Option<&PodTerm>) {
        let Some(PodTerm { namespaces, labels }) = term else { return self.number(0) };
        match namespaces {
            NamespaceTerm::Named(name) => {
                self.number(1);
                self.text(name);
            }
            NamespaceTerm::Labelled(selector) => {
                self.number(2);
                self.selector(selector);
            }
            NamespaceTerm::Any => self.number(3),
        }
        self.selector(labels);
    }

    fn selector(&mut self, selector: &facts::Selector) {
        self.count(selector.requirements().len());
        for requirement in selector.requirements() {
            self.text(&requirement.key);
            let (operator, values): (u8, &[Box<str>]) = match &requirement.operator {
                Operator::In(values) => (0, values),
                Operator::NotIn(values) => (1, values),
                Operator::Exists => (2, &[]),
                Operator::DoesNotExist => (3, &[]),
            };
            self.number(operator);
            self.count(values.len());
            values.iter().for_each(|value| self.text(value));
        }
    }

    /// As a number for a name: as many bits as the names of sets have room for.
    pub(crate) fn hash(self) -> u64 {
        self.0.finalize().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}
