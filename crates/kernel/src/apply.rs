//! A whole plan in one namespace: its routing, its rules in the backend that it was made for, and none of ours in the other one.

use std::time::Duration;

use netns::{Inside, InsideHost};
use ruleset::{Backend, Plan, Routing, Ruleset};

use crate::{Change, Difference, Error, RuleStore, route, sets};

/// How often the removal of a set is tried, and the pause in between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

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
    /// How many parts of the routing were not in place before.
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

/// What an owner has could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// Rules.
    #[error(transparent)]
    Rules(#[from] Incomplete),
    /// Ipsets.
    #[error(transparent)]
    Sets(#[from] sets::Error),
}

impl Kernel<'_> {
    /// Makes the namespace what the plan says. `plan` is asked for the plan of the backend that is taken.
    ///
    /// Routing comes first, then all layers in one piece, so that from the first captured packet on everything is in place; rules of
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
                        Ok((Applied { fallback: Some(fault::chain(&nftables)), ..applied }, second))
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
        let mut differences = missing_routing(route::missing_of(inside, &plan.routing)?);
        differences.extend(self.store(plan.backend).observe(inside, &plan.layers)?);
        let other = other(plan.backend);
        if self.store(other).exists(inside, &plan.layers)? {
            differences.push(Difference::OtherBackend { backend: other });
        }
        Ok(differences)
    }

    /// Whether the namespace has any rules of the plan's owners, complete or not, in either backend.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn exists(&self, inside: &Inside, plan: &Plan) -> Result<bool, Error> {
        Ok(self.nftables.exists(inside, &plan.layers)? || self.iptables.exists(inside, &plan.layers)?)
    }

    /// Removes everything that plans of this kind put into the namespace, from both backends.
    ///
    /// # Errors
    /// Something is left.
    pub fn cleanup(&self, inside: &Inside, plan: &Plan) -> Result<Change, Incomplete> {
        let rules = [self.nftables, self.iptables]
            .map(|store| store.cleanup(inside, &plan.layers).map(|change| change != Change::None));
        let routing = plan.routing.iter().rev();
        let routing = routing.map(|step| route::remove(inside, step).map_err(Error::from));
        let (mut errors, mut changed) = (Vec::new(), false);
        for result in rules.into_iter().chain(routing) {
            match result {
                Ok(did) => changed |= did,
                Err(error) => errors.push(error),
            }
        }
        match (errors.is_empty(), changed) {
            (false, _) => Err(Incomplete(errors)),
            (true, true) => Ok(Change::Fresh),
            (true, false) => Ok(Change::None),
        }
    }

    /// Removes everything that an owner has in the namespace, whoever made it and by whatever plan: rules in both backends, and the ipsets to which they
    /// referred. `owner` has no tables.
    ///
    /// # Errors
    /// Something is left.
    pub fn leave(&self, inside: &Inside, owner: &Ruleset) -> Result<Change, LeaveError> {
        let change = self.cleanup(inside, &Plan::of_layer(Backend::Nftables, owner.clone()))?;
        // A rule that is gone may not have let go of a set yet.
        let tries = (1..TRIES).find_map(|_| {
            let done = sets::destroy_of(inside, owner).ok();
            if done.is_none() {
                std::thread::sleep(PAUSE);
            }
            done
        });
        let had_sets = tries.map_or_else(|| sets::destroy_of(inside, owner), Ok)?;
        Ok(if had_sets && change == Change::None { Change::Fresh } else { change })
    }

    fn apply_plan(&self, inside: &Inside, plan: &Plan) -> Result<Applied, Error> {
        let mut done = Undo { inside, steps: Vec::new() };
        for step in &plan.routing {
            if route::ensure(inside, step)? {
                done.steps.push(step);
            }
        }
        let store = self.store(plan.backend);
        let rules = store.setup(inside, &plan.layers).inspect_err(|_| {
            // Rules that are in force, those of another call at the same time among them, need the routing.
            if store.exists(inside, &plan.layers).unwrap_or(true) {
                done.steps.clear();
            }
        })?;
        let routing = done.steps.len();
        done.commit();
        let (moved, warning) = match self.clear_other(inside, plan) {
            Ok(moved) => (moved, None),
            Err(error) => (false, Some(fault::chain(&error))),
        };
        Ok(Applied { backend: plan.backend, rules, moved, routing, fallback: None, warning })
    }

    /// Removes rules of ours from the backend that does not hold them any more.
    fn clear_other(&self, inside: &Inside, plan: &Plan) -> Result<bool, Error> {
        let other = self.store(other(plan.backend));
        Ok(other.exists(inside, &plan.layers)? && other.cleanup(inside, &plan.layers)? != Change::None)
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
    steps: Vec<&'a Routing>,
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

/// Steps that are not there, as differences.
pub(crate) fn missing_routing(steps: Vec<&Routing>) -> Vec<Difference> {
    let missing = |step: &Routing| Difference::MissingRouting { step: step.to_string() };
    steps.into_iter().map(missing).collect()
}

fn texts(errors: &[Error]) -> String {
    errors.iter().map(|error| fault::chain(error)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
