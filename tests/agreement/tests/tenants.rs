//! Three tenants in kernels: the verdicts of all connections between their pods, pods without a tenant, the outside and the nodes are what real packets do,
//! in both backends, in the namespaces of pods and in those of nodes; what is meant is written down once more as a table.

use std::net::IpAddr;

use agreement::cluster::{Cluster, Layout, Mesh, Tried};
use agreement::lab::Loader;
use anyhow::{Context as _, Result, ensure};
use facts::networkpolicy::PolicyProtocol;
use policy::compiled::{CompiledNodes, CompiledPods};
use policy::{FlowRoute, PlainPod, PlainWorld, PolicyFlow, Traffic, verdict};
use serde_json::{Value, json};

/// Namespaces with their tenants; one has none.
const NAMESPACES: [(&str, Option<&str>); 8] = [
    ("red-a", Some("red")),
    ("red-b", Some("red")),
    ("blue-a", Some("blue")),
    ("blue-b", Some("blue")),
    ("green-a", Some("green")),
    ("green-b", Some("green")),
    ("free", None),
    ("kube-system", None),
];
const NODES: [(&str, [&str; 2]); 2] =
    [("n1", ["192.0.2.1", "2001:db8::1"]), ("n2", ["192.0.2.2", "2001:db8::2"])];
/// Red is allowed the first; the second is in the same range and denied; the others are nobody's.
const OUTSIDE: [[&str; 2]; 3] =
    [["203.0.113.9", "2001:db8:9::9"], ["203.0.113.13", "2001:db8:9::13"], ["198.51.100.7", "2001:db8:7::7"]];
/// Names are asked of these, and not of others; the last is a resolver outside.
const DNS_CACHE: &str = "169.254.20.10";
const RESOLVER: &str = "8.8.8.8";
const TCP: PolicyProtocol = PolicyProtocol::Tcp;
const UDP: PolicyProtocol = PolicyProtocol::Udp;
/// The most connections at once: each has a socket.
const AT_ONCE: usize = 400;

/// A pod: its namespace's place, its own, and its addresses.
#[derive(Debug, Clone, Copy)]
struct Place(usize, usize);

impl Place {
    fn all() -> impl Iterator<Item = Self> {
        (0..NAMESPACES.len()).flat_map(|namespace| (0..2).map(move |pod| Self(namespace, pod)))
    }

    /// The pods of a namespace are on different nodes.
    fn node(self) -> &'static str {
        NODES[self.1].0
    }

    fn address(self, family: usize) -> IpAddr {
        let (namespace, pod) = (self.0 + 1, self.1 + 1);
        let text = match family {
            0 => format!("10.0.{pod}.{namespace}"),
            _ => format!("fd00:{pod}::{namespace}"),
        };
        text.parse().expect("an address")
    }

    fn tenant(self) -> Option<&'static str> {
        NAMESPACES[self.0].1
    }
}

/// What the tenants say. Only red asks for something, blue agrees to part of it, and green lets pods without a tenant be reached.
fn tenants(enforcement: &str) -> Vec<(&'static str, Value)> {
    let red = json!({"namespaces": ["red-a", "red-b"], "allowedIPRanges": ["0.0.0.0/0", "2001:db8:9::/48"],
        "deniedIPRanges": ["203.0.113.12/30", "203.0.113.13/32", "2001:db8:9::13/128", "198.51.100.0/24"], "enforcement": enforcement,
        "allowedServices": [{"namespace": "green-a", "name": "shop", "ports": [{"port": 8081}]}],
        "networkPolicy": {"egressRules": [{"name": "to-others", "action": "Allow", "peers": [{"tenant": "blue"}, {"tenant": "green"}]}]}});
    let blue = json!({"namespaces": ["blue-a", "blue-b"], "enforcement": enforcement, "denyMode": "Drop"});
    let green = json!({"namespaces": ["green-a", "green-b"], "defaults": {"unassigned": "AllowEgress"}, "enforcement": enforcement});
    vec![("red", red), ("blue", blue), ("green", green)]
}

fn world(enforcement: &str) -> Result<PlainWorld> {
    let mut world = PlainWorld::default();
    for (name, addresses) in NODES {
        world.put_node(name, addresses.map(|one| one.parse()).into_iter().collect::<Result<_, _>>()?);
    }
    for (name, _) in NAMESPACES {
        let labels = json!({"kubernetes.io/metadata.name": name});
        world.put_namespace(name, serde_json::from_value(json!({"metadata": {"labels": labels}}))?);
    }
    for place in Place::all() {
        let ips: Vec<Value> = [0, 1].map(|family| json!({"ip": place.address(family)})).into();
        let object = json!({"metadata": {"labels": {"pod": place.1.to_string()}}, "spec": {"nodeName": place.node()},
            "status": {"phase": "Running", "podIPs": ips}});
        let (namespace, name) = (NAMESPACES[place.0].0.into(), place.1.to_string().into());
        let facts = serde_json::from_value(object)?;
        world.put_pod(PlainPod { namespace, name, is_enrolled: false, facts });
    }
    let service = |labels: Value, address: &str, ports: Value| json!({"metadata": {"labels": labels}, "spec": {"clusterIPs": [address], "ports": ports}});
    let slice = |service: &str, addresses: Vec<IpAddr>, ports: Value| {
        json!({"metadata": {"labels": {"kubernetes.io/service-name": service}}, "ports": ports,
            "endpoints": addresses.iter().map(|one| json!({"addresses": [one]})).collect::<Vec<_>>()})
    };
    let both =
        json!([{"name": "u", "protocol": "UDP", "port": 53}, {"name": "t", "protocol": "TCP", "port": 53}]);
    let dns = service(json!({"k8s-app": "kube-dns"}), "10.96.0.10", both.clone());
    world.put_service("kube-system", "kube-dns", serde_json::from_value(dns)?);
    let servers: Vec<IpAddr> = vec![Place(7, 0).address(0), Place(7, 1).address(0)];
    world.put_slice("kube-system", "kube-dns", serde_json::from_value(slice("kube-dns", servers, both))?);
    let api = service(json!({}), "10.96.0.1", json!([{"port": 443}]));
    world.put_service("default", "kubernetes", serde_json::from_value(api)?);
    let servers = slice("kubernetes", vec![NODES[1].1[0].parse()?], json!([{"port": 6443}]));
    world.put_slice("default", "kubernetes", serde_json::from_value(servers)?);
    let grant = |namespace: &str, ports: Value| {
        json!({"metadata": {"namespace": namespace, "name": "red-may-come"},
            "spec": {"from": [{"tenant": "red"}], "to": [{"kind": "Pod", "podSelector": {}}], "ports": ports}})
    };
    world.put_grant(serde_json::from_value(grant("blue-a", json!([{"port": 8080}])))?);
    for (name, spec) in tenants(enforcement) {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let tenant: facts::NetworkTenant = serde_json::from_value(object)?;
        ensure!(tenant.faults.is_empty(), "{name}: {:?}", tenant.faults);
        world.put_tenant(tenant);
    }
    world.settle_tenants();
    Ok(world)
}

fn traffics() -> [Traffic; 4] {
    [Traffic::Port(TCP, 8080), Traffic::Port(TCP, 8081), Traffic::Port(UDP, 8080), Traffic::Portless]
}

/// All pairs of pods, and of pods with a node, the other node and the outside, in both families; and what the system needs.
fn flows() -> Result<Vec<PolicyFlow>> {
    let mut pairs = Vec::new();
    for family in [0, 1] {
        let pods: Vec<IpAddr> = Place::all().map(|place| place.address(family)).collect();
        let mut others: Vec<IpAddr> =
            OUTSIDE.iter().map(|one| one[family].parse()).collect::<Result<_, _>>()?;
        others.push(NODES[0].1[family].parse()?);
        for one in &pods {
            pairs.extend(pods.iter().filter(|other| *other != one).map(|other| (*one, *other)));
            pairs.extend(others.iter().flat_map(|other| [(*one, *other), (*other, *one)]));
        }
    }
    let direct = |(source, destination), traffic| PolicyFlow {
        source,
        destination,
        traffic,
        route: FlowRoute::Direct,
    };
    let mut flows: Vec<PolicyFlow> =
        pairs.into_iter().flat_map(|pair| traffics().map(|traffic| direct(pair, traffic))).collect();
    for (place, to, port) in system() {
        for protocol in [TCP, UDP] {
            flows.push(direct((place.address(0), to), Traffic::Port(protocol, port)));
        }
    }
    Ok(flows)
}

/// DNS, a resolver that is not the cluster's, the API server, and another port of its node.
fn system() -> Vec<(Place, IpAddr, u16)> {
    let to = [
        (Place(7, 0).address(0), 53),
        (DNS_CACHE.parse().expect("an address"), 53),
        (RESOLVER.parse().expect("an address"), 53),
        (NODES[1].1[0].parse().expect("an address"), 6443),
        (NODES[1].1[0].parse().expect("an address"), 22),
    ];
    // Red's ranges open what is no pod; blue has none.
    [Place(0, 0), Place(2, 0), Place(6, 0)]
        .into_iter()
        .flat_map(|place| to.map(|(to, port)| (place, to, port)))
        .collect()
}

/// What tenants mean for a connection, by this file alone.
fn meant(flow: &PolicyFlow) -> bool {
    let place = |address: IpAddr| {
        Place::all().find(|place| [0, 1].iter().any(|family| place.address(*family) == address))
    };
    let (source, destination) = (place(flow.source), place(flow.destination));
    let port = match flow.traffic {
        Traffic::Port(protocol, number) => Some((protocol, number)),
        Traffic::Portless => None,
    };
    let is = |address: IpAddr, one: &str| one.parse().is_ok_and(|one: IpAddr| one == address);
    let is_denied =
        |address| ["203.0.113.13", "2001:db8:9::13", "198.51.100.7"].iter().any(|one| is(address, one));
    let is_allowed =
        |address: IpAddr| !is(address, "2001:db8:7::7") && !NODES.iter().any(|node| is(address, node.1[1]));
    let own_node = |place: Place, address| {
        NODES.iter().any(|(name, own)| *name == place.node() && own.iter().any(|one| is(address, one)))
    };
    let end = |own: Option<Place>, peer: Option<Place>, address: IpAddr, comes: bool| {
        let Some(own) = own else { return true };
        let Some(tenant) = own.tenant() else { return true };
        if comes && own_node(own, address) {
            return true;
        }
        if let Some(peer) = peer {
            let is_dns = !comes && peer.0 == 7 && address.is_ipv4() && port.is_some_and(|port| port.1 == 53);
            return match (tenant, peer.tenant()) {
                _ if is_dns => true,
                (own, Some(of)) if own == of => true,
                ("red", Some(_)) => !comes,
                ("blue", Some("red")) => comes && own.0 == 2 && port == Some((TCP, 8080)),
                ("green", None) => !comes,
                _ => false,
            };
        }
        let is_api = is(address, NODES[1].1[0]) && port == Some((TCP, 6443));
        let is_cache = is(address, DNS_CACHE) && port.is_some_and(|port| port.1 == 53);
        match (tenant, comes) {
            _ if tenant == "red" && is_denied(address) => false,
            (_, false) if is_api || is_cache => true,
            ("red", _) => is_allowed(address),
            _ => false,
        }
    };
    end(source, destination, flow.destination, false) && end(destination, source, flow.source, true)
}

fn tried(world: &PlainWorld) -> Result<Vec<Tried>> {
    let tried = flows()?.into_iter().map(|flow| {
        let expected = verdict(world, &flow).is_allowed();
        Tried { flow, service: None, expected }
    });
    Ok(tried.collect())
}

fn layout(world: &PlainWorld) -> Result<Layout> {
    let others = OUTSIDE.iter().flatten().chain([&DNS_CACHE, &RESOLVER]);
    Ok(Layout::of(world, others.map(|one| one.parse()).collect::<Result<Vec<IpAddr>, _>>()?))
}

/// Real packets of all connections; gives how many there were, and how many got through.
fn run(cluster: &mut Cluster, world: &PlainWorld, all: &[Tried], what: &str) -> Result<[usize; 2]> {
    let mut reached = 0;
    for part in all.chunks(AT_ONCE) {
        for (one, found) in part.iter().zip(cluster.run(part)?) {
            let meant = verdict(world, &one.flow);
            ensure!(one.expected == found, "{what}: {:?} is {meant}, but it gets through: {found}", one.flow);
            reached += usize::from(found);
        }
    }
    Ok([all.len(), reached])
}

#[test]
fn the_matrix_of_three_tenants_is_what_real_packets_do() {
    let world = world("Enforce").expect("objects");
    let all = tried(&world).expect("addresses");
    for one in &all {
        let found = verdict(&world, &one.flow);
        assert_eq!(one.expected, meant(&one.flow), "{:?}: {found}", one.flow);
    }
    let places = [false, true].into_iter().flat_map(|in_nodes| Loader::ALL.map(|loader| (loader, in_nodes)));
    // Both ways of the older iptables cost as much as all others.
    let places = places.filter(|place| *place != (Loader::IptablesLegacy, false));
    std::thread::scope(|scope| {
        let runs: Vec<_> = places
            .map(|(loader, in_nodes)| {
                let (world, all) = (&world, &all);
                scope.spawn(move || {
                    let what = format!("{loader:?}, in nodes: {in_nodes}");
                    let counts = matrix(world, all, loader, in_nodes, &what);
                    (counts.unwrap_or_else(|error| panic!("{what}: {error:#}")), what)
                })
            })
            .collect();
        for run in runs {
            let ([all, reached], what) = run.join().expect("no panic");
            println!("{what}: {all} connections, {reached} get through, as each verdict says");
            assert!(0 < reached && reached < all);
        }
    });
}

fn matrix(
    world: &PlainWorld,
    all: &[Tried],
    loader: Loader,
    in_nodes: bool,
    what: &str,
) -> Result<[usize; 2]> {
    let mut cluster = Cluster::new(layout(world)?, Mesh::None, loader)?;
    if in_nodes {
        let nodes = CompiledNodes::new(world, loader.backend());
        for (name, node) in nodes.nodes() {
            // There is nothing of tenants that one of the backends lacks.
            ensure!(node.left_out.is_empty(), "{name} leaves out {:?}", node.left_out);
        }
        cluster.load_nodes(&nodes)?;
    } else {
        cluster.load(world, &CompiledPods::new(world, loader.backend(), |_| false))?;
    }
    run(&mut cluster, world, all, what)
}

/// What is only tried out denies nothing, and would deny what is denied otherwise, by the same rules.
#[test]
fn what_audit_would_deny_is_what_enforce_denies() {
    let (enforced, audited) = (world("Enforce").expect("objects"), world("Audit").expect("objects"));
    let mut denied = 0;
    for flow in flows().expect("addresses") {
        let (real, tried) = (verdict(&enforced, &flow), verdict(&audited, &flow));
        assert!(tried.is_allowed(), "{flow:?}: {tried}");
        for (real, tried) in [(&real.egress, &tried.egress), (&real.ingress, &tried.ingress)] {
            let rule = if real.is_allowed() { None } else { real.ground.rules().first() };
            assert_eq!(rule, tried.audited.as_ref(), "{flow:?}");
            denied += usize::from(rule.is_some());
        }
    }
    assert!(denied > 100, "{denied}");
    let all = tried(&audited).expect("addresses");
    // A part is enough to see that rules which only log let everything pass.
    let all: Vec<Tried> = all.into_iter().step_by(7).collect();
    let [all, reached] = matrix(&audited, &all, Loader::Nft, true, "tried out").expect("packets");
    println!("{denied} ends of connections would be denied; {reached} of {all} get through");
    assert_eq!(all, reached);
}

/// Through a tunnel the address is judged where it arrives, and the port where it is delivered.
#[test]
fn a_tunnel_is_judged_by_the_address_and_what_is_inside_by_its_port() -> Result<()> {
    let mut world = world("Enforce")?;
    let pods: Vec<PlainPod> = world.live_pods().cloned().collect();
    pods.into_iter().for_each(|pod| world.put_pod(PlainPod { is_enrolled: true, ..pod }));
    // Red to each of the others and back; blue agrees to one port.
    let places = [Place(0, 0), Place(1, 1), Place(2, 0), Place(3, 1), Place(4, 0)];
    let mut all = Vec::new();
    for (one, other) in places.iter().flat_map(|one| places.iter().map(move |other| (*one, *other))) {
        for port in [8080, 8081].into_iter().filter(|_| (one.0, one.1) != (other.0, other.1)) {
            let traffic = Traffic::Port(TCP, port);
            let (source, destination) = (one.address(0), other.address(0));
            let flow = PolicyFlow { source, destination, traffic, route: FlowRoute::Tunnel };
            let expected = verdict(&world, &flow).is_allowed();
            ensure!(expected == meant(&flow), "{flow:?}: {}", verdict(&world, &flow));
            all.push(Tried { flow, service: None, expected });
        }
    }
    let mut cluster = Cluster::new(layout(&world)?, Mesh::Ambient, Loader::Nft)?;
    cluster.load(&world, &CompiledPods::new(&world, Loader::Nft.backend(), |_| true))?;
    let [all, reached] = run(&mut cluster, &world, &all, "by the tunnel").context("packets")?;
    println!("{all} connections by the tunnel, {reached} get through");
    ensure!(0 < reached && reached < all);
    Ok(())
}
