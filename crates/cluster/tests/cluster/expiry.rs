//! Versions: bookmarks, and what is no longer kept by the server.

use std::time::Duration;

use cluster::WatchName;
use facts::PodRef;
use testkit::apiserver::{Resource, WatchFault};

use crate::agent::{LIMITS, Setup};

/// Pods are lost and come while the watch is down, and the server forgets that they did.
async fn relists(by_status: bool) {
    let setup = Setup::new();
    for name in ["stays", "goes", "replaced", "changes"] {
        setup.set_pod(name, "1");
    }
    setup.server.set_namespace("bank", &[]);
    let agent = setup.synced_agent().await;
    let key = |name: &str| {
        let pod = setup.server.object(Resource::Pods, "shop", name).unwrap();
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        PodRef { namespace: "shop".into(), name: name.into(), uid }
    };
    let (goes, replaced) = (key("goes"), key("replaced"));
    agent.forget();
    setup.server.refuse_gone_by_status(by_status);
    setup.server.stop();
    agent.until("the end of the watches", |_| setup.server.watches() == 0).await;
    setup.server.delete_pod("shop", "goes");
    setup.server.delete_pod("shop", "replaced");
    setup.set_pod("replaced", "1");
    setup.set_pod("changes", "2");
    setup.set_pod("comes", "1");
    setup.server.set_namespace("shop", &[("team", "blue")]);
    setup.server.delete_namespace("bank");
    setup.server.compact();
    setup.server.restart().unwrap();

    let expected = ["shop/changes", "shop/comes", "shop/replaced", "shop/stays"];
    agent
        .until("the pods of the server", |agent| {
            agent.pods() == expected && agent.label("shop", "changes", "v") == "2"
        })
        .await;
    setup.watched(&agent).await;
    let mut changed = agent.changed();
    changed.sort_unstable();
    changed.dedup();
    let mut all = vec![goes, replaced, key("replaced"), key("changes"), key("comes"), key("stays")];
    all.sort_unstable();
    assert_eq!(changed, all, "stays because of its namespace's label");
    assert_eq!((agent.relists(WatchName::PODS), agent.relists(WatchName::NAMESPACES)), (1, 1));
    agent
        .until("both to be well", |agent| {
            agent.restored(WatchName::PODS) && agent.restored(WatchName::NAMESPACES)
        })
        .await;
    assert!(
        agent.cluster.state().stands(WatchName::PODS) && agent.cluster.state().stands(WatchName::NAMESPACES)
    );
    // and what comes now comes by the watch
    setup.server.delete_pod("shop", "comes");
    agent.until("a deletion", |agent| agent.pods().len() == 3).await;
    assert_eq!(agent.relists(WatchName::PODS), 1);
}

#[tokio::test]
async fn a_watch_that_is_too_old_by_status_leads_to_a_list() {
    relists(true).await;
}

#[tokio::test]
async fn a_watch_that_is_too_old_in_the_stream_leads_to_a_list() {
    relists(false).await;
}

#[tokio::test]
async fn a_standing_watch_that_expires_leads_to_a_list_at_once() {
    let setup = Setup::new();
    setup.set_pod("web", "1");
    let agent = setup.synced_agent().await;
    setup.server.send_bookmarks();
    tokio::time::sleep(LIMITS.settle * 2).await;
    setup.server.disturb_watches(Resource::Pods, WatchFault::Error(410));
    agent.until("a list", |agent| agent.relists(WatchName::PODS) == 1).await;
    setup.set_pod("new", "1");
    agent.until("the new pod", |agent| agent.pods().len() == 2).await;
    assert_eq!(agent.failures(WatchName::PODS), [], "that is no failure");
}

#[tokio::test]
async fn bookmarks_move_on_what_a_watch_goes_on_from() {
    let setup = Setup::new();
    setup.set_pod("web", "1");
    let agent = setup.synced_agent().await;
    // nothing that a watch of this node's pods sees
    for number in 0..50 {
        setup
            .server
            .set_object(Resource::Nodes, serde_json::json!({"metadata": {"name": format!("n{number}")}}));
    }
    let newest = setup.server.version();
    setup.server.send_bookmarks();
    tokio::time::sleep(Duration::from_millis(300)).await;
    setup.server.compact();
    let before = setup.requests("/pods").len();
    setup.server.disturb_watches(Resource::Pods, WatchFault::Close);
    agent.until("the next watch", |_| setup.requests("/pods").len() > before).await;
    setup.watched(&agent).await;
    let last = setup.requests("/pods").pop().unwrap();
    assert!(last.contains("watch=true") && last.contains(&format!("resourceVersion={newest}")), "{last}");
    assert!(last.contains("allowWatchBookmarks=true"), "{last}");
    setup.set_pod("new", "1");
    agent.until("the new pod", |agent| agent.pods().len() == 2).await;
    assert_eq!((agent.relists(WatchName::PODS), agent.failures(WatchName::PODS)), (0, vec![]));
}
