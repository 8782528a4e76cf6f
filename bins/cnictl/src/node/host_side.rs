//! What ambient mode has in the node's own network namespace: rules and sets by which kubelet's probes reach pods past ztunnel.

use std::path::Path;

use capture::ambient::{NodeOptions, PROBES_V4, PROBES_V6, ProbeSender, plan_host};
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::sets::{self, ProbeSets};
use kernel::{Kernel, RuleStore};
use netns::{Host, InsideHost};
use ruleset::Backend;
use rundir::AMBIENT_DIR;

/// The node's own namespace in the agent's container, where its processes are mounted.
const MOUNTED: &str = "/host/proc/1/ns/net";
/// The nf_tables table, with its sets.
const TABLE: &str = "istio-ambient-nat";
/// Most records that are counted.
const MAX_RECORDS: usize = 100_000;

/// Something of ours in the kernel, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostSidePart {
    Nftables,
    Iptables,
    Sets,
}

// === impl HostSidePart ===

impl HostSidePart {
    /// For people.
    pub(super) fn name(self) -> String {
        match self {
            Self::Nftables => format!("nf_tables table inet {TABLE}"),
            Self::Iptables => "iptables chain istio-postrouting of table nat".to_owned(),
            Self::Sets => format!("ipsets {PROBES_V4}, {PROBES_V6}"),
        }
    }
}

/// What is there; the second half is what could not be looked at.
pub(super) fn look() -> (Vec<HostSidePart>, Vec<String>) {
    inside(|inside| {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        let stores = [
            (HostSidePart::Nftables, &Nftables as &dyn RuleStore),
            (HostSidePart::Iptables, &iptables_of_the_node()),
        ];
        for (part, store) in stores {
            let plan = plan_host(&NodeOptions::default(), ProbeSender::AnySocket, Backend::Nftables);
            match store.exists(inside.inside(), &plan.layers) {
                Ok(true) => found.push(part),
                Ok(false) => {}
                Err(error) => errors.push(fault::chain(&error)),
            }
        }
        // A kernel without ipset has none.
        if sets::exists_in_ipset(inside, &[PROBES_V4, PROBES_V6]).unwrap_or_default() {
            found.push(HostSidePart::Sets);
        }
        (found, errors)
    })
}

/// Removes what is there; what could not be removed is in the second half.
pub(super) fn remove() -> (Vec<HostSidePart>, Vec<String>) {
    let (found, mut errors) = look();
    if found.is_empty() {
        return (found, errors);
    }
    let (_, failed) = inside(|inside| {
        let iptables = iptables_of_the_node();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        let plan = plan_host(&NodeOptions::default(), ProbeSender::AnySocket, Backend::Nftables);
        let mut failed = Vec::new();
        if let Err(error) = kernel.cleanup_host(inside, &plan) {
            failed.push(error.to_string());
        }
        // Rules of iptables refer to them, so they go last.
        if found.contains(&HostSidePart::Sets) {
            let sets = ProbeSets::open(inside, Backend::Iptables, TABLE, PROBES_V4, Some(PROBES_V6));
            if let Err(error) = sets.and_then(|mut sets| sets.destroy()) {
                failed.push(fault::chain(&error));
            }
        }
        (Vec::new(), failed)
    });
    errors.extend(failed);
    let (left, _) = look();
    (found.into_iter().filter(|part| !left.contains(part)).collect(), errors)
}

/// Pods of which an agent in ambient mode has kept records: their namespaces have rules of ours, or may.
pub(super) fn recorded_pods(run_dir: &Path) -> usize {
    let entries = std::fs::read_dir(run_dir.join(AMBIENT_DIR)).into_iter().flatten().flatten();
    let records = entries.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "json"));
    records.take(MAX_RECORDS).count()
}

/// The iptables backend with the node's own programs.
pub(crate) fn iptables_of_the_node() -> Iptables {
    Iptables::new().on_the_node()
}

/// Does something in the node's own network namespace; in the agent's container that may be another one than its own.
///
/// # Errors
/// It cannot be entered.
pub(crate) fn in_host<T: Send>(work: impl FnOnce(&InsideHost<'_>) -> T + Send) -> Result<T, netns::Error> {
    let host = if Path::new(MOUNTED).exists() { Host::open(MOUNTED) } else { Host::current() };
    host?.enter(work)
}

fn inside(
    look: impl FnOnce(&InsideHost<'_>) -> (Vec<HostSidePart>, Vec<String>) + Send,
) -> (Vec<HostSidePart>, Vec<String>) {
    in_host(look).unwrap_or_else(|error| {
        (Vec::new(), vec![format!("enter the node's network namespace: {}", fault::chain(&error))])
    })
}
