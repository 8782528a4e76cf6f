//! Both ways to program a namespace.

use kernel::Kernel;
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use telemetry::Scope;

/// Both ways to program a namespace.
pub(crate) struct Backends {
    pub(super) iptables: Iptables,
    /// The same with the node's own lock.
    pub(super) iptables_of_the_node: Iptables,
    pub(super) nftables: Nftables,
}

impl Backends {
    pub(super) fn kernel(&self) -> Kernel<'_> {
        Kernel { nftables: &self.nftables, iptables: &self.iptables }
    }

    pub(super) fn of_the_node(&self) -> Kernel<'_> {
        Kernel { nftables: &self.nftables, iptables: &self.iptables_of_the_node }
    }

    /// Logs the warnings of the iptables backend.
    pub(super) fn log_warnings(&self, log: &Scope) {
        let warnings = [&self.iptables, &self.iptables_of_the_node].map(Iptables::take_warnings);
        for warning in warnings.into_iter().flatten() {
            log.warn(&warning, &[]);
        }
    }
}
