//! What was applied to a namespace, as bytes: a plan in the form that its backend loads, which does not change with the program that plans.

use std::fmt::Write;

use netns::Inside;
use ruleset::{Backend, Family, Plan, Routing, Ruleset};

use crate::apply::{missing_routing, other};
use crate::{Difference, Error, Kernel, route};

/// A plan that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where the rules are.
    pub backend: Backend,
    /// Whose the layers are, in their order, see [`Ruleset::owner`].
    pub owners: Vec<String>,
    /// The routing.
    routing: Vec<Routing>,
    /// The rules, see [`crate::RuleStore::recorded`].
    rules: Vec<u8>,
}

impl Record {
    /// Lines of the head, an empty line, and the rules.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("backend {}\n", self.backend);
        // Writing to a String cannot fail, here and below.
        for owner in &self.owners {
            let _ = writeln!(head, "owner {owner}");
        }
        for step in &self.routing {
            let _ = match step {
                Routing::LoopbackAddress(address) => writeln!(head, "loopback {address}"),
                Routing::Rule { family, mark, mask, table, priority } => {
                    writeln!(head, "rule {} {mark} {mask} {table} {priority}", digit(*family))
                }
                Routing::LocalRoute { family, table } => {
                    writeln!(head, "route {} {table}", digit(*family))
                }
            };
        }
        head.push('\n');
        [head.as_bytes(), &self.rules].concat()
    }

    /// Reads such bytes; absent: not such bytes, or those of another version.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(2).position(|two| two == b"\n\n")?;
        let (mut backend, mut owners, mut routing) = (None, Vec::new(), Vec::new());
        for line in std::str::from_utf8(&bytes[..end]).ok()?.lines() {
            match line.split_once(' ')? {
                ("backend", "nftables") => backend = Some(Backend::Nftables),
                ("backend", "iptables") => backend = Some(Backend::Iptables),
                ("owner", name) => owners.push(name.to_owned()),
                ("loopback", address) => routing.push(Routing::LoopbackAddress(address.parse().ok()?)),
                ("rule", rest) => {
                    let [family, mark, mask, table, priority] = numbers(rest)?;
                    routing.push(Routing::Rule { family: of_digit(family)?, mark, mask, table, priority });
                }
                ("route", rest) => {
                    let [family, table] = numbers(rest)?;
                    routing.push(Routing::LocalRoute { family: of_digit(family)?, table });
                }
                _ => return None,
            }
        }
        let rules = bytes[end + 2..].to_vec();
        (!owners.is_empty()).then_some(Self { backend: backend?, owners, routing, rules })
    }

    /// The rules as the backend has them.
    #[must_use]
    pub fn rules(&self) -> &[u8] {
        &self.rules
    }
}

impl Kernel<'_> {
    /// The record of a plan; absent for a plan without rules.
    #[must_use]
    pub fn record(&self, plan: &Plan) -> Option<Record> {
        (!plan.layers.is_empty()).then(|| Record {
            backend: plan.backend,
            owners: plan.layers.iter().map(|layer| layer.owner.to_string()).collect(),
            routing: plan.routing.clone(),
            rules: self.store(plan.backend).recorded(&plan.layers),
        })
    }

    /// How the namespace differs from what was applied, rules of ours in the other backend included. `owners` have the names and the known
    /// chains of the record's owners, in its order. `None`: the record is of another version.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn observe_record(
        &self,
        inside: &Inside,
        record: &Record,
        owners: &[Ruleset],
    ) -> Result<Option<Vec<Difference>>, Error> {
        let mut differences = missing_routing(route::missing_of(inside, &record.routing)?);
        let store = self.store(record.backend);
        let Some(rules) = store.observe_recorded(inside, owners, &record.rules)? else { return Ok(None) };
        differences.extend(rules);
        let other = other(record.backend);
        if self.store(other).exists(inside, owners)? {
            differences.push(Difference::OtherBackend { backend: other });
        }
        Ok(Some(differences))
    }
}

fn digit(family: Family) -> u32 {
    if family == Family::V4 { 4 } else { 6 }
}

fn of_digit(digit: u32) -> Option<Family> {
    [Family::V4, Family::V6].into_iter().find(|family| self::digit(*family) == digit)
}

fn numbers<const N: usize>(text: &str) -> Option<[u32; N]> {
    let numbers: Option<Vec<u32>> = text.split(' ').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}
