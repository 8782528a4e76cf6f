//! Policies in the node's own network namespace, in the backend that programs the node.
//!
//! What is there when the agent starts stays until all is known, and then what differs is written. Afterwards an event writes what it changes.
//! Whoever else commits rules to nf_tables is heard, and our rules are looked at then. What an agent left in the other backend goes when all is in this one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use enforcement::{PointCharge, PointError, PointLook, PolicyConfig, PolicyPoint, Waker};
use kernel::nft::Thoroughness;
use kernel::{Change, PartedError, PartedRules};
use policy::compile::{
    DenialAnswer, EgressToOwnNode, EnforcementSettings, Established, NodeRules, iptables_answers,
    no_iptables_answers,
};
use policy::guard::no_rules;
use policy::index::{LocalName, PolicyEffect, PolicyIndex};
use ruleset::{Backend, Contents, TableKind};
use telemetry::Scope;
use tokio::sync::Notify;

use crate::ambient::{AmbientConfig, open_host};

/// What the agent's node has of its pods' policies.
pub(crate) struct NodePoint {
    config: AmbientConfig,
    settings: EnforcementSettings,
    disturbed: Arc<Notify>,
    log: Scope,
    rules: NodeRules,
    /// Which one programs the node, once that was asked.
    backend: Option<Backend>,
    /// Opened when it is needed.
    table: Option<WatchedTable>,
    /// What answers in iptables; opened when it is needed.
    answers: Option<PartedRules>,
    /// Whether the other backend was looked at.
    is_alone: bool,
    /// Whether the kernel has the rules.
    loaded: bool,
    /// Whether there was a pod to judge since it goes on with what is known of an earlier agent.
    has_had_pods: bool,
    /// What the rules lack, as it was told.
    told: BTreeSet<String>,
}

/// The table, and a thread that tells of what is committed.
struct WatchedTable {
    table: PartedRules,
    _waker: Option<Waker>,
}

/// The settings of policies as the rules of a node have them.
pub(crate) fn node_settings(config: &PolicyConfig) -> EnforcementSettings {
    EnforcementSettings {
        established: if config.cuts { Established::Cut } else { Established::Keep },
        egress_to_own_node: match config.judges_own_node {
            true => EgressToOwnNode::Judge,
            false => EgressToOwnNode::Allow,
        },
        answer: match (config.rejects, config.enforces_tenants) {
            (true, _) => DenialAnswer::Always,
            (false, true) => DenialAnswer::OfTenants,
            (false, false) => DenialAnswer::Never,
        },
        ..EnforcementSettings::default()
    }
}

/// Removes what an agent left that enforced policies, in both backends. Nothing there is success.
///
/// # Errors
/// It is there still.
pub(crate) fn remove(config: &AmbientConfig) -> Result<Change, PointError> {
    let removed = [Backend::Nftables, Backend::Iptables].map(|backend| remove_from(config, backend));
    removed.into_iter().try_fold(Change::None, |change, removed| match removed? {
        Change::None => Ok(change),
        other => Ok(other),
    })
}

fn remove_from(config: &AmbientConfig, backend: Backend) -> Result<Change, PointError> {
    let removed = remove_parts(open(config, backend)?)?;
    if backend == Backend::Iptables {
        return Ok(match remove_parts(open_answers(config)?)? {
            Change::None => removed,
            other => other,
        });
    }
    Ok(removed)
}

fn remove_parts(opened: Result<PartedRules, PartedError>) -> Result<Change, PointError> {
    match opened.and_then(|mut table| table.remove()) {
        Ok(change) => Ok(change),
        // A kernel without the backend has nothing of ours in it.
        Err(error) if error.is_unsupported() => Ok(Change::None),
        Err(error) => Err(PointError::new(error)),
    }
}

fn open(config: &AmbientConfig, backend: Backend) -> Result<Result<PartedRules, PartedError>, PointError> {
    let host = open_host(config).map_err(PointError::new)?;
    Ok(PartedRules::open(host, backend, config.iptables(), no_rules(), TableKind::Mangle))
}

/// What answers in iptables, which stands in a table of its own. Nothing of policies depends on it.
fn open_answers(config: &AmbientConfig) -> Result<Result<PartedRules, PartedError>, PointError> {
    let host = open_host(config).map_err(PointError::new)?;
    let (owner, kind) = (no_iptables_answers(), TableKind::Filter);
    Ok(PartedRules::open(host, Backend::Iptables, config.iptables(), owner, kind))
}

// === impl NodePoint ===

impl NodePoint {
    /// Nothing is looked at or made yet. `disturbed` is told when somebody commits rules.
    pub(crate) fn new(
        config: AmbientConfig,
        settings: EnforcementSettings,
        disturbed: Arc<Notify>,
        log: Scope,
    ) -> Self {
        let rules = NodeRules::new(settings);
        let told = BTreeSet::new();
        let (backend, table, answers) = (None, None, None);
        let (is_alone, loaded, has_had_pods) = (false, false, false);
        Self {
            config,
            settings,
            disturbed,
            log,
            rules,
            backend,
            table,
            answers,
            is_alone,
            loaded,
            has_had_pods,
            told,
        }
    }

    fn backend(&mut self) -> Result<Backend, PointError> {
        if let Some(backend) = self.backend {
            return Ok(backend);
        }
        let host = open_host(&self.config).map_err(PointError::new)?;
        let chosen = host.enter(|inside| self.config.backend(inside, &self.log)).map_err(PointError::new)?;
        Ok(*self.backend.insert(chosen.map_err(PointError::new)?))
    }

    fn table(&mut self) -> Result<&mut PartedRules, PointError> {
        let backend = self.backend()?;
        let opened = match self.table.take() {
            Some(opened) => opened,
            None => WatchedTable::open(&self.config, backend, self.disturbed.clone())?,
        };
        Ok(&mut self.table.insert(opened).table)
    }

    /// Makes all of it what it should be.
    fn ensure(&mut self, index: &PolicyIndex, thoroughness: Thoroughness) -> Result<Change, PointError> {
        let (rules, contents) = (self.rules.rules(index), self.rules.members(index));
        self.loaded = false;
        let ensured = self.table()?.ensure(&rules, &contents, thoroughness);
        self.warn();
        let change = ensured.map_err(PointError::new)?;
        self.loaded = true;
        let answers = self.ensure_answers(thoroughness)?;
        self.leave_other_backend()?;
        Ok(if change == Change::None { answers } else { change })
    }

    /// What iptables needs to answer, beside the rules that say what is answered.
    fn ensure_answers(&mut self, thoroughness: Thoroughness) -> Result<Change, PointError> {
        if self.backend()? != Backend::Iptables {
            return Ok(Change::None);
        }
        let is_first = self.answers.is_none();
        let mut opened = match self.answers.take() {
            Some(opened) => opened,
            None => open_answers(&self.config)?.map_err(PointError::new)?,
        };
        let ensured = match self.settings.answer {
            DenialAnswer::Never if is_first => opened.remove(),
            DenialAnswer::Never => Ok(Change::None),
            _ => opened.ensure(&iptables_answers(), &Contents::default(), thoroughness),
        };
        self.answers = Some(opened);
        ensured.map_err(PointError::new)
    }

    /// Whether it is known without a comparison that nothing is other than it should be.
    fn is_undisturbed(&mut self) -> Result<bool, PointError> {
        let answers = self.answers.as_ref().filter(|_| self.settings.answer != DenialAnswer::Never);
        let answers = answers.map_or(Ok(true), PartedRules::is_undisturbed).map_err(PointError::new)?;
        Ok(answers && self.table()?.is_undisturbed().map_err(PointError::new)?)
    }

    /// Removes once what an agent left in the backend that does not program the node any more.
    fn leave_other_backend(&mut self) -> Result<(), PointError> {
        if !self.is_alone {
            let other = match self.backend()? {
                Backend::Nftables => Backend::Iptables,
                Backend::Iptables => Backend::Nftables,
            };
            remove_from(&self.config, other)?;
            self.is_alone = true;
        }
        Ok(())
    }

    /// Logs what the programs said.
    fn warn(&self) {
        let warnings = self.table.iter().flat_map(|opened| opened.table.take_warnings());
        warnings.for_each(|warning| self.log.warn(&warning, &[]));
    }

    /// Tells what the rules lack, each once for as long as it is so.
    fn tell(&mut self) {
        let mut lacking = BTreeSet::new();
        for left_out in self.rules.left_out() {
            let error = fault::chain(left_out);
            if !self.told.contains(&error) {
                self.log.warn("a rule of a policy is not enforced as it is written", &[("error", &error)]);
            }
            lacking.insert(error);
        }
        for class in self.rules.refused() {
            let policies = class.policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let refused = format!("{} {policies}", class.direction);
            if !self.told.contains(&refused) {
                let text = "the kernel has rules of the same name for other policies, so that all is denied to pods of these; rename one";
                self.log.error(text, &[("policies", &policies), ("direction", &class.direction)]);
            }
            lacking.insert(refused);
        }
        self.told = lacking;
    }
}

impl PolicyPoint for NodePoint {
    fn adopt(
        &mut self,
        index: &PolicyIndex,
        pods: &dyn Fn(&LocalName) -> PointCharge,
    ) -> Result<(), PointError> {
        self.settings.backend = self.backend()?;
        self.rules = NodeRules::of(index, self.settings, &|pod| pods(pod) == PointCharge::Its);
        if !self.rules.has_pods() {
            self.loaded = false;
            self.table()?.remove().map_err(PointError::new)?;
            if self.backend()? == Backend::Iptables {
                remove_parts(open_answers(&self.config)?)?;
            }
            return self.leave_other_backend();
        }
        self.ensure(index, Thoroughness::Everything)?;
        self.tell();
        Ok(())
    }

    fn resume(
        &mut self,
        index: &PolicyIndex,
        pods: &dyn Fn(&LocalName) -> PointCharge,
        addresses: &BTreeSet<IpAddr>,
        look: PointLook,
    ) -> Result<bool, PointError> {
        self.settings.backend = self.backend()?;
        self.rules = NodeRules::of(index, self.settings, &|pod| pods(pod) == PointCharge::Its);
        self.loaded = false;
        let (rules, contents) = (self.rules.rules(index), self.rules.members(index));
        self.has_had_pods |= self.rules.has_pods();
        let is_needed = self.has_had_pods;
        let table = self.table()?;
        // All that was committed until now is seen below.
        table.heard().map_err(PointError::new)?;
        if !is_needed || look == PointLook::Disturbed && table.is_undisturbed().map_err(PointError::new)? {
            return Ok(false);
        }
        let thoroughness = match look {
            PointLook::Everything => Thoroughness::Everything,
            PointLook::Disturbed => Thoroughness::Rules,
        };
        let supplemented = table.supplement(&rules, &contents, addresses, thoroughness);
        self.warn();
        let has_changed = supplemented.map_err(PointError::new)? != Change::None;
        let answers = if has_changed || look == PointLook::Everything {
            self.ensure_answers(Thoroughness::Everything)?
        } else {
            Change::None
        };
        Ok(has_changed || answers != Change::None)
    }

    fn apply(
        &mut self,
        effects: &[PolicyEffect],
        index: &PolicyIndex,
        _: &dyn Fn(&LocalName) -> PointCharge,
    ) -> Result<(), PointError> {
        let deltas = self.rules.apply(effects, index);
        if !self.loaded {
            return match self.rules.has_pods() {
                true => self.ensure(index, Thoroughness::Everything).map(drop),
                false => Ok(()),
            };
        }
        for delta in &deltas {
            self.table()?.change(delta).map_err(PointError::new)?;
        }
        let is_of_rules = |effect: &PolicyEffect| {
            matches!(effect, PolicyEffect::ClassChanges(_) | PolicyEffect::PodChanges { .. })
        };
        if effects.iter().any(is_of_rules) {
            self.tell();
        }
        Ok(())
    }

    fn verify(&mut self, index: &PolicyIndex, look: PointLook) -> Result<bool, PointError> {
        if !self.loaded {
            return Ok(false);
        }
        let heard = match self.table()?.heard() {
            Ok(heard) => heard,
            Err(error) => {
                self.table = None;
                return Err(PointError::new(error));
            }
        };
        let others = heard.lost || heard.commits.iter().any(|commit| !commit.is_own());
        let others = others && !self.is_undisturbed()?;
        let thoroughness = match look {
            PointLook::Everything => Thoroughness::Everything,
            PointLook::Disturbed if others => Thoroughness::Rules,
            PointLook::Disturbed => return Ok(false),
        };
        Ok(self.ensure(index, thoroughness)? != Change::None)
    }
}

// === impl WatchedTable ===

impl WatchedTable {
    fn open(config: &AmbientConfig, backend: Backend, disturbed: Arc<Notify>) -> Result<Self, PointError> {
        let table = open(config, backend)?.map_err(PointError::new)?;
        // Without nf_tables nobody commits to it.
        let waker = match table.descriptor() {
            Some(descriptor) => {
                Some(Waker::start("policy-watch", &[descriptor], disturbed).map_err(PointError::new)?)
            }
            None => None,
        };
        Ok(Self { table, _waker: waker })
    }
}
