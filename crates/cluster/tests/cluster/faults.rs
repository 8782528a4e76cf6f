//! Answers that are broken, slow or refused: everything goes on with what was known, is told, and loses nothing.

use std::time::{Duration, Instant};

use cluster::WatchName;
use testkit::apiserver::{Fault, Resource, WatchFault};

use crate::agent::{Agent, LIMITS, Setup};

/// Disturbs the watch of pods while a pod comes and another goes, and waits until the agent knows.
async fn survives(fault: WatchFault) -> (Setup, Agent) {
    let setup = Setup::new();
    setup.server.set_bookmark_interval(Some(LIMITS.silence / 3));
    setup.set_pod("goes", "1");
    setup.set_pod("stays", "1");
    let agent = setup.synced_agent().await;
    // a watch that has just begun is another matter than one that stands
    tokio::time::sleep(LIMITS.settle * 2).await;
    agent.forget();
    setup.server.disturb_watches(Resource::Pods, fault);
    setup.server.delete_pod("shop", "goes");
    setup.set_pod("comes", "1");
    agent.until("both changes", |agent| agent.pods() == ["shop/comes", "shop/stays"]).await;
    setup.watched(&agent).await;
    agent.until("the watch to be well", |agent| agent.cluster.state().stands(WatchName::PODS)).await;
    assert_eq!(agent.failures(WatchName::NAMESPACES), []);
    (setup, agent)
}

#[tokio::test]
async fn ends_and_cuts_are_no_failures() {
    for fault in [WatchFault::Close, WatchFault::Cut] {
        let (_setup, agent) = survives(fault.clone()).await;
        assert_eq!(agent.relists(WatchName::PODS), 0, "{fault:?}");
        // how the end of a cut connection looks depends on the layer that notices first
        assert!(agent.failures(WatchName::PODS).len() <= usize::from(fault == WatchFault::Cut), "{fault:?}");
    }
}

#[tokio::test]
async fn a_reset_is_told_and_gone_on_from() {
    let (_setup, agent) = survives(WatchFault::Reset).await;
    let failures = agent.failures(WatchName::PODS);
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].0.starts_with("watch pods of node n1: "), "{failures:?}");
    assert!(agent.restored(WatchName::PODS));
    assert_eq!(agent.relists(WatchName::PODS), 0);
}

#[tokio::test]
async fn silence_is_noticed() {
    let start = Instant::now();
    let (_setup, agent) = survives(WatchFault::Hang).await;
    assert!(start.elapsed() >= LIMITS.silence);
    let failures = agent.failures(WatchName::PODS);
    assert_eq!((agent.relists(WatchName::PODS), failures.len()), (0, 1), "{failures:?}");
    assert!(failures[0].0.contains("no event came for 2 s, not even a bookmark"), "{failures:?}");
    assert_eq!(agent.away(), [""; 0], "the server answers, and only this watch was silent");
}

#[tokio::test]
async fn events_that_trickle_arrive_and_those_that_take_too_long_come_by_another_watch() {
    for (interval, given_up) in [(Duration::from_micros(500), 0), (Duration::from_millis(5), 1)] {
        let (_setup, agent) = survives(WatchFault::Slow(interval)).await;
        let failures = agent.failures(WatchName::PODS);
        assert_eq!(
            (agent.relists(WatchName::PODS), failures.len()),
            (0, given_up),
            "{interval:?}: {failures:?}"
        );
    }
}

#[tokio::test]
async fn an_error_of_the_server_in_the_stream_is_told() {
    let (_setup, agent) = survives(WatchFault::Error(500)).await;
    let failures = agent.failures(WatchName::PODS);
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].0.contains("500 the double was told to"), "{failures:?}");
    assert_eq!(agent.relists(WatchName::PODS), 0);
}

#[tokio::test]
async fn garbage_in_a_watch_loses_no_event() {
    let lines = [
        "<html>Bad gateway</html>",
        "{\"type\":\"MODIFIED\",\"object\":{\"kind\":",
        "{\"type\":\"RENAMED\",\"object\":{}}",
        "{\"object\":{}}",
        "[]",
        "\u{0}\u{1}",
    ];
    for line in lines {
        let (_setup, agent) = survives(WatchFault::Line(line.into())).await;
        let failures = agent.failures(WatchName::PODS);
        assert_eq!(failures.len(), 1, "{line}: {failures:?}");
        assert!(failures[0].0.contains("the answer is not understood"), "{failures:?}");
        assert!(!failures[0].0.contains("gateway"), "no content is repeated: {failures:?}");
    }
}

#[tokio::test]
async fn an_endless_line_is_given_up() {
    let (_setup, agent) = survives(WatchFault::Line(format!("\"{}\"", "x".repeat(9 << 20)))).await;
    let failures = agent.failures(WatchName::PODS);
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].0.contains("larger than 8388608 bytes"), "{failures:?}");
}

#[tokio::test]
async fn an_object_that_does_not_fit_is_named_and_what_was_known_of_it_stays() {
    let setup = Setup::new();
    setup.set_pod("odd", "1");
    setup.set_pod("other", "1");
    let agent = setup.synced_agent().await;
    let misfit = serde_json::json!({"metadata": {"namespace": "shop", "name": "odd"},
        "spec": {"nodeName": "n1", "containers": "none"}});
    setup.server.set_pod(misfit);
    setup.set_pod("other", "2");
    agent.until("the other pod", |agent| agent.label("shop", "other", "v") == "2").await;
    assert_eq!(agent.unreadable().len(), 1);
    assert!(agent.unreadable()[0].contains("odd: has a member of another type"), "{:?}", agent.unreadable());
    assert!(agent.cluster.state().stands(WatchName::PODS), "the watch itself is well");
    assert_eq!(agent.label("shop", "odd", "v"), "1");
    // the same in a list
    setup.server.disturb_watches(Resource::Pods, WatchFault::Error(410));
    agent.until("a list", |agent| agent.relists(WatchName::PODS) > 0 && agent.unreadable().len() > 1).await;
    setup.watched(&agent).await;
    assert_eq!(agent.pods(), ["shop/odd", "shop/other"]);
    setup.set_pod("odd", "3");
    agent.until("the pod to fit again", |agent| agent.label("shop", "odd", "v") == "3").await;
}

#[tokio::test]
async fn every_broken_answer_to_a_list_is_told_and_gone_past() {
    let faults = [
        (Fault::Html, "is not JSON"),
        (Fault::Body("{\"items\": []}".into()), "another type"),
        (Fault::Body("{\"metadata\": {}, \"items\": []}".into()), "has no version"),
        (Fault::Body("{\"metadata\": {\"resourceVersion\": \"1\"}, \"items\": [".into()), "ends early"),
        (Fault::Garbage, "list pods of node n1: "),
        (Fault::Reset, "list pods of node n1: "),
        (Fault::Close, "list pods of node n1: "),
        (Fault::Truncated, "list pods of node n1: "),
        (Fault::TruncatedChunks, "list pods of node n1: "),
        (Fault::status(500), "list pods of node n1: 500 the double was told to fail"),
        (Fault::HtmlStatus(502), "list pods of node n1: 502"),
        (Fault::Redirect("https://example.com/".into()), "list pods of node n1: 302"),
        (Fault::OversizedChunks(65 << 20), "larger than 65536 bytes"),
    ];
    for (fault, text) in faults {
        let setup = Setup::new();
        setup.set_pod("web", "1");
        setup.server.fail_path("/pods", 1, fault.clone());
        let agent = setup.synced_agent().await;
        let failures = agent.failures(WatchName::PODS);
        assert_eq!(failures.len(), 1, "{fault:?}: {failures:?}");
        assert!(failures[0].0.contains(text), "{fault:?}: {failures:?}");
        assert_eq!(agent.pods(), ["shop/web"]);
    }
}

#[tokio::test]
async fn a_list_that_hangs_or_trickles_is_given_up_in_time() {
    for fault in [Fault::Hang, Fault::Slow(Duration::from_millis(20))] {
        let setup = Setup::new();
        setup.set_pod("web", "1");
        setup.server.fail_path("/pods", 1, fault.clone());
        let agent = setup.synced_agent().await;
        let failures = agent.failures(WatchName::PODS);
        assert!(
            failures.len() == 1 && failures[0].0.contains("no answer within 2.0 s"),
            "{fault:?}: {failures:?}"
        );
    }
}

#[tokio::test]
async fn an_overloaded_server_is_asked_ever_more_seldom() {
    let setup = Setup::new();
    setup.set_pod("web", "1");
    setup.server.fail_path("/pods", 2, Fault::Status { code: 429, retry_after: Some(1) });
    let agent = setup.agent();
    agent.until("two refusals", |agent| agent.failures(WatchName::PODS).len() == 2).await;
    setup.server.fail_path("/pods", 2, Fault::status(503));
    agent.synced().await;
    let failures = agent.failures(WatchName::PODS);
    assert_eq!(failures.len(), 4, "{failures:?}");
    for (number, (text, pause)) in failures.iter().enumerate() {
        let about = Duration::from_millis(200 << number);
        // and no sooner than it asks for
        let asked = Duration::from_secs(if number < 2 { 1 } else { 0 });
        assert!(*pause >= asked.max(about.mul_f64(0.79)), "{number}: {pause:?}");
        assert!(*pause <= asked.max(about.mul_f64(1.21)), "{number}: {pause:?}");
        assert!(text.contains("overloaded"), "{text}");
    }
    let lists = setup.requests("/pods").into_iter().filter(|path| !path.contains("watch")).count();
    assert_eq!(lists, 5, "kube repeats nothing by itself");
}

#[tokio::test]
async fn a_server_that_closes_every_watch_at_once_is_not_asked_in_a_tight_loop() {
    let setup = Setup::new();
    setup.set_pod("web", "1");
    setup.server.fail_path(
        "pods?&fieldSelector=spec.nodeName%3Dn1&timeoutSeconds",
        1000,
        Fault::Body(String::new()),
    );
    setup.server.fail_path("pods?&watch", 1000, Fault::Body(String::new()));
    let agent = setup.agent();
    agent.synced().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let watches = setup.requests("/pods").into_iter().filter(|path| path.contains("watch=true")).count();
    assert!((2..=6).contains(&watches), "{watches} watches in two seconds");
    assert!(
        agent.failures(WatchName::PODS)[0].0.contains("closed the watch at once"),
        "{:?}",
        agent.failures(WatchName::PODS)
    );
    assert!(!agent.cluster.state().stands(WatchName::PODS));
}
