use serde_json::json;

use super::*;

/// A pod of namespace `shop` on a node, created in a second.
fn peer(node: &str, address: &str, created: u64) -> Peer {
    Peer {
        labels: LabelSet::from_iter([("app", "web")]),
        addresses: if address.is_empty() { Box::default() } else { [address.parse().unwrap()].into() },
        ports: [NamedPort { name: "http".into(), protocol: PolicyProtocol::Tcp, number: 8080 }].into(),
        phase: Phase::Running,
        created,
        node: node.into(),
        ..Peer::default()
    }
}

fn pod(name: &str, uid: &str) -> PodRef {
    PodRef { uid: uid.into(), ..PodRef::named("shop", name) }
}

struct Setup {
    peers: Peers,
    local: LocalPods,
    namespaces: LabelledNamespaces,
}

impl Setup {
    fn new() -> Self {
        let (peers, namespaces) = (Peers::default(), LabelledNamespaces::default());
        Self { peers, local: LocalPods::new("n1", false), namespaces }
    }

    fn watched(&mut self, name: &str, uid: &str, peer: Peer) {
        let key = ObjectKey::new("shop", name);
        self.peers.apply(key.clone(), Uid::new(uid), peer);
        self.local.watched(&key, &self.peers);
    }

    fn prepare(&mut self, name: &str, uid: &str, address: &str) {
        let labels = LabelSet::from_iter([("app", "web")]);
        self.local.prepare(&pod(name, uid), labels, &[address.parse().unwrap()], &self.peers);
    }

    fn release(&mut self, name: &str, uid: &str) {
        self.local.release(&pod(name, uid), &self.peers);
    }

    fn world(&self) -> ClusterWorld<'_> {
        let Self { peers, local, namespaces } = self;
        ClusterWorld { peers, local, namespaces, node_addresses: &[] }
    }

    /// Whose an address is; empty for nobody's.
    fn whose(&self, address: &str) -> String {
        let world = self.world();
        let owner = world.pod_at(address.parse().unwrap()).map(|pod| pod.name().to_owned());
        owner.unwrap_or_default()
    }
}

#[test]
fn a_starting_pod_has_its_address_until_its_watch_says_the_same() {
    let mut setup = Setup::new();
    setup.watched("a", "1", peer("n1", "", 1));
    assert_eq!(setup.whose("10.0.0.1"), "");
    setup.prepare("a", "1", "10.0.0.1");
    assert_eq!(setup.whose("10.0.0.1"), "a");
    let world = setup.world();
    let all: Vec<String> = world.local_pods().map(|pod| pod.name().to_owned()).collect();
    let ports: Vec<u16> =
        world.pod(&ObjectKey::new("shop", "a")).unwrap().ports("http", PolicyProtocol::Tcp).collect();
    assert_eq!((all, ports), (vec!["a".to_owned()], vec![8080]));
    setup.watched("a", "1", peer("n1", "10.0.0.1", 1));
    assert_eq!((setup.whose("10.0.0.1").as_str(), setup.local.prepared.len()), ("a", 0));
}

#[test]
fn an_address_that_is_released_is_the_next_ones_at_once() {
    let mut setup = Setup::new();
    setup.watched("old", "1", peer("n1", "10.0.0.1", 9));
    setup.release("old", "1");
    assert_eq!(setup.whose("10.0.0.1"), "");
    setup.prepare("new", "2", "10.0.0.1");
    setup.watched("old", "1", Peer { is_deleting: true, ..peer("n1", "10.0.0.1", 9) });
    assert_eq!(setup.whose("10.0.0.1"), "new");
    // The same pod in another sandbox.
    setup.prepare("old", "1", "10.0.0.2");
    assert_eq!((setup.whose("10.0.0.2").as_str(), setup.whose("10.0.0.1").as_str()), ("old", "new"));
    setup.watched("old", "1", peer("n1", "10.0.0.2", 9));
    assert!(setup.local.released.is_empty() && setup.local.prepared.len() == 1);
}

#[test]
fn a_pod_of_the_same_name_is_another_one() {
    let mut setup = Setup::new();
    setup.watched("a", "1", Peer { is_deleting: true, ..peer("n1", "10.0.0.1", 1) });
    setup.prepare("a", "2", "10.0.0.2");
    assert_eq!((setup.whose("10.0.0.1").as_str(), setup.whose("10.0.0.2").as_str()), ("", "a"));
    setup.release("a", "1");
    assert_eq!(setup.whose("10.0.0.2"), "a", "the late end of the one before");
    setup.watched("a", "3", peer("n1", "10.0.0.3", 3));
    assert_eq!((setup.whose("10.0.0.2").as_str(), setup.whose("10.0.0.3").as_str()), ("", "a"));
    setup.prepare("b", "4", "10.0.0.4");
    assert_eq!(setup.local.retain(|key| &*key.name != "b").len(), 1);
    assert_eq!(setup.whose("10.0.0.4"), "");
}

#[test]
fn what_plugins_told_an_earlier_agent_counts_until_the_watch_knows_an_address() {
    let mut setup = Setup::new();
    for (name, node, address) in [("a", "n1", ""), ("known", "n1", "10.0.0.9"), ("elsewhere", "n2", "")] {
        setup.watched(name, "1", peer(node, address, 1));
    }
    let all = [
        ("a", "1", 1),
        ("a", "1", 2),
        ("known", "1", 3),
        ("elsewhere", "1", 4),
        ("gone", "1", 5),
        ("a", "0", 6),
    ];
    for (name, uid, last) in all {
        let started = StartedPod { pod: pod(name, uid), addresses: vec![[10, 0, 0, last].into()] };
        setup.local.started(&started, &setup.peers);
    }
    let whose: Vec<String> = (1..=6).map(|last| setup.whose(&format!("10.0.0.{last}"))).collect();
    assert_eq!(whose, ["a", "", "", "", "", ""], "the last sandbox of each pod that is here still");
    setup.watched("a", "1", peer("n1", "10.0.0.1", 1));
    assert_eq!((setup.whose("10.0.0.1").as_str(), setup.local.prepared.len()), ("a", 0));
}

#[test]
fn namespaces_are_found_by_a_label() {
    let mut namespaces = LabelledNamespaces::default();
    let labelled = |team: &str| {
        Some(Arc::new(Namespace { labels: LabelSet::from_iter([("team", team), ("env", "prod")]) }))
    };
    for (name, team) in [("a", "red"), ("b", "red"), ("c", "blue")] {
        namespaces.set(name, labelled(team));
    }
    let select = |namespaces: &LabelledNamespaces, selector: serde_json::Value| {
        let selector: facts::labels::WireSelector = serde_json::from_value(selector).unwrap();
        let mut names: Vec<String> =
            namespaces.select(&selector.read_whole().unwrap()).into_iter().map(str::to_owned).collect();
        names.sort();
        names.concat()
    };
    let red = json!({"matchLabels": {"env": "prod", "team": "red"}});
    assert_eq!(select(&namespaces, red.clone()), "ab");
    let other = json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["red"]}]});
    assert_eq!((select(&namespaces, other).as_str(), select(&namespaces, json!({})).as_str()), ("c", "abc"));
    namespaces.set("a", labelled("blue"));
    namespaces.set("b", None);
    assert_eq!((select(&namespaces, red).as_str(), namespaces.by_label["team"].len()), ("", 1));
}
