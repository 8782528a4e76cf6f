//! Everything in a namespace that can change what becomes of a packet, as the kernel has it now, and what of it is a conflict.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use conflicts::{NetnsScope, ObservedNetns};
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::observed::{ObservedSubject, PodProcesses, scan_processes};
use kernel::{Kernel, RuleStore};
use netns::{Inside, NetnsId};
use ruleset::listed::ListedTable;
use ruleset::{Backend, Plan};

use super::listed::{means_the_same, planned};
use super::locate::{LocatedNetns, proc_root};
use crate::subject::{By, Captured};

/// Mark and mask of ztunnel's sockets in the pod.
const ZTUNNEL: (u32, u32) = (capture::ambient::ZTUNNEL_MARK, capture::ambient::MARK_MASK);

/// The processes of all namespaces, read once for any number of pods.
#[derive(Debug)]
pub(crate) struct NodeProcesses(HashMap<NetnsId, PodProcesses>);

impl NodeProcesses {
    /// Reads them.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub(crate) fn read() -> Result<Self> {
        let root = proc_root();
        let found =
            scan_processes(&root).with_context(|| format!("read the processes in {}", root.display()))?;
        Ok(Self(found))
    }
}

/// A pod's namespace as the kernel has it.
pub(super) struct LiveNetns {
    /// Everything that can change what becomes of a packet.
    pub(super) observed: ObservedNetns,
    /// How it differs from the plan; nothing where none is planned.
    pub(super) differences: Vec<kernel::Difference>,
}

/// What is in a pod's namespace; rules of ours too as the kernel has them, and not as they are planned.
///
/// # Errors
/// The namespace cannot be entered or read.
pub(crate) fn observe(
    place: &LocatedNetns,
    captured: Option<&Captured>,
    processes: &NodeProcesses,
) -> Result<ObservedNetns> {
    let read = place.netns.enter(|inside| read(inside, captured, processes));
    Ok(read.context("enter the network namespace of the pod")??.observed)
}

/// The same inside of it, and how that differs from the plan.
///
/// # Errors
/// It cannot be read.
pub(super) fn read(
    inside: &Inside,
    captured: Option<&Captured>,
    processes: &NodeProcesses,
) -> Result<LiveNetns> {
    let nothing = Plan { backend: Backend::Nftables, routing: Vec::new(), layers: Vec::new() };
    let plan = captured.map_or(&nothing, |captured| &captured.plan);
    let none = PodProcesses::default();
    let root = proc_root();
    let subject = ObservedSubject {
        scope: NetnsScope::Pod,
        plan,
        beside: &[],
        processes: processes.0.get(&inside.id()).unwrap_or(&none),
        proc_root: &root,
        older: None,
        rules: None,
        proxy_mark: captured.filter(|captured| matches!(captured.by, By::Ztunnel(_))).map(|_| ZTUNNEL),
    };
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let mut observed = kernel.observed(inside, &subject).context("read the network namespace of the pod")?;
    let mut differences = Vec::new();
    if captured.is_some() {
        differences = kernel.observe(inside, plan).context("compare it with the plan")?;
        // Of what is as planned the plan tells more than can be read: members of sets, and reasons.
        if plan.backend == Backend::Nftables && !differences.is_empty() {
            let found = Nftables.others(inside, &[]).context("read the rules")?;
            as_found(&mut observed.tables, found.tables, &planned(&Nftables, plan));
        }
    }
    Ok(LiveNetns { observed, differences })
}

/// Puts tables of ours as they were found in place of the planned ones.
fn as_found(tables: &mut Vec<ListedTable>, found: Vec<ListedTable>, planned: &[ListedTable]) {
    tables.retain(|table| !planned.iter().any(|plan| plan.name == table.name && plan.lister == table.lister));
    for mut table in found {
        let Some(plan) = planned.iter().find(|plan| plan.name == table.name) else { continue };
        table.ours = true;
        for chain in &mut table.chains {
            let rules = plan.chain(&chain.name).map(|chain| chain.rules.as_slice()).unwrap_or_default();
            for rule in &mut chain.rules {
                let same = rules.iter().find(|planned| means_the_same(planned, rule));
                rule.why = same.and_then(|planned| planned.why.clone());
            }
        }
        tables.push(table);
    }
}
