//! Random policies and tenants in kernels: what they mean, what their rules do by the evaluator, and what real packets do are the same, whichever way the rules
//! were loaded, in the namespaces of pods and in those of nodes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;

use agreement::cluster::{Cluster, Layout, Mesh, Tried};
use agreement::lab::Loader;
use agreement::run::{SEED, runner};
use anyhow::{Context as _, Result};
use facts::{Namespace, NetworkTenant, TenantGrant};
use policy::compiled::{CompiledNodes, CompiledPods};
use policy::tenancy::{TenantMembership, TenantSurroundings, tenant_section};
use policy::{FlowRoute, PlainPod, PlainWorld, PolicyFlow, Traffic, World as _, verdict};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

const CASES: u32 = 12;
const SHRINK: u32 = 40;
/// Namespace, name, node and addresses of each pod.
const PODS: [(&str, &str, &str, [&str; 2]); 4] = [
    ("x", "a", "n1", ["10.0.1.1", "fd00:1::1"]),
    ("x", "b", "n2", ["10.0.2.1", "fd00:2::1"]),
    ("y", "a", "n1", ["10.0.1.2", "fd00:1::2"]),
    ("y", "b", "n2", ["10.0.2.2", "fd00:2::2"]),
];
const NODES: [(&str, [&str; 2]); 2] =
    [("n1", ["192.0.2.1", "2001:db8::1"]), ("n2", ["192.0.2.2", "2001:db8::2"])];
const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
/// Blocks, and exceptions that an API server takes.
const BLOCKS: [(&str, &str); 5] = [
    ("0.0.0.0/0", "10.0.1.0/24"),
    ("10.0.0.0/8", "10.0.2.1/32"),
    ("192.0.2.0/24", "192.0.2.2/32"),
    ("::/0", "fd00:1::/64"),
    ("fd00::/16", "fd00:2::1/128"),
];

type Labels = BTreeMap<&'static str, &'static str>;
/// Labels of the namespaces and of the pods, policies (namespace and spec), and tenants with grants.
type Sample = (Vec<Labels>, Vec<Labels>, Vec<(&'static str, Value)>, Tenancy);
/// Specs of the tenants, and grants: namespace and spec.
type Tenancy = (Vec<Value>, Vec<(&'static str, Value)>);
/// From the older to the younger one.
const TENANTS: [&str; 2] = ["red", "blue"];

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(select(&["app", "team"][..]), select(&["a", "b"][..]), 0..=2)
}

fn selector() -> impl Strategy<Value = Value> {
    let one = (select(&["app", "team"][..]), select(&["In", "NotIn", "Exists", "DoesNotExist"][..]));
    let one = (one, select(&["a", "b"][..])).prop_map(|((key, operator), value)| {
        let values = if operator.ends_with("In") { json!([value]) } else { json!([]) };
        json!({"key": key, "operator": operator, "values": values})
    });
    vec(one, 0..=1).prop_map(|all| json!({"matchExpressions": all}))
}

fn peer() -> impl Strategy<Value = Value> {
    let block = (select(&BLOCKS[..]), any::<bool>()).prop_map(|((net, except), cut)| {
        json!({"ipBlock": if cut { json!({"cidr": net, "except": [except]}) } else { json!({"cidr": net}) }})
    });
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        (selector(), selector())
            .prop_map(|(all, pods)| json!({"namespaceSelector": all, "podSelector": pods})),
        block,
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        (select(&["TCP", "UDP"][..]), option::of(select(&[80, 81][..])), any::<bool>()).prop_map(
            |(protocol, number, range)| match number {
                Some(number) if range => json!({"protocol": protocol, "port": number, "endPort": number + 1}),
                Some(number) => json!({"protocol": protocol, "port": number}),
                None => json!({"protocol": protocol}),
            }
        ),
        select(&["http", "other"][..]).prop_map(|name| json!({"port": name})),
    ]
}

fn policy() -> impl Strategy<Value = (&'static str, Value)> {
    let rules = || vec((vec(peer(), 0..=2), vec(port(), 0..=2)), 0..=2);
    let types = select(vec![json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
    (select(&["x", "y"][..]), selector(), types, rules(), rules()).prop_map(
        |(namespace, subjects, types, ingress, egress)| {
            let written = |field: &str, rules: Vec<(Vec<Value>, Vec<Value>)>| -> Value {
                rules.into_iter().map(|(peers, ports)| json!({field: peers, "ports": ports})).collect()
            };
            let spec = json!({"podSelector": subjects, "policyTypes": types,
                "ingress": written("from", ingress), "egress": written("to", egress)});
            (namespace, spec)
        },
    )
}

fn tenant_rule() -> impl Strategy<Value = Value> {
    let block =
        select(&BLOCKS[..]).prop_map(|(net, except)| json!({"ipBlock": {"cidr": net, "except": [except]}}));
    let peer = prop_oneof![
        (select(&TENANTS[..]), option::of(selector())).prop_map(|(tenant, pods)| match pods {
            Some(pods) => json!({"tenant": tenant, "podSelector": pods}),
            None => json!({"tenant": tenant}),
        }),
        select(&["x", "y"][..]).prop_map(|namespace| json!({"namespaces": [namespace]})),
        select(&["World", "Unassigned"][..]).prop_map(|entity| json!({"entity": entity})),
        block,
    ];
    let port = (select(&["TCP", "UDP"][..]), select(&[80, 81][..]));
    let ports = vec(port.prop_map(|(protocol, number)| json!({"protocol": protocol, "port": number})), 0..=1);
    (select(&["Allow", "Allow", "Deny"][..]), vec(peer, 1..=2), ports).prop_map(|(action, peers, ports)| {
        let mut rule = json!({"action": action});
        for (field, all) in
            [("peers", peers), ("ports", ports)].into_iter().filter(|(_, all)| !all.is_empty())
        {
            rule[field] = all.into();
        }
        rule
    })
}

/// A namespace that both want is the older one's, and one that none wants has no tenant.
fn tenant() -> impl Strategy<Value = Value> {
    let ranges =
        || vec(select(&["203.0.113.0/24", "10.0.0.0/8", "::/0", "fd00:2::1/128", "192.0.2.1/32"][..]), 0..=1);
    let rules = || vec(tenant_rule(), 0..=2);
    let defaults = (select(&["Deny", "Allow"][..]), select(&["Deny", "Allow", "AllowEgress"][..]));
    let mode = select(&["Enforce", "Enforce", "Enforce", "Audit", "Off"][..]);
    let namespaces = select(vec![json!(["x"]), json!(["y"]), json!(["x", "y"]), json!(["z"])]);
    (namespaces, ranges(), ranges(), rules(), rules(), defaults, mode).prop_map(
        |(namespaces, allowed, denied, ingress, egress, (external, unassigned), mode)| {
            let named = |rules: Vec<Value>| -> Vec<Value> {
                let name = |(number, mut rule): (usize, Value)| {
                    rule["name"] = format!("r{number}").into();
                    rule
                };
                rules.into_iter().enumerate().map(name).collect()
            };
            // An API server takes no other.
            let external = if denied.contains(&"::/0") { "Deny" } else { external };
            json!({"namespaces": namespaces, "allowedIPRanges": allowed, "deniedIPRanges": denied,
                "networkPolicy": {"ingressRules": named(ingress), "egressRules": named(egress)},
                "defaults": {"external": external, "unassigned": unassigned}, "enforcement": mode})
        },
    )
}

fn tenancy() -> impl Strategy<Value = Tenancy> {
    let grant = (select(&["x", "y"][..]), select(&TENANTS[..]), option::of(select(&[80, 81][..])));
    let grant = grant.prop_map(|(namespace, from, port)| {
        let mut spec = json!({"from": [{"tenant": from}], "to": [{"kind": "Pod"}]});
        if let Some(port) = port {
            spec["ports"] = json!([{"port": port}]);
        }
        (namespace, spec)
    });
    (vec(tenant(), 0..=2), vec(grant, 0..=2))
}

/// Adds tenants as an agent sees them.
fn put_tenants(world: &mut PlainWorld, (tenants, grants): &Tenancy) -> Result<()> {
    let mut membership = TenantMembership::default();
    for name in ["x", "y"] {
        membership.namespace(name, world.namespace_labels(name).cloned());
    }
    let object = |(number, spec): (usize, &Value)| -> Result<NetworkTenant> {
        let metadata =
            json!({"name": TENANTS[number], "creationTimestamp": format!("2026-01-01T00:00:0{number}Z")});
        let tenant: NetworkTenant = serde_json::from_value(json!({"metadata": metadata, "spec": spec}))?;
        anyhow::ensure!(tenant.faults.is_empty(), "{:?}", tenant.faults);
        Ok(tenant)
    };
    let tenants: Vec<NetworkTenant> = tenants.iter().enumerate().map(object).collect::<Result<_>>()?;
    for tenant in &tenants {
        membership.tenant(&tenant.name, Some(tenant));
    }
    for name in ["x", "y"] {
        let labels = membership.labels(name).context("a namespace is there")?;
        world.put_namespace(name, Namespace { labels });
    }
    let grant = |(number, (namespace, spec)): (usize, &(&str, Value))| {
        let metadata = json!({"namespace": namespace, "name": format!("g{number}")});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec}))
    };
    let grants: Vec<TenantGrant> = grants.iter().enumerate().map(grant).collect::<Result<_, _>>()?;
    let around = TenantSurroundings::of(world, "n1");
    for tenant in &tenants {
        let is_of_it = |grant: &&TenantGrant| membership.owner(&grant.namespace) == Some(&*tenant.name);
        let grants: Vec<&TenantGrant> = grants.iter().filter(is_of_it).collect();
        let terms = tenant_section(tenant, &grants, &around, &*world);
        terms.into_iter().for_each(|terms| world.put_policy(terms));
    }
    Ok(())
}

fn world((namespaces, pods, policies, tenancy): &Sample) -> Result<PlainWorld> {
    let mut world = PlainWorld::default();
    for (name, addresses) in NODES {
        world.put_node(name, addresses.map(|one| one.parse()).into_iter().collect::<Result<_, _>>()?);
    }
    for (name, labels) in ["x", "y"].iter().zip(namespaces) {
        world.put_namespace(name, serde_json::from_value(json!({"metadata": {"labels": labels}}))?);
    }
    for ((namespace, name, node, addresses), labels) in PODS.iter().zip(pods) {
        let ips = addresses.map(|one| json!({"ip": one}));
        // The second pod of each namespace calls another number so.
        let number = if *name == "a" { 80 } else { 81 };
        let object = json!({"metadata": {"labels": labels}, "status": {"phase": "Running", "podIPs": ips},
            "spec": {"nodeName": node, "containers": [{"ports": [{"name": "http", "containerPort": number}]}]}});
        let facts = serde_json::from_value(object)?;
        let (namespace, name) = ((*namespace).into(), (*name).into());
        world.put_pod(PlainPod { namespace, name, is_enrolled: false, facts });
    }
    for (number, (namespace, spec)) in policies.iter().enumerate() {
        let metadata = json!({"namespace": namespace, "name": format!("n{number}")});
        world.put_networkpolicy(&serde_json::from_value(json!({"metadata": metadata, "spec": spec}))?);
    }
    put_tenants(&mut world, tenancy)?;
    Ok(world)
}

/// Connections between pods, a node and the outside, in both families.
fn flows() -> Result<Vec<PolicyFlow>> {
    let tcp = policy_protocol("TCP")?;
    let traffics = [
        Traffic::Port(tcp, 80),
        Traffic::Port(tcp, 81),
        Traffic::Port(policy_protocol("UDP")?, 80),
        Traffic::Portless,
    ];
    let mut flows = Vec::new();
    for family in 0..2 {
        let pods: Vec<IpAddr> =
            PODS.iter().map(|(.., addresses)| addresses[family].parse()).collect::<Result<_, _>>()?;
        let others: Vec<IpAddr> = vec![NODES[0].1[family].parse()?, OUTSIDE[family].parse()?];
        let pairs = pods.iter().flat_map(|one| pods.iter().map(move |other| (*one, *other)));
        let with_others =
            pods.iter().flat_map(|pod| others.iter().flat_map(|one| [(*pod, *one), (*one, *pod)]));
        for (source, destination) in pairs.chain(with_others).filter(|(one, other)| one != other) {
            let flow = |traffic| PolicyFlow { source, destination, traffic, route: FlowRoute::Direct };
            flows.extend(traffics.map(flow));
        }
    }
    Ok(flows)
}

fn policy_protocol(name: &str) -> Result<facts::networkpolicy::PolicyProtocol> {
    facts::networkpolicy::PolicyProtocol::parse(Some(name)).ok().context("a protocol of policies")
}

/// What is not as the policies mean it, in words.
fn disagreement(
    cluster: &mut Cluster,
    loader: Loader,
    in_nodes: bool,
    sample: &Sample,
    count: &Cell<[usize; 2]>,
) -> Result<Option<String>> {
    let world = world(sample)?;
    let (pods, nodes) = (
        CompiledPods::new(&world, loader.backend(), |_| false),
        CompiledNodes::new(&world, loader.backend()),
    );
    let mut tried = Vec::new();
    for flow in flows()? {
        let meant = verdict(&world, &flow);
        let evaluated = if in_nodes {
            nodes.judge(&flow).is_allowed
        } else {
            pods.egress(&flow, None).is_allowed && pods.ingress(&flow).is_allowed
        };
        if evaluated != meant.is_allowed() {
            return Ok(Some(format!("{loader:?}: {flow:?} is {meant}, but evaluated to {evaluated}")));
        }
        tried.push(Tried { flow, service: None, expected: evaluated });
    }
    if in_nodes {
        cluster.load_nodes(&nodes)?;
    } else {
        cluster.load(&world, &pods)?;
    }
    let found = cluster.run(&tried)?;
    let [all, allowed] = count.get();
    count.set([all + found.len(), allowed + found.iter().filter(|reached| **reached).count()]);
    let mut wrong = tried.iter().zip(found).filter(|(one, reached)| one.expected != *reached);
    Ok(wrong.next().map(|(one, reached)| {
        let meant = verdict(&world, &one.flow);
        format!("{loader:?}, in nodes: {in_nodes}: {:?} is {meant}, but it gets through: {reached}", one.flow)
    }))
}

#[test]
fn real_packets_do_what_random_policies_mean() {
    let sample: Sample = (vec![Labels::new(); 2], vec![Labels::new(); 4], Vec::new(), Tenancy::default());
    let outside = OUTSIDE.map(|one| one.parse::<IpAddr>().expect("an address"));
    let layout = Layout::of(&world(&sample).expect("objects"), outside);
    let places = [false, true].into_iter().flat_map(|in_nodes| Loader::ALL.map(|loader| (loader, in_nodes)));
    let places: Vec<(Loader, bool)> = places.collect();
    let clusters: Vec<RefCell<Cluster>> = places
        .iter()
        .map(|(loader, _)| {
            RefCell::new(Cluster::new(layout.clone(), Mesh::None, *loader).expect("namespaces, as root"))
        })
        .collect();
    let (mut runner, seed) = runner("policies", CASES, SHRINK);
    let count = Cell::new([0; 2]);
    let strategy = (vec(labels(), 2), vec(labels(), 4), vec(policy(), 0..=3), tenancy());
    let result = runner.run(&strategy, |sample| {
        for ((loader, in_nodes), cluster) in places.iter().zip(&clusters) {
            let found = disagreement(&mut cluster.borrow_mut(), *loader, *in_nodes, &sample, &count)
                .unwrap_or_else(|error| panic!("{loader:?}: {error:#}\n{sample:#?}"));
            if let Some(found) = found {
                return Err(TestCaseError::fail(found));
            }
        }
        Ok(())
    });
    let [all, allowed] = count.get();
    println!("{all} connections, {allowed} allowed");
    if let Err(failure) = result {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
    assert!(0 < allowed && allowed < all, "both kinds are met: {allowed} of {all}");
}
