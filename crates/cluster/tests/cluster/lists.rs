//! Lists come from the API server's cache, and time never goes backwards by them.

use cluster::WatchName;
use serde_json::{Value, json};
use testkit::apiserver::{Fault, Resource, Snapshot, WatchFault};

use crate::agent::{Agent, LIMITS, Setup, pod};

/// A cluster in which every sixth pod, or so, is on this node.
fn large_cluster() -> Setup {
    let setup = Setup::new();
    for number in 0..2700 {
        let mut pod = pod("shop", &format!("web-{number:04}"), "1");
        if number % 27 >= 5 {
            pod["spec"]["nodeName"] = json!(format!("other-{}", number % 27));
        }
        setup.server.set_pod(pod);
    }
    for number in 0..100 {
        setup.server.set_namespace(&format!("team-{number}"), &[]);
    }
    setup
}

fn lists(setup: &Setup, part: &str) -> Vec<String> {
    setup.requests(part).into_iter().filter(|path| !path.contains("watch=")).collect()
}

#[tokio::test]
async fn a_start_in_a_large_cluster_reads_nothing_from_the_store() {
    let setup = large_cluster();
    let agent = setup.synced_agent().await;
    assert_eq!(agent.pods().len(), 500);
    assert!(agent.cluster.index().has_namespace("team-99"));
    assert_eq!(lists(&setup, "/pods").len(), 1, "{:?}", lists(&setup, "/pods"));
    assert_eq!(lists(&setup, "/namespaces").len(), 1);
    assert_eq!(setup.server.store_reads(), 0);
    // Nor does an agent whose watch has expired.
    setup.server.compact();
    setup.server.disturb_watches(Resource::Pods, WatchFault::Error(410));
    setup.server.disturb_watches(Resource::Namespaces, WatchFault::Error(410));
    agent
        .until("lists", |agent| {
            agent.relists(WatchName::PODS) == 1 && agent.relists(WatchName::NAMESPACES) == 1
        })
        .await;
    setup.watched(&agent).await;
    assert_eq!((agent.pods().len(), setup.server.store_reads()), (500, 0));
}

#[tokio::test]
async fn a_stale_cache_is_caught_up_with_by_the_watch() {
    let setup = Setup::new();
    setup.set_pod("goes", "1");
    setup.set_pod("stays", "1");
    let behind = setup.server.snapshot();
    setup.server.delete_pod("shop", "goes");
    setup.set_pod("comes", "1");
    setup.server.serve_behind(Some(behind));
    let agent = setup.synced_agent().await;
    assert_eq!(agent.pods(), ["shop/goes", "shop/stays"], "what the cache has");
    setup.server.serve_behind(None);
    agent.until("what has happened", |agent| agent.pods() == ["shop/comes", "shop/stays"]).await;
    assert_eq!((agent.failures(WatchName::PODS), setup.server.store_reads()), (vec![], 0));
}

/// An agent that has to list, and knows what the server that answers then does not know. Its first pod is gone and `web-new` is there.
async fn ahead_of_the_server(pods: usize) -> (Setup, Agent, Snapshot) {
    let setup = Setup::new();
    for number in 0..pods {
        setup.set_pod(&format!("web-{number:03}"), "1");
    }
    let behind = setup.server.snapshot();
    let agent = setup.synced_agent().await;
    setup.server.delete_pod("shop", "web-000");
    setup.set_pod("web-new", "1");
    let changed = |agent: &Agent| agent.pods().len() == pods && agent.pods().contains(&"shop/web-new".into());
    agent.until("both changes", changed).await;
    agent.forget();
    (setup, agent, behind)
}

#[tokio::test]
async fn an_api_server_that_is_behind_is_asked_again() {
    let (setup, agent, behind) = ahead_of_the_server(3).await;
    setup.server.serve_behind(Some(behind));
    setup.server.disturb_watches(Resource::Pods, WatchFault::Error(410));
    agent.until("a refusal", |agent| !agent.failures(WatchName::PODS).is_empty()).await;
    assert_eq!(agent.pods(), ["shop/web-001", "shop/web-002", "shop/web-new"]);
    setup.server.serve_behind(None);
    setup.set_pod("web-later", "1");
    agent.until("the next pod", |agent| agent.pods().len() == 4).await;
    let failures = agent.failures(WatchName::PODS);
    assert!(failures.iter().all(|(text, _)| text.contains("cache is behind")), "{failures:?}");
    assert!(agent.changed().iter().all(|key| key.name == "web-later"), "{:?}", agent.changed());
    assert_eq!(setup.server.store_reads(), 0);
}

#[tokio::test]
async fn a_list_that_is_too_old_is_not_believed() {
    let pods = |items: Value, version: u64| {
        let version = version.to_string();
        json!({"kind": "PodList", "metadata": {"resourceVersion": version}, "items": items})
    };
    for items in [json!([pod("shop", "web-000", "1")]), json!([])] {
        let (setup, agent, _) = ahead_of_the_server(3).await;
        // By a server that does not look at the version that is asked for.
        let old = pods(items, setup.server.version() - 1).to_string();
        // The version stands before the objects, as API servers write it; serde_json sorts.
        let old = old.replacen('{', "{\"apiVersion\":\"v1\",", 1);
        setup.server.fail_path("resourceVersionMatch=NotOlderThan", 1, Fault::Body(old));
        setup.server.disturb_watches(Resource::Pods, WatchFault::Error(410));
        agent.until("a refusal", |agent| !agent.failures(WatchName::PODS).is_empty()).await;
        setup.watched(&agent).await;
        let failures = agent.failures(WatchName::PODS);
        assert!(failures.len() == 1 && failures[0].0.contains("cache is behind"), "{failures:?}");
        assert_eq!(agent.pods(), ["shop/web-001", "shop/web-002", "shop/web-new"]);
    }
}

#[tokio::test]
async fn a_cache_that_stays_behind_is_left_for_the_store() {
    let (setup, agent, behind) = ahead_of_the_server(600).await;
    setup.server.serve_behind(Some(behind));
    // What is listed in pages may be forgotten before the last one.
    setup.server.fail_path("continue=", 1, Fault::status(410));
    setup.server.disturb_watches(Resource::Pods, WatchFault::Error(410));
    agent.until("a list", |agent| agent.restored(WatchName::PODS)).await;
    assert_eq!((agent.pods().len(), agent.changed()), (600, vec![]));
    let failures = agent.failures(WatchName::PODS);
    assert_eq!(failures.len(), 4, "{failures:?}");
    assert!(failures[3].0.contains("410"), "{failures:?}");
    let from_store = lists(&setup, "/pods").into_iter().filter(|path| path.contains("limit=500")).count();
    assert_eq!((from_store, setup.server.store_reads()), (4, 1200), "both pages twice");
    setup.server.serve_behind(None);
    setup.set_pod("later", "1");
    agent.until("the next pod", |agent| agent.pods().len() == 601).await;
}

/// A list of pods `<prefix>-0`, …, each with an annotation of so many bytes.
fn list_of(prefix: &str, pods: usize, bytes: usize) -> Fault {
    let text = "x".repeat(bytes);
    let items: Vec<Value> = (0..pods)
        .map(|number| {
            let mut pod = pod("shop", &format!("{prefix}-{number}"), "1");
            pod["metadata"]["annotations"] = json!({"sidecar.istio.io/status": text});
            pod
        })
        .collect();
    let metadata = json!({"resourceVersion": "999999"});
    Fault::Body(
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string(),
    )
}

/// Too many objects, too many bytes: nothing of it stays, the error says so, and what was known is as it was.
#[tokio::test]
async fn a_list_that_is_too_large_changes_nothing() {
    for (pods, bytes, text) in
        [(LIMITS.objects + 1, 0, "more than 4000 objects"), (40, 512 << 10, "more than 16777216 bytes")]
    {
        let setup = Setup::new();
        setup.set_pod("web", "1");
        let agent = setup.synced_agent().await;
        agent.forget();
        // A list, and not the watch.
        setup.server.fail_path("resourceVersionMatch=NotOlderThan", 1, list_of("stranger", pods, bytes));
        setup.server.compact();
        setup.server.disturb_watches(Resource::Pods, WatchFault::Error(410));
        let says = |failure: &(String, _)| {
            failure.0.contains("list pods of node n1: the list has") && failure.0.contains(text)
        };
        agent.until(text, |agent| agent.failures(WatchName::PODS).iter().any(says)).await;
        // The next list is good.
        setup.set_pod("next", "1");
        agent.until("the next list", |agent| agent.pods() == ["shop/next", "shop/web"]).await;
        assert!(!agent.cluster.index().pods().any(|pod| pod.name().starts_with("stranger")));
    }
}
