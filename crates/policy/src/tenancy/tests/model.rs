//! What the samples mean, by the rows of the table and by nothing of what is tested: predicates over the samples themselves.

use std::net::IpAddr;

use ipnet::IpNet;

use super::sample::{
    NAMESPACES, NODE, OTHER_NODE, PODS, SERVICES, SampleTarget, SampleTenant, TenancyFlow, TenancyPeer,
    TenancyPort, TenancySample,
};

/// What one end says.
#[derive(Debug, Clone)]
pub(crate) struct ModelEnd {
    pub(crate) is_allowed: bool,
    /// The name of the rule that denies it, or would.
    pub(crate) denied_by: Option<String>,
    pub(crate) row: &'static str,
}

/// A pod: its place among all, namespace, name and label.
type Pod<'s> = (usize, &'static str, &'static str, &'s str);

pub(crate) fn egress(sample: &TenancySample, flow: &TenancyFlow) -> ModelEnd {
    end(sample, flow, pod_at(sample, flow.source), true)
}

pub(crate) fn ingress(sample: &TenancySample, flow: &TenancyFlow) -> ModelEnd {
    end(sample, flow, pod_at(sample, flow.destination), false)
}

fn allowed(row: &'static str) -> ModelEnd {
    ModelEnd { is_allowed: true, denied_by: None, row }
}

fn end(sample: &TenancySample, flow: &TenancyFlow, own: Option<Pod<'_>>, egress: bool) -> ModelEnd {
    let (source, destination) = (pod_at(sample, flow.source), pod_at(sample, flow.destination));
    let Some(own) = own else { return allowed("no pod") };
    if source.is_some() && source == destination {
        return allowed("same pod");
    }
    if !egress && NODE.contains(&&*flow.source.to_string()) {
        return allowed("own node");
    }
    let tenant = owner(sample, own.1).and_then(|name| sample.tenants.iter().find(|one| one.name == name));
    let mut found = match tenant.filter(|tenant| tenant.enforcement != "Off") {
        None => allowed("no tenant"),
        Some(tenant) => section(sample, tenant, flow, own, egress),
    };
    if tenant.is_some_and(|tenant| tenant.enforcement == "Audit") {
        found.is_allowed = true;
    }
    if found.is_allowed && sample.closed && own.1 == "a" && !egress {
        return ModelEnd { is_allowed: false, row: "networkpolicy", ..found };
    }
    found
}

/// The rows in their order; the first that matches decides.
fn section(
    sample: &TenancySample,
    tenant: &SampleTenant,
    flow: &TenancyFlow,
    own: Pod<'_>,
    egress: bool,
) -> ModelEnd {
    let denied = |by: &str, row| ModelEnd { is_allowed: false, denied_by: Some(by.to_owned()), row };
    let address = if egress { flow.destination } else { flow.source };
    let peer = pod_at(sample, address);
    if tenant.denied.iter().any(|net| is_in(net, address)) {
        return denied("deniedIPRanges", "denied range");
    }
    if egress && tenant.system[0] && is_service(3, flow) {
        return allowed("dns");
    }
    if egress && tenant.system[1] && is_service(2, flow) {
        return allowed("api server");
    }
    let rules = &tenant.rules[usize::from(!egress)];
    let matches = |rule: &super::sample::TenancyRule| {
        let is_port = rule.ports.is_empty() || rule.ports.iter().any(|port| is_port(port, flow));
        is_port && rule.peers.iter().any(|one| is_peer(sample, one, address))
    };
    let numbered = || rules.iter().enumerate();
    if let Some((number, _)) = numbered().find(|(_, rule)| rule.denies && matches(rule)) {
        return denied(&format!("r{number}"), "rule denies");
    }
    let peers_tenant = peer.and_then(|peer| owner(sample, peer.1));
    if peers_tenant == Some(tenant.name) {
        return allowed("same tenant");
    }
    if numbered().any(|(_, rule)| !rule.denies && matches(rule)) {
        return allowed("rule allows");
    }
    if !egress && sample.grants.iter().any(|grant| consents(sample, grant, flow, own, peers_tenant)) {
        return allowed("grant");
    }
    let services =
        tenant.services.iter().filter(|(number, port)| port.is_none_or(|port| port == SERVICES[*number].3));
    // A service of names is asked by both protocols, and the ports of a tenant's services are of TCP where one is named.
    if egress
        && services.into_iter().any(|(number, port)| {
            is_service(*number, flow) && (port.is_none() || flow.port.is_some_and(|port| port.0 == "TCP"))
        })
    {
        return allowed("service");
    }
    if peer.is_none() && tenant.allowed.iter().any(|net| is_in(net, address)) {
        return allowed("range");
    }
    if peer.is_some_and(|pod| is_known(pod.1)) && peers_tenant.is_none() {
        return match tenant.unassigned {
            "Allow" => allowed("unassigned"),
            "AllowEgress" if egress => allowed("unassigned"),
            _ => other(tenant, true),
        };
    }
    if is_outside(address) && tenant.external == "Allow" {
        return allowed("external");
    }
    other(tenant, peer.is_some())
}

/// What nothing has allowed.
fn other(tenant: &SampleTenant, is_pod: bool) -> ModelEnd {
    let by = if is_pod && !tenant.allowed.is_empty() { "otherPods" } else { "defaults.other" };
    ModelEnd { is_allowed: false, denied_by: Some(by.to_owned()), row: "else" }
}

fn consents(
    sample: &TenancySample,
    grant: &super::sample::SampleGrant,
    flow: &TenancyFlow,
    own: Pod<'_>,
    from: Option<&str>,
) -> bool {
    if grant.namespace != own.1 || !from.is_some_and(|tenant| grant.from.contains(&tenant)) {
        return false;
    }
    let is_asked = grant.ports.is_empty() || grant.ports.iter().any(|port| is_port(port, flow));
    match grant.to {
        SampleTarget::Pod(name) => is_asked && own.2 == name,
        SampleTarget::Pods(app) => is_asked && app.is_none_or(|app| app == sample.apps[own.0]),
        SampleTarget::Service(name) => {
            SERVICES.iter().any(|(namespace, service, _, port, target, endpoints)| {
                let is_service = *namespace == grant.namespace && name.is_none_or(|name| name == *service);
                let is_behind = endpoints.contains(&&*flow.destination.to_string());
                let is_meant = grant.ports.is_empty()
                    || grant
                        .ports
                        .iter()
                        .any(|(protocol, first, last)| *protocol == "TCP" && (*first..=*last).contains(port));
                is_service && is_behind && is_meant && flow.port == Some(("TCP", *target))
            })
        }
    }
}

/// Whether the destination is a Service's address and port, or those of what is behind it.
fn is_service(number: usize, flow: &TenancyFlow) -> bool {
    let (_, name, address, port, target, endpoints) = SERVICES[number];
    let destination = flow.destination.to_string();
    let protocols = if name == "kube-dns" { &["TCP", "UDP"][..] } else { &["TCP"] };
    let is_asked =
        |asked: u16| flow.port.is_some_and(|(protocol, port)| protocols.contains(&protocol) && port == asked);
    (destination == address && is_asked(port)) || (endpoints.contains(&&*destination) && is_asked(target))
}

fn is_peer(sample: &TenancySample, peer: &TenancyPeer, address: IpAddr) -> bool {
    let pod = pod_at(sample, address);
    match peer {
        TenancyPeer::Pods { tenant, namespaces, app } => pod.is_some_and(|pod| {
            is_known(pod.1)
                && tenant.is_none_or(|tenant| owner(sample, pod.1) == Some(tenant))
                && (namespaces.is_empty() || namespaces.contains(&pod.1))
                && app.is_none_or(|app| pod.3 == app)
        }),
        TenancyPeer::Block(net, except) => {
            is_in(net, address) && !except.is_some_and(|part| is_in(part, address))
        }
        TenancyPeer::Entity("Node") => NODE.contains(&&*address.to_string()),
        TenancyPeer::Entity("APIServer") => [SERVICES[2].2, OTHER_NODE].contains(&&*address.to_string()),
        TenancyPeer::Entity("World") => is_outside(address),
        TenancyPeer::Entity(_) => pod.is_some_and(|pod| is_known(pod.1) && owner(sample, pod.1).is_none()),
    }
}

fn is_outside(address: IpAddr) -> bool {
    let text = address.to_string();
    let is_pod = PODS.iter().any(|(_, _, addresses)| addresses.contains(&&*text));
    !is_pod
        && !NODE.contains(&&*text)
        && text != OTHER_NODE
        && SERVICES.iter().all(|service| service.2 != text)
}

fn is_port((protocol, first, last): &TenancyPort, flow: &TenancyFlow) -> bool {
    flow.port.is_some_and(|(of, port)| of == *protocol && (*first..=*last).contains(&port))
}

fn is_in(net: &str, address: IpAddr) -> bool {
    net.parse::<IpNet>().unwrap().contains(&address)
}

fn pod_at(sample: &TenancySample, address: IpAddr) -> Option<Pod<'_>> {
    let text = address.to_string();
    let number = PODS.iter().position(|(_, _, addresses)| addresses.contains(&&*text))?;
    Some((number, PODS[number].0, PODS[number].1, sample.apps[number]))
}

/// A pod of a namespace that is not known is in no tenant, not without one, and not outside.
fn is_known(namespace: &str) -> bool {
    NAMESPACES.contains(&namespace)
}

/// All tenants of a sample are of one age, so that the first by name has what several claim.
fn owner(sample: &TenancySample, namespace: &str) -> Option<&'static str> {
    let number = NAMESPACES.iter().position(|name| *name == namespace)?;
    let claims = |tenant: &&SampleTenant| {
        tenant.namespaces.contains(&namespace) || tenant.team == Some(sample.teams[number])
    };
    sample.tenants.iter().filter(claims).map(|tenant| tenant.name).min()
}
