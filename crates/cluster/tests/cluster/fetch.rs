//! A pod that the watch has not brought yet is asked for.

use std::time::{Duration, Instant};

use cluster::{Cluster, FetchError, WatchName};
use serde_json::json;
use testkit::apiserver::{Fault, Resource, WatchFault};

use crate::agent::{Agent, Setup, pod};

const LIMIT: Duration = Duration::from_secs(2);

/// An agent whose watches say nothing any more, and for a while nobody notices.
async fn left_behind(setup: &Setup) -> Agent {
    let agent = setup.synced_agent().await;
    let behind = setup.server.snapshot();
    setup.server.serve_behind(Some(behind));
    agent.forget();
    agent
}

fn gets(setup: &Setup) -> Vec<String> {
    setup.requests("/api/v1/namespaces/").into_iter().filter(|path| !path.contains("watch=")).collect()
}

async fn fetch(agent: &Agent, name: &str) -> Result<(), FetchError> {
    agent.cluster.fetch("shop", name, LIMIT).await
}

#[tokio::test]
async fn a_pod_is_known_with_its_namespace_and_told_of() {
    let setup = Setup::new();
    let agent = left_behind(&setup).await;
    setup.server.set_namespace("new", &[("team", "blue")]);
    setup.server.set_pod(pod("new", "web", "1"));
    assert_eq!(agent.cluster.fetch("new", "web", LIMIT).await, Ok(()));
    let facts = agent.cluster.index().facts("new", "web").unwrap();
    assert_eq!(facts.namespace_labels.unwrap()["team"], "blue");
    assert_eq!(agent.changed().iter().filter(|key| key.name == "web").count(), 1);
    let mut asked = gets(&setup);
    asked.sort_unstable();
    assert_eq!(asked, ["/api/v1/namespaces/new", "/api/v1/namespaces/new/pods/web"]);
    // The watch says the same later.
    setup.server.serve_behind(None);
    setup.server.set_pod(pod("new", "web", "2"));
    agent.until("the next change", |agent| agent.label("new", "web", "v") == "2").await;
    assert_eq!((agent.failures(WatchName::PODS), agent.failures(WatchName::NAMESPACES)), (vec![], vec![]));
}

#[tokio::test]
async fn many_ask_and_the_server_is_asked_once() {
    let setup = Setup::new();
    let agent = left_behind(&setup).await;
    setup.set_pod("web", "1");
    let asked = futures_util::future::join_all((0..100).map(|_| fetch(&agent, "web"))).await;
    assert!(asked.iter().all(Result::is_ok), "{asked:?}");
    let absent = futures_util::future::join_all((0..100).map(|_| fetch(&agent, "none"))).await;
    assert!(absent.iter().all(|answer| *answer == Err(FetchError::NotFound)), "{absent:?}");
    assert_eq!(fetch(&agent, "none").await, Err(FetchError::NotFound));
    assert_eq!(gets(&setup).len(), 2, "{:?}", gets(&setup));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    setup.set_pod("none", "1");
    assert_eq!(fetch(&agent, "none").await, Ok(()));
}

#[tokio::test]
async fn questions_are_bounded_in_number_and_time() {
    let setup = Setup::new();
    let agent = left_behind(&setup).await;
    setup.server.fail_path("/api/v1/namespaces/shop/pods/", 1000, Fault::Hang);
    let limit = Duration::from_millis(300);
    let start = Instant::now();
    let names: Vec<_> = (0..200).map(|number| format!("web-{number}")).collect();
    let asked = names.iter().map(|name| agent.cluster.fetch("shop", name, limit));
    let asked = futures_util::future::join_all(asked).await;
    assert!(asked.iter().all(|answer| *answer == Err(FetchError::Late)), "{asked:?}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(gets(&setup).len(), 8);
}

#[tokio::test]
async fn an_older_watch_takes_nothing_back() {
    let setup = Setup::new();
    setup.set_pod("web", "1");
    let agent = left_behind(&setup).await;
    // Seen by the watch one after another, and later than the question.
    let mut steps = Vec::new();
    setup.server.delete_pod("shop", "web");
    steps.push(setup.server.snapshot());
    setup.set_pod("web", "2");
    steps.push(setup.server.snapshot());
    setup.set_pod("web", "3");
    assert_eq!(fetch(&agent, "web").await, Ok(()));
    assert_eq!(agent.label("shop", "web", "v"), "3");
    for step in steps {
        setup.server.serve_behind(Some(step));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(agent.label("shop", "web", "v"), "3");
    }
    setup.server.serve_behind(None);
    setup.server.delete_pod("shop", "web");
    agent.until("its end", |agent| agent.pods().is_empty()).await;
    let told: Vec<_> = agent.changed().into_iter().map(|key| key.uid).collect();
    assert_eq!(told.len(), 3, "both pods of the name at the question, and the second's end: {told:?}");
    assert!(told[0] != told[1] && told[1] == told[2], "{told:?}");
}

#[tokio::test]
async fn a_list_that_is_older_than_the_answer_keeps_the_pod() {
    let setup = Setup::new();
    let agent = left_behind(&setup).await;
    setup.set_pod("web", "1");
    assert_eq!(fetch(&agent, "web").await, Ok(()));
    setup.server.disturb_watches(Resource::Pods, WatchFault::Error(410));
    agent.until("a list", |agent| agent.relists(WatchName::PODS) == 1).await;
    setup.watched(&agent).await;
    assert_eq!(agent.pods(), ["shop/web"]);
}

#[tokio::test]
async fn what_is_not_to_be_known_is_not() {
    let setup = Setup::new();
    let agent = left_behind(&setup).await;
    let mut elsewhere = pod("shop", "elsewhere", "1");
    elsewhere["spec"]["nodeName"] = json!("n2");
    setup.server.set_pod(elsewhere);
    assert_eq!(fetch(&agent, "elsewhere").await, Err(FetchError::Elsewhere));
    setup.server.set_pod(json!({"metadata": {"namespace": "shop", "name": "odd"}, "spec": {"nodeName": "n1", "containers": 7}}));
    assert!(matches!(fetch(&agent, "odd").await, Err(FetchError::Api(_))));
    setup.server.fail_path("pods/refused", 1, Fault::status(500));
    assert!(matches!(fetch(&agent, "refused").await, Err(FetchError::Api(_))));
    assert_eq!(agent.pods(), [""; 0]);
    assert_eq!(agent.cluster.fetch("../nodes", "a?b", LIMIT).await, Err(FetchError::NotFound));
    let strange: Vec<_> = gets(&setup).into_iter().filter(|path| path.contains("nodes")).collect();
    assert_eq!(strange.len(), 2, "{strange:?}");
    let plain = |path: &String| path.starts_with("/api/v1/namespaces/.._nodes") && !path.contains('?');
    assert!(strange.iter().all(plain), "{strange:?}");
}

#[tokio::test]
async fn a_server_that_is_away_is_not_asked() {
    let setup = Setup::new();
    let agent = setup.synced_agent().await;
    setup.server.stop();
    agent.until("the outage", |agent| !agent.away().is_empty()).await;
    let start = Instant::now();
    assert_eq!(fetch(&agent, "web").await, Err(FetchError::Away));
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_question_without_an_answer_doubts_the_server() {
    let setup = Setup::new();
    let agent = setup.synced_agent().await;
    setup.server.set_fault(Some(Fault::HangBeforeTls));
    setup.server.fail_path("/web", 1, Fault::Hang);
    assert!(fetch(&agent, "web").await.is_err());
    agent.until("the outage", |agent| !agent.away().is_empty()).await;
    assert_eq!(fetch(&agent, "other").await, Err(FetchError::Away));
    setup.server.set_fault(None);
    agent.until("its end", |agent| !agent.outages().is_empty()).await;
}

/// The runtime starts a pod as soon as its manifest is there, maybe before anything has told of it.
#[tokio::test]
async fn a_directory_of_manifests_is_looked_at_when_a_pod_is_asked_for() {
    let cluster = Cluster::new();
    let dir = tempfile::tempdir().unwrap();
    let source = cluster::Source::Manifests { dir: dir.path().into(), own: None };
    let watching = tokio::spawn(cluster::watch::run(source, cluster.clone(), |_| {}));
    assert_eq!(cluster.fetch("shop", "web", LIMIT).await, Err(FetchError::NoManifest));
    for number in 0..20 {
        let name = format!("web-{number}");
        let text = format!(
            "kind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{containers: [{{name: a}}]}}\n"
        );
        std::fs::write(dir.path().join(format!("{name}.yaml")), text).unwrap();
        assert_eq!(cluster.fetch("shop", &name, LIMIT).await, Ok(()));
        assert!(cluster.index().facts("shop", &name).unwrap().namespace_labels.is_some());
    }
    watching.abort();
}
