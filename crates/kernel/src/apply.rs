//! A whole plan in one namespace: its routing, its rules in the backend that it was made for, and none of ours in the other one.

use netns::{Inside, InsideHost};
use ruleset::{Backend, Family, Plan, Ruleset, Step};

use crate::{Change, Difference, Error, RuleStore, route};

/// Which backend the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// nf_tables where the kernel has all that is needed of it, else iptables.
    #[default]
    Auto,
    /// This one, or failure.
    Only(Backend),
}

/// Both backends.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    /// nf_tables.
    pub nftables: &'a dyn RuleStore,
    /// iptables.
    pub iptables: &'a dyn RuleStore,
}

/// What [`Kernel::apply`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The backend that holds the rules now.
    pub backend: Backend,
    /// What happened to them.
    pub rules: Change,
    /// Rules of ours were removed from the other backend.
    pub moved: bool,
    /// How many steps of the routing were not in place before.
    pub routing: usize,
    /// Why nf_tables was not taken although it comes first.
    pub fallback: Option<String>,
    /// What could not be looked at or removed in the other backend. The rules are in force all the same.
    pub warning: Option<String>,
}

/// A cleanup that could not remove everything; what could be removed is gone.
#[derive(Debug, thiserror::Error)]
#[error("not everything could be removed: {}", texts(.0))]
pub struct Incomplete(pub Vec<Error>);

impl Kernel<'_> {
    /// Makes the namespace what the plan says. `plan` is asked for the plan of the backend that is taken.
    ///
    /// Routing comes first, then the rules in one piece, so that from the first captured packet on everything is in place; rules of
    /// ours in the other backend go last, so that no packet slips through in between. What a failing call had changed is undone.
    ///
    /// # Errors
    /// The rules are not in force. Those from before are.
    pub fn apply(
        &self,
        inside: &Inside,
        choice: Choice,
        plan: impl Fn(Backend) -> Plan,
    ) -> Result<Applied, Error> {
        self.apply_and_keep(inside, choice, plan).map(|(applied, _)| applied)
    }

    /// As [`Self::apply`]; the plan that was applied comes with it, for its record.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_and_keep(
        &self,
        inside: &Inside,
        choice: Choice,
        plan: impl Fn(Backend) -> Plan,
    ) -> Result<(Applied, Plan), Error> {
        let first = plan(if let Choice::Only(backend) = choice { backend } else { Backend::Nftables });
        match (self.apply_plan(inside, &first), choice) {
            (Err(Error::Nft(nftables)), Choice::Auto) if nftables.is_unsupported() => {
                let second = plan(Backend::Iptables);
                match self.apply_plan(inside, &second) {
                    Ok(applied) => {
                        Ok((Applied { fallback: Some(crate::chain_text(&nftables)), ..applied }, second))
                    }
                    Err(iptables) => Err(Error::Neither { nftables, iptables: Box::new(iptables) }),
                }
            }
            (result, _) => Ok((result?, first)),
        }
    }

    /// The same for the node's own namespace and a plan that is meant for it.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_host(&self, inside: &InsideHost<'_>, plan: &Plan) -> Result<Applied, Error> {
        self.apply_plan(inside.inside(), plan)
    }

    /// As [`Self::cleanup`], for the node's own namespace.
    ///
    /// # Errors
    /// Something is left.
    pub fn cleanup_host(&self, inside: &InsideHost<'_>, plan: &Plan) -> Result<Change, Incomplete> {
        self.cleanup(inside.inside(), plan)
    }

    /// How the namespace differs from the plan, rules of ours in the other backend included; empty means not at all.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn observe(&self, inside: &Inside, plan: &Plan) -> Result<Vec<Difference>, Error> {
        let mut differences = Vec::new();
        for step in &plan.steps {
            match step {
                Step::Replace(ruleset) => {
                    differences.extend(self.store(plan.backend).observe(inside, ruleset)?);
                    let other = other(plan.backend);
                    if self.store(other).exists(inside, ruleset)? {
                        differences.push(Difference::OtherBackend { backend: other });
                    }
                }
                step if route::missing(inside, step)? => {
                    differences.push(Difference::MissingRouting { step: describe(step) });
                }
                _ => {}
            }
        }
        Ok(differences)
    }

    /// Whether the namespace has any rules of the plan's owner, complete or not, in either backend.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn exists(&self, inside: &Inside, plan: &Plan) -> Result<bool, Error> {
        let Some(ruleset) = plan.ruleset() else { return Ok(false) };
        Ok(self.nftables.exists(inside, ruleset)? || self.iptables.exists(inside, ruleset)?)
    }

    /// Removes everything that plans of this kind put into the namespace, from both backends.
    ///
    /// # Errors
    /// Something is left.
    pub fn cleanup(&self, inside: &Inside, plan: &Plan) -> Result<Change, Incomplete> {
        let mut errors = Vec::new();
        let mut changed = false;
        for step in plan.steps.iter().rev() {
            let results = match step {
                Step::Replace(ruleset) => [self.nftables, self.iptables]
                    .into_iter()
                    .map(|store| store.cleanup(inside, ruleset).map(|change| change != Change::None))
                    .collect(),
                step => vec![route::remove(inside, step).map_err(Error::from)],
            };
            for result in results {
                match result {
                    Ok(did) => changed |= did,
                    Err(error) => errors.push(error),
                }
            }
        }
        match (errors.is_empty(), changed) {
            (false, _) => Err(Incomplete(errors)),
            (true, true) => Ok(Change::Fresh),
            (true, false) => Ok(Change::None),
        }
    }

    fn apply_plan(&self, inside: &Inside, plan: &Plan) -> Result<Applied, Error> {
        let mut done = Undo { inside, steps: Vec::new() };
        let mut applied = Applied {
            backend: plan.backend,
            rules: Change::None,
            moved: false,
            routing: 0,
            fallback: None,
            warning: None,
        };
        for step in &plan.steps {
            match step {
                Step::Replace(ruleset) => {
                    let store = self.store(plan.backend);
                    applied.rules = store.setup(inside, ruleset).inspect_err(|_| {
                        // Rules that are in force, those of another call at the same time among them, need the routing.
                        if store.exists(inside, ruleset).unwrap_or(true) {
                            done.steps.clear();
                        }
                    })?;
                    match self.clear_other(inside, plan.backend, ruleset) {
                        Ok(moved) => applied.moved = moved,
                        Err(error) => applied.warning = Some(crate::chain_text(&error)),
                    }
                }
                step if route::ensure(inside, step)? => {
                    applied.routing += 1;
                    done.steps.push(step);
                }
                _ => {}
            }
        }
        done.commit();
        Ok(applied)
    }

    /// Removes rules of ours from the backend that does not hold them any more.
    fn clear_other(&self, inside: &Inside, backend: Backend, ruleset: &Ruleset) -> Result<bool, Error> {
        let other = self.store(other(backend));
        Ok(other.exists(inside, ruleset)? && other.cleanup(inside, ruleset)? != Change::None)
    }

    pub(crate) fn store(&self, backend: Backend) -> &dyn RuleStore {
        match backend {
            Backend::Nftables => self.nftables,
            Backend::Iptables => self.iptables,
        }
    }
}

/// Takes back the routing that a failed call added.
struct Undo<'a> {
    inside: &'a Inside,
    steps: Vec<&'a Step>,
}

impl Undo<'_> {
    fn commit(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for step in self.steps.iter().rev() {
            // Without rules the routing has no effect; the failure that led here is the one to report.
            let _ = route::take_back(self.inside, step);
        }
    }
}

pub(crate) fn other(backend: Backend) -> Backend {
    match backend {
        Backend::Nftables => Backend::Iptables,
        Backend::Iptables => Backend::Nftables,
    }
}

pub(crate) fn describe(step: &Step) -> String {
    let ip = |family: &Family| if *family == Family::V4 { "ip" } else { "ip -6" };
    match step {
        Step::EnsureLoopbackAddress(address) => format!("ip address {address}/128 dev lo"),
        Step::EnsureRule { family, mark, mask, table, priority } => {
            format!("{} rule priority {priority} fwmark {mark:#x}/{mask:#x} lookup {table}", ip(family))
        }
        Step::EnsureLocalRoute { family, table } => {
            format!("{} route local default dev lo table {table}", ip(family))
        }
        Step::Replace(ruleset) => format!("rules of {}", ruleset.owner),
    }
}

fn texts(errors: &[Error]) -> String {
    errors.iter().map(|error| crate::chain_text(error)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
