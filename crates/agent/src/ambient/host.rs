//! The node's own network namespace: rules and sets by which probes of kubelet reach pods past ztunnel, and routes for the branch
//! interfaces of EKS.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use capture::ambient::{NodeOptions, PROBES_V4, PROBES_V6, ProbeSender, plan_host};
use kernel::branch_eni::{self, Branch};
use kernel::nft::Nftables;
use kernel::sets::{ProbeSets, Removed};
use kernel::{Change, KeptSockets, Neighbours, RuleStore};
use netns::{Host, NetnsId};
use ruleset::Backend;
use telemetry::Scope;

use super::Backends;
use super::config::AmbientConfig;
use super::failure::AmbientFailure;
use crate::conflicts::{ConflictLook, Conflicts};

/// The table that the sets are in, with nf_tables.
const TABLE: &str = "istio-ambient-nat";

/// What could not be made ready in the node's namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    /// It cannot be entered.
    #[error("prepare the node's network namespace for host probes: {}", fault::chain(.0))]
    Enter(#[from] netns::Error),
    /// The rules.
    #[error("prepare the node's network namespace for host probes: {}", fault::chain(.0))]
    Rules(#[from] kernel::Error),
    /// The backend was asked for what is there.
    #[error("look for rules in the node's network namespace: {}", fault::chain(.0))]
    Look(#[from] kernel::nft::Error),
    /// The sets.
    #[error("prepare the node's network namespace for host probes: {}", fault::chain(.0))]
    Sets(#[from] kernel::sets::Error),
    /// Nothing is heard of changes there.
    #[error("hear of changes in the node's network namespace: {}", fault::chain(.0))]
    Watch(#[from] kernel::watch::Error),
    /// Whose connections count as probes.
    #[error("prepare the node's network namespace for host probes: {}", fault::chain(.0))]
    Kubelet(#[from] kernel::kubelet::Error),
    /// The choice is the node's, and neither backend works on it.
    #[error("prepare the node's network namespace for host probes: {0}")]
    NoBackend(String),
}

/// Everything of ours in the node's namespace.
pub(crate) struct HostSide {
    host: Host,
    backend: Backend,
    sender: ProbeSender,
    config: Arc<AmbientConfig>,
    backends: Arc<Backends>,
    sets: Mutex<ProbeSets>,
    /// Who else was attached where our rules are when these were attached last.
    before: Mutex<Neighbours>,
    /// The options by which sets and rules were made last.
    node: Mutex<NodeOptions>,
    /// Of each address that has one; `None` where branch interfaces are of no concern.
    branches: Option<Mutex<HashMap<IpAddr, Branch>>>,
    log: Scope,
}

/// What a verification put right.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Repaired {
    pub(crate) rules: bool,
    pub(crate) members: usize,
}

impl HostSide {
    /// Puts sets and rules in place. The sets keep what they hold: probes of pods that are enrolled go on meanwhile.
    ///
    /// # Errors
    /// The kernel does not take them.
    pub(crate) fn prepare(
        config: Arc<AmbientConfig>,
        backends: Arc<Backends>,
        log: Scope,
    ) -> Result<Self, NotReady> {
        let made = Self::open(config, backends, log)?;
        made.sets().ensure()?;
        made.apply()?;
        Ok(made)
    }

    /// Changes nothing.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) fn open(
        config: Arc<AmbientConfig>,
        backends: Arc<Backends>,
        log: Scope,
    ) -> Result<Self, NotReady> {
        let host = open_host(&config)?;
        let node = config.node.now();
        let (backend, sets) = host.enter(|inside| {
            let backend = config.backend(inside, &log).map_err(NotReady::NoBackend)?;
            Ok::<_, NotReady>((backend, open_sets(inside, backend, &node)?))
        })??;
        let (sets, node) = (Mutex::new(sets), Mutex::new(NodeOptions::clone(&node)));
        let sender = config.sender()?;
        let branches =
            (config.branch_eni && branch_eni::is_relevant(&config.proc_root())).then(Mutex::default);
        let before = Mutex::default();
        Ok(Self { host, backend, sender, config, backends, sets, before, node, branches, log })
    }

    /// Which holds rules and sets, in the node's namespace and in the pods'.
    pub(crate) fn backend(&self) -> Backend {
        self.backend
    }

    /// Whose connections count as probes.
    pub(crate) fn sender(&self) -> ProbeSender {
        self.sender
    }

    /// Which namespace it is.
    pub(crate) fn id(&self) -> NetnsId {
        self.host.id()
    }

    /// Lets probes of a pod's addresses have the source address that pods let through.
    pub(crate) fn add(&self, ips: &[IpAddr], uid: &str) -> Result<(), AmbientFailure> {
        let mut first = None;
        for &ip in ips {
            if let Err(cause) = self.sets().upsert(ip, uid) {
                first.get_or_insert(AmbientFailure::Probes { ip, cause });
            }
            self.add_branch(ip);
        }
        first.map_or(Ok(()), Err)
    }

    /// Takes a pod's addresses back, where they are still this pod's.
    pub(crate) fn remove(&self, ips: &[IpAddr], uid: &str) -> Result<(), AmbientFailure> {
        let mut first = None;
        for &ip in ips {
            match self.sets().remove(ip, uid) {
                Ok(Removed::OwnedBy(other)) => {
                    let labels: [telemetry::Label<'_>; 3] = [("ip", &ip), ("uid", &uid), ("owner", &other)];
                    self.log
                        .warn("an address for host probes belongs to another pod by now and stays", &labels);
                    continue;
                }
                Ok(Removed::Gone | Removed::NotThere) => {}
                Err(cause) => {
                    first.get_or_insert(AmbientFailure::Probes { ip, cause });
                }
            }
            self.remove_branch(ip);
        }
        first.map_or(Ok(()), Err)
    }

    /// Compares rules and sets with what they should be and puts right what differs. `wanted` is asked while nobody else changes the sets;
    /// its second half says whether whoever else is in them may be removed. Programs of iptables take their time, so the sets are free
    /// while they run: who waits for those is a task, and there are few threads for tasks.
    pub(crate) fn verify(
        &self,
        wanted: impl FnOnce() -> (Vec<(IpAddr, String)>, bool),
    ) -> Result<Repaired, NotReady> {
        self.follow_options()?;
        self.sets().ensure()?;
        // In nf_tables the sets are made with the rules.
        let rules = self.apply()? != Change::None;
        let mut sets = self.sets();
        let (members, prune) = wanted();
        let members = if prune {
            sets.reconcile(&members)?
        } else {
            let mut changes = 0;
            for (ip, uid) in &members {
                changes += usize::from(sets.upsert(*ip, uid)?);
            }
            changes
        };
        Ok(Repaired { rules, members })
    }

    /// Looks for what others have in the node's namespace that keeps probes of these addresses from what our rules are for.
    pub(crate) fn look_for_conflicts(
        &self,
        conflicts: &Conflicts,
        probed: &[IpAddr],
    ) -> Result<(), NotReady> {
        let plan = plan_host(&lock(&self.node), self.sender, self.backend);
        self.host.enter(|inside| {
            let kernel = self.backends.of_the_node();
            let inside = inside.inside();
            let (pod, writer, may_change) = (None, None, false);
            let rules = kernel::watch::fingerprint(inside).ok();
            let look = ConflictLook { pod, inside, rules, kernel, plan: &plan, probed, writer, may_change };
            // Why it failed is told there, and it is done again.
            let _ = conflicts.look(&look);
        })?;
        Ok(())
    }

    /// Sockets that hear of changes in the node's namespace.
    ///
    /// # Errors
    /// The kernel gives none.
    pub(crate) fn keep_sockets(&self) -> Result<KeptSockets, NotReady> {
        Ok(KeptSockets::open(self.host.netns())?)
    }

    /// Removes everything of ours; gives what could not be.
    pub(crate) fn clean_up(&self) -> Vec<String> {
        let mut errors = Vec::new();
        let plan = plan_host(&lock(&self.node), self.sender, self.backend);
        let result = self.host.enter(|inside| self.backends.of_the_node().cleanup_host(inside, &plan));
        match result {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => errors.push(error.to_string()),
            Err(error) => errors.push(error.to_string()),
        }
        if let Err(error) = self.sets().destroy() {
            errors.push(fault::chain(&error));
        }
        let known: Vec<IpAddr> =
            self.branches.iter().flat_map(|map| lock(map).keys().copied().collect::<Vec<_>>()).collect();
        known.into_iter().for_each(|ip| self.remove_branch(ip));
        errors
    }

    /// Makes sets and rules what today's options ask for. With another family the sets are opened anew, as by another agent: they keep what
    /// they hold.
    ///
    /// # Errors
    /// The kernel does not take them; the next verification tries again.
    pub(crate) fn follow_options(&self) -> Result<(), NotReady> {
        let wanted = self.config.node.now();
        let mut node = lock(&self.node);
        if *node == *wanted {
            return Ok(());
        }
        let mut sets = self.sets();
        let opened = self.host.enter(|inside| open_sets(inside, self.backend, &wanted));
        *sets = opened??;
        sets.ensure()?;
        node.clone_from(&wanted);
        drop((sets, node));
        self.apply().map(drop)
    }

    /// Puts the rules in place, before those of others that change sources, however often: probes with another source do not reach the
    /// application.
    fn apply(&self) -> Result<Change, NotReady> {
        let plan = plan_host(&lock(&self.node), self.sender, self.backend);
        let mut before = lock(&self.before);
        let known: &Neighbours = &before;
        let applied = self.host.enter(|inside| -> Result<_, kernel::Error> {
            let kernel = self.backends.of_the_node();
            let now = kernel.neighbours(inside.inside(), &plan)?;
            let mut change = kernel.apply_host(inside, &plan)?.rules;
            if change == Change::None && !now.are_among(known) {
                change = kernel.put_first(inside.inside(), &plan)?;
            }
            Ok((change, now))
        });
        let (change, now) = applied??;
        if change != Change::None {
            *before = now;
        }
        Ok(change)
    }

    /// The rules for branch interfaces of these addresses, as far as they are known.
    pub(crate) fn branches(&self, ips: &[IpAddr]) -> Vec<Branch> {
        let Some(branches) = &self.branches else { return Vec::new() };
        let branches = lock(branches);
        ips.iter().filter_map(|ip| branches.get(ip).cloned()).collect()
    }

    /// An agent before this one made these rules: they go with their addresses.
    pub(crate) fn remember_branches(&self, made: impl IntoIterator<Item = Branch>) {
        if let Some(branches) = &self.branches {
            lock(branches).extend(made.into_iter().map(|branch| (branch.ip, branch)));
        }
    }

    fn add_branch(&self, ip: IpAddr) {
        let Some(branches) = &self.branches else { return };
        match self.host.enter(|inside| branch_eni::add(inside, ip)) {
            Ok(Ok(Some(branch))) => {
                lock(branches).insert(ip, branch);
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => self.log.error(fault::chain(&error), &[("ip", &ip)]),
            Err(error) => self.log.error(&error, &[("ip", &ip)]),
        }
    }

    fn remove_branch(&self, ip: IpAddr) {
        let Some(branch) = self.branches.as_ref().and_then(|branches| lock(branches).remove(&ip)) else {
            return;
        };
        match self.host.enter(|inside| branch_eni::remove(inside, &branch)) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.log.warn(fault::chain(&error), &[("ip", &ip)]),
            Err(error) => self.log.warn(&error, &[("ip", &ip)]),
        }
    }

    fn sets(&self) -> MutexGuard<'_, ProbeSets> {
        lock(&self.sets)
    }
}

fn open_sets(
    inside: &netns::InsideHost<'_>,
    backend: Backend,
    node: &NodeOptions,
) -> Result<ProbeSets, kernel::sets::Error> {
    let v6 = node.ipv6.then_some(PROBES_V6);
    ProbeSets::open(inside, backend, TABLE, PROBES_V4, v6)
}

/// The node's namespace.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn open_host(config: &AmbientConfig) -> Result<Host, netns::Error> {
    match config.switch_to_host {
        true => Host::open(config.proc_root().join("1/ns/net")),
        false => Host::current(),
    }
}

/// Whether the node's namespace has rules of ambient mode in nf_tables. With iptables there are records, too, unless no pod was ever in the mesh.
///
/// # Errors
/// The kernel cannot be asked.
pub(crate) fn has_rules(config: &AmbientConfig) -> Result<bool, NotReady> {
    let plan = plan_host(&config.node.now(), ProbeSender::AnySocket, Backend::Nftables);
    let found = open_host(config)?.enter(|inside| Nftables.exists(inside.inside(), &plan.layers));
    Ok(found??)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
