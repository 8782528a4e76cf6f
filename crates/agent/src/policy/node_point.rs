//! Policies in the node's own network namespace, in a table of nf_tables.
//!
//! What is there when the agent starts stays until all is known, and then what differs is written. Afterwards an event writes what it changes.
//! Whoever else commits rules is heard, and the table is looked at then.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use enforcement::{PointError, PointLook, PolicyConfig, PolicyPoint};
use kernel::Change;
use kernel::nft::{PartedTable, Thoroughness};
use netns::Host;
use policy::compile::{EgressToOwnNode, EnforcementSettings, Established, NodeRules, POLICY_OWNER};
use policy::index::{LocalName, PolicyEffect, PolicyIndex};
use ruleset::TableKind;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use telemetry::Scope;
use tokio::sync::Notify;

use crate::ambient::{AmbientConfig, open_host};

/// How often the thread that waits for commits looks whether it still has to, in seconds.
const LOOKS_FOR_END: i64 = 10;

/// What the agent's node has of its pods' policies.
pub(crate) struct NodePoint {
    config: AmbientConfig,
    settings: EnforcementSettings,
    disturbed: Arc<Notify>,
    log: Scope,
    rules: NodeRules,
    /// Opened when it is needed.
    table: Option<WatchedTable>,
    /// Whether the kernel has the rules.
    loaded: bool,
    /// What the rules lack, as it was told.
    told: BTreeSet<String>,
}

/// The table, and a thread that tells of what is committed.
struct WatchedTable {
    table: PartedTable,
    /// The thread ends when this is gone.
    _is_open: Arc<()>,
}

/// The settings of policies as the rules of a node have them.
pub(crate) fn node_settings(config: &PolicyConfig) -> EnforcementSettings {
    EnforcementSettings {
        established: if config.cuts { Established::Cut } else { Established::Keep },
        egress_to_own_node: match config.judges_own_node {
            true => EgressToOwnNode::Judge,
            false => EgressToOwnNode::Allow,
        },
        ..EnforcementSettings::default()
    }
}

/// Removes what an agent left that enforced policies. Nothing there is success.
///
/// # Errors
/// It is there still.
pub(crate) fn remove(config: &AmbientConfig) -> Result<Change, PointError> {
    match open(config)? {
        Ok(mut table) => table.remove().map_err(PointError::new),
        // A kernel without nf_tables has nothing of ours.
        Err(error) if error.is_unsupported() => Ok(Change::None),
        Err(error) => Err(PointError::new(error)),
    }
}

fn open(config: &AmbientConfig) -> Result<Result<PartedTable, kernel::nft::Error>, PointError> {
    let host: Host = open_host(config).map_err(PointError::new)?;
    let opened = host.enter(|inside| PartedTable::open(inside, POLICY_OWNER, TableKind::Mangle));
    opened.map_err(PointError::new)
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
        Self { config, settings, disturbed, log, rules, table: None, loaded: false, told: BTreeSet::new() }
    }

    fn table(&mut self) -> Result<&mut PartedTable, PointError> {
        let opened = match self.table.take() {
            Some(opened) => opened,
            None => WatchedTable::open(&self.config, self.disturbed.clone())?,
        };
        Ok(&mut self.table.insert(opened).table)
    }

    /// Makes all of it what it should be.
    fn ensure(&mut self, index: &PolicyIndex, thoroughness: Thoroughness) -> Result<Change, PointError> {
        let (rules, contents) = (self.rules.rules(index), self.rules.contents(index));
        self.loaded = false;
        let change = self.table()?.ensure(&rules, &contents, thoroughness).map_err(PointError::new)?;
        self.loaded = true;
        Ok(change)
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
    fn adopt(&mut self, index: &PolicyIndex, pods: &dyn Fn(&LocalName) -> bool) -> Result<(), PointError> {
        self.rules = NodeRules::of(index, self.settings, pods);
        if !self.rules.has_pods() {
            self.loaded = false;
            return self.table()?.remove().map(drop).map_err(PointError::new);
        }
        self.ensure(index, Thoroughness::Everything)?;
        self.tell();
        Ok(())
    }

    fn apply(
        &mut self,
        effects: &[PolicyEffect],
        index: &PolicyIndex,
        _: &dyn Fn(&LocalName) -> bool,
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
    fn open(config: &AmbientConfig, disturbed: Arc<Notify>) -> Result<Self, PointError> {
        let table = open(config)?.map_err(PointError::new)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(PointError::new)?;
        // Each event is told once; who is told reads it.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, table.descriptor(), data, flags).map_err(PointError::new)?;
        let is_open = Arc::new(());
        let watched = Arc::downgrade(&is_open);
        let tell = move || tell_of_commits(&epoll, &watched, &disturbed);
        let thread = std::thread::Builder::new().name("policy-watch".to_owned()).spawn(tell);
        thread.map_err(PointError::new)?;
        Ok(Self { table, _is_open: is_open })
    }
}

/// Tells whenever something comes to the socket, until the table is closed.
fn tell_of_commits(epoll: &OwnedFd, watched: &Weak<()>, disturbed: &Notify) {
    let timeout = Timespec { tv_sec: LOOKS_FOR_END, tv_nsec: 0 };
    let mut events = Vec::with_capacity(1);
    while watched.strong_count() > 0 {
        events.clear();
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => disturbed.notify_one(),
            // It is open for as long as this runs.
            Err(_) => return,
        }
    }
}
