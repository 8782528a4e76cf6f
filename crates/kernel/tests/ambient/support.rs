//! The ways to load a plan, and what a namespace holds.

use std::process::Command;

use capture::ambient::{NodeOptions, PodOptions, ProbeSender, plan_host, plan_of_everything, plan_pod};
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::{Applied, Change, Choice, Difference, Kernel, Neighbours};
use ruleset::Plan;
use testkit::TestNetns;

pub(crate) use crate::way::Way;

impl Way {
    pub(crate) fn pod_plan(self, node: &NodeOptions, pod: &PodOptions) -> Plan {
        plan_pod(node, pod, self.backend())
    }

    pub(crate) fn host_plan(self, node: &NodeOptions) -> Plan {
        plan_host(node, ProbeSender::default(), self.backend())
    }

    pub(crate) fn apply(self, ns: &TestNetns, plan: &Plan) -> anyhow::Result<Applied> {
        self.apply_by(ns, plan, &self.iptables())
    }

    pub(crate) fn apply_by(
        self,
        ns: &TestNetns,
        plan: &Plan,
        iptables: &Iptables,
    ) -> anyhow::Result<Applied> {
        let kernel = Kernel { nftables: &Nftables, iptables };
        Ok(ns.enter(|inside| kernel.apply(inside, Choice::Only(plan.backend), |_| plan.clone()))??)
    }

    pub(crate) fn observe(self, ns: &TestNetns, plan: &Plan) -> Vec<Difference> {
        let iptables = self.iptables();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        ns.enter(|inside| kernel.observe(inside, plan)).unwrap().unwrap()
    }

    /// As [`Self::observe`], in the node's own namespace.
    pub(crate) fn observe_on_the_node(self, ns: &TestNetns, plan: &Plan) -> Vec<Difference> {
        let iptables = self.iptables().on_the_node();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        ns.enter(|inside| kernel.observe(inside, plan)).unwrap().unwrap()
    }

    pub(crate) fn neighbours(self, ns: &TestNetns, plan: &Plan) -> Neighbours {
        let iptables = self.iptables();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        ns.enter(|inside| kernel.neighbours(inside, plan)).unwrap().unwrap()
    }

    pub(crate) fn put_first(self, ns: &TestNetns, plan: &Plan) -> Change {
        let iptables = self.iptables().on_the_node();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        ns.enter(|inside| kernel.put_first(inside, plan)).unwrap().unwrap()
    }

    /// Removes whatever an ambient pod may have.
    pub(crate) fn remove(self, ns: &TestNetns) -> Change {
        self.cleanup(ns, &plan_of_everything(self.backend()))
    }

    pub(crate) fn cleanup(self, ns: &TestNetns, plan: &Plan) -> Change {
        let iptables = Iptables::new();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        ns.enter(|inside| kernel.cleanup(inside, plan)).unwrap().unwrap()
    }

    /// Shell lines with the variant's programs in the place of `iptables` and `ip6tables`.
    pub(crate) fn shell(self, ns: &TestNetns, line: &str) -> String {
        let line = match self {
            Self::Nft => line.to_owned(),
            Self::Iptables(variant) => line.replace("tables ", &format!("tables-{variant} ")),
        };
        sh(ns, &line)
    }
}

/// Node and pod options of every variant of pod rules that the reference has.
pub(crate) fn variants() -> Vec<(NodeOptions, PodOptions)> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        for (dns_capture, ingress, interfaces) in [
            (true, false, false),
            (false, false, false),
            (false, true, false),
            (false, false, true),
            (false, true, true),
            (true, true, true),
        ] {
            let interfaces: &[&str] = if interfaces { &["fake1s0f0", "fake1s0f1"] } else { &[] };
            let virtual_interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
            let node = NodeOptions { dns_capture, ipv6, ..NodeOptions::default() };
            all.push((node, PodOptions { ingress, dns_capture: None, virtual_interfaces }));
        }
    }
    all
}

pub(crate) fn sh(ns: &TestNetns, line: &str) -> String {
    ns.run(Command::new("sh").args(["-ec", line])).unwrap()
}

/// Everything that our code may change: rules of all kinds, and routing.
pub(crate) fn state(ns: &TestNetns) -> String {
    let text = sh(
        ns,
        "nft -s list ruleset; for p in iptables ip6tables; do $p-legacy-save; $p-nft-save; done; \
         for f in -4 -6; do ip $f rule; ip $f route show table 100 2>/dev/null || true; done",
    );
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{}\n", line.split(" [").next().unwrap_or(line)))
        .collect()
}

/// Of such a state what somebody made: not the built-in tables and chains, which come with the first look at them.
pub(crate) fn made(state: &str) -> Vec<&str> {
    let built_in =
        |line: &&str| !line.is_empty() && !line.starts_with([':', '*', 't', '}', '\t']) && *line != "COMMIT";
    let made = |line: &&str| built_in(line) || (line.starts_with(':') && line.ends_with(" -"));
    state.lines().filter(made).collect()
}
