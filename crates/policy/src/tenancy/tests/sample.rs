//! Random tenants of a small cluster: few names, addresses and ports, so that much meets.

use std::net::IpAddr;
use std::sync::OnceLock;

use facts::networkpolicy::PolicyProtocol;
use facts::{NetworkTenant, TenantGrant};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::super::{TenantMembership, TenantSurroundings, tenant_section};
use crate::{FlowRoute, PlainPod, PlainWorld, PolicyFlow, PolicyTerms, Traffic};

/// Namespace, name, addresses.
pub(crate) const PODS: [(&str, &str, [&str; 2]); 8] = [
    ("a", "p0", ["10.0.0.1", "fd00::1"]),
    ("a", "p1", ["10.0.0.2", "fd00::2"]),
    ("b", "p0", ["10.0.1.1", "fd00:1::1"]),
    ("c", "p0", ["10.0.2.1", "fd00:2::1"]),
    ("c", "p1", ["10.0.2.2", "fd00:2::2"]),
    ("d", "p0", ["10.0.3.1", "fd00:3::1"]),
    ("kube-system", "dns", ["10.0.9.1", "fd00:9::1"]),
    // Nothing tells of its namespace.
    ("nobody", "p0", ["10.0.8.1", "fd00:8::1"]),
];
pub(crate) const NAMESPACES: [&str; 5] = ["a", "b", "c", "d", "kube-system"];
/// All pods run on it.
pub(crate) const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub(crate) const OTHER_NODE: &str = "192.0.2.2";
/// Namespace, name, address, port, port behind it, endpoints.
type SampleService = (&'static str, &'static str, &'static str, u16, u16, &'static [&'static str]);
pub(crate) const SERVICES: [SampleService; 4] = [
    ("c", "web", "10.96.0.10", 80, 8080, &["10.0.2.1"]),
    // Whoever writes it points to a pod of another namespace.
    ("d", "odd", "10.96.0.11", 80, 8080, &["10.0.3.1", "10.0.0.2"]),
    ("default", "kubernetes", "10.96.0.1", 443, 6443, &[OTHER_NODE]),
    ("kube-system", "kube-dns", "10.96.0.53", 53, 53, &["10.0.9.1"]),
];
const OUTSIDE: [&str; 3] = ["203.0.113.9", "169.254.169.254", "2001:db8:9::1"];
const RANGES: [&str; 8] = [
    "0.0.0.0/0",
    "::/0",
    "203.0.113.0/24",
    "203.0.113.9/32",
    "10.0.0.0/16",
    "10.0.0.2/32",
    "10.96.0.0/16",
    "192.0.2.0/24",
];
const PORTS: [u16; 6] = [53, 80, 443, 6443, 8080, 9090];
pub(crate) const TENANTS: [&str; 3] = ["red", "blue", "green"];

#[derive(Debug, Clone)]
pub(crate) struct TenancySample {
    pub(crate) tenants: Vec<SampleTenant>,
    pub(crate) grants: Vec<SampleGrant>,
    /// The value of `app` of each pod.
    pub(crate) apps: Vec<&'static str>,
    /// The value of `team` of each namespace.
    pub(crate) teams: Vec<&'static str>,
    /// Whether a NetworkPolicy of namespace `a` allows nothing to its pods.
    pub(crate) closed: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct SampleTenant {
    pub(crate) name: &'static str,
    pub(crate) namespaces: Vec<&'static str>,
    pub(crate) team: Option<&'static str>,
    pub(crate) allowed: Vec<&'static str>,
    pub(crate) denied: Vec<&'static str>,
    /// Numbers of [`SERVICES`], and of one of its ports.
    pub(crate) services: Vec<(usize, Option<u16>)>,
    pub(crate) rules: [Vec<TenancyRule>; 2],
    pub(crate) external: &'static str,
    pub(crate) unassigned: &'static str,
    pub(crate) system: [bool; 2],
    pub(crate) enforcement: &'static str,
}

#[derive(Debug, Clone)]
pub(crate) struct TenancyRule {
    pub(crate) denies: bool,
    pub(crate) peers: Vec<TenancyPeer>,
    pub(crate) ports: Vec<TenancyPort>,
}

/// Protocol, first and last.
pub(crate) type TenancyPort = (&'static str, u16, u16);

#[derive(Debug, Clone)]
pub(crate) enum TenancyPeer {
    Pods { tenant: Option<&'static str>, namespaces: Vec<&'static str>, app: Option<&'static str> },
    Block(&'static str, Option<&'static str>),
    Entity(&'static str),
}

#[derive(Debug, Clone)]
pub(crate) struct SampleGrant {
    pub(crate) namespace: &'static str,
    pub(crate) from: Vec<&'static str>,
    pub(crate) to: SampleTarget,
    pub(crate) ports: Vec<TenancyPort>,
}

#[derive(Debug, Clone)]
pub(crate) enum SampleTarget {
    Service(Option<&'static str>),
    Pod(&'static str),
    Pods(Option<&'static str>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct TenancyFlow {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Nothing for ICMP.
    pub(crate) port: Option<(&'static str, u16)>,
}

fn ports() -> impl Strategy<Value = Vec<TenancyPort>> {
    let port = (select(&["TCP", "TCP", "UDP"][..]), select(&PORTS[..]), select(&[0, 0, 1000][..]));
    vec(port.prop_map(|(protocol, first, more)| (protocol, first, first + more)), 0..=2)
}

fn rule() -> impl Strategy<Value = TenancyRule> {
    let pods = (
        option::of(select(&TENANTS[..])),
        vec(select(&NAMESPACES[..]), 0..=2),
        option::of(select(&["x", "y"][..])),
    );
    let pods = pods.prop_map(|(tenant, mut namespaces, app)| {
        namespaces.sort_unstable();
        namespaces.dedup();
        let tenant = if namespaces.is_empty() { tenant.or(Some("red")) } else { tenant };
        TenancyPeer::Pods { tenant, namespaces, app }
    });
    let block = prop_oneof![
        select(&RANGES[..]).prop_map(|net| TenancyPeer::Block(net, None)),
        Just(TenancyPeer::Block("0.0.0.0/0", Some("10.0.0.0/16"))),
    ];
    let entity = select(&["Node", "APIServer", "World", "Unassigned"][..]).prop_map(TenancyPeer::Entity);
    (any::<bool>(), vec(prop_oneof![3 => pods, 1 => block, 2 => entity], 1..=2), ports())
        .prop_map(|(denies, peers, ports)| TenancyRule { denies, peers, ports })
}

fn tenant(name: &'static str) -> impl Strategy<Value = SampleTenant> {
    let ranges = || {
        vec(select(&RANGES[..]), 0..=2).prop_map(|mut ranges| {
            ranges.sort_unstable();
            ranges.dedup();
            ranges
        })
    };
    let namespaces = vec(select(&NAMESPACES[..4]), 1..=2);
    let few = prop_oneof![3 => Just(Vec::new()), 1 => ranges()];
    let services = vec((0..SERVICES.len(), option::of(select(&PORTS[..]))), 0..=2);
    let defaults = (select(&["Deny", "Deny", "Allow"][..]), select(&["Deny", "Allow", "AllowEgress"][..]));
    let others = (any::<[bool; 2]>(), select(&["Enforce", "Enforce", "Enforce", "Audit", "Off"][..]));
    let rules = || vec(rule(), 0..=2);
    (
        (namespaces, option::weighted(0.2, select(&["t", "u"][..]))),
        (ranges(), few),
        services,
        (rules(), rules()),
        defaults,
        others,
    )
        .prop_map(
            move |(
                (mut namespaces, team),
                (allowed, denied),
                mut services,
                rules,
                defaults,
                (system, enforcement),
            )| {
                namespaces.sort_unstable();
                namespaces.dedup();
                services.sort_unstable();
                services.dedup_by_key(|one| one.0);
                let everything = denied.iter().any(|net| net.ends_with("/0"));
                let external = if everything { "Deny" } else { defaults.0 };
                let (unassigned, rules) = (defaults.1, [rules.0, rules.1]);
                SampleTenant {
                    name,
                    namespaces,
                    team,
                    allowed,
                    denied,
                    services,
                    rules,
                    external,
                    unassigned,
                    system,
                    enforcement,
                }
            },
        )
}

fn grant() -> impl Strategy<Value = SampleGrant> {
    let to = prop_oneof![
        option::of(select(&["web", "odd"][..])).prop_map(SampleTarget::Service),
        select(&["p0", "p1"][..]).prop_map(SampleTarget::Pod),
        option::of(select(&["x", "y"][..])).prop_map(SampleTarget::Pods),
    ];
    (select(&NAMESPACES[..4]), vec(select(&TENANTS[..]), 1..=2), to, ports()).prop_map(
        |(namespace, mut from, to, ports)| {
            from.sort_unstable();
            from.dedup();
            SampleGrant { namespace, from, to, ports }
        },
    )
}

impl TenancySample {
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        let tenants = TENANTS.map(|name| option::weighted(0.8, tenant(name)));
        let apps = vec(select(&["x", "y"][..]), PODS.len());
        let teams = vec(select(&["t", "u", "v"][..]), NAMESPACES.len());
        (tenants, vec(grant(), 0..=4), apps, teams, any::<bool>()).prop_map(
            |(tenants, grants, apps, teams, closed)| Self {
                tenants: tenants.into_iter().flatten().collect(),
                grants,
                apps,
                teams,
                closed,
            },
        )
    }

    pub(crate) fn membership(&self) -> TenantMembership {
        let mut membership = TenantMembership::default();
        for (name, team) in NAMESPACES.into_iter().zip(&self.teams) {
            let labels = [("team", *team), ("kubernetes.io/metadata.name", name)];
            membership.namespace(name, Some(labels.into_iter().collect()));
        }
        self.tenants.iter().for_each(|tenant| drop(membership.tenant(tenant.name, Some(&tenant.object()))));
        membership
    }

    /// The cluster, with tenants as policies.
    pub(crate) fn world(&self) -> PlainWorld {
        let mut world = PlainWorld::default();
        let membership = self.membership();
        for name in NAMESPACES {
            world.put_namespace(name, facts::Namespace { labels: membership.labels(name).unwrap() });
        }
        world.put_node("n1", NODE.map(|one| one.parse().unwrap()).into());
        world.put_node("n2", vec![OTHER_NODE.parse().unwrap()]);
        for ((namespace, name, addresses), app) in PODS.into_iter().zip(&self.apps) {
            let object = json!({"metadata": {"labels": {"app": app}}, "spec": {"nodeName": "n1"},
                "status": {"phase": "Running", "podIPs": addresses.map(|one| json!({"ip": one}))}});
            let facts = serde_json::from_value(object).unwrap();
            world.put_pod(PlainPod {
                namespace: namespace.into(),
                name: name.into(),
                is_enrolled: false,
                facts,
            });
        }
        for (namespace, name, address, number, target, endpoints) in SERVICES {
            let protocols = if name == "kube-dns" { &["TCP", "UDP"][..] } else { &["TCP"] };
            let ports = |port: u16| -> Vec<Value> {
                protocols
                    .iter()
                    .map(|protocol| json!({"name": protocol, "protocol": protocol, "port": port}))
                    .collect()
            };
            let service = json!({"spec": {"clusterIPs": [address], "ports": ports(number)}});
            world.put_service(namespace, name, serde_json::from_value(service).unwrap());
            let slice = json!({"metadata": {"labels": {"kubernetes.io/service-name": name}}, "ports": ports(target),
                "endpoints": endpoints.iter().map(|one| json!({"addresses": [one]})).collect::<Vec<_>>()});
            world.put_slice(namespace, name, serde_json::from_value(slice).unwrap());
        }
        if self.closed {
            let policy =
                json!({"metadata": {"namespace": "a", "name": "closed"}, "spec": {"podSelector": {}}});
            world.put_networkpolicy(&serde_json::from_value(policy).unwrap());
        }
        for terms in self.all_terms(&world) {
            world.put_policy(terms);
        }
        world
    }

    /// The tenants as policies.
    pub(crate) fn all_terms(&self, world: &PlainWorld) -> Vec<PolicyTerms> {
        self.tenants.iter().filter_map(|tenant| self.terms(world, tenant.name)).collect()
    }

    pub(crate) fn terms(&self, world: &PlainWorld, name: &str) -> Option<PolicyTerms> {
        let membership = self.membership();
        let grants: Vec<TenantGrant> =
            self.grants.iter().enumerate().map(|(number, grant)| grant.object(number)).collect();
        let of_tenant = grants
            .iter()
            .filter(|grant| membership.owner(&grant.namespace) == Some(name))
            .collect::<Vec<_>>();
        let mut around = TenantSurroundings::of(world, "n1");
        around.dns.push(("kube-system".into(), "kube-dns".into()));
        let tenant = self.tenants.iter().find(|tenant| tenant.name == name)?.object();
        tenant_section(&tenant, &of_tenant, &around, world)
    }
}

fn port_objects(ports: &[TenancyPort]) -> Vec<Value> {
    let object =
        |(protocol, first, last): &TenancyPort| json!({"protocol": protocol, "port": first, "endPort": last});
    ports.iter().map(object).collect()
}

impl SampleTenant {
    pub(crate) fn object(&self) -> NetworkTenant {
        let services = self.services.iter().map(|(number, port)| {
            let (namespace, name, ..) = SERVICES[*number];
            let mut service = json!({"namespace": namespace, "name": name});
            if let Some(port) = port {
                service["ports"] = json!([{"port": port}]);
            }
            service
        });
        let rules = |rules: &[TenancyRule]| -> Vec<Value> {
            rules.iter().enumerate().map(|(number, rule)| rule.object(number)).collect()
        };
        let system = self.system.map(|allows| if allows { "Allow" } else { "Deny" });
        let mut spec = json!({"namespaces": self.namespaces, "allowedIPRanges": self.allowed, "deniedIPRanges": self.denied,
            "allowedServices": services.collect::<Vec<_>>(),
            "networkPolicy": {"egressRules": rules(&self.rules[0]), "ingressRules": rules(&self.rules[1])},
            "defaults": {"external": self.external, "unassigned": self.unassigned}, "system": {"dns": system[0], "apiServer": system[1]},
            "enforcement": self.enforcement});
        if let Some(team) = self.team {
            spec["namespaceSelector"] = json!({"matchLabels": {"team": team}});
        }
        let tenant: NetworkTenant =
            serde_json::from_value(json!({"metadata": {"name": self.name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec})).unwrap();
        assert!(tenant.faults.is_empty(), "{:?}", tenant.faults);
        tenant
    }
}

impl TenancyRule {
    fn object(&self, number: usize) -> Value {
        let peers: Vec<Value> = self.peers.iter().map(TenancyPeer::object).collect();
        let mut rule = json!({"name": format!("r{number}"), "action": if self.denies { "Deny" } else { "Allow" }, "peers": peers});
        if !self.ports.is_empty() {
            rule["ports"] = json!(port_objects(&self.ports));
        }
        rule
    }
}

impl TenancyPeer {
    fn object(&self) -> Value {
        match self {
            Self::Entity(entity) => json!({"entity": entity}),
            Self::Block(net, except) => {
                json!({"ipBlock": {"cidr": net, "except": except.iter().collect::<Vec<_>>()}})
            }
            Self::Pods { tenant, namespaces, app } => {
                let mut peer = json!({});
                if let Some(tenant) = tenant {
                    peer["tenant"] = json!(tenant);
                }
                if !namespaces.is_empty() {
                    peer["namespaces"] = json!(namespaces);
                }
                if let Some(app) = app {
                    peer["podSelector"] = json!({"matchLabels": {"app": app}});
                }
                peer
            }
        }
    }
}

impl SampleGrant {
    pub(crate) fn object(&self, number: usize) -> TenantGrant {
        let to = match self.to {
            SampleTarget::Service(None) => json!({"kind": "Service"}),
            SampleTarget::Service(Some(name)) => json!({"kind": "Service", "name": name}),
            SampleTarget::Pod(name) => json!({"kind": "Pod", "name": name}),
            SampleTarget::Pods(None) => json!({"kind": "Pod"}),
            SampleTarget::Pods(Some(app)) => {
                json!({"kind": "Pod", "podSelector": {"matchLabels": {"app": app}}})
            }
        };
        let from: Vec<Value> = self.from.iter().map(|tenant| json!({"tenant": tenant})).collect();
        let mut spec = json!({"from": from, "to": [to]});
        if !self.ports.is_empty() {
            spec["ports"] = json!(port_objects(&self.ports));
        }
        let metadata = json!({"namespace": self.namespace, "name": format!("g{number}")});
        let grant: TenantGrant = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        assert!(grant.faults.is_empty(), "{:?}", grant.faults);
        grant
    }
}

impl TenancyFlow {
    /// Between all addresses of a family, at least one of which is a pod's.
    pub(crate) fn all() -> &'static [Self] {
        static ALL: OnceLock<Vec<TenancyFlow>> = OnceLock::new();
        ALL.get_or_init(Self::made)
    }

    fn made() -> Vec<Self> {
        let pods: Vec<&str> = PODS.iter().flat_map(|(_, _, addresses)| *addresses).collect();
        let services = SERVICES.iter().map(|service| service.2);
        let others = NODE.into_iter().chain([OTHER_NODE]).chain(services).chain(OUTSIDE);
        let addresses: Vec<IpAddr> =
            pods.iter().copied().chain(others).map(|one| one.parse().unwrap()).collect();
        let ports = [Some(("TCP", 80)), Some(("TCP", 8080)), Some(("UDP", 53)), Some(("TCP", 6443)), None];
        let mut found = Vec::new();
        for source in &addresses {
            for destination in addresses.iter().filter(|one| one.is_ipv4() == source.is_ipv4()) {
                let is_pod = |address: &IpAddr| pods.iter().any(|pod| *pod == address.to_string());
                if is_pod(source) || is_pod(destination) {
                    found.extend(ports.map(|port| Self { source: *source, destination: *destination, port }));
                }
            }
        }
        found
    }

    pub(crate) fn flow(&self) -> PolicyFlow {
        let traffic = self.port.map_or(Traffic::Portless, |(protocol, port)| {
            Traffic::Port(PolicyProtocol::parse(Some(protocol)).unwrap(), port)
        });
        PolicyFlow { source: self.source, destination: self.destination, traffic, route: FlowRoute::Direct }
    }
}
