//! Tenants: real packets between pods of several, as the objects change.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use testkit::apiserver::{Fault, Resource};
use testkit::mesh::{Mesh, MeshPod};
use testkit::plugin::Answer;
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Agent, Launch, NODE_NAME, PATIENCE, PodCall, PodObject, at_once, eventually};

use crate::denials::wire;
use crate::mesh_verify_many::number;

/// Who hears nothing for so long is not answered.
const SILENCE: Duration = Duration::from_millis(300);
/// The kinds' names in paths.
const KINDS: [&str; 2] = ["networktenants", "tenantgrants"];

/// Namespace and name.
const PODS: [(&str, &str); 5] =
    [("red-web", "ra"), ("red-db", "rb"), ("blue-api", "ba"), ("free", "fa"), ("kube-system", "dns")];

/// Pods of several namespaces on one node, each with listeners.
struct Town {
    mesh: Mesh,
    pods: Vec<(MeshPod, Listeners)>,
}

pub(crate) fn tenant(name: &str, second: u32, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"), "generation": 1},
        "spec": spec})
}

impl Town {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        for (namespace, _) in PODS {
            mesh.node.api.set_namespace(namespace, &[]);
        }
        let mut town = Self { mesh, pods: Vec::new() };
        for (namespace, name) in PODS {
            let pod = town.mesh.running(namespace, name, &[("app", name)]).unwrap();
            wire(&town.mesh, &pod);
            let listeners = [53, 8080, 8443].map(Listener::tcp);
            let listeners = Listeners::start(&pod.netns, listeners).unwrap();
            town.pods.push((pod, listeners));
        }
        town
    }

    fn agent(&self) -> Launch<'_> {
        let agent = self.mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on");
        agent.env("TENANTS_ENFORCEMENT", "on")
    }

    fn put(&self, resource: Resource, object: Value) {
        self.mesh.node.api.set_object(resource, object);
    }

    fn pod(&self, name: &str) -> &MeshPod {
        self.pods.iter().map(|(pod, _)| pod).find(|pod| pod.name == name).unwrap()
    }

    /// What is known of tenants is on disk.
    fn wait_for_snapshot(&self) {
        let snapshot = self.mesh.node.state_dir().join("policies.snapshot");
        eventually("what is known of tenants is kept", PATIENCE, || {
            let text = std::fs::read_to_string(&snapshot)?;
            ensure!(text.contains("policy tenant "), "{text}");
            Ok(())
        })
        .unwrap();
    }

    /// A pod of namespace `default` that has not started yet; somebody listens in it already.
    fn scheduled(&mut self, name: &str) -> String {
        let pod = self.mesh.sandbox("default", name).unwrap();
        wire(&self.mesh, &pod);
        let object = PodObject::named(&pod.name).uid(&pod.uid).label("app", name).on_node(NODE_NAME);
        self.mesh.node.api.set_pod(object.container("app"));
        let listeners = Listeners::start(&pod.netns, [Listener::tcp(8080)]).unwrap();
        self.pods.push((pod, listeners));
        name.to_owned()
    }

    fn call(&self, name: &str) -> Answer {
        let pod = self.pod(name);
        let call = PodCall::new(&self.mesh.node, &pod.name, &pod.uid, pod.netns.path()).unwrap();
        call.at(pod.ip).add().unwrap()
    }

    /// A pod of namespace `default` starts, and has processes then.
    fn add(&mut self, name: &str) -> Answer {
        self.scheduled(name);
        let answer = self.call(name);
        let pod = self.pod(name);
        self.mesh.run(pod).unwrap();
        self.mesh.node.api.set_pod(pod.object(&[("app", name)], true));
        answer
    }

    fn reaches(&self, from: &str, to: &str, port: u16) -> bool {
        let to = SocketAddr::new(self.pod(to).ip, port);
        Flow::from(&self.pod(from).netns).patience(SILENCE).tcp(to).unwrap().port().is_some()
    }

    /// Waits until each connection (from, to, port) is as it should be. Gives how long that took.
    fn wait_for(&self, what: &str, wanted: &[(&str, &str, u16, bool)]) -> Duration {
        let began = Instant::now();
        let mut all_right_since = began;
        eventually(what, PATIENCE, || {
            all_right_since = Instant::now();
            std::thread::scope(|scope| {
                let found: Vec<_> = wanted
                    .iter()
                    .map(|(from, to, port, _)| scope.spawn(|| self.reaches(from, to, *port)))
                    .collect();
                for (found, one) in found.into_iter().zip(wanted) {
                    let found = found.join().unwrap();
                    ensure!(found == one.3, "{one:?} is {found}");
                }
                Ok(())
            })
        })
        .unwrap();
        all_right_since - began
    }
}

/// By nf_tables at the node, or by iptables in each pod.
fn backend<'a>(agent: Launch<'a>, name: &str) -> Launch<'a> {
    match name {
        "native" => agent.env("NATIVE_NFTABLES", "true").env("POLICY_POINT", "node"),
        variant => agent.env("NATIVE_NFTABLES", "false").env("FORCE_IPTABLES_BINARY", variant),
    }
}

fn red() -> Value {
    json!({"namespaces": ["red-web", "red-db"]})
}

fn blue(to_red: bool) -> Value {
    let rule = json!({"name": "to-red", "action": "Allow", "peers": [{"tenant": "red"}]});
    json!({"namespaces": ["blue-api"],
        "networkPolicy": {"egressRules": if to_red { json!([rule]) } else { json!([]) }}})
}

fn tenants_as_they_change(by: &str) {
    let town = Town::new();
    town.put(Resource::NetworkTenants, tenant("red", 1, &red()));
    town.put(Resource::NetworkTenants, tenant("blue", 2, &blue(false)));
    let service = |namespace: &str, name: &str, labels: Value, address: &str, port: u16| {
        json!({"metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"clusterIPs": [address], "ports": [{"port": port}]}})
    };
    let slice = |namespace: &str, name: &str, pod: &str, port: u16| {
        json!({"metadata": {"namespace": namespace, "name": format!("{name}-1"),
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [town.pod(pod).ip], "conditions": {"ready": true}}]})
    };
    let dns = json!({"k8s-app": "kube-dns"});
    town.put(Resource::Services, service("kube-system", "kube-dns", dns, "10.96.0.53", 53));
    town.put(Resource::EndpointSlices, slice("kube-system", "kube-dns", "dns", 53));
    let agent = backend(town.agent(), by).ready().unwrap();
    let inside = [("ra", "rb", 8080, true), ("rb", "ra", 8443, true)];
    let apart = [
        ("ra", "ba", 8080, false),
        ("ba", "ra", 8443, false),
        ("fa", "ra", 8080, false),
        ("ra", "fa", 8443, false),
        // Names are asked of the cluster's DNS, and of nobody else.
        ("ra", "dns", 53, true),
        ("ra", "dns", 8080, false),
        ("ra", "fa", 53, false),
    ];
    town.wait_for("tenants are apart", &[inside.as_slice(), &apart].concat());
    eventually("an Event tells of it", PATIENCE, || {
        let events = town.mesh.node.api.events();
        let is_told = events.iter().any(|event| {
            let text = event["message"].as_str().unwrap_or_default();
            event["reason"] == "CrossTenantDenied" && text.starts_with("Tenants deny ")
        });
        ensure!(is_told, "{events:?}");
        Ok(())
    })
    .unwrap();
    // What the source's side allows is nothing without the other's consent.
    town.put(Resource::NetworkTenants, tenant("blue", 2, &blue(true)));
    std::thread::sleep(Duration::from_secs(1));
    town.wait_for("nobody has consented", &apart);
    let grant = json!({"metadata": {"namespace": "red-web", "name": "blue-may-come"},
        "spec": {"from": [{"tenant": "blue"}], "to": [{"kind": "Pod", "podSelector": {"matchLabels": {"app": "ra"}}}],
            "ports": [{"port": 8443}]}});
    town.put(Resource::TenantGrants, grant);
    let opened = [("ba", "ra", 8443, true), ("ba", "ra", 8080, false), ("ba", "rb", 8443, false)];
    let after = town.wait_for("one port is open", &opened);
    println!("{by}: a grant is in force after {after:?}");
    town.mesh.node.api.delete_object(Resource::TenantGrants, "red-web", "blue-may-come");
    let after = town.wait_for("it is closed again", &apart);
    println!("{by}: it is taken back after {after:?}");
    // A range with all addresses opens no pod of others.
    let mut wide = red();
    wide["allowedIPRanges"] = json!(["0.0.0.0/0"]);
    wide["allowedServices"] = json!([{"namespace": "free", "name": "store"}]);
    town.put(Resource::NetworkTenants, tenant("red", 1, &wide));
    town.put(Resource::Services, service("free", "store", json!({}), "10.96.0.9", 80));
    town.put(Resource::EndpointSlices, slice("free", "store", "fa", 8443));
    let served = [("ra", "fa", 8443, true), ("ra", "fa", 8080, false), ("ra", "ba", 8080, false)];
    town.wait_for("what is behind the Service is reached", &served);
    town.put(Resource::EndpointSlices, slice("free", "store", "fa", 8080));
    let after = town.wait_for("its port is another", &[("ra", "fa", 8443, false), ("ra", "fa", 8080, true)]);
    println!("{by}: another port behind a Service after {after:?}");
    town.mesh.node.api.delete_object(Resource::EndpointSlices, "free", "store-1");
    let after = town.wait_for("nothing is behind it", &[("ra", "fa", 8080, false)]);
    println!("{by}: none any more after {after:?}");
    // A namespace goes from one to the other.
    town.put(Resource::NetworkTenants, tenant("blue", 2, &json!({"namespaces": ["blue-api", "red-db"]})));
    town.wait_for("the older tenant keeps it", &[("ra", "rb", 8080, true), ("ba", "rb", 8080, false)]);
    town.put(Resource::NetworkTenants, tenant("red", 1, &json!({"namespaces": ["red-web"]})));
    town.wait_for("it is the other's", &[("ra", "rb", 8080, false), ("ba", "rb", 8080, true)]);
    let mut tried = json!({"namespaces": ["red-web"]});
    tried["enforcement"] = json!("Audit");
    town.put(Resource::NetworkTenants, tenant("red", 1, &tried));
    town.wait_for("nothing is denied", &[("ra", "fa", 8080, true), ("fa", "ra", 8080, true)]);
    town.mesh.node.api.delete_object(Resource::NetworkTenants, "", "red");
    town.mesh.node.api.delete_object(Resource::NetworkTenants, "", "blue");
    let free = [("ba", "ra", 8080, true), ("fa", "rb", 8080, true), ("ra", "dns", 8080, true)];
    town.wait_for("there are no tenants", &free);
    agent.stop().unwrap();
}

#[test]
fn tenants_are_apart_and_follow_what_changes() {
    at_once(vec!["native", "nft", "legacy"], tenants_as_they_change);
}

/// Without an agent a pod that a tenant judges starts isolated, and is judged as soon as there is one.
#[test]
fn pods_of_tenants_start_guarded_while_there_is_no_agent() {
    let mut town = Town::new();
    town.put(Resource::NetworkTenants, tenant("red", 1, &json!({"namespaces": ["default", "red-web"]})));
    let agent = backend(town.agent(), "native").ready().unwrap();
    town.wait_for("tenants are apart", &[("fa", "ra", 8080, false)]);
    town.wait_for_snapshot();
    agent.kill().unwrap();
    let answer = town.add("rc");
    assert!(answer.stderr.contains("isolated"), "{}", answer.stderr);
    assert!(!town.reaches("fa", "rc", 8080) && !town.reaches("rc", "fa", 8080));
    let agent = backend(town.agent(), "native").ready().unwrap();
    let judged = [("ra", "rc", 8080, true), ("fa", "rc", 8080, false), ("rc", "fa", 8080, false)];
    town.wait_for("its tenant judges it", &judged);
    agent.stop().unwrap();
}

/// Any tenant may have a namespace that is not known yet.
#[test]
fn pods_of_a_namespace_that_is_not_known_stay_guarded_until_it_is() {
    at_once(vec![("node", false), ("pod", false), ("auto", false), ("pod", true)], |(point, has_policy)| {
        let mut town = Town::new();
        town.put(Resource::NetworkTenants, tenant("red", 1, &red()));
        if has_policy {
            let selects = json!({"podSelector": {"matchLabels": {"app": "rc"}}, "policyTypes": ["Ingress"]});
            let metadata = json!({"namespace": "default", "name": "closed"});
            town.put(Resource::NetworkPolicies, json!({"metadata": metadata, "spec": selects}));
        }
        let agent = town.agent().env("NATIVE_NFTABLES", "true").env("POLICY_POINT", point).ready().unwrap();
        town.wait_for("tenants are apart", &[("fa", "ra", 8080, false)]);
        // What is on disk still says that no tenant has the namespace.
        town.wait_for_snapshot();
        town.mesh.node.api.delete_namespace("default");
        std::thread::sleep(Duration::from_secs(1));
        let answer = town.add("rc");
        assert!(answer.stderr.contains("isolated"), "{point}: {}", answer.stderr);
        // Longer than it takes until pods are looked at that were not when they started.
        std::thread::sleep(Duration::from_secs(7));
        let is_reached = town.reaches("fa", "rc", 8080) || town.reaches("rc", "fa", 8080);
        assert!(!is_reached, "{point}: {}", agent.log().text());
        town.mesh.node.api.set_namespace("default", &[]);
        let is_open = [("fa", "rc", 8080, !has_policy), ("rc", "fa", 8080, true)];
        town.wait_for("it is in no tenant", &is_open);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(town.reaches("fa", "rc", 8080), !has_policy, "{point}: {}", agent.log().text());
        agent.stop().unwrap();
    });
}

/// A cluster without the definitions is one without tenants, until they come.
#[test]
fn a_cluster_without_the_kinds_has_no_tenants() {
    let town = Town::new();
    for kind in KINDS {
        town.mesh.node.api.fail_path(kind, 3, Fault::Status { code: 404, retry_after: None });
    }
    town.put(Resource::NetworkTenants, tenant("red", 1, &red()));
    let agent = backend(town.agent(), "native").ready().unwrap();
    town.wait_for("nothing is denied", &[("ra", "ba", 8080, true)]);
    let lines = agent.log().lines();
    let said = lines.iter().filter(|line| line.contains("does not have this kind"));
    assert_eq!(said.count(), 1, "{lines:#?}");
    town.wait_for("they have come", &[("ra", "ba", 8080, false), ("ra", "rb", 8080, true)]);
    agent.stop().unwrap();
}

fn condition(tenant: &Value, kind: &str) -> Option<(String, String)> {
    let one = tenant["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == kind)?;
    Some((one["status"].as_str()?.to_owned(), one["reason"].as_str()?.to_owned()))
}

fn wait_condition(town: &Town, tenant: &str, kind: &str, wanted: (&str, &str)) {
    eventually("the status says it", Duration::from_secs(30), || {
        let tenant = town.mesh.node.api.object(Resource::NetworkTenants, "", tenant).context("no tenant")?;
        let found = condition(&tenant, kind);
        let wanted = (wanted.0.to_owned(), wanted.1.to_owned());
        ensure!(found == Some(wanted), "{found:?} in {tenant}");
        Ok(())
    })
    .unwrap();
}

/// One agent writes what became of tenants; when it is killed another one does, and enforces before that.
#[test]
fn one_agent_writes_status_and_another_follows_it() {
    let town = Town::new();
    town.put(Resource::NetworkTenants, tenant("red", 1, &red()));
    let both = json!({"namespaces": ["blue-api", "red-db", "nowhere"],
        "allowedServices": [{"namespace": "free", "name": "none"}]});
    town.put(Resource::NetworkTenants, tenant("blue", 2, &both));
    let start =
        |pod: &str| -> Agent { backend(town.agent(), "native").env("POD_NAME", pod).ready().unwrap() };
    let first = start("agent-1");
    wait_condition(&town, "blue", "Conflicted", ("True", "NamespaceConflict"));
    wait_condition(&town, "blue", "NamespacesResolved", ("False", "NamespaceNotFound"));
    wait_condition(&town, "blue", "ServicesResolved", ("False", "ServiceNotFound"));
    wait_condition(&town, "red", "Conflicted", ("False", "Valid"));
    let blue = town.mesh.node.api.object(Resource::NetworkTenants, "", "blue").unwrap();
    let claims = json!([{"name": "blue-api", "state": "Member"}, {"name": "nowhere", "state": "Missing"},
        {"name": "red-db", "state": "Refused", "tenant": "red"}]);
    assert_eq!((&blue["status"]["namespaces"], &blue["status"]["pods"]), (&claims, &json!(1)), "{blue}");
    eventually("both hear of the conflict", PATIENCE, || {
        let events = town.mesh.node.api.events();
        let of = |name: &str| {
            events.iter().any(|one| {
                one["reason"] == "TenantNamespaceConflict" && one["involvedObject"]["name"] == name
            })
        };
        ensure!(of("red") && of("blue"), "{events:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(first.metric("istio_cni_tenant_conflicts").unwrap(), 1.0);
    assert_eq!(first.metric(r#"istio_cni_tenant_generation{tenant="red"}"#).unwrap(), 1.0);
    assert_eq!(first.metric(r#"istio_cni_tenant_pods{tenant="red"}"#).unwrap(), 2.0);
    first.kill().unwrap();
    let killed = Instant::now();
    let second = start("agent-2");
    let mut freed = tenant("red", 1, &json!({"namespaces": ["red-web"]}));
    freed["metadata"]["generation"] = json!(2);
    town.put(Resource::NetworkTenants, freed);
    town.wait_for("the change is in force", &[("ba", "rb", 8080, true), ("ra", "rb", 8080, false)]);
    println!("in force {:?} after the end of who wrote status", killed.elapsed());
    wait_condition(&town, "blue", "Conflicted", ("False", "Valid"));
    let after = killed.elapsed();
    println!("another one writes status {after:?} after that");
    assert!(after < Duration::from_secs(20), "{after:?}");
    let lease = town.mesh.node.api.object(Resource::Leases, "istio-system", "istio-cni-tenants").unwrap();
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]),
        (&json!("agent-2"), &json!(1))
    );
    second.stop().unwrap();
}

/// Of a pod of red.
fn judged(name: &str) -> [(&str, &str, u16, bool); 3] {
    [("ra", name, 8080, true), ("fa", name, 8080, false), (name, "fa", 8080, false)]
}

/// Verdicts stay while the API server is away, and pods that start then are judged from their first packet on.
#[test]
fn new_pods_are_judged_by_their_first_packet_also_while_the_api_server_is_away() {
    let (away, pods) = (number("AWAY_SECONDS", 2), number("SOAK_PODS", 4));
    at_once(vec!["node", "pod"], |point| {
        let mut town = Town::new();
        let red = json!({"namespaces": ["default", "red-web"]});
        town.put(Resource::NetworkTenants, tenant("red", 1, &red));
        town.put(Resource::NetworkTenants, tenant("blue", 2, &blue(true)));
        let agent = town.agent().env("NATIVE_NFTABLES", "true").env("POLICY_POINT", point).ready().unwrap();
        let apart = [("fa", "ra", 8080, false), ("ba", "ra", 8080, false), ("ra", "rb", 8080, false)];
        town.wait_for("tenants are apart", &apart);
        let names: Vec<String> = (0..pods).map(|number| town.scheduled(&format!("new{number}"))).collect();
        let (early, late) = names.split_at(names.len() / 2);
        let start = |town: &Town, name: &str, is_judged: bool| {
            town.call(name);
            // As soon as the runtime has its answer.
            let found = ["fa", "ba", "ra"].map(|from| town.reaches(from, name, 8080));
            assert!(!found[0] && !found[1], "{point}: {name}: {found:?}");
            let pod = town.pod(name);
            town.mesh.run(pod).unwrap();
            town.mesh.node.api.set_pod(pod.object(&[("app", name)], true));
            // Whoever is not judged yet is isolated.
            town.wait_for("it is judged", &judged(name)[usize::from(!is_judged)..]);
        };
        early.iter().for_each(|name| start(&town, name, true));
        town.mesh.node.api.stop();
        std::thread::sleep(Duration::from_secs(away as u64));
        town.wait_for("nothing has changed", &apart);
        // In their own namespaces pods are isolated until the API server tells that they run.
        late.iter().for_each(|name| start(&town, name, point == "node"));
        town.mesh.node.api.restart().unwrap();
        town.wait_for("nothing has changed", &apart);
        for name in late {
            town.wait_for("it is judged", &judged(name));
        }
        println!(
            "{point}: {pods} pods judged by their first packet, half of them in {away} s without the API server"
        );
        agent.stop().unwrap();
    });
}
