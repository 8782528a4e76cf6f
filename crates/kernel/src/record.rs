//! What was applied to a namespace, as bytes: a plan in the form that its backend loads, which does not change with the program that plans.

use std::fmt::Write;

use netns::Inside;
use ruleset::{Backend, Family, Plan, Ruleset, Step};

use crate::apply::{describe, other};
use crate::{Difference, Error, Kernel, route};

/// A plan that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where the rules are.
    pub backend: Backend,
    /// Whose they are, see [`Ruleset::owner`].
    pub owner: String,
    /// The routing.
    routing: Vec<Step>,
    /// The rules, see [`crate::RuleStore::recorded`].
    rules: Vec<u8>,
}

impl Record {
    /// Lines of the head, an empty line, and the rules.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("backend {}\nowner {}\n", self.backend, self.owner);
        for step in &self.routing {
            // Writing to a String cannot fail.
            let _ = match step {
                Step::EnsureLoopbackAddress(address) => writeln!(head, "loopback {address}"),
                Step::EnsureRule { family, mark, mask, table, priority } => {
                    writeln!(head, "rule {} {mark} {mask} {table} {priority}", digit(*family))
                }
                Step::EnsureLocalRoute { family, table } => {
                    writeln!(head, "route {} {table}", digit(*family))
                }
                Step::Replace(_) => Ok(()),
            };
        }
        head.push('\n');
        [head.as_bytes(), &self.rules].concat()
    }

    /// Reads such bytes; absent: not such bytes, or those of another version.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(2).position(|two| two == b"\n\n")?;
        let (mut backend, mut owner, mut routing) = (None, None, Vec::new());
        for line in std::str::from_utf8(&bytes[..end]).ok()?.lines() {
            match line.split_once(' ')? {
                ("backend", "nftables") => backend = Some(Backend::Nftables),
                ("backend", "iptables") => backend = Some(Backend::Iptables),
                ("owner", name) => owner = Some(name.to_owned()),
                ("loopback", address) => routing.push(Step::EnsureLoopbackAddress(address.parse().ok()?)),
                ("rule", rest) => {
                    let [family, mark, mask, table, priority] = numbers(rest)?;
                    routing.push(Step::EnsureRule { family: of_digit(family)?, mark, mask, table, priority });
                }
                ("route", rest) => {
                    let [family, table] = numbers(rest)?;
                    routing.push(Step::EnsureLocalRoute { family: of_digit(family)?, table });
                }
                _ => return None,
            }
        }
        Some(Self { backend: backend?, owner: owner?, routing, rules: bytes[end + 2..].to_vec() })
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
        let ruleset = plan.ruleset()?;
        Some(Record {
            backend: plan.backend,
            owner: ruleset.owner.to_string(),
            routing: plan.steps.iter().filter(|step| !matches!(step, Step::Replace(_))).cloned().collect(),
            rules: self.store(plan.backend).recorded(ruleset),
        })
    }

    /// How the namespace differs from what was applied, rules of ours in the other backend included. `owner` has the name and the known
    /// chains of the record's owner. `None`: the record is of another version.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn observe_record(
        &self,
        inside: &Inside,
        record: &Record,
        owner: &Ruleset,
    ) -> Result<Option<Vec<Difference>>, Error> {
        let mut differences = Vec::new();
        for step in &record.routing {
            if route::missing(inside, step)? {
                differences.push(Difference::MissingRouting { step: describe(step) });
            }
        }
        let store = self.store(record.backend);
        let Some(rules) = store.observe_recorded(inside, owner, &record.rules)? else { return Ok(None) };
        differences.extend(rules);
        let other = other(record.backend);
        if self.store(other).exists(inside, owner)? {
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
