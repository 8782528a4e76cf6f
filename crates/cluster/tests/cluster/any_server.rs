//! What has to hold with any API server.

use std::future::Future;

use cluster::daemonset::{Outlook, Seen, decide};
use cluster::write::EventText;
use cluster::{OwnPod, WatchName, Writer};
use facts::PodRef;
use serde_json::Value;

use crate::agent::Agent;
use crate::server::Server;

/// Runs a test with the double, and with a real cluster if there is one.
async fn each<F: Future<Output = Server>>(test: impl Fn(Server) -> F) {
    test(Server::double().await).await.remove().await;
    if let Some(server) = Server::real().await {
        test(server).await.remove().await;
    }
}

async fn uid(server: &Server, name: &str) -> String {
    server.pod(name).await["metadata"]["uid"].as_str().unwrap().into()
}

fn key(server: &Server, name: &str, uid: &str) -> PodRef {
    PodRef { namespace: server.namespace.clone(), name: name.into(), uid: uid.into() }
}

async fn has(agent: &Agent, server: &Server, names: &[&str]) {
    let wanted: Vec<_> = names.iter().map(|name| format!("{}/{name}", server.namespace)).collect();
    agent.until(&format!("{wanted:?}"), |agent| agent.pods() == wanted).await;
}

#[tokio::test]
async fn what_is_there_is_listed_trimmed_and_with_its_namespace() {
    each(async |server| {
        server.create_pod("web", true).await;
        server.create_pod("elsewhere", false).await;
        let agent = server.agent().await;
        has(&agent, &server, &["web"]).await;
        let facts = agent.cluster.index().facts(&server.namespace, "web").unwrap();
        assert_eq!(facts.namespace_labels.unwrap().get("team").map(String::as_str), Some("red"));
        assert_eq!(facts.pod.kind.as_deref(), Some("Pod"));
        assert_eq!(facts.pod.uid(), Some(&*uid(&server, "web").await));
        let metadata = facts.pod.metadata.as_ref().unwrap();
        assert_eq!(
            metadata.annotations.as_ref().unwrap().keys().collect::<Vec<_>>(),
            ["sidecar.istio.io/status"]
        );
        assert_eq!(metadata.resource_version, None, "it changes without a fact changing");
        let pod = facts::Object::clone(&facts.pod).into_pod(&facts::PodRef::default()).unwrap();
        assert_eq!(pod.containers[0].name, "app");
        assert!(pod.containers[0].env.is_empty());
        server
    })
    .await;
}

#[tokio::test]
async fn what_happens_is_seen() {
    each(async |server| {
        let agent = server.agent().await;
        server.create_pod("web", true).await;
        has(&agent, &server, &["web"]).await;
        let first = uid(&server, "web").await;
        server.label_pod("web", "2").await;
        agent.until("the label", |agent| agent.label(&server.namespace, "web", "v") == "2").await;

        agent.forget();
        server.label_namespace("blue").await;
        agent.until("the namespace's pods", |agent| agent.changed() == [key(&server, "web", &first)]).await;
        let facts = agent.cluster.index().facts(&server.namespace, "web").unwrap();
        assert_eq!(facts.namespace_labels.unwrap().get("team").map(String::as_str), Some("blue"));

        agent.forget();
        server.delete_pod("web").await;
        has(&agent, &server, &[]).await;
        assert_eq!(agent.changed().last(), Some(&key(&server, "web", &first)));
        server.create_pod("web", true).await;
        has(&agent, &server, &["web"]).await;
        let second = uid(&server, "web").await;
        assert_ne!(first, second);
        assert_eq!(agent.changed().last(), Some(&key(&server, "web", &second)));
        for what in [WatchName::PODS, WatchName::NAMESPACES] {
            assert_eq!((agent.failures(what), agent.relists(what)), (vec![], 0));
        }
        server
    })
    .await;
}

#[tokio::test]
async fn writes_arrive() {
    each(async |server| {
        server.create_pod("web", true).await;
        let writer = Writer::new(server.connection(), server.node.clone());
        let web = key(&server, "web", &uid(&server, "web").await);
        let text = EventText {
            warning: true,
            reason: "StartedWithoutCapture",
            message: &"ä".repeat(1000),
            component: "istio-cni-node",
        };
        for _ in 0..2 {
            writer.create_event(&web, text).await.unwrap();
        }
        let events = server.events().await;
        let about: Vec<&Value> =
            events.iter().filter(|event| event["reason"] == "StartedWithoutCapture").collect();
        assert_eq!(about.len(), 1, "the second is counted: {events:?}");
        let event = about[0];
        assert_eq!(event["involvedObject"]["uid"], web.uid.as_str());
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["message"], "ä".repeat(512));
        assert_eq!(event["source"]["component"], "istio-cni-node");
        assert_eq!(event["source"]["host"], server.node.as_str());
        assert_eq!(event["reportingComponent"], "istio-cni.io/agent");
        assert_eq!(event["action"], "StartPod");

        writer.label_pod(&web, "cni.istio.io/uninitialized", "true").await.unwrap();
        let pod = server.pod("web").await;
        assert_eq!(pod["metadata"]["labels"]["cni.istio.io/uninitialized"], "true");
        assert_eq!(pod["metadata"]["labels"]["v"], "1");
        let other = key(&server, "web", "00000000-0000-0000-0000-000000000000");
        let error = writer.label_pod(&other, "cni.istio.io/uninitialized", "false").await.unwrap_err();
        assert_eq!(error.status(), Some(409), "{error}");
        assert_eq!(server.pod("web").await["metadata"]["labels"]["cni.istio.io/uninitialized"], "true");
        let error = writer.label_pod(&key(&server, "none", ""), "a", "b").await.unwrap_err();
        assert_eq!(error.status(), Some(404), "{error}");

        let own = OwnPod { namespace: server.namespace.clone(), name: String::new() };
        let (seen, errors) = writer.look_again(&Seen::default(), &own).await;
        assert_eq!(decide(&seen), Outlook::Absent, "{errors:?}");
        server
    })
    .await;
}
