//! The checks that the agent makes of its node again and again, by faults that are injected.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::ensure;
use testkit::{Agent, Node, assert_says, at_once, eventually};

/// An interval of the tests, and what a loaded machine needs.
const SOON: Duration = Duration::from_secs(20);

/// An agent whose checks are made each second, and ended well.
fn checked(node: &Node) -> Agent {
    let agent = node.agent().arg("--health-config-interval=1s").arg("--health-connectivity-interval=1s");
    let agent = agent.arg("--health-metrics-short-names=true").ready().unwrap();
    wait_for(&agent, &[("config", 1.0), ("kernel", 1.0), ("rules", 1.0), ("api", 1.0)]);
    assert_eq!(states(&agent), ["healthy"]);
    agent
}

fn wait_for(agent: &Agent, checks: &[(&str, f64)]) {
    eventually("the checks", SOON, || {
        let metrics = agent.metrics()?;
        for (check, value) in checks {
            let series = format!("istio_cni_health_status{{check=\"{check}\"}}");
            let found = metrics.series.get(&series);
            ensure!(found == Some(value), "{series}: {found:?}\n{}", agent.health("/readyz?verbose")?.body);
        }
        Ok(())
    })
    .unwrap();
}

/// Which states are 1; the short names say the same.
fn states(agent: &Agent) -> Vec<&'static str> {
    let metrics = agent.metrics().unwrap();
    let of = |state: &str| metrics.value(&format!("istio_cni_config_state{{state=\"{state}\"}}"));
    let all = ["healthy", "missing", "invalid", "error"];
    for state in all {
        assert_eq!(metrics.value(&format!("cni_config_{state}")), of(state), "{state}");
    }
    all.into_iter().filter(|state| of(state) == 1.0).collect()
}

#[test]
fn each_fault_fails_its_check_and_no_other() {
    let cases: [fn(); 4] =
        [a_file_that_comes_first, an_api_server_that_is_away, a_token_that_has_expired, a_dns_that_is_silent];
    at_once(cases, |case| case());
}

fn a_file_that_comes_first() {
    let node = Node::new().unwrap();
    let agent = checked(&node);
    for path in ["/healthz?verbose", "/readyz?verbose"] {
        let list = agent.health(path).unwrap().body;
        assert_says(
            &list,
            &["[+]check/config ok", "[+]check/kernel ok", "[+]check/rules ok", "[+]check/api ok"],
        );
    }
    let first = node.net_dir().join("00-other.json");
    std::fs::write(&first, r#"{"cniVersion":"1.0.0","name":"other","type":"bridge"}"#).unwrap();
    wait_for(&agent, &[("config", 0.0), ("kernel", 1.0), ("rules", 1.0), ("api", 1.0)]);
    let list = agent.health("/healthz?verbose").unwrap();
    assert_says(
        &list.body,
        &["[-]check/config failed: pods start without the plugin", "00-other.json", "healthz check passed"],
    );
    assert_eq!((list.status, states(&agent)), (200, vec!["invalid"]));
    std::fs::remove_file(first).unwrap();
    wait_for(&agent, &[("config", 1.0)]);
    assert_eq!(states(&agent), ["healthy"]);
}

fn an_api_server_that_is_away() {
    let node = Node::new().unwrap();
    let agent = checked(&node);
    let both = |healthy, error| {
        let metrics = agent.metrics().unwrap();
        assert_eq!(metrics.value("istio_cni_connectivity{target=\"kubernetes\"}"), healthy);
        let short = [metrics.value("k8s_connectivity_healthy"), metrics.value("k8s_connectivity_error")];
        assert_eq!(short, [healthy, error]);
    };
    both(1.0, 0.0);
    node.api.stop();
    wait_for(&agent, &[("api", 0.0), ("config", 1.0), ("kernel", 1.0), ("rules", 1.0)]);
    both(0.0, 1.0);
    let reply = agent.health("/readyz?verbose").unwrap();
    assert_says(&reply.body, &["[-]check/api failed: ", "onnection refused", "readyz check passed"]);
    assert_eq!(reply.status, 200, "what was listed once stays good");
    node.api.restart().unwrap();
    wait_for(&agent, &[("api", 1.0)]);
    agent.log().wait_for(&["the check finds nothing wrong any more", "check=api"], SOON).unwrap();
}

/// Found before a pod meets it: what the agent is given, it hands to the plugin.
fn a_token_that_has_expired() {
    let node = Node::new().unwrap();
    let agent = checked(&node);
    // {"exp":1}
    std::fs::write(node.account().join("token"), "e30.eyJleHAiOjF9.c2ln").unwrap();
    wait_for(&agent, &[("config", 0.0), ("kernel", 1.0)]);
    assert_says(&agent.health("/readyz?verbose").unwrap().body, &["[-]check/config failed: ", "has expired"]);
    assert_eq!(states(&agent), ["error"]);
}

fn a_dns_that_is_silent() {
    let node = Node::new().unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = format!("--health-dns-servers={}", silent.local_addr().unwrap());
    let agent = node.agent().arg("--health-connectivity-interval=1s").arg(&server).ready().unwrap();
    wait_for(&agent, &[("dns", 0.0), ("api", 1.0)]);
    let body = agent.health("/readyz?verbose").unwrap().body;
    assert_says(&body, &["[-]check/dns failed: 127.0.0.1", "by UDP: no answer"]);
    assert_eq!(agent.metric("istio_cni_connectivity{target=\"dns\"}").unwrap(), 0.0);
    assert_eq!(agent.readyz().unwrap().status, 200);
}

#[test]
fn a_check_that_is_switched_off_is_not_made_and_counters_begin_at_0() {
    let node = Node::new().unwrap();
    let agent = node.agent().arg("--health-config-interval=0").arg("--health-connectivity-interval=1s");
    let agent = agent.ready().unwrap();
    wait_for(&agent, &[("api", 1.0)]);
    let metrics = agent.metrics().unwrap();
    assert!(!metrics.series.keys().any(|series| series.contains("check=\"config\"")), "{metrics:#?}");
    for series in [
        "istio_cni_operations_total{operation=\"add\",result=\"failed\"}",
        "istio_cni_uncaptured_pods_total{reason=\"no-plugin\"}",
        "istio_cni_health_checks_total{check=\"api\",result=\"timeout\"}",
        "istio_cni_audit_events_lost_total{where=\"disk\"}",
    ] {
        assert_eq!(metrics.series.get(series), Some(&0.0), "{series}");
    }
    // What is wrong with a name, a type or a help text, says the program that comes with Prometheus.
    let scrape = testkit::http::get(agent.metrics_address(), "/metrics").unwrap().body;
    let mut promtool = Command::new("promtool");
    let promtool = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut promtool = promtool.stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), scrape.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    assert!(said.status.success(), "{text}");
}
