//! Start and end: readiness, ports, metrics, exit codes, the log.

use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;
use serde_json::Value;
use testkit::{Node, PATIENCE, PodCall, TestNetns, assert_says, eventually, http};

#[test]
fn readiness_lists_what_is_pending_until_nothing_is() {
    let node = Node::new().unwrap();
    std::fs::remove_file(node.conflist()).unwrap();
    node.api.stop();
    let mut agent = node.agent().start().unwrap();
    agent.wait_unready(&["install: ", "no networks found", "cluster: ", "API server"]).unwrap();
    // The kernel was asked for backends by now.
    let body = eventually("every part has begun", PATIENCE, || {
        let body = agent.readyz()?.body;
        ensure!(!body.contains("has not begun"), "{body}");
        Ok(body)
    })
    .unwrap();
    assert!(body.starts_with("Service Unavailable\n"), "{body}");
    // The sockets were quick, so that what is listed is what is missing.
    let pending = agent.wait_unready(&[]).unwrap();
    assert_eq!(pending.lines().count(), 3, "{pending}");
    assert_eq!(agent.health("/healthz").unwrap().status, 200);
    assert_eq!(agent.health("/other").unwrap().status, 404);
    assert_eq!(agent.metrics().unwrap().series.get("istio_cni_install_ready"), Some(&0.0));

    std::fs::write(node.conflist(), Node::foreign_conflist()).unwrap();
    let body = eventually("the installation", PATIENCE, || {
        let body = agent.readyz()?.body;
        ensure!(!body.contains("install: "), "{body}");
        Ok(body)
    });
    assert_says(&body.unwrap(), &["cluster: "]);
    node.api.restart().unwrap();
    agent.wait_ready().unwrap();
    assert_eq!(agent.readyz().unwrap().body, "ok\n");
    assert_eq!(agent.metric("istio_cni_install_ready").unwrap(), 1.0);

    // What is known once stays good while the API server is away.
    node.api.stop();
    eventually("the failure is counted", PATIENCE, || {
        ensure!(agent.metric("istio_cni_watch_failures_total{watch=\"pods\"}")? > 0.0);
        ensure!(agent.metric("istio_cni_api_server_up")? == 0.0);
        Ok(())
    })
    .unwrap();
    assert!(agent.metric("istio_cni_api_server_failures_total{reason=\"unreachable\"}").unwrap() > 0.0);
    assert_eq!(agent.readyz().unwrap().status, 200);
    let verbose = || agent.health("/readyz?verbose");
    assert_says(&verbose().unwrap().body, &["[+]cluster ok", "[!]api server: ", "onnection refused"]);
    node.api.restart().unwrap();
    eventually("the outage is over", PATIENCE, || {
        ensure!(agent.metric("istio_cni_api_server_up")? == 1.0);
        ensure!(!verbose()?.body.contains("[!]"), "{}", verbose()?.body);
        Ok(())
    })
    .unwrap();
}

/// The original's names and labels, nothing added to them, and ours.
#[test]
fn metrics_have_exactly_these_names_and_labels() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let netns = TestNetns::new().unwrap();
    // The names of checks are in their own tests.
    let agent = node.agent().arg("--health-config-interval=0").arg("--health-connectivity-interval=0");
    let agent = agent.ready().unwrap();
    PodCall::new(&node, "web", "uid-1", netns.path()).unwrap().refused().unwrap();
    std::fs::write(node.conflist(), Node::foreign_conflist()).unwrap();
    node.api.disturb_watches(testkit::apiserver::Resource::Pods, testkit::apiserver::WatchFault::Reset);
    let report = r#"{"operation":"add","result":"uncaptured","namespace":"default","name":"gone","container":"c1","error":"test"}"#;
    assert_eq!(http::ask(&node.agent_socket(), "POST", "/v1/report", report).unwrap().status, 200);
    let metrics = eventually("everything is counted", PATIENCE, || {
        let metrics = agent.metrics()?;
        for series in [
            "istio_cni_config_overwritten_total{component=\"calico\"}",
            "istio_cni_watch_failures_total{watch=\"pods\"}",
            "istio_cni_uncaptured_pods_total{reason=\"failure-policy-open\"}",
        ] {
            ensure!(metrics.value(series) > 0.0, "{series}: {metrics:#?}");
        }
        Ok(metrics)
    })
    .unwrap();
    let of = "operation,phase,result";
    let wanted = [
        "istio_cni_ambient_leftover_pods{}",
        "istio_cni_api_server_failures_total{reason}",
        "istio_cni_api_server_up{}",
        "istio_cni_audit_events_lost_total{where}",
        "istio_cni_build_info{backend,commit,mode,version}",
        "istio_cni_capture_disabled_pods{mode}",
        "istio_cni_capture_enabled{}",
        "istio_cni_config_overwritten_total{component}",
        "istio_cni_contended_pods{}",
        "istio_cni_drift_repair_duration_seconds_bucket{le}",
        "istio_cni_drift_repair_duration_seconds_count{}",
        "istio_cni_drift_repair_duration_seconds_sum{}",
        "istio_cni_drift_total{action,what}",
        "istio_cni_facts_requests_total{result}",
        "istio_cni_facts_source_total{source}",
        "istio_cni_install_ready{}",
        "istio_cni_installs_total{result}",
        "istio_cni_log_lines_lost_total{}",
        "istio_cni_not_injected_pods{}",
        &format!("istio_cni_operation_duration_seconds_bucket{{{of},le}}"),
        &format!("istio_cni_operation_duration_seconds_count{{{of}}}"),
        &format!("istio_cni_operation_duration_seconds_sum{{{of}}}"),
        "istio_cni_operations_total{operation,result}",
        "istio_cni_pod_changes_total{}",
        "istio_cni_pod_listeners{listener,mode}",
        "istio_cni_pod_rules{state}",
        "istio_cni_pods_expected{mode}",
        "istio_cni_pods_unexpected{}",
        "istio_cni_pods_unverified{mode,reason,state}",
        "istio_cni_pods_verified{mode}",
        "istio_cni_pods{}",
        "istio_cni_reboots_total{}",
        "istio_cni_started_without_plugin_pods{}",
        "istio_cni_uncaptured_pods_total{reason}",
        "istio_cni_verification_duration_seconds_bucket{layer,le}",
        "istio_cni_verification_duration_seconds_count{layer}",
        "istio_cni_verification_duration_seconds_sum{layer}",
        "istio_cni_verification_events_lost_total{}",
        "istio_cni_verification_kernel_tells{what}",
        "istio_cni_verification_unwatched_pods{}",
        "istio_cni_verifications_total{layer,result}",
        "istio_cni_watch_failures_total{watch}",
    ];
    assert_eq!(metrics.shapes(), wanted);
    for (name, kind) in [
        ("istio_cni_installs_total", "counter"),
        ("istio_cni_install_ready", "gauge"),
        ("istio_cni_operations_total", "counter"),
        ("istio_cni_operation_duration_seconds", "histogram"),
        ("process_resident_memory_bytes", "gauge"),
    ] {
        assert_eq!(metrics.kinds.get(name).map(String::as_str), Some(kind), "{name}");
    }
    let foreign = |name: &&String| !name.starts_with("istio_cni_") && !name.starts_with("process_");
    assert_eq!(metrics.kinds.keys().find(foreign), None, "nothing about scopes or targets");
    assert!(metrics.value("istio_cni_installs_total{result=\"SUCCESS\"}") >= 1.0);
    let reply = http::get(agent.metrics_address(), "/metrics").unwrap();
    assert_says(&reply.head, &["text/plain; version=0.0.4"]);
    assert_eq!(http::get(agent.metrics_address(), "/").unwrap().status, 404);
}

#[test]
fn a_port_of_zero_or_less_is_not_opened() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    assert_eq!(agent.listens().unwrap().len(), 2);
    agent.kill().unwrap();
    let agent = node.agent().arg("--monitoring-port=0").ready().unwrap();
    assert_eq!(agent.listens().unwrap().len(), 1);
    assert!(http::get(agent.metrics_address(), "/metrics").is_err());
    agent.kill().unwrap();
    let agent = node.agent().env("MONITORING_PORT", "").env("HEALTH_PORT", "-1").start().unwrap();
    agent.log().wait_for(&["installed: the plugin is in"], PATIENCE).unwrap();
    agent.log().wait_for(&["the pods of this node are known"], PATIENCE).unwrap();
    assert_eq!(agent.listens().unwrap(), Vec::<String>::new());
}

#[test]
fn a_signal_ends_it_with_success() {
    for signal in [Signal::TERM, Signal::INT] {
        let node = Node::new().unwrap();
        let ended = node.start().unwrap().end(signal).unwrap();
        assert_eq!(ended.status.code(), Some(0), "{signal:?}");
        assert!(ended.took < Duration::from_secs(3), "{signal:?} took {:?}", ended.took);
        assert!(!node.agent_socket().exists() && !node.log_socket().exists());
    }
    // Also while nothing works.
    let node = Node::new().unwrap();
    std::fs::remove_dir_all(node.account()).unwrap();
    std::fs::remove_dir_all(node.net_dir()).unwrap();
    let agent = node.agent().start().unwrap();
    agent.wait_unready(&["install: ", "cluster: "]).unwrap();
    let ended = agent.stop().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.took < Duration::from_secs(3), "took {:?}", ended.took);
}

#[test]
fn options_that_mean_nothing_end_it_with_1_and_wrong_usage_with_2() {
    let node = Node::new().unwrap();
    let advice = "ConfigMap istio-cni-config";
    let variables = [
        (
            "CLEANUP_ON_EXIT",
            "sometimes",
            "option cleanup-on-exit: \"sometimes\" is neither auto nor always nor never",
        ),
        ("ADD_TIMEOUT", "soon", "option add-timeout: \"soon\" cannot be used"),
        ("FACTS_TIMEOUT", "0s", "option facts-timeout: \"0s\" cannot be used"),
        ("FAILURE_POLICY", "maybe", "option failure-policy: \"maybe\" cannot be used"),
        ("CAPTURE", "off", "option capture: \"off\" cannot be used"),
        ("CNI_AGENT_RUN_DIR", "run", "option cni-agent-run-dir: \"run\" is not an absolute path"),
        ("POD_SOURCE", "etcd", "option pod-source: \"etcd\" is neither kubernetes nor manifests:<directory>"),
        ("POD_SOURCE", "manifests:pods", "does not name an absolute directory"),
        ("LISTEN_ADDRESS", "here", "option listen-address: \"here\" is not an IP address"),
        ("MONITORING_PORT", "70000", "option monitoring-port: \"70000\" is larger than 65535"),
        ("HEALTH_PORT", "0x1ffff", "option health-port: \"131071\" is larger than 65535"),
        ("KUBECONFIG_MODE", "01777", "option kubeconfig-mode"),
        ("AMBIENT_ENABLEMENT_SELECTOR", "{", "option ambient-enablement-selector"),
        ("CHAINED_CNI_PLUGIN", "enabled", "option chained-cni-plugin: \"enabled\" is not true or false"),
        ("NATIVE_NFTABLES", " true", "option native-nftables: \" true\" is not true, false or auto"),
        ("NATIVE_NFTABLES", "automatic", "option native-nftables: \"automatic\" is not true, false or auto"),
        ("HEALTH_PORT", "http", "option health-port: \"http\" is not a whole number"),
        ("EXCLUDE_NAMESPACES", "[a,b]", "option exclude-namespaces: \"[a,b]\" has the item \"[a\""),
        ("CNI_CONF_NAME", "../10.conflist", "is not the name of a file"),
        ("MOUNTED_CNI_BIN_DIRS", " , ", "no directory for the plugin's binaries"),
    ];
    for (name, value, says) in variables {
        let output = node.agent().env(name, value).run().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}={value}: {text}");
        assert_says(&text, &["install-cni: ", says, advice]);
    }
    for (arg, says) in [
        ("--log_output_level=loud", "option log_output_level: \"loud\""),
        ("--log_output_level=cni-agnet:debug", "names the scope \"cni-agnet\""),
        ("--log_target=/nonexistent/dir/log", "open /nonexistent/dir/log for the log"),
    ] {
        let output = node.agent().arg(arg).run().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arg}: {text}");
        assert_says(&text, &["install-cni: ", says]);
    }
    // Some have no flag.
    for arg in
        ["--no-such", "--monitoring-port=many", "--skip-tls-verify=perhaps", "--exclude-namespaces=a", "word"]
    {
        let output = node.agent().arg(arg).run().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arg}: {text}");
        assert_says(&text, &["error: ", "--help"]);
    }
    for arg in ["--version", "--help"] {
        assert_eq!(node.agent().arg(arg).run().unwrap().status.code(), Some(0), "{arg}");
    }
    // Nothing of all this has touched the node.
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist());
    assert!(!node.plugin().exists());
}

#[test]
fn the_log_is_text_or_json_of_the_levels_asked_for() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let lines = agent.kill().unwrap().log.lines();
    assert!(lines.len() >= 3, "{lines:?}");
    for line in &lines {
        let columns: Vec<&str> = line.split('\t').collect();
        assert!(columns[0].ends_with('Z') && columns[1] == "info" && columns[2] == "cni-agent", "{line}");
    }
    let agent = node.agent().arg("--log_as_json").arg("--log_output_level=all:debug").ready().unwrap();
    let log = agent.kill().unwrap().log;
    for line in log.lines() {
        let json: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["level", "time", "scope", "msg"] {
            assert!(json[key].is_string(), "{key}: {line}");
        }
    }
    assert!(log.find(&["\"level\":\"debug\"", "\"msg\":\"option\"", "cni-agent-run-dir"]).is_some());
    let file = node.dir().join("agent.log");
    let target = format!("--log_target={}", file.display());
    let agent = node.agent().arg(&target).arg("--log_output_level=cni-agent:error").ready().unwrap();
    assert_eq!(agent.kill().unwrap().log.text(), "");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "", "a good start is no error");
}

/// Also not at level debug, where every option is told, and not when the token is refused.
#[test]
fn a_token_is_never_in_the_log_nor_in_an_answer() {
    let node = Node::new().unwrap();
    let tokens = ["first-secret-of-this-test", "second-secret-of-this-test"];
    node.api.set_token(tokens[0]);
    node.api.write_service_account(&node.account()).unwrap();
    node.sidecar("web", "uid-1");
    let mut agent = node.agent().arg("--log_output_level=all:debug").ready().unwrap();
    agent.log().wait_for(&["option", "name=service-account-dir"], PATIENCE).unwrap();
    node.api.set_token(tokens[1]);
    node.api.disturb_watches(testkit::apiserver::Resource::Pods, testkit::apiserver::WatchFault::Reset);
    agent.log().wait_for(&["401"], PATIENCE).unwrap();
    node.api.write_service_account(&node.account()).unwrap();
    eventually("the kubeconfig has the new token", PATIENCE, || {
        ensure!(std::fs::read_to_string(node.kubeconfig())?.contains(tokens[1]));
        Ok(())
    })
    .unwrap();
    agent.wait_ready().unwrap();
    let netns = TestNetns::new().unwrap();
    let mut call = PodCall::new(&node, "ghost", "uid-9", netns.path()).unwrap();
    call.conf["plugin_log_level"] = "debug".into();
    let answer = call.run("ADD").unwrap();
    let mut said = vec![answer.stdout, answer.stderr];
    said.push(std::fs::read_to_string(node.run_dir().join("istio-cni.log")).unwrap());
    said.push(http::get(agent.metrics_address(), "/metrics").unwrap().body);
    said.push(http::ask(&node.agent_socket(), "GET", "/v1/status", "").unwrap().body);
    said.push(agent.stop().unwrap().log.text());
    for text in said {
        assert!(tokens.iter().all(|token| !text.contains(token)), "{text}");
    }
}
