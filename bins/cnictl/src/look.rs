//! What is in the kernel for a pod, compared with what is decided about it today: rules and routes in its own network namespace and, for a pod
//! of ambient mode, rules in the node's and its addresses in the node's sets.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use facts::PodRef;
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::observed::others_translate;
use kernel::sets::{ProbeSets, SetMember};
use kernel::{Kernel, RuleStore, route};
use netns::{Inside, Netns};
use ruleset::{Backend, Plan, TableKind};
use serde::Serialize;

use capture::ambient::{OWNER, PROBES_V4, PROBES_V6};

use crate::node::{in_host, iptables_of_the_node};
use crate::output::columns;
use crate::pod::DescribedPod;
use crate::subject::{Captured, Decider, NodeNetns, PodOutcome, PodSubject};

/// The most differences of one place that are shown; one flushed chain may be thousands.
const SHOWN: usize = 10;

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Looked {
    pod: PodRef,
    captured: bool,
    /// What is decided, for people.
    decision: String,
    /// How the pod's namespace differs from its plan; rules where there should be none are a difference too.
    pod_differences: Vec<String>,
    /// The same of the node's namespace, of a pod in ambient mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_differences: Option<Vec<String>>,
    /// Each of the pod's addresses, of a pod in ambient mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_addresses: Option<Vec<ProbeAddress>>,
    assumed: Vec<String>,
}

/// An address of the pod and the node's set for it.
#[derive(Debug, Serialize)]
struct ProbeAddress {
    address: IpAddr,
    set: &'static str,
    /// Whether the set has it for this pod.
    ok: bool,
    text: String,
}

impl Looked {
    /// Decides about the pod, and looks into its namespace and the node's.
    ///
    /// # Errors
    /// The decision cannot be made, or the kernel cannot be asked.
    pub(crate) fn look(decider: &Decider, mut described: DescribedPod, netns: &Netns) -> Result<Self> {
        if described.ips.is_empty() {
            let addresses = netns.enter(route::addresses)?;
            described.ips = addresses.context("list the addresses of the pod")?;
            described.ips.retain(|ip| !is_local(ip));
        }
        let found = |plan: &Plan| netns.enter(|inside| backend_in(inside, plan)).unwrap_or_default();
        let translates = || netns.enter(translates).unwrap_or_default();
        let subject = decider.decide_in(described, &found, &translates)?;
        Self::compare(subject, netns)
    }

    fn compare(subject: PodSubject, netns: &Netns) -> Result<Self> {
        let PodSubject { name, outcome, assumed, .. } = subject;
        let mut looked = Self {
            pod: name,
            captured: false,
            decision: String::new(),
            pod_differences: Vec::new(),
            node_differences: None,
            probe_addresses: None,
            assumed,
        };
        match outcome {
            PodOutcome::Skipped(skip) => {
                looked.decision = format!("not captured: {}", skip.text());
                looked.pod_differences = netns.enter(rules_of_ours)??;
            }
            PodOutcome::Captured(captured) => {
                looked.captured = true;
                looked.decision = captured.summary();
                looked.pod_differences = differences_in_pod(netns, &captured)?;
                if let Some(node) = captured.node() {
                    let (differences, addresses) = look_at_node(node)?;
                    looked.node_differences = Some(differences);
                    looked.probe_addresses = Some(addresses);
                }
            }
        }
        Ok(looked)
    }

    /// What is not as decided, in a line.
    pub(crate) fn problem(&self) -> Option<String> {
        let mut parts = Vec::new();
        let differ = |place: &str, differences: &[String]| match differences {
            [] => None,
            [only] => Some(format!("{place}: {only}")),
            [first, more @ ..] => Some(format!("{place}: {first} (and {} more)", more.len())),
        };
        parts.extend(differ("the pod's network namespace", &self.pod_differences));
        parts.extend(differ("the node's", self.node_differences.as_deref().unwrap_or_default()));
        let addresses = self.probe_addresses.iter().flatten().filter(|address| !address.ok);
        parts.extend(addresses.map(|address| address.text.clone()));
        (!parts.is_empty()).then(|| format!("pod {} is not as decided: {}", self.pod, parts.join("; ")))
    }

    pub(crate) fn table(&self) -> String {
        let mut rows = vec![vec!["POD".to_owned(), format!("{}, {}", self.pod, self.decision)]];
        let mut place = |name: &str, differences: &[String]| {
            let texts = match differences {
                [] => vec!["as decided".to_owned()],
                some => some.to_vec(),
            };
            for (at, text) in texts.into_iter().enumerate() {
                rows.push(vec![if at == 0 { name.to_owned() } else { String::new() }, text]);
            }
        };
        place("NETNS", &self.pod_differences);
        if let Some(differences) = &self.node_differences {
            place("NODE", differences);
        }
        let addresses = self.probe_addresses.iter().flatten();
        rows.extend(addresses.map(|address| vec!["PROBES".to_owned(), address.text.clone()]));
        rows.extend(self.assumed.iter().map(|text| vec!["ASSUMED".to_owned(), text.clone()]));
        columns(&rows)
    }
}

/// The backend in which the namespace has rules of the plan's owners, where that is iptables only.
pub(crate) fn backend_in(inside: &Inside, plan: &Plan) -> Option<Backend> {
    let iptables = Iptables::new();
    let holds = |store: &dyn RuleStore| store.exists(inside, &plan.layers).unwrap_or_default();
    (!holds(&Nftables) && holds(&iptables)).then_some(Backend::Iptables)
}

/// Whether others in a pod's namespace translate destinations of what comes in: then it has another plan in ambient mode.
pub(crate) fn translates(inside: &Inside) -> bool {
    others_translate(inside, &[capture::ambient::no_rules()]).unwrap_or_default()
}

fn is_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

/// How the namespace of a pod differs from its plan.
///
/// # Errors
/// The kernel cannot be asked.
fn differences_in_pod(netns: &Netns, captured: &Captured) -> Result<Vec<String>> {
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let found = netns.enter(|inside| kernel.observe(inside, &captured.plan))?;
    Ok(texts(&found.context("compare the network namespace of the pod")?))
}

/// Rules of ours in a namespace that should have none.
///
/// # Errors
/// The kernel cannot be asked.
pub(crate) fn rules_of_ours(inside: &Inside) -> Result<Vec<String>> {
    let iptables = Iptables::new();
    let owners =
        [("a sidecar", [capture::plan::no_rules()]), ("ambient mode", [capture::ambient::no_rules()])];
    let mut found = Vec::new();
    for (of, owner) in &owners {
        for store in [&Nftables as &dyn RuleStore, &iptables] {
            let there =
                store.exists(inside, owner).context("look for rules in the network namespace of the pod")?;
            if there {
                found.push(format!("it has rules of {of}, and should have none"));
            }
        }
    }
    Ok(found)
}

fn look_at_node(node: &NodeNetns) -> Result<(Vec<String>, Vec<ProbeAddress>)> {
    let iptables = iptables_of_the_node();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let plan = &node.plan;
    let found = in_host(|inside| -> Result<_> {
        let differences = kernel.observe(inside.inside(), plan).context("compare the node's rules")?;
        let table = TableKind::Nat.nft_table(OWNER);
        let v6 = plan.layers.iter().any(|layer| layer.ipv6).then_some(PROBES_V6);
        let sets = ProbeSets::open(inside, plan.backend, &table, PROBES_V4, v6);
        // Sets that are not there hold nothing; the rules that are missing with them are told above.
        let members = sets.and_then(|mut sets| sets.list());
        if differences.is_empty() {
            return Ok((differences, members.context("list the node's sets of probe addresses")?));
        }
        Ok((differences, members.unwrap_or_default()))
    })?;
    let (differences, members) = found?;
    Ok((texts(&differences), addresses(node, &members)))
}

fn addresses(node: &NodeNetns, members: &[SetMember]) -> Vec<ProbeAddress> {
    let of = |wanted: &crate::subject::ProbeMember| {
        let (address, set) = (wanted.address, wanted.set);
        let found = members.iter().find(|member| member.ip == address);
        let (ok, text) = match found {
            None => (false, format!("{address} is not in the node's set {set}: probes of kubelet fail")),
            Some(member) if !wanted.uid.is_empty() && member.uid != wanted.uid => {
                (false, format!("{address} is in the node's set {set} for another pod, uid {:?}", member.uid))
            }
            Some(_) => (true, format!("{address} is in the node's set {set}")),
        };
        ProbeAddress { address, set, ok, text }
    };
    node.members.iter().map(of).collect()
}

/// Differences for people, not too many.
pub(crate) fn texts(differences: &[kernel::Difference]) -> Vec<String> {
    let mut texts: Vec<String> = differences.iter().take(SHOWN).map(ToString::to_string).collect();
    if differences.len() > SHOWN {
        texts.push(format!("{} more differences", differences.len() - SHOWN));
    }
    texts
}
