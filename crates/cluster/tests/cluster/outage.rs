//! A server that is away, credentials that end, and files that are not there yet.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Access, ApiConnection, Source, WatchName};
use testkit::apiserver::{Resource, WatchFault};

use crate::agent::{Agent, LIMITS, Setup};

#[tokio::test]
async fn a_server_that_is_away_for_three_seconds_is_caught_up_with() {
    let setup = Setup::new();
    for name in ["goes", "stays"] {
        setup.set_pod(name, "1");
    }
    let agent = setup.synced_agent().await;
    agent.forget();
    setup.server.stop();
    tokio::time::sleep(Duration::from_secs(3)).await;
    setup.server.delete_pod("shop", "goes");
    setup.set_pod("comes", "1");
    setup.server.set_namespace("shop", &[("team", "blue")]);
    assert_eq!(agent.pods(), ["shop/goes", "shop/stays"], "what was known stays");
    assert!(agent.cluster.state().synced, "and can be used");
    assert!(
        !agent.cluster.state().stands(WatchName::PODS)
            && !agent.cluster.state().stands(WatchName::NAMESPACES)
    );
    assert_eq!(agent.failures(WatchName::PODS).len(), 1, "a watch waits for the server's return");
    let away = agent.away();
    assert!(away.len() == 1 && away[0].contains("onnection refused"), "{away:?}");
    setup.server.restart().unwrap();
    agent.until("the changes", |agent| agent.pods() == ["shop/comes", "shop/stays"]).await;
    agent
        .until("both to be well", |agent| {
            agent.restored(WatchName::PODS) && agent.restored(WatchName::NAMESPACES)
        })
        .await;
    let labels = agent.cluster.index().facts("shop", "stays").unwrap().namespace_labels.unwrap();
    assert_eq!(labels["team"], "blue");
    assert_eq!(
        (agent.relists(WatchName::PODS), agent.relists(WatchName::NAMESPACES)),
        (0, 0),
        "both go on from where they were"
    );
    let state = agent.cluster.state();
    assert!(
        state.stands(WatchName::PODS) && state.stands(WatchName::NAMESPACES) && state.last_error.is_none(),
        "{state:?}"
    );
    let outages = agent.outages();
    assert!(outages.len() == 1 && outages[0] > Duration::from_secs(2), "{outages:?}");
}

#[tokio::test]
async fn a_quiet_watch_that_stands_again_is_told() {
    let setup = Setup::new();
    let agent = setup.synced_agent().await;
    tokio::time::sleep(LIMITS.settle * 2).await;
    agent.forget();
    setup.server.disturb_watches(Resource::Pods, WatchFault::Reset);
    agent.until("the failure", |agent| !agent.failures(WatchName::PODS).is_empty()).await;
    agent.until("its end", |agent| agent.restored(WatchName::PODS)).await;
    assert!(agent.cluster.state().stands(WatchName::PODS));
}

#[tokio::test]
async fn an_ended_token_is_told_and_the_next_one_is_used() {
    let setup = Setup::new();
    setup.set_pod("web", "1");
    let agent = setup.synced_agent().await;
    tokio::time::sleep(LIMITS.settle * 2).await;
    setup.server.set_token("the-next-one");
    setup.server.disturb_watches(Resource::Pods, WatchFault::Close);
    agent.until("a refused question", |agent| !agent.away().is_empty()).await;
    let failures = agent.failures(WatchName::PODS);
    assert!(agent.away()[0].contains("401 Unauthorized"), "{:?}", agent.away());
    assert!(failures[0].0.contains("401 Unauthorized; the token or certificate"), "{failures:?}");
    assert!(failures.iter().all(|(text, _)| !text.contains("token-of-the-node-agent")), "{failures:?}");
    assert_eq!(agent.pods(), ["shop/web"]);
    setup.server.write_service_account(setup.account.path()).unwrap();
    setup.set_pod("new", "1");
    agent.until("the new pod", |agent| agent.pods().len() == 2).await;
    agent.until("the watch to be well", |agent| agent.cluster.state().stands(WatchName::PODS)).await;
}

#[tokio::test]
async fn a_token_that_rotates_in_time_fails_nothing() {
    let setup = Setup::new();
    let agent = setup.synced_agent().await;
    for number in 0..10 {
        // with a line break, as people write files
        setup.server.set_token(&format!("token-{number}"));
        fs::write(setup.account.path().join("token"), format!("token-{number}\n")).unwrap();
        tokio::time::sleep(LIMITS.settle * 2).await;
        setup.server.disturb_watches(Resource::Pods, WatchFault::Close);
        setup.set_pod(&format!("web-{number}"), "1");
        agent.until("the next pod", |agent| agent.pods().len() == number + 1).await;
        setup.watched(&agent).await;
    }
    assert_eq!(agent.failures(WatchName::PODS), []);
    let request = setup.server.requests().pop().unwrap();
    assert_eq!(request.headers["user-agent"], "istio-cni-agent/1.2.3");
    assert_eq!(request.headers["authorization"], "Bearer token-9");
}

#[tokio::test]
async fn a_missing_role_is_told_until_it_is_given() {
    let setup = Setup::new();
    setup.set_pod("web", "1");
    setup.server.forbid_everyone();
    let agent = setup.agent();
    agent.until("refusals", |agent| agent.failures(WatchName::PODS).len() > 1).await;
    let failures = agent.failures(WatchName::PODS);
    assert!(failures[0].0.contains("403 pods is forbidden"), "{failures:?}");
    assert!(failures[0].0.contains("lacks a role"), "{failures:?}");
    let state = agent.cluster.state();
    assert!(!state.synced && !state.stands(WatchName::PODS) && state.last_error.unwrap().contains("403"));
    setup.server.check_credentials();
    agent.synced().await;
    assert_eq!(agent.pods(), ["shop/web"]);
}

#[tokio::test]
async fn a_service_account_that_comes_late_or_is_broken_is_told() {
    let setup = Setup::new();
    let (token, ca) = (setup.account.path().join("token"), setup.account.path().join("ca.crt"));
    fs::remove_file(&token).unwrap();
    let agent = setup.agent();
    let failed = |agent: &Agent, text: &str| agent.away().last().is_some_and(|last| last.contains(text));
    agent.until("a missing token", |agent| failed(agent, &format!("read {}", token.display()))).await;
    fs::write(&token, " \n").unwrap();
    agent.until("an empty token", |agent| failed(agent, "token is empty")).await;
    fs::write(&ca, "no certificate").unwrap();
    setup.server.write_service_account(setup.account.path()).unwrap();
    fs::write(&ca, "no certificate").unwrap();
    agent.until("a broken authority", |agent| failed(agent, "ca.crt") || failed(agent, "certificate")).await;
    setup.server.write_service_account(setup.account.path()).unwrap();
    agent.synced().await;
}

#[tokio::test]
async fn a_broken_kubeconfig_is_named_and_not_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let source = || Source::Kubernetes {
        connection: Arc::new(ApiConnection::new(Access::Kubeconfig(path.clone()), "1.2.3")),
        node: "n1".into(),
        own: None,
        limits: LIMITS,
    };
    let texts = [
        "",
        "users: [{name: a, user: {token: s3cret}",
        "kind: Config\nusers: s3cret\n",
        "current-context: gone",
    ];
    for text in texts {
        fs::write(&path, text).unwrap();
        let agent = Agent::start(source());
        agent.until("a failure", |agent| !agent.failures(WatchName::PODS).is_empty()).await;
        let (error, _) = agent.failures(WatchName::PODS).remove(0);
        assert!(error.contains(&*path.to_string_lossy()), "{text}: {error}");
        assert!(!error.contains("s3cret"), "{text}: {error}");
    }
}
