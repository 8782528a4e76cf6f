//! Both ways to program a namespace.

use std::path::Path;

use kernel::Kernel;
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use telemetry::Scope;

/// Both ways to program a namespace.
pub(crate) struct Backends {
    pub(crate) iptables: Iptables,
    /// The same with the node's own lock.
    pub(crate) iptables_of_the_node: Iptables,
    pub(crate) nftables: Nftables,
}

impl Backends {
    /// `iptables` locks pods' namespaces in the run directory, as the plugin does.
    pub(crate) fn new(iptables: impl Fn() -> Iptables, run_dir: &Path) -> Self {
        let (own, of_the_node) = (iptables().locking(run_dir), iptables().on_the_node());
        Self { iptables: own, iptables_of_the_node: of_the_node, nftables: Nftables }
    }

    pub(crate) fn kernel(&self) -> Kernel<'_> {
        Kernel { nftables: &self.nftables, iptables: &self.iptables }
    }

    pub(crate) fn of_the_node(&self) -> Kernel<'_> {
        Kernel { nftables: &self.nftables, iptables: &self.iptables_of_the_node }
    }

    /// Logs the warnings of the iptables backend.
    pub(crate) fn log_warnings(&self, log: &Scope) {
        let warnings = [&self.iptables, &self.iptables_of_the_node].map(Iptables::take_warnings);
        for warning in warnings.into_iter().flatten() {
            log.warn(&warning, &[]);
        }
    }
}
