//! What is seen of the agent's DaemonSet and of the node, by the watches and by a last look; and what is no evidence.

use std::time::{Duration, Instant};

use cluster::daemonset::{Outlook, Seen, decide};
use cluster::{OwnPod, Source, WatchName, Writer};
use serde_json::{Value, json};
use testkit::PodObject;
use testkit::apiserver::{Fault, Resource, WatchFault};

use crate::agent::{Agent, NODE, Setup};

const NAMESPACE: &str = "istio-system";
const NAME: &str = "istio-cni-node";

impl Setup {
    fn set_daemonset(&self, name: &str, spec: &Value) {
        self.server.set_object(
            Resource::DaemonSets,
            json!({"metadata": {"namespace": NAMESPACE, "name": name}, "spec": {"template": {"spec": spec}}}),
        );
    }

    fn set_node(&self, pool: &str) {
        let metadata = json!({"name": NODE, "labels": {"pool": pool}});
        self.server.set_object(Resource::Nodes, json!({"metadata": metadata}));
    }

    /// An agent that watches its DaemonSet.
    fn owned_agent(&self, pod: &str) -> Agent {
        let Source::Kubernetes { connection, node, limits, .. } = self.source() else { panic!("a cluster") };
        let own = Some(OwnPod { namespace: NAMESPACE.into(), name: pod.into() });
        Agent::start(Source::Kubernetes { connection, node, own, limits })
    }

    async fn look(&self, seen: &Seen) -> (Outlook, String) {
        self.look_of("", seen).await
    }

    async fn look_of(&self, pod: &str, seen: &Seen) -> (Outlook, String) {
        let own = OwnPod { namespace: NAMESPACE.into(), name: pod.into() };
        let (seen, errors) = Writer::new(self.connection(), NODE).look_again(seen, &own).await;
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        (decide(&seen), errors.join("\n"))
    }
}

impl Agent {
    async fn foresees(&self, what: &str, check: impl Fn(&Outlook) -> bool) {
        self.until(what, |agent| check(&decide(&agent.cluster.seen()))).await;
    }

    async fn unwanted(&self) {
        self.foresees("it is not wanted", |outlook| matches!(outlook, Outlook::Unwanted(_))).await;
    }

    async fn follows(&self) {
        self.foresees("another follows", |outlook| *outlook == Outlook::Follows).await;
    }
}

/// The agent's own pod.
fn agent_pod() -> PodObject {
    PodObject::named("agent-x").in_namespace(NAMESPACE)
}

#[tokio::test]
async fn everything_that_the_watches_see() {
    let setup = Setup::new();
    setup.set_node("mesh");
    setup.set_daemonset("another", &json!({"nodeSelector": {"pool": "none"}}));
    setup.set_daemonset(NAME, &json!({}));
    let agent = setup.owned_agent("");
    agent.follows().await;
    setup.set_daemonset(NAME, &json!({"nodeSelector": {"pool": "edge"}}));
    agent.unwanted().await;
    setup.set_node("edge");
    agent.follows().await;
    let tainted = json!({"metadata": {"name": NODE, "labels": {"pool": "edge"}},
        "spec": {"taints": [{"key": "team", "effect": "NoExecute"}]}});
    setup.server.set_object(Resource::Nodes, tainted);
    agent.unwanted().await;
    setup.set_node("edge");
    agent.follows().await;
    setup.server.delete_object(Resource::DaemonSets, NAMESPACE, NAME);
    agent.foresees("its deletion", |outlook| *outlook == Outlook::Deleted).await;
    setup.set_daemonset(NAME, &json!({}));
    agent.follows().await;
    // A deletion that no watch heard of shows in the next list.
    setup.server.stop();
    setup.server.delete_object(Resource::DaemonSets, NAMESPACE, NAME);
    setup.server.compact();
    setup.server.restart().unwrap();
    agent.foresees("its deletion", |outlook| *outlook == Outlook::Deleted).await;
    // They read one object each.
    for (part, name) in [("/daemonsets?", NAME), ("/nodes?", NODE)] {
        let requests = setup.requests(part);
        assert!(!requests.is_empty());
        let one = format!("fieldSelector=metadata.name%3D{name}");
        assert!(requests.iter().all(|path| path.contains(&one)), "{requests:?}");
    }
}

#[tokio::test]
async fn the_daemonset_is_the_owner_of_the_agents_pod() {
    let setup = Setup::new();
    setup.set_node("mesh");
    let owned = |owner: &Value| agent_pod().with("/metadata/ownerReferences", json!([owner]));
    for (kind, controller, name) in
        [("DaemonSet", true, "mesh-cni"), ("DaemonSet", false, NAME), ("ReplicaSet", true, NAME)]
    {
        let owner = json!({"kind": kind, "name": "mesh-cni", "controller": controller});
        setup.server.set_pod(owned(&owner));
        let agent = setup.owned_agent("agent-x");
        agent.until("its name", |agent| agent.cluster.seen().name == name).await;
    }
    setup.server.delete_pod(NAMESPACE, "agent-x");
    let agent = setup.owned_agent("agent-x");
    agent.until("the usual name", |agent| agent.cluster.seen().name == NAME).await;
}

#[tokio::test]
async fn a_watch_that_is_refused_or_answered_by_others_is_no_evidence() {
    let lists = |kind: &str, items: &str| {
        Fault::Body(format!("{{\"kind\":{kind:?},\"metadata\":{{\"resourceVersion\":\"1\"}}{items}}}"))
    };
    for fault in [
        Fault::status(401),
        Fault::status(403),
        Fault::status(404),
        Fault::status(503),
        Fault::Html,
        Fault::HtmlStatus(404),
        Fault::Hang,
        Fault::Reset,
        lists("List", ",\"items\":[]"),
        lists("PodList", ",\"items\":[]"),
        lists("DaemonSetList", ""),
    ] {
        let setup = Setup::new();
        setup.set_node("mesh");
        setup.set_daemonset(NAME, &json!({}));
        let agent = setup.owned_agent("");
        agent.follows().await;
        agent.until("all watches", |_| setup.server.watches() == 4).await;
        setup.server.fail_path("/daemonsets", 1000, fault.clone());
        setup.server.disturb_watches(Resource::DaemonSets, WatchFault::Error(410));
        agent.until("a failure", |agent| !agent.failures(WatchName::DAEMONSET).is_empty()).await;
        assert_eq!(decide(&agent.cluster.seen()), Outlook::Follows, "{fault:?}");
        assert!(agent.cluster.state().stands(WatchName::PODS), "no pod waits for it");
        setup.server.fail_path("/daemonsets", 0, fault);
        setup.server.delete_object(Resource::DaemonSets, NAMESPACE, NAME);
        agent.foresees("its deletion", |outlook| *outlook == Outlook::Deleted).await;
    }
}

/// An agent that never saw it knows nothing, whatever refuses; a server that says that it does not exist has looked.
#[tokio::test]
async fn a_last_look() {
    let setup = Setup::new();
    setup.set_node("mesh");
    assert_eq!(setup.look(&Seen::default()).await, (Outlook::Absent, String::new()));
    setup.set_daemonset(NAME, &json!({"nodeSelector": {"pool": "mesh"}}));
    let (outlook, errors) = setup.look(&Seen::default()).await;
    assert_eq!((outlook, errors), (Outlook::Follows, String::new()));
    setup.set_daemonset(NAME, &json!({"nodeSelector": {"pool": "edge"}}));
    assert!(matches!(setup.look(&Seen::default()).await.0, Outlook::Unwanted(_)));
    let agent = setup.owned_agent("");
    agent.unwanted().await;
    let unwanted = agent.cluster.seen();
    setup.set_node("edge");
    assert_eq!(setup.look(&unwanted).await.0, Outlook::Follows, "the look takes evidence back");
    for (fault, text) in [
        (Fault::status(401), "401"),
        (Fault::status(403), "lacks a role"),
        (Fault::status(404), "404"),
        (Fault::HtmlStatus(404), "404"),
        (Fault::Body("{}".into()), "is not a DaemonSet"),
        (Fault::Body("{\"kind\":\"DaemonSetList\",\"items\":[]}".into()), "is not a DaemonSet"),
        (Fault::status(500), "500"),
        (Fault::Hang, "no answer within 2.0 s"),
    ] {
        setup.server.fail_path("/daemonsets/", 1, fault.clone());
        let start = Instant::now();
        let (outlook, errors) = setup.look(&Seen::default()).await;
        assert!(matches!(outlook, Outlook::Unknown(_)), "{fault:?}: {outlook}");
        assert!(errors.contains(text) && errors.contains(NAME), "{fault:?}: {errors}");
        assert!(start.elapsed() < Duration::from_millis(2500), "{fault:?}: {:?}", start.elapsed());
        setup.server.fail_path("/daemonsets/", 1, fault.clone());
        let (outlook, _) = setup.look(&unwanted).await;
        assert_eq!(outlook, Outlook::Follows, "{fault:?}: what was seen last, with the node of now");
    }
    setup.server.stop();
    assert!(matches!(setup.look(&unwanted).await.0, Outlook::Unwanted(_)), "what was seen stays seen");
}

/// By its usual name a DaemonSet that is called otherwise would count as one that does not exist.
#[tokio::test]
async fn who_may_not_see_its_own_pod_does_not_guess_its_daemonset() {
    let setup = Setup::new();
    setup.set_node("mesh");
    setup.set_daemonset("mesh-cni", &json!({}));
    setup.server.set_pod(agent_pod().of_daemonset("mesh-cni"));
    for fault in [Fault::status(401), Fault::status(403), Fault::HtmlStatus(404), Fault::Reset] {
        setup.server.fail_path("/pods/agent-x", 1000, fault.clone());
        let agent = setup.owned_agent("agent-x");
        agent.until("a failure", |agent| !agent.failures(WatchName::DAEMONSET).is_empty()).await;
        let (outlook, errors) = setup.look_of("agent-x", &agent.cluster.seen()).await;
        assert!(matches!(outlook, Outlook::Unknown(_)), "{fault:?}: {outlook}");
        assert!(errors.contains("get Pod agent-x"), "{fault:?}: {errors}");
        setup.server.fail_path("/pods/agent-x", 0, fault);
        let (outlook, errors) = setup.look_of("agent-x", &agent.cluster.seen()).await;
        assert_eq!((outlook, errors.as_str()), (Outlook::Follows, ""));
        agent.until("its name", |agent| agent.cluster.seen().name == "mesh-cni").await;
    }
}

/// A taint that keeps new pods off lets those that run go on: a container that ends starts again.
#[tokio::test]
async fn a_pod_that_stays_goes_on_where_no_new_one_would_start() {
    let setup = Setup::new();
    let tainted = |effect: &str| {
        let taints = json!([{"key": "team", "effect": effect}]);
        setup
            .server
            .set_object(Resource::Nodes, json!({"metadata": {"name": NODE}, "spec": {"taints": taints}}));
    };
    tainted("NoSchedule");
    setup.set_daemonset(NAME, &json!({}));
    setup.server.set_pod(agent_pod());
    let agent = setup.owned_agent("agent-x");
    agent.unwanted().await;
    let seen = agent.cluster.seen();
    assert!(matches!(setup.look_of("agent-x", &seen).await.0, Outlook::Stays(_)));
    tainted("NoExecute");
    assert!(matches!(setup.look_of("agent-x", &seen).await.0, Outlook::Unwanted(_)), "it is evicted");
    tainted("NoSchedule");
    setup.server.fail_path("/pods/agent-x", 1, Fault::status(403));
    assert!(matches!(setup.look_of("agent-x", &seen).await.0, Outlook::Unwanted(_)), "it may not be seen");
    setup.server.set_pod(agent_pod().with("/metadata/deletionTimestamp", "2026-08-01T09:30:00Z"));
    assert!(matches!(setup.look_of("agent-x", &seen).await.0, Outlook::Unwanted(_)));
    setup.server.delete_pod(NAMESPACE, "agent-x");
    assert!(matches!(setup.look_of("agent-x", &seen).await.0, Outlook::Unwanted(_)));
}

/// Two switches of the double, as clusters have them.
#[tokio::test]
async fn a_token_ends_with_its_pod_and_a_right_with_its_role_and_what_stands_goes_on() {
    let setup = Setup::new();
    setup.set_node("mesh");
    setup.set_daemonset(NAME, &json!({}));
    setup.server.set_pod(agent_pod());
    setup.server.bind_token(NAMESPACE, "agent-x");
    let agent = setup.owned_agent("agent-x");
    agent.follows().await;
    agent.until("all watches", |_| setup.server.watches() == 4).await;
    setup.server.deny("daemonsets", &["get", "list"]);
    let (outlook, errors) = setup.look(&agent.cluster.seen()).await;
    assert_eq!(outlook, Outlook::Follows);
    assert!(errors.contains("get DaemonSet istio-cni-node: 403 daemonsets"), "{errors}");
    setup.server.delete_pod(NAMESPACE, "agent-x");
    let (outlook, errors) = setup.look(&agent.cluster.seen()).await;
    assert_eq!((outlook, errors.matches("401 Unauthorized").count()), (Outlook::Follows, 2), "{errors}");
    setup.server.delete_object(Resource::DaemonSets, NAMESPACE, NAME);
    agent.foresees("its deletion", |outlook| *outlook == Outlook::Deleted).await;
}
