//! Random clusters: few names, labels, addresses and ports, so that much meets.

use std::net::IpAddr;

use facts::networkpolicy::PolicyProtocol;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::{FlowRoute, PlainPod, PlainWorld, PolicyFlow, Traffic};

pub(crate) type Labels = std::collections::BTreeMap<&'static str, &'static str>;

#[derive(Debug, Clone)]
pub(crate) struct SampleWorld {
    /// Those that are known, of `x`, `y` and `z`.
    pub(crate) namespaces: std::collections::BTreeMap<&'static str, Labels>,
    pub(crate) pods: Vec<SamplePod>,
    pub(crate) policies: Vec<SamplePolicy>,
}

#[derive(Debug, Clone)]
pub(crate) struct SamplePod {
    pub(crate) namespace: &'static str,
    pub(crate) labels: Labels,
    pub(crate) addresses: Vec<&'static str>,
    pub(crate) node: &'static str,
    pub(crate) phase: &'static str,
    pub(crate) host_network: bool,
    pub(crate) deleting: bool,
    /// Name, protocol, number.
    pub(crate) ports: Vec<(&'static str, &'static str, u16)>,
}

#[derive(Debug, Clone)]
pub(crate) struct SamplePolicy {
    pub(crate) namespace: &'static str,
    pub(crate) subjects: Vec<SampleTerm>,
    pub(crate) types: Vec<&'static str>,
    pub(crate) tried_out: bool,
    pub(crate) ingress: Vec<SampleRule>,
    pub(crate) egress: Vec<SampleRule>,
}

#[derive(Debug, Clone)]
pub(crate) struct SampleRule {
    pub(crate) peers: Vec<SamplePeer>,
    pub(crate) ports: Vec<SamplePort>,
}

/// A requirement of a selector: `None` has no operator that there is.
#[derive(Debug, Clone)]
pub(crate) struct SampleTerm {
    pub(crate) key: &'static str,
    pub(crate) operator: &'static str,
    pub(crate) values: Vec<&'static str>,
}

#[derive(Debug, Clone)]
pub(crate) struct SamplePeer {
    pub(crate) pods: Option<Vec<SampleTerm>>,
    pub(crate) namespaces: Option<Vec<SampleTerm>>,
    pub(crate) block: Option<(&'static str, Vec<&'static str>)>,
}

#[derive(Debug, Clone)]
pub(crate) struct SamplePort {
    pub(crate) protocol: &'static str,
    pub(crate) number: Option<u16>,
    pub(crate) name: Option<&'static str>,
    pub(crate) end: Option<u16>,
}

#[derive(Debug, Clone)]
pub(crate) struct SampleFlow {
    pub(crate) source: &'static str,
    pub(crate) destination: &'static str,
    /// A name, or `ICMP`.
    pub(crate) protocol: &'static str,
    pub(crate) port: u16,
    pub(crate) route: FlowRoute,
}

pub(crate) const NODES: [(&str, &[&str]); 2] =
    [("n1", &["192.0.2.1", "10.0.0.254", "2001:db8::1"]), ("n2", &["192.0.2.2"])];
/// Of pods, of a node, and of nobody.
pub(crate) const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "10.0.1.2",
    "fd00::1",
    "fd00:1::1",
    "192.0.2.1",
    "192.0.2.2",
    "203.0.113.9",
];
const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const POD_ADDRESSES: [&str; 7] =
    ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.0.1.2", "fd00::1", "fd00:1::1", "192.0.2.1"];
const OTHERS: [&str; 5] = ["192.0.2.1", "192.0.2.2", "10.0.0.254", "203.0.113.9", "2001:db8::9"];
const NETS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.1.0/24",
    "10.0.0.2/32",
    "10.0.1.7/30",
    "192.0.2.0/24",
    "::/0",
    "fd00::/64",
    "fd00::2/128",
    "::ffff:10.0.0.0/120",
    "10.0.0.0",
];
/// With an exception that an API server takes.
const CUT: [(&str, &str); 5] = [
    ("0.0.0.0/0", "10.0.0.0/24"),
    ("10.0.0.0/24", "10.0.0.2/32"),
    ("10.0.0.0/8", "10.0.1.0/24"),
    ("0.0.0.0/0", "203.0.113.0/24"),
    ("::/0", "fd00::/64"),
];
const NUMBERS: [u16; 6] = [0, 53, 80, 8080, 15008, 65535];
const NAMES: [&str; 5] = ["http", "http", "http", "dns", "no--name"];

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(select(&["app", "team"][..]), select(&["a", "b"][..]), 0..=2)
}

fn selector() -> impl Strategy<Value = Vec<SampleTerm>> {
    let operators = select(&["", "", "", "In", "In", "NotIn", "NotIn", "Exists", "DoesNotExist"][..]);
    let operators = prop_oneof![30 => operators, 1 => Just("Gt")];
    let term = (select(&["app", "app", "team"][..]), operators, vec(select(&["a", "b", "c"][..]), 1..=2));
    let term = term.prop_map(|(key, operator, mut values)| {
        match operator {
            "" => values = vec![values.first().copied().unwrap_or("a")],
            // Mostly as an API server takes it.
            "Exists" | "DoesNotExist" if values != ["c"] => values.clear(),
            "In" if values == ["c", "c"] => values.clear(),
            _ => {}
        }
        SampleTerm { key, operator, values }
    });
    prop_oneof![Just(0), Just(0), Just(1), Just(2)].prop_flat_map(move |count| vec(term.clone(), count))
}

fn peer() -> impl Strategy<Value = SamplePeer> {
    let block = || {
        let any = (select(&NETS[..]), vec(select(&NETS[..]), 0..=1));
        prop_oneof![any, select(&CUT[..]).prop_map(|(net, except)| (net, vec![except]))]
    };
    let made = |pods, namespaces, block| SamplePeer { pods, namespaces, block };
    prop_oneof![
        4 => selector().prop_map(move |pods| made(Some(pods), None, None)),
        4 => (option::of(selector()), selector()).prop_map(move |(pods, all)| made(pods, Some(all), None)),
        4 => block().prop_map(move |block| made(None, None, Some(block))),
        1 => (option::of(selector()), option::of(selector()), option::of(block()))
            .prop_map(move |(pods, namespaces, block)| made(pods, namespaces, block)),
    ]
}

fn port() -> impl Strategy<Value = SamplePort> {
    let protocols = select(&["TCP", "TCP", "UDP", "SCTP"][..]);
    let number = option::weighted(0.8, select(&NUMBERS[..]));
    let (name, end) =
        (option::weighted(0.35, select(&NAMES[..])), option::weighted(0.15, select(&NUMBERS[..])));
    let any = (protocols, number, name, end).prop_map(|(protocol, number, name, end)| SamplePort {
        protocol,
        number: number.filter(|_| name.is_none()),
        name,
        end,
    });
    let tunnel = SamplePort { protocol: "TCP", number: Some(15008), name: None, end: None };
    prop_oneof![5 => any, 1 => Just(tunnel)]
}

fn rule() -> impl Strategy<Value = SampleRule> {
    (vec(peer(), 0..=2), vec(port(), 0..=2)).prop_map(|(peers, ports)| SampleRule { peers, ports })
}

fn policy() -> impl Strategy<Value = SamplePolicy> {
    let types = prop_oneof![
        3 => Just(vec![]), 3 => Just(vec!["Ingress"]), 3 => Just(vec!["Egress"]), 3 => Just(vec!["Egress", "Ingress"]),
        1 => Just(vec!["Ingress", "egress"]),
    ];
    let tried_out = prop_oneof![5 => Just(false), 1 => Just(true)];
    (select(&NAMESPACES[..]), selector(), (types, tried_out), vec(rule(), 0..=2), vec(rule(), 0..=2))
        .prop_map(|(namespace, subjects, (types, tried_out), ingress, egress)| SamplePolicy {
            namespace,
            subjects,
            types,
            tried_out,
            ingress,
            egress,
        })
}

pub(crate) fn pod() -> impl Strategy<Value = SamplePod> {
    let phases = select(
        &["Running", "Running", "Running", "Running", "Pending", "Unknown", "Succeeded", "Failed"][..],
    );
    let protocols = select(&["TCP", "TCP", "TCP", "UDP", "SCTP"][..]);
    let ports = (select(&NAMES[..]), protocols, select(&NUMBERS[..]));
    let flags =
        (select(&["n1", "n2"][..]), phases, proptest::bool::weighted(0.1), proptest::bool::weighted(0.1));
    (select(&NAMESPACES[..]), labels(), vec(select(&POD_ADDRESSES[..]), 1..=2), flags, vec(ports, 0..=2))
        .prop_map(|(namespace, labels, mut addresses, (node, phase, host_network, deleting), ports)| {
            addresses.dedup();
            SamplePod { namespace, labels, addresses, node, phase, host_network, deleting, ports }
        })
}

impl SampleWorld {
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        (btree_map(select(&NAMESPACES[..]), labels(), 2..=3), vec(pod(), 5..=9), vec(policy(), 0..=5))
            .prop_map(|(namespaces, pods, policies)| Self { namespaces, pods, policies })
    }

    /// The same as objects, read as the API gives them.
    pub(crate) fn plain(&self) -> PlainWorld {
        let mut world = PlainWorld::default();
        for (node, addresses) in NODES {
            world.put_node(node, addresses.iter().map(|one| one.parse().unwrap()).collect());
        }
        for (name, labels) in &self.namespaces {
            world.put_namespace(
                name,
                serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap(),
            );
        }
        for (number, pod) in self.pods.iter().enumerate() {
            world.put_pod(pod.plain(number));
        }
        for (number, policy) in self.policies.iter().enumerate() {
            world.put_networkpolicy(&policy.object(number));
        }
        world
    }
}

impl SamplePod {
    /// One that runs on node `n1` in namespace `x`, at `10.0.0.1`.
    pub(crate) fn running(labels: Labels) -> Self {
        Self {
            namespace: "x",
            labels,
            addresses: vec!["10.0.0.1"],
            node: "n1",
            phase: "Running",
            host_network: false,
            deleting: false,
            ports: vec![],
        }
    }

    /// Those with greater numbers are younger.
    pub(crate) fn plain(&self, number: usize) -> PlainPod {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(name, protocol, number)| json!({"name": name, "protocol": protocol, "containerPort": number}))
            .collect();
        let ips: Vec<Value> = self.addresses.iter().map(|one| json!({"ip": one})).collect();
        let mut metadata =
            json!({"labels": self.labels, "creationTimestamp": format!("2026-11-29T00:00:{number:02}Z")});
        if self.deleting {
            metadata["deletionTimestamp"] = json!("2026-11-30T00:00:00Z");
        }
        let object = json!({"metadata": metadata,
            "spec": {"nodeName": self.node, "hostNetwork": self.host_network, "containers": [{"ports": ports}]}, "status": {"phase": self.phase, "podIPs": ips}});
        PlainPod {
            namespace: self.namespace.into(),
            name: format!("p{number}").into(),
            is_enrolled: self.labels.len() % 2 == 1,
            facts: serde_json::from_value(object).unwrap(),
        }
    }
}

impl SamplePolicy {
    pub(crate) fn object(&self, number: usize) -> facts::NetworkPolicy {
        let mut spec = json!({"podSelector": selector_json(&self.subjects), "policyTypes": self.types});
        for (field, peers, rules) in [("ingress", "from", &self.ingress), ("egress", "to", &self.egress)] {
            let rules: Vec<Value> = rules.iter().map(|rule| rule.json(peers)).collect();
            spec[field] = json!(rules);
        }
        let mut metadata = json!({"namespace": self.namespace, "name": format!("n{number}")});
        if self.tried_out {
            metadata["annotations"] = json!({"policy.cni.istio.io/mode": "audit"});
        }
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }
}

fn selector_json(terms: &[SampleTerm]) -> Value {
    let mut expressions = Vec::new();
    let mut labels = serde_json::Map::new();
    for SampleTerm { key, operator, values } in terms {
        // A key stands in matchLabels once.
        match *operator {
            "" if !labels.contains_key(*key) => drop(labels.insert((*key).to_owned(), json!(values[0]))),
            "" => expressions.push(json!({"key": key, "operator": "In", "values": values})),
            _ => expressions.push(json!({"key": key, "operator": operator, "values": values})),
        }
    }
    json!({"matchLabels": labels, "matchExpressions": expressions})
}

impl SampleRule {
    fn json(&self, peers: &str) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(SamplePort::json).collect();
        let all: Vec<Value> = self.peers.iter().map(SamplePeer::json).collect();
        json!({peers: all, "ports": ports})
    }
}

impl SamplePeer {
    fn json(&self) -> Value {
        let mut peer = json!({});
        if let Some(pods) = &self.pods {
            peer["podSelector"] = selector_json(pods);
        }
        if let Some(namespaces) = &self.namespaces {
            peer["namespaceSelector"] = selector_json(namespaces);
        }
        if let Some((net, except)) = &self.block {
            peer["ipBlock"] = json!({"cidr": net, "except": except});
        }
        peer
    }
}

impl SamplePort {
    fn json(&self) -> Value {
        let mut port = json!({"protocol": self.protocol});
        if let Some(number) = self.number {
            port["port"] = json!(number);
        }
        if let Some(name) = self.name {
            port["port"] = json!(name);
        }
        if let Some(end) = self.end {
            port["endPort"] = json!(end);
        }
        port
    }
}

impl SampleFlow {
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        let end = || prop_oneof![6 => select(&POD_ADDRESSES[..]), 1 => select(&OTHERS[..])];
        let protocol = select(&["TCP", "TCP", "TCP", "UDP", "SCTP", "ICMP"][..]);
        let route = select(&[FlowRoute::Direct, FlowRoute::Service, FlowRoute::Tunnel][..]);
        (end(), end(), protocol, select(&NUMBERS[1..]), route).prop_map(
            |(source, destination, protocol, port, route)| Self {
                source,
                destination,
                // Only TCP goes through the tunnel.
                protocol: if route == FlowRoute::Tunnel { "TCP" } else { protocol },
                port,
                route,
            },
        )
    }

    pub(crate) fn flow(&self) -> PolicyFlow {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let traffic = match PolicyProtocol::parse(Some(self.protocol)) {
            Ok(protocol) => Traffic::Port(protocol, self.port),
            Err(_) => Traffic::Portless,
        };
        PolicyFlow {
            source: address(self.source),
            destination: address(self.destination),
            traffic,
            route: self.route,
        }
    }
}
