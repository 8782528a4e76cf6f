//! The plugin's socket: facts and reports, and everything that is none.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::{Agent, Node, PATIENCE, PodObject, as_user, assert_says, eventually, http};

/// A node with pod `default/web`, uid `uid-1`, and an agent that knows it.
fn node_with_web() -> (Node, Agent) {
    let node = Node::new().unwrap();
    node.api.set_namespace("default", &[("team", "shop")]);
    node.sidecar("web", "uid-1");
    let agent = node.start().unwrap();
    (node, agent)
}

#[test]
fn facts_of_pods_of_this_node_and_of_this_uid() {
    let (node, agent) = node_with_web();
    node.api.set_pod(PodObject::named("elsewhere").sidecar().uid("uid-2").on_node("n2"));
    let ask = |path: &str| http::ask(&node.agent_socket(), "GET", path, "").unwrap();
    let mode = std::fs::metadata(node.agent_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    for path in ["/v1/facts/default/web?uid=uid-1", "/v1/facts/default/web", "/v1/facts/default/web?uid="] {
        let reply = ask(path);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert_says(&reply.head, &["application/json"]);
        let facts: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(facts["pod"]["metadata"]["uid"], "uid-1");
        assert_eq!(facts["pod"]["metadata"]["annotations"]["sidecar.istio.io/status"], "{}");
        assert_eq!(facts["namespace_labels"], json!({"team": "shop"}));
    }
    let stale = ask("/v1/facts/default/web?uid=uid-9");
    assert_eq!(stale.status, 404);
    assert_says(&stale.body, &["stale", "uid-1", "uid-9"]);
    for path in ["/v1/facts/default/elsewhere?uid=uid-2", "/v1/facts/default/ghost", "/v1/facts/other/web"] {
        let reply = ask(path);
        assert_eq!((reply.status, reply.body.as_str()), (404, "no such pod on this node\n"), "{path}");
    }
    let status: Value = serde_json::from_str(&ask("/v1/status").body).unwrap();
    assert_eq!(
        (&status["ready"], &status["synced"], &status["pods"]),
        (&json!(true), &json!(true), &json!(1))
    );
    assert_eq!(status["pid"], agent.pid());

    // A pod that changes is another one at once; so is one that goes.
    node.sidecar("web", "uid-3");
    eventually("the new pod", PATIENCE, || {
        ensure!(ask("/v1/facts/default/web?uid=uid-3").status == 200);
        Ok(())
    })
    .unwrap();
    assert_eq!(ask("/v1/facts/default/web?uid=uid-1").status, 404);
    node.api.delete_pod("default", "web");
    eventually("the end of the pod", PATIENCE, || {
        ensure!(ask("/v1/facts/default/web?uid=uid-3").status == 404);
        Ok(())
    })
    .unwrap();
    let metrics = agent.metrics().unwrap();
    let count =
        |result: &str| metrics.value(&format!("istio_cni_facts_requests_total{{result=\"{result}\"}}"));
    assert!(count("found") >= 4.0 && count("stale") >= 1.0 && count("unknown") >= 3.0, "{metrics:?}");
}

#[test]
fn questions_that_mean_nothing_are_refused_and_do_no_harm() {
    let (node, agent) = node_with_web();
    let socket = node.agent_socket();
    for path in [
        "/",
        "/v1/facts",
        "/v1/facts/",
        "/v1/facts/default",
        "/v1/facts/default/",
        "/v1/facts//web",
        "/v1/facts/default/web/more",
        "/v1/facts/default/we%62",
        "/v1/facts/%2e%2e/web",
        "/v1/facts/../../etc/passwd",
        "/v1/facts/default/%zz",
        "/v1/facts/default/%00",
        "/v1/facts/default/%ff%fe?uid=%",
        "/v1/facts/default/web?uid=%75id-1",
        "/v2/facts/default/web",
        "/log",
    ] {
        let reply = http::ask(&socket, "GET", path, "").unwrap();
        assert_eq!(reply.status, 404, "{path}: {reply:?}");
    }
    for (method, path) in [("POST", "/v1/facts/default/web"), ("GET", "/v1/report"), ("DELETE", "/v1/status")]
    {
        assert_eq!(http::ask(&socket, method, path, "").unwrap().status, 404, "{method} {path}");
    }
    let long = format!("/v1/facts/default/{}", "x".repeat(200_000));
    let reply = http::ask(&socket, "GET", &long, "").unwrap();
    assert!((400..500).contains(&reply.status), "{reply:?}");
    let headers = "X-Much: y\r\n".repeat(2_000);
    let request = format!("GET /v1/status HTTP/1.1\r\nHost: unix\r\n{headers}\r\n");
    let reply = http::exchange(http::connect(&socket).unwrap(), request.as_bytes()).unwrap();
    assert_eq!(reply.status, 431, "{reply:?}");
    // More than can be kept of a line that never ends, as long as somebody takes it.
    let mut endless = http::connect(&socket).unwrap();
    endless.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let sent = (0..1000).take_while(|_| endless.write_all(&[b'a'; 4096]).is_ok()).count();
    assert!(sent < 1000, "an endless line is read for ever");
    assert_eq!(http::ask(&socket, "GET", "/v1/facts/default/web", "").unwrap().status, 200);
    assert!(agent.metric("process_resident_memory_bytes").unwrap() < 64e6);
}

/// The socket's mode keeps others out, and should it not, their user does.
#[test]
fn another_user_gets_no_facts() {
    let (node, _agent) = node_with_web();
    let socket = node.agent_socket();
    for dir in [node.dir().to_owned(), node.run_dir()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let ask = || http::ask(&socket, "GET", "/v1/facts/default/web", "");
    let error = as_user(65534, ask).unwrap().unwrap_err();
    assert_says(&format!("{error:#}"), &["connect", "ermission denied"]);
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let reply = as_user(65534, ask).unwrap().unwrap();
    assert_eq!((reply.status, reply.body.contains("only root")), (403, true), "{reply:?}");
    let report = || http::ask(&socket, "POST", "/v1/report", "{}");
    assert_eq!(as_user(1000, report).unwrap().unwrap().status, 403);
    assert_eq!(ask().unwrap().status, 200);
}

#[test]
fn many_callers_at_once_are_answered() {
    let (node, agent) = node_with_web();
    let socket = node.agent_socket();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let caller = || {
            let one = |_| {
                let start = Instant::now();
                let reply = http::ask(&socket, "GET", "/v1/facts/default/web?uid=uid-1", "").unwrap();
                assert_eq!(reply.status, 200);
                start.elapsed()
            };
            (0..20).map(one).collect::<Vec<_>>()
        };
        let callers: Vec<_> = (0..64).map(|_| scope.spawn(caller)).collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    times.sort_unstable();
    assert_eq!(times.len(), 1280);
    assert_eq!(agent.metric("istio_cni_facts_requests_total{result=\"found\"}").unwrap(), 1280.0);
    // The number itself is the benchmark's; here all that matters is that nobody is left waiting.
    assert!(times[1279] < Duration::from_secs(1), "the slowest took {:?}", times[1279]);
}

/// Clients that begin and never end: as long as there is room others are served at once, and without room within seconds.
#[test]
fn slow_callers_are_let_go() {
    let (node, _agent) = node_with_web();
    let socket = node.agent_socket();
    let slow = |count: usize| -> Vec<UnixStream> {
        let begin = |_| {
            let mut stream = http::connect(&socket).unwrap();
            stream.write_all(b"GET /v1/facts/default/web HTTP/1.1\r\nHo").unwrap();
            stream
        };
        (0..count).map(begin).collect()
    };
    let ask = || {
        let start = Instant::now();
        assert_eq!(http::ask(&socket, "GET", "/v1/facts/default/web", "").unwrap().status, 200);
        start.elapsed()
    };
    let some = slow(200);
    assert!(ask() < Duration::from_secs(1));
    let more = slow(100);
    assert!(ask() < Duration::from_secs(7));
    for mut stream in some {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    drop(more);
    assert!(ask() < Duration::from_secs(1));
}

#[test]
fn reports_become_metrics() {
    let (node, agent) = node_with_web();
    let report = |result: &str, phases: &Value| {
        json!({
            "version": "1", "operation": "add", "result": result, "namespace": "default", "name": "web", "uid": "uid-1",
            "container": "c1", "facts_source": "agent", "seconds": 0.004, "phases": phases, "error": "", "of_later_versions": [1],
        })
        .to_string()
    };
    let post = |body: &str| http::ask(&node.agent_socket(), "POST", "/v1/report", body).unwrap();
    let phases = json!({"parse": 0.0002, "facts": 0.0003, "decide": 0.00005, "apply": 0.003});
    for _ in 0..3 {
        assert_eq!(post(&report("captured", &phases)).status, 200);
    }
    assert_eq!(post(&report("failed", &json!({"parse": 0.0002, "facts": 30.0}))).status, 200);
    assert_eq!(post(r#"{"operation":"made-up","result":"skipped","seconds":1e400}"#).status, 400);
    assert_eq!(post(r#"{"operation":"made-up","result":"skipped","seconds":-1}"#).status, 200);
    for broken in ["", "7", "{\"result\":\"bad\"}", "{\"phases\":7}"] {
        assert_eq!(post(broken).status, 400, "{broken}");
    }
    assert_eq!(post(&format!("{{\"error\":\"{}\"}}", "x".repeat(70_000))).status, 413);
    let metrics = agent.metrics().unwrap();
    let expected = [
        ("istio_cni_operations_total{operation=\"add\",result=\"captured\"}", 3.0),
        ("istio_cni_operations_total{operation=\"add\",result=\"failed\"}", 1.0),
        ("istio_cni_operations_total{operation=\"other\",result=\"skipped\"}", 1.0),
        ("istio_cni_facts_source_total{source=\"agent\"}", 4.0),
    ];
    for (series, value) in expected {
        assert_eq!(metrics.value(series), value, "{series}");
    }
    let histogram = "istio_cni_operation_duration_seconds";
    for phase in ["total", "parse", "facts", "decide", "apply"] {
        let labels = format!("operation=\"add\",phase=\"{phase}\",result=\"captured\"");
        assert_eq!(metrics.value(&format!("{histogram}_count{{{labels}}}")), 3.0, "{phase}");
    }
    let bucket = |phase: &str, le: &str| {
        let labels = format!("operation=\"add\",phase=\"{phase}\",result=\"captured\",le=\"{le}\"");
        metrics.value(&format!("{histogram}_bucket{{{labels}}}"))
    };
    assert_eq!((bucket("apply", "0.0025"), bucket("apply", "0.005")), (0.0, 3.0));
    let failed = "operation=\"add\",phase=\"facts\",result=\"failed\"";
    assert_eq!(metrics.value(&format!("{histogram}_sum{{{failed}}}")), 30.0);
    assert_eq!(
        metrics
            .value(&format!("{histogram}_count{{operation=\"other\",phase=\"total\",result=\"skipped\"}}")),
        0.0
    );
}
