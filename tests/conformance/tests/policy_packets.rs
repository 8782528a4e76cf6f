//! Policies' rules in kernels: real packets between the pods of two nodes do what a file of cases says, in both backends, with a sidecar's redirection
//! or that of ambient mode beside them, and behind a service proxy.
//!
//! `POLICY_CASES` names another file of the same form, of which every case is run; without it a part of the reference cases is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use agreement::cluster::{Cluster, Layout, Mesh, Tried};
use agreement::lab::Loader;
use capture::settings::Mode;
use conformance::golden_dir;
use policy::cases::{CaseFile, CaseState, point_difference};
use policy::compiled::{CompiledNodes, CompiledPods};
use policy::{FlowRoute, ServiceWorld as _};

/// The families that are about what packets do at one time.
const FAMILIES: [&str; 8] =
    ["isolation", "ipblock", "ports", "named", "nodes", "life", "dualstack", "services"];
/// What is in the tunnel of ambient mode.
const TUNNEL: &str = "mesh/hbone";
/// What goes through a service proxy.
const SERVICES: &str = "services";
/// Of the reference cases the first combination takes one state in so many, and each other one.
const ONE_IN: [usize; 2] = [3, 30];

/// How rules are loaded, what is beside them, how the service proxy translates, and whether they are rules of nodes or of pods.
#[derive(Debug, Clone, Copy)]
struct Way {
    loader: Loader,
    mesh: Mesh,
    proxy: Loader,
    in_nodes: bool,
}

/// What was tried, and what was not as it should be.
#[derive(Debug, Default)]
struct Seen {
    states: usize,
    connections: usize,
    allowed: usize,
    clusters: usize,
    differences: Vec<String>,
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn real_packets_do_what_the_file_says() {
    let own = std::env::var_os("POLICY_CASES");
    let path = own.clone().map_or_else(|| golden_dir().unwrap().join("policy/cases.json"), Into::into);
    let file = CaseFile::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    let meshes = [Mesh::None, Mesh::Sidecar(Mode::Redirect), Mesh::Sidecar(Mode::Tproxy), Mesh::Ambient];
    let in_pods = meshes.iter().flat_map(|mesh| {
        Loader::ALL.map(|loader| Way { loader, mesh: *mesh, proxy: loader, in_nodes: false })
    });
    let mut proxies = Loader::ALL.map(|loader| (loader, loader)).to_vec();
    proxies.extend([(Loader::Nft, Loader::IptablesNft), (Loader::IptablesNft, Loader::Nft)]);
    let in_nodes =
        proxies.into_iter().map(|(loader, proxy)| Way { loader, mesh: Mesh::None, proxy, in_nodes: true });
    let all = in_pods.chain(in_nodes);
    let mut differences = Vec::new();
    for (number, way) in all.enumerate() {
        let begin = Instant::now();
        let is_chosen = |state: &CaseState<'_>, at: usize| {
            let tunnel = way.mesh == Mesh::Ambient && state.case.starts_with(TUNNEL);
            // A node sees what its service proxy makes of them.
            let services = way.in_nodes && state.family == SERVICES;
            let part = FAMILIES.contains(&state.family) && at % ONE_IN[usize::from(number > 0)] == number;
            own.is_some() || tunnel || services || part
        };
        let seen = run(&file, way, is_chosen);
        println!(
            "{way:?}: states: {}, connections: {}, allowed: {}, clusters: {}, differences: {}; {:?}",
            seen.states,
            seen.connections,
            seen.allowed,
            seen.clusters,
            seen.differences.len(),
            begin.elapsed()
        );
        assert!(seen.states > 0 && seen.allowed > 0 && seen.allowed < seen.connections, "{seen:?}");
        differences.extend(seen.differences.into_iter().map(|one| format!("{way:?}: {one}")));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn run(file: &CaseFile, way: Way, is_chosen: impl Fn(&CaseState<'_>, usize) -> bool) -> Seen {
    let (mut seen, mut cluster, mut at) = (Seen::default(), None, 0);
    // One cluster has them all, so that few are made.
    let mut addresses = BTreeSet::new();
    file.states(|state| {
        let flows = state.connections()?.into_iter().flat_map(|one| one.flows);
        addresses.extend(flows.flat_map(|flow| [flow.source, flow.destination]));
        Ok(())
    })
    .unwrap();
    file.states(|state| {
        at += 1;
        if is_chosen(state, at) {
            compare(state, &addresses, &mut cluster, way, &mut seen);
        }
        Ok(())
    })
    .unwrap();
    seen
}

fn compare(
    state: &CaseState<'_>,
    addresses: &BTreeSet<IpAddr>,
    cluster: &mut Option<Cluster>,
    way: Way,
    seen: &mut Seen,
) {
    let world = state.world;
    let Way { loader, mesh, proxy, in_nodes } = way;
    let nodes = CompiledNodes::new(world, loader.backend());
    let pods = CompiledPods::new(world, loader.backend(), |_| mesh == Mesh::Ambient);
    let (mut names, mut tried) = (Vec::new(), Vec::new());
    for connection in state.connections().unwrap() {
        for flow in &connection.flows {
            // What nobody translates goes nowhere; and the tunnel is there in ambient mode.
            let of_service = world.service_addresses().any(|one| one.address == flow.destination);
            if of_service || (flow.route == FlowRoute::Tunnel && mesh != Mesh::Ambient) {
                continue;
            }
            let service = connection.service.flatten();
            let evaluated = if in_nodes {
                nodes.judge(flow).is_allowed
            } else {
                pods.egress(flow, service).is_allowed && pods.ingress(flow).is_allowed
            };
            let expected = connection.allows(flow).unwrap();
            // What people are told is what packets do.
            assert_eq!(policy::verdict(world, flow).is_allowed(), expected, "{}: {flow:?}", connection.name);
            let name =
                format!("{} step {}: {} to {}", state.case, state.step, connection.name, flow.destination);
            if evaluated != expected && point_difference(world, &connection, flow, evaluated).is_none() {
                seen.differences.push(format!("{name}: evaluated to {evaluated}"));
            }
            names.push(name);
            tried.push(Tried { flow: *flow, service, expected: evaluated });
        }
    }
    let layout = Layout::of(world, addresses.iter().copied());
    if cluster.as_ref().is_none_or(|cluster| *cluster.layout() != layout) {
        *cluster = Some(Cluster::new(layout, mesh, loader).unwrap().with_proxy(proxy));
        seen.clusters += 1;
    }
    let Some(cluster) = cluster else { return };
    if in_nodes {
        cluster.load_nodes(&nodes).unwrap();
    } else {
        cluster.load(world, &pods).unwrap();
    }
    let found = cluster.run(&tried).unwrap();
    seen.states += 1;
    seen.connections += tried.len();
    for ((name, one), reached) in names.into_iter().zip(&tried).zip(found) {
        seen.allowed += usize::from(reached);
        if reached != one.expected {
            let what = if reached { "gets through" } else { "does not get through" };
            seen.differences.push(format!("{name}: it {what} (source {})", one.flow.source));
        }
    }
}
