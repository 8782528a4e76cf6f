//! The double itself: what other tests rely on that the agent does not ask for.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::Client;
use kube::api::WatchEvent;
use serde_json::Value;
use testkit::PodObject;
use testkit::apiserver::{ApiServer, Credentials, Resource};

async fn client(server: &ApiServer) -> Client {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = server.write_kubeconfig(dir.path(), Credentials::ClientCertificateData).unwrap();
    let read = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let current_context = kube::config::KubeConfigOptions::default();
    Client::try_from(kube::Config::from_custom_kubeconfig(read, &current_context).await.unwrap()).unwrap()
}

/// Kinds of the events of a watch, and names or, for bookmarks, versions; until it ends.
async fn watch(client: &Client, query: &str) -> Vec<String> {
    let request = http::Request::get(format!("/api/v1/pods?watch=true&{query}")).body(Vec::new()).unwrap();
    let stream = client.request_events::<Value>(request).await.unwrap();
    let mut stream = pin!(stream);
    let mut seen = Vec::new();
    while let Some(event) = stream.next().await {
        let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
        seen.push(match event.unwrap() {
            WatchEvent::Added(object) => format!("added {}", name(&object)),
            WatchEvent::Modified(object) => format!("modified {}", name(&object)),
            WatchEvent::Deleted(object) => format!("deleted {}", name(&object)),
            WatchEvent::Bookmark(mark) => {
                format!("{} {:?}", mark.metadata.resource_version, mark.metadata.annotations)
            }
            WatchEvent::Error(status) => format!("error {}", status.code),
        });
    }
    seen
}

fn pod(name: &str, node: &str) -> PodObject {
    PodObject::named(name).on_node(node)
}

#[tokio::test]
async fn a_watch_can_begin_with_what_is_there_and_ends_in_time() {
    let server = ApiServer::start().unwrap();
    let client = client(&server).await;
    server.set_pod(pod("a", "n1"));
    server.set_pod(pod("b", "n2"));
    let start = Instant::now();
    let query =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let end = format!("{} {{\"k8s.io/initial-events-end\": \"true\"}}", server.version());
    assert_eq!(watch(&client, query).await, ["added a".to_owned(), "added b".into(), end]);
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(watch(&client, "resourceVersion=0&timeoutSeconds=1").await, ["added a", "added b"]);
    // the same connection served all of it
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_selection_sees_objects_come_and_leave() {
    let server = ApiServer::start().unwrap();
    let client = client(&server).await;
    server.set_pod(pod("a", "n1"));
    let version = server.version();
    server.set_pod(pod("b", "n2"));
    server.set_pod(pod("b", "n1"));
    server.set_pod(pod("a", "n1"));
    server.set_pod(pod("a", "n2"));
    server.delete_object(Resource::Pods, "default", "a");
    server.delete_object(Resource::Pods, "default", "b");
    let query = format!("fieldSelector=spec.nodeName%3Dn1&resourceVersion={version}&timeoutSeconds=1");
    assert_eq!(watch(&client, &query).await, ["added b", "modified a", "deleted a", "deleted b"]);
    server.compact();
    assert_eq!(watch(&client, &query).await, ["error 410"]);
}
