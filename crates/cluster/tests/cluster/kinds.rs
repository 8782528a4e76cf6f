//! Kinds that are watched because somebody asked for them: policies, services and their endpoints, pods of the whole cluster.

use std::fs;
use std::sync::{Arc, Mutex};

use cluster::kind::{EndpointSlices, NetworkPolicies, Services};
use cluster::peers::Effect;
use cluster::{Cluster, Event, ObjectSelection, Shared, Source, Wanted, WatchName};
use facts::networkpolicy::Entries;
use serde_json::{Value, json};
use testkit::apiserver::{Fault, Resource, WatchFault};

use crate::agent::{Agent, Setup, pod};

/// What an agent has that asks for every kind.
struct Kinds {
    policies: Shared<cluster::Objects<facts::NetworkPolicy>>,
    services: Shared<cluster::Objects<facts::Service>>,
    slices: Shared<cluster::Objects<facts::EndpointSlice>>,
    /// Names of policies that changed, in order.
    changed: Arc<Mutex<Vec<String>>>,
}

fn wanted() -> (Wanted, Kinds) {
    let (mut wanted, changed) = (Wanted::default(), Arc::new(Mutex::new(Vec::new())));
    let told = changed.clone();
    let policies = wanted.kind::<NetworkPolicies>(ObjectSelection::all(), move |deltas| {
        told.lock().unwrap().extend(deltas.iter().map(|delta| delta.key.to_string()));
    });
    let services = wanted.kind::<Services>(ObjectSelection::all(), |_| {});
    let slices = wanted.kind::<EndpointSlices>(ObjectSelection::all(), |_| {});
    (wanted, Kinds { policies, services, slices, changed })
}

impl Kinds {
    fn policies(&self) -> Vec<String> {
        self.policies.read().iter().map(|(namespace, name, _)| format!("{namespace}/{name}")).collect()
    }

    fn changed(&self) -> Vec<String> {
        std::mem::take(&mut self.changed.lock().unwrap())
    }

    fn port(&self, name: &str) -> Option<u16> {
        let policies = self.policies.read();
        let policy = policies.get("shop", name)?.clone();
        let Entries::Of(ports) = &policy.ingress.rules.first()?.ports else { return None };
        ports.first()?.numbers().map(|numbers| *numbers.start())
    }
}

fn policy(name: &str, port: u16) -> Value {
    json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": name, "managedFields": [{"manager": "kubectl"}]},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": port}]}]}})
}

fn service(name: &str, address: &str) -> Value {
    json!({"kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"clusterIP": address, "ports": [{"name": "http", "port": 80}]}})
}

fn slice(name: &str, service: &str, address: &str) -> Value {
    json!({"kind": "EndpointSlice", "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": [{"name": "http", "port": 8080}]})
}

async fn started(setup: &Setup, wanted: Wanted, watches: usize) -> Agent {
    let agent = Agent::start_with(setup.source(), Cluster::wanting(wanted));
    agent.synced().await;
    agent.until("all watches", |_| setup.server.watches() == watches).await;
    agent
}

#[tokio::test]
async fn a_kind_is_watched_only_where_it_is_asked_for() {
    let setup = Setup::new();
    setup.server.set_object(Resource::NetworkPolicies, policy("web", 80));
    let _agent = setup.synced_agent().await;
    for part in ["/networkpolicies", "/services", "/endpointslices"] {
        assert_eq!(setup.requests(part), Vec::<String>::new());
    }
    let all = setup.requests("/api");
    assert!(all.iter().all(|path| path.contains("/namespaces") || path.contains("spec.nodeName")), "{all:?}");
}

#[tokio::test]
async fn kinds_of_policies_are_listed_and_watched_as_pods_are() {
    let setup = Setup::new();
    setup.server.set_object(Resource::NetworkPolicies, policy("web", 80));
    setup.server.set_object(Resource::Services, service("web", "10.96.0.10"));
    setup.server.set_object(Resource::EndpointSlices, slice("web-1", "web", "10.1.0.2"));
    let (wanted, kinds) = wanted();
    let agent = started(&setup, wanted, 5).await;
    assert_eq!((kinds.policies(), kinds.port("web")), (vec!["shop/web".into()], Some(80)));
    assert_eq!(kinds.services.read().get("shop", "web").unwrap().addresses.len(), 1);
    assert_eq!(&*kinds.slices.read().get("shop", "web-1").unwrap().service, "web");
    let state = agent.cluster.state();
    assert_eq!(state.pending(), []);
    let names = ["endpointslices", "namespaces", "networkpolicies", "pods", "services"];
    for what in agent.listed() {
        assert!(state.stands(what) && state.is_listed(what) && names.contains(&what.name()), "{what}");
    }
    assert_eq!(agent.listed().len(), names.len());
    // The watch tells of what comes, changes and goes, and nothing is told that is as it was.
    kinds.changed();
    setup.server.set_object(Resource::NetworkPolicies, policy("new", 81));
    setup.server.set_object(Resource::NetworkPolicies, policy("web", 80));
    setup.server.set_object(Resource::NetworkPolicies, policy("web", 82));
    agent.until("the change", |_| kinds.port("web") == Some(82)).await;
    setup.server.delete_object(Resource::NetworkPolicies, "shop", "new");
    agent.until("the end", |_| kinds.policies() == ["shop/web"]).await;
    assert_eq!(kinds.changed(), ["shop/new", "shop/web", "shop/new"]);
    // A list that is made anew takes away what it lacks, and tells of nothing else.
    setup.server.disturb_watches(Resource::NetworkPolicies, WatchFault::Error(410));
    setup.server.compact();
    agent
        .until("the list", |agent| {
            agent
                .events()
                .iter()
                .any(|event| matches!(event, Event::Relisted { what } if what.name() == "networkpolicies"))
        })
        .await;
    agent.until("all watches", |_| setup.server.watches() == 5).await;
    assert_eq!((kinds.policies(), kinds.changed(), agent.pods().len()), (vec!["shop/web".into()], vec![], 0));
    // Store reads would be those of every agent of a cluster.
    assert_eq!(setup.server.store_reads(), 0);
}

/// A page of 500 after the other where the cache cannot be used, and a first list that is refused.
#[tokio::test]
async fn a_kind_that_is_refused_or_comes_in_pages_keeps_no_other_waiting() {
    let setup = Setup::new();
    for number in 0..1200 {
        setup.server.set_object(Resource::NetworkPolicies, policy(&format!("p-{number:04}"), 80));
    }
    setup.server.fail_path("/networkpolicies", 2, Fault::status(403));
    let behind = setup.server.snapshot();
    let (wanted, kinds) = wanted();
    let agent = Agent::start_with(setup.source(), Cluster::wanting(wanted));
    agent.synced().await;
    let what =
        |agent: &Agent| agent.cluster.state().pending().into_iter().map(WatchName::name).collect::<Vec<_>>();
    agent.until("the others", |agent| what(agent) == ["networkpolicies"]).await;
    agent.until("the policies", |agent| what(agent).is_empty()).await;
    assert_eq!(kinds.policies().len(), 1200);
    // A cache that stays behind what was told is left for the store, which gives pages.
    setup.server.set_object(Resource::NetworkPolicies, policy("q", 80));
    agent.until("one more", |_| kinds.policies().len() == 1201).await;
    kinds.changed();
    setup.server.serve_behind(Some(behind));
    setup.server.disturb_watches(Resource::NetworkPolicies, WatchFault::Error(410));
    agent
        .until("pages", |_| setup.requests("/networkpolicies").iter().any(|path| path.contains("continue=")))
        .await;
    setup.server.serve_behind(None);
    setup.server.delete_object(Resource::NetworkPolicies, "shop", "q");
    agent.until("the end of one", |_| kinds.policies().len() == 1200).await;
    assert_eq!(kinds.changed(), ["shop/q"], "the pages took nothing back");
}

/// It is told once, what was known of it stays, and the others go on.
#[tokio::test]
async fn an_object_that_cannot_be_read_is_named_and_keeps_what_it_said() {
    let setup = Setup::new();
    setup.server.set_object(Resource::NetworkPolicies, policy("web", 80));
    let mut odd = policy("odd", 80);
    odd["spec"]["ingress"] = json!([[]]);
    setup.server.set_object(Resource::NetworkPolicies, odd.clone());
    let (wanted, kinds) = wanted();
    let agent = started(&setup, wanted, 5).await;
    assert_eq!(kinds.policies(), ["shop/web"]);
    assert_eq!(agent.unreadable().len(), 1, "{:?}", agent.unreadable());
    assert!(
        agent.unreadable()[0].contains("list networkpolicies: ") && agent.unreadable()[0].contains("odd: ")
    );
    odd["metadata"]["name"] = "web".into();
    setup.server.set_object(Resource::NetworkPolicies, odd);
    setup.server.set_object(Resource::NetworkPolicies, policy("next", 81));
    agent.until("the next", |_| kinds.policies() == ["shop/next", "shop/web"]).await;
    assert_eq!((agent.unreadable().len(), kinds.port("web")), (2, Some(80)));
    setup.server.set_object(Resource::NetworkPolicies, policy("web", 82));
    agent.until("the correction", |_| kinds.port("web") == Some(82)).await;
}

#[tokio::test]
async fn peers_are_the_pods_of_all_nodes_in_a_store_of_their_own() {
    let setup = Setup::new();
    let mut far = pod("bank", "far", "1");
    far["spec"]["nodeName"] = "n2".into();
    far["status"]["podIPs"] = json!([{"ip": "10.2.0.9"}]);
    setup.server.set_pod(far.clone());
    setup.set_pod("near", "1");
    let (mut wanted, effects) = (Wanted::default(), Arc::new(Mutex::new(Vec::<Effect>::new())));
    let told = effects.clone();
    let (interest, interested) = tokio::sync::watch::channel(true);
    let peers = wanted.peers(interested, move |effects| told.lock().unwrap().extend(effects));
    let agent = started(&setup, wanted, 3).await;
    assert_eq!((agent.pods(), peers.read().len()), (vec!["shop/near".into()], 2));
    assert!(peers.read().is_listed() && agent.cluster.state().stands(WatchName::PEERS));
    let asked = setup.requests("status.phase");
    assert!(!asked.is_empty() && asked.iter().all(|path| !path.contains("spec.nodeName")), "{asked:?}");
    let whose =
        |address: &str| peers.read().by_address(address.parse().unwrap()).map(|view| view.name().to_owned());
    assert_eq!(whose("10.2.0.9").as_deref(), Some("far"));
    effects.lock().unwrap().clear();
    far["status"]["podIPs"] = json!([{"ip": "10.2.0.10"}]);
    setup.server.set_pod(far);
    agent.until("the move", |_| whose("10.2.0.10").is_some()).await;
    setup.server.delete_pod("bank", "far");
    agent.until("the end", |_| peers.read().len() == 1).await;
    let said: Vec<_> =
        effects.lock().unwrap().iter().map(|effect| (effect.added(), effect.removed())).collect();
    let [old, new] = ["10.2.0.9", "10.2.0.10"].map(|address| vec![address.parse().unwrap()]);
    assert_eq!(said, [(new.clone(), old), (vec![], new)]);
    interest.send_replace(false);
    agent.until("nothing is kept", |_| peers.read().is_empty() && !peers.read().is_listed()).await;
    let before = setup.requests("status.phase").len();
    interest.send_replace(true);
    agent.until("all of them again", |_| peers.read().is_listed() && peers.read().len() == 1).await;
    assert!(setup.requests("status.phase").len() > before);
}

/// The same kinds from a directory, with the same rules: what is broken or unfinished takes nothing back.
#[tokio::test]
async fn manifests_are_one_more_source_of_the_same_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        fs::write(dir.path().join(".new"), text).unwrap();
        fs::rename(dir.path().join(".new"), dir.path().join(name)).unwrap();
    };
    let list =
        json!({"kind": "List", "items": [service("web", "10.96.0.10"), slice("web-1", "web", "10.1.0.2")]});
    put("services.json", &list.to_string());
    put("policies.yaml", &format!("{}\n---\n{}\n", policy("web", 80), policy("other", 80)));
    put("config.yaml", "kind: ConfigMap\nmetadata: 7\n");
    let (wanted, kinds) = wanted();
    let agent =
        Agent::start_with(Source::Manifests { dir: dir.path().into(), own: None }, Cluster::wanting(wanted));
    agent.synced().await;
    agent.until("all kinds", |agent| agent.cluster.state().stands(WatchName::MANIFESTS)).await;
    assert_eq!(
        (kinds.policies(), kinds.port("web")),
        (vec!["shop/other".into(), "shop/web".into()], Some(80))
    );
    assert_eq!(kinds.services.read().get("shop", "web").unwrap().addresses.len(), 1);
    assert_eq!(&*kinds.slices.read().get("shop", "web-1").unwrap().service, "web");
    assert!(kinds.policies.read().is_listed() && agent.pods().is_empty());
    kinds.changed();
    // The file that is named after an object goes before others, of whatever kind.
    put("shop_web.yaml", &policy("web", 81).to_string());
    agent.until("the other file", |_| kinds.port("web") == Some(81)).await;
    // A rule that is a list, and a document that ends early: named once, and what they said stays.
    for broken in [
        "kind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec: {ingress: [[]]}\n",
        "kind: NetworkPolicy\nmetadata: [",
    ] {
        let before = agent.unreadable().len();
        put("shop_web.yaml", broken);
        agent.until("the broken file", |agent| agent.unreadable().len() == before + 1).await;
        let text = agent.unreadable().pop().unwrap();
        assert!(text.contains("shop_web.yaml") && text.contains("stays in force"), "{text}");
        assert_eq!((kinds.port("web"), kinds.policies().len()), (Some(81), 2));
    }
    fs::remove_file(dir.path().join("shop_web.yaml")).unwrap();
    agent.until("the first file", |_| kinds.port("web") == Some(80)).await;
    put("policies.yaml", &policy("web", 80).to_string());
    agent.until("the end of one", |_| kinds.policies() == ["shop/web"]).await;
    assert_eq!(kinds.changed(), ["shop/web", "shop/web", "shop/other"]);
}
