//! A cluster of namespaces: two nodes or more, their pods, and the world outside, with rules of policies and real packets.
//!
//! Each pod has a veth to its node and each node one to the outside, which passes on what goes from node to node. Neighbours are known for good.
//! A service proxy is a table of nf_tables or rules of iptables on each node that translates the addresses of Services.

mod network;
pub mod volley;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use kernel::nft::Nftables;
use kernel::sets::Sets;
use kernel::{Choice, Kernel};
use policy::compiled::{CompiledNodes, CompiledPods, EvaluatedPod, ServicePoint};
use policy::{FlowRoute, PlainWorld, PolicyFlow, Traffic, World as _};
use ruleset::{Contents, Plan, Protocol, SetDelta};
use testkit::probe::{Listener, Listeners};

use crate::lab::Loader;
use network::Network;
use volley::{Attempt, Sender};

/// Where each address is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// A node's own addresses by its name.
    pub nodes: BTreeMap<String, BTreeSet<IpAddr>>,
    /// A pod's addresses, and the name of its node.
    pub pods: BTreeMap<BTreeSet<IpAddr>, String>,
    /// All others.
    pub outside: BTreeSet<IpAddr>,
}

/// What pods have beside the rules of policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mesh {
    /// Nothing.
    None,
    /// A sidecar's redirection.
    Sidecar(capture::settings::Mode),
    /// That of ambient mode.
    Ambient,
}

/// The namespaces, what is loaded into them, and what listens there.
#[derive(Debug)]
pub struct Cluster {
    network: Network,
    mesh: Mesh,
    loader: Loader,
    /// Of the service proxies.
    proxy: Loader,
    loaded: BTreeMap<BTreeSet<IpAddr>, (Plan, Contents)>,
    listening: BTreeMap<(String, bool, u16), Listeners>,
}

/// A connection to try: what is judged, the address of a Service that the source asks for, and whether it should get through.
#[derive(Debug, Clone, Copy)]
pub struct Tried {
    /// What is judged.
    pub flow: PolicyFlow,
    /// What the source asks for.
    pub service: Option<ServicePoint>,
    /// Whether it gets through.
    pub expected: bool,
}

// === impl Layout ===

impl Layout {
    /// That of a cluster, and of other addresses that are tried.
    pub fn of(world: &PlainWorld, tried: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut layout = Self::default();
        for (name, addresses) in world.nodes() {
            layout.nodes.insert(name.to_owned(), addresses.iter().copied().collect());
        }
        for node in world.pod_nodes() {
            for pod in world.live_on(node) {
                let own = |one: &&IpAddr| world.pod_at(**one) == Some(pod) && !layout.is_node(**one);
                let addresses: BTreeSet<IpAddr> = pod.facts.addresses.iter().filter(own).copied().collect();
                if !addresses.is_empty() {
                    layout.pods.insert(addresses, node.to_owned());
                }
            }
        }
        for address in tried {
            if layout.place(address) == OUTSIDE {
                layout.outside.insert(address);
            }
        }
        layout
    }

    fn is_node(&self, address: IpAddr) -> bool {
        self.nodes.values().any(|own| own.contains(&address))
    }

    /// The name of the namespace that has an address.
    fn place(&self, address: IpAddr) -> String {
        if let Some((name, _)) = self.nodes.iter().find(|(_, own)| own.contains(&address)) {
            return name.clone();
        }
        let pod = self.pods.keys().find(|own| own.contains(&address));
        pod.map_or_else(|| OUTSIDE.to_owned(), pod_place)
    }
}

const OUTSIDE: &str = "outside";

fn pod_place(addresses: &BTreeSet<IpAddr>) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(" ")
}

// === impl Cluster ===

impl Cluster {
    /// Makes the namespaces, without rules.
    ///
    /// # Errors
    /// When not root, or a program is missing.
    pub fn new(layout: Layout, mesh: Mesh, loader: Loader) -> Result<Self> {
        let network = Network::new(layout)?;
        let (loaded, listening) = (BTreeMap::new(), BTreeMap::new());
        let mut cluster = Self { network, mesh, loader, proxy: loader, loaded, listening };
        cluster.start_proxies()?;
        Ok(cluster)
    }

    /// With service proxies that use another backend than the rules.
    #[must_use]
    pub fn with_proxy(self, proxy: Loader) -> Self {
        Self { proxy, ..self }
    }

    /// Where each address is.
    pub fn layout(&self) -> &Layout {
        &self.network.layout
    }

    /// Loads the rules of all pods; what was loaded before goes.
    ///
    /// # Errors
    /// The kernel or a program refuses a step.
    pub fn load(&mut self, world: &PlainWorld, pods: &CompiledPods<'_>) -> Result<()> {
        let all: Vec<BTreeSet<IpAddr>> = self.layout().pods.keys().cloned().collect();
        for addresses in all {
            let pod =
                addresses.first().and_then(|one| world.pod_at(*one)).context("a pod has its addresses")?;
            let Some(rules) = pods.pod(pod) else { continue };
            self.load_pod(&addresses, rules)
                .with_context(|| format!("rules of {}/{}", pod.namespace, pod.name))?;
        }
        Ok(())
    }

    /// Loads the rules of all nodes; what was loaded before goes.
    ///
    /// # Errors
    /// The kernel refuses a step.
    pub fn load_nodes(&mut self, nodes: &CompiledNodes<'_>) -> Result<()> {
        for (name, node) in nodes.nodes() {
            let Some(own) = self.layout().nodes.get(name).cloned() else { continue };
            let plan = Plan {
                backend: self.loader.backend(),
                routing: Vec::new(),
                layers: vec![node.rules.clone()],
            };
            self.replace(name, &own, plan, &node.contents)
                .with_context(|| format!("rules of node {name}"))?;
        }
        Ok(())
    }

    fn load_pod(&mut self, addresses: &BTreeSet<IpAddr>, rules: &EvaluatedPod) -> Result<()> {
        let plan = self.plan(rules);
        if !self.loaded.contains_key(addresses) && plan.layers.iter().all(|layer| layer.tables.is_empty()) {
            return Ok(());
        }
        self.replace(&pod_place(addresses), addresses, plan, &rules.contents)
    }

    /// Puts a plan, of which the first layer is that of policies, in the place of what a namespace has.
    fn replace(
        &mut self,
        place: &str,
        addresses: &BTreeSet<IpAddr>,
        plan: Plan,
        contents: &Contents,
    ) -> Result<()> {
        if self.loaded.get(addresses).is_some_and(|(before, with)| (before, with) == (&plan, contents)) {
            return Ok(());
        }
        let iptables = self.loader.iptables();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        let before = self.loaded.remove(addresses);
        let namespace = self.network.namespace(place)?;
        let backend = plan.backend;
        namespace.enter(|inside| -> Result<()> {
            if let Some((before, _)) = &before {
                kernel.cleanup(inside, before)?;
                for layer in &before.layers {
                    Sets::open(inside, backend, layer)?.destroy()?;
                }
            }
            let policies = plan.layers.first().context("a layer of policies")?;
            let mut sets = Sets::open(inside, backend, policies)?;
            sets.prepare()?;
            kernel.apply(inside, Choice::Only(backend), |_| plan.clone())?;
            let kept = policies.tables.iter().flat_map(|table| &table.sets).filter(|set| set.is_kept());
            let deltas: Vec<(String, SetDelta)> = kept
                .map(|set| {
                    let mut delta = SetDelta::default();
                    contents.of(&set.name).for_each(|element| delta.add(element.clone()));
                    (set.name.to_string(), delta)
                })
                .filter(|(_, delta)| delta.added().next().is_some())
                .collect();
            let changes: Vec<(&str, &SetDelta)> =
                deltas.iter().map(|(name, delta)| (&**name, delta)).collect();
            sets.change(&changes)?;
            let differences = kernel.observe(inside, &plan)?;
            ensure!(differences.is_empty(), "after loading: {differences:?}");
            Ok(())
        })??;
        self.loaded.insert(addresses.clone(), (plan, contents.clone()));
        Ok(())
    }

    /// The rules of policies together with those of the mesh.
    fn plan(&self, rules: &EvaluatedPod) -> Plan {
        let backend = self.loader.backend();
        let mut plan = match self.mesh {
            Mesh::None => Plan { backend, routing: Vec::new(), layers: Vec::new() },
            Mesh::Sidecar(mode) => {
                let settings = capture::Settings { mode, ..capture::Settings::default() };
                capture::plan(&settings, capture::PlanTarget { backend, ipv6: true })
            }
            Mesh::Ambient => {
                let node = capture::ambient::NodeOptions { ipv6: true, ..Default::default() };
                let pod = capture::ambient::PodOptions::default();
                capture::ambient::plan_pod(&node, &pod, backend)
            }
        };
        plan.layers.insert(0, rules.compiled.rules.clone());
        plan
    }

    /// Makes the connections, those by Services each by itself, and says which got through.
    ///
    /// # Errors
    /// One cannot even be tried.
    pub fn run(&mut self, tried: &[Tried]) -> Result<Vec<bool>> {
        for one in tried {
            self.listen(&one.flow)?;
        }
        let mut found = vec![false; tried.len()];
        let (services, direct): (Vec<usize>, Vec<usize>) =
            (0..tried.len()).partition(|number| tried[*number].service.is_some());
        // The kernel's answer to a protocol that it does not know has no ports, and there is none where a socket takes such packets: no two in one
        // volley are between the same ends.
        let (sctp, others): (Vec<usize>, Vec<usize>) =
            direct.into_iter().partition(|number| protocol(&tried[*number].flow).0 == Protocol::Sctp);
        let mut volleys = vec![others];
        for number in sctp {
            let ends =
                |number: usize| BTreeSet::from([tried[number].flow.source, tried[number].flow.destination]);
            match volleys[1..].iter_mut().find(|volley| volley.iter().all(|one| ends(*one) != ends(number))) {
                Some(volley) => volley.push(number),
                None => volleys.push(vec![number]),
            }
        }
        for volley in volleys {
            self.fire(&volley, tried, &mut found)?;
        }
        for number in services {
            let Tried { flow, service: Some(service), .. } = tried[number] else { continue };
            self.network.serve(self.proxy, service, &flow)?;
            self.fire(&[number], tried, &mut found)?;
            self.network.serve_nothing(self.proxy)?;
        }
        Ok(found)
    }

    fn fire(&self, numbers: &[usize], tried: &[Tried], found: &mut [bool]) -> Result<()> {
        let (mut attempts, mut whose) = (Vec::new(), Vec::new());
        for number in numbers {
            found[*number] = true;
            for attempt in self.attempts(&tried[*number])? {
                attempts.push(attempt);
                whose.push(*number);
            }
        }
        for (number, reached) in whose.into_iter().zip(volley::fire(&attempts)?) {
            found[number] &= reached;
        }
        Ok(())
    }

    /// The connections of which all have to get through: in ambient mode that of the application, that of the source's ztunnel, and that of the
    /// destination's.
    fn attempts(&self, tried: &Tried) -> Result<Vec<Attempt<'_>>> {
        let Tried { flow, service, expected } = *tried;
        let (protocol, port) = protocol(&flow);
        let to: SocketAddr = service.unwrap_or((flow.destination, port)).into();
        let places = [flow.source, flow.destination].map(|address| self.layout().place(address));
        let is_pod = |address: IpAddr| self.layout().pods.keys().any(|own| own.contains(&address));
        let from = flow.source;
        let namespace = self.network.namespace(&places[0])?;
        let attempt = Attempt { namespace, sender: Sender::default(), protocol, from, to, expected };
        // What leaves a pod of the mesh is a connection of the proxy, or none that it takes.
        match self.mesh {
            Mesh::Sidecar(_) if is_pod(from) => {
                Ok(vec![Attempt { sender: Sender { user: PROXY, mark: 0 }, ..attempt }])
            }
            Mesh::Ambient if protocol == Protocol::Tcp || port == DNS => {
                let ztunnel = Sender { user: 0, mark: capture::ambient::ZTUNNEL_MARK };
                let mut all = Vec::new();
                if is_pod(from) && protocol == Protocol::Tcp {
                    all.push(Attempt { sender: Sender { user: APPLICATION, mark: 0 }, ..attempt });
                }
                let sender = if is_pod(from) { ztunnel } else { Sender::default() };
                let tunnel = SocketAddr::new(flow.destination, policy::TUNNEL_PORT);
                let to = if flow.route == FlowRoute::Tunnel { tunnel } else { to };
                all.push(Attempt { sender, to, ..attempt });
                // A pod that reaches itself by a Service is one that its ztunnel does not ask by itself.
                if is_pod(flow.destination) && protocol == Protocol::Tcp && places[0] != places[1] {
                    let (namespace, to) =
                        (self.network.namespace(&places[1])?, (flow.destination, port).into());
                    all.push(Attempt { namespace, sender: ztunnel, to, ..attempt });
                }
                Ok(all)
            }
            _ => Ok(vec![attempt]),
        }
    }

    /// Lets somebody listen where the connection leads.
    fn listen(&mut self, flow: &PolicyFlow) -> Result<()> {
        let (protocol, port) = protocol(flow);
        let udp = protocol == Protocol::Udp;
        if !udp && protocol != Protocol::Tcp {
            return Ok(());
        }
        let place = self.layout().place(flow.destination);
        let is_pod = self.layout().pods.keys().any(|own| own.contains(&flow.destination));
        if !udp && is_pod && matches!(self.mesh, Mesh::Sidecar(_)) {
            // A connection that passes the sidecar by finds nobody.
            return Ok(());
        }
        let key = (place, udp, port);
        if !self.listening.contains_key(&key) {
            let listener = if udp { Listener::udp(port) } else { Listener::tcp(port) };
            let started = Listeners::start(self.network.namespace(&key.0)?, [listener])?;
            self.listening.insert(key, started);
        }
        Ok(())
    }

    /// What takes connections that the mesh leads to its proxy.
    fn start_proxies(&mut self) -> Result<()> {
        let ports: &[u16] = if self.mesh == Mesh::None { &[] } else { &[15001, 15006, policy::TUNNEL_PORT] };
        let places: Vec<String> = self.layout().pods.keys().map(pod_place).collect();
        for (place, port) in places.iter().flat_map(|place| ports.iter().map(move |port| (place, *port))) {
            let listener = Listener::tcp(port).transparent();
            let started = Listeners::start(self.network.namespace(place)?, [listener])?;
            self.listening.insert((place.clone(), false, port), started);
        }
        Ok(())
    }
}

/// What ambient mode takes from a pod beside connections.
const DNS: u16 = 53;
/// User and group of a sidecar's proxy.
const PROXY: u32 = 1337;
/// And of an application.
const APPLICATION: u32 = 1000;

/// The protocol of a connection's packets, and their port.
fn protocol(flow: &PolicyFlow) -> (Protocol, u16) {
    let packet = policy::compiled::packet(flow);
    let port = if let Traffic::Port(_, port) = flow.traffic { port } else { 0 };
    (packet.protocol, port)
}

/// An address and a port as text for rules.
fn endpoint(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}
