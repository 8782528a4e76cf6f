//! What each verb does when nothing is wrong, and what a failing plugin looks like from outside.

use super::*;

#[test]
fn no_command_tells_what_this_is() {
    let seen = run_with(&[("CNI_PATH", "x")], &mut Untouchable, &mut Scripted::default());
    assert_eq!(
        seen.stderr,
        "CNI plugin istio-cni 1.2.3\n\
         CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
    );
    assert_eq!((seen.stdout.as_str(), seen.outcome), ("", PluginExit { exit: 0, error: None }));
}

#[test]
fn version_needs_neither_stdin_nor_other_variables() {
    let seen = run_with(&[("CNI_COMMAND", "VERSION")], &mut Untouchable, &mut Scripted::default());
    assert_eq!(
        seen.stdout,
        "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":\
         [\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
    );
    assert_eq!((seen.stderr.as_str(), seen.outcome.exit), ("", 0));
}

#[test]
fn add_prints_the_previous_result_or_the_version() {
    for (version, expected) in [
        ("1.1.0", "{\n    \"cniVersion\": \"1.1.0\"\n}"),
        ("1.0.0", "{\n    \"cniVersion\": \"1.0.0\"\n}"),
        ("0.4.0", "{\n    \"cniVersion\": \"0.4.0\",\n    \"dns\": {}\n}"),
        ("0.3.0", "{\n    \"cniVersion\": \"0.3.0\",\n    \"dns\": {}\n}"),
    ] {
        let mut plugin = Scripted::default();
        let seen = run(&env_for("ADD"), &conf(version), &mut plugin);
        assert_eq!((seen.stdout.as_str(), seen.outcome.exit), (expected, 0));
        assert_eq!(plugin.calls, ["add"]);
    }
    let stdin = r#"{"name":"n","prevResult":{"cniversion":"0.2.0","ip4":{"ip":"10.0.0.9/24"}}}"#;
    let seen = run(&env_for("ADD"), stdin, &mut Scripted::default());
    assert_eq!(
        seen.stdout,
        "{\n    \"cniVersion\": \"0.1.0\",\n    \"ip4\": {\n        \"ip\": \"10.0.0.9/24\"\n    },\n    \"dns\": {}\n}"
    );
}

#[test]
fn the_other_verbs_print_nothing() {
    for (verb, name) in [("DEL", "del"), ("CHECK", "check"), ("STATUS", "status"), ("GC", "gc")] {
        let mut plugin = Scripted::default();
        let seen = run(&env_for(verb), &conf("1.1.0"), &mut plugin);
        assert_eq!((seen.stdout.as_str(), seen.stderr.as_str(), seen.outcome.exit), ("", "", 0), "{verb}");
        assert_eq!(plugin.calls, [name]);
    }
}

#[test]
fn del_minds_nothing_but_the_protocol() {
    let stdin = r#"{"name":"n","capabilities":7,"prevResult":"junk","facts_timeout":0}"#;
    for (key, value) in [("CNI_NETNS", ""), ("CNI_NETNS", "/gone"), ("CNI_ARGS", "broken;;")] {
        let mut vars = env_for("DEL");
        vars.push((key, value));
        let mut plugin = Scripted { netns: Ok(NetnsRelation::Unknown), ..Scripted::default() };
        let seen = run(&vars, stdin, &mut plugin);
        assert_eq!(
            (seen.stdout.as_str(), seen.outcome.exit, plugin.calls.len()),
            ("", 0, 1),
            "{key}={value}"
        );
    }
}

#[test]
fn the_namespace_comparison_is_left_out_where_there_is_nothing_to_compare() {
    let own = || Scripted { netns: Ok(NetnsRelation::Same), ..Scripted::default() };
    for value in ["1", "TRUE", "true"] {
        let mut vars = env_for("ADD");
        vars.push(("CNI_NETNS_OVERRIDE", value));
        let mut plugin = own();
        assert_eq!(run(&vars, &conf("1.0.0"), &mut plugin).outcome.exit, 0, "{value}");
        assert_eq!(plugin.compared.get(), 0);
    }
    for verb in ["STATUS", "GC"] {
        assert_eq!(run(&env_for(verb), &conf("1.1.0"), &mut own()).outcome.exit, 0, "{verb}");
    }
    let mut vars = env_for("DEL");
    vars.push(("CNI_NETNS", ""));
    assert_eq!(run(&vars, &conf("1.0.0"), &mut own()).outcome.exit, 0);
}

#[test]
fn the_plugins_errors_pass_unchanged() {
    let failure = Error::new(code::NOT_AVAILABLE, "no kubeconfig").with_details("/run/x");
    let mut plugin = Scripted { failure: Some(failure.clone()), ..Scripted::default() };
    let seen = run(&env_for("STATUS"), &conf("1.1.0"), &mut plugin);
    assert_eq!(seen.stdout.as_bytes(), failure.render(SpecVersion::V1_1_0));
    assert_eq!(seen.outcome, PluginExit { exit: 1, error: Some(failure) });
}

#[test]
fn a_panic_becomes_an_error_object() {
    for (verb, handler, name) in [
        ("ADD", "cmdAdd", "add"),
        ("DEL", "cmdDel", "del"),
        ("CHECK", "cmdCheck", "check"),
        ("STATUS", "cmdStatus", "status"),
        ("GC", "cmdGC", "gc"),
    ] {
        let mut plugin = Scripted { panic: true, ..Scripted::default() };
        let seen = run(&env_for(verb), &conf("1.1.0"), &mut plugin);
        let text = format!("istio-cni panicked during {handler}: scripted panic in {name}");
        assert_eq!(seen.outcome, PluginExit { exit: 1, error: Some(Error::internal(text.clone())) });
        assert_eq!(seen.stdout.as_bytes(), Error::internal(text).render(SpecVersion::V1_1_0));
    }
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let vars = env_for("ADD");
    let env = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let stdin = conf("1.0.0");
    let (mut stdin, mut stderr) = (stdin.as_bytes(), Vec::new());
    let io = Invocation {
        identity: IDENTITY,
        env: &env,
        stdin: &mut stdin,
        stdout: &mut Broken,
        stderr: &mut stderr,
    };
    let outcome = dispatch(io, &mut Scripted::default());
    assert_eq!(outcome.exit, 1);
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(text, "istio-cni: cannot write the answer to stdout: device gone\n");
}

#[test]
fn a_request_carries_the_call() {
    struct Keep(Option<Request>);
    impl Plugin for Keep {
        fn compare_netns(&self, _: &str) -> Result<NetnsRelation, String> {
            Ok(NetnsRelation::Different)
        }
        fn add(&mut self, request: &Request) -> Result<CniResult, Error> {
            self.0 = Some(request.clone());
            Ok(CniResult::default())
        }
        fn del(&mut self, _: &Request) -> Result<(), Error> {
            Ok(())
        }
        fn check(&mut self, _: &Request) -> Result<(), Error> {
            Ok(())
        }
        fn status(&mut self, _: &Request) -> Result<(), Error> {
            Ok(())
        }
        fn gc(&mut self, _: &Request) -> Result<(), Error> {
            Ok(())
        }
    }
    let mut vars = env_for("ADD");
    vars.push(("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web"));
    let env = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let text = r#"{"cniVersion":"0.3.1","NAME":"net","own":{"key":[1]}}"#;
    let (mut stdin, mut stdout, mut stderr) = (text.as_bytes(), Vec::new(), Vec::new());
    let io = Invocation {
        identity: IDENTITY,
        env: &env,
        stdin: &mut stdin,
        stdout: &mut stdout,
        stderr: &mut stderr,
    };
    let mut plugin = Keep(None);
    assert_eq!(dispatch(io, &mut plugin).exit, 0);
    let request = plugin.0.unwrap();
    assert_eq!((request.verb, request.version), (crate::Verb::Add, SpecVersion::V0_3_1));
    assert_eq!((request.network.as_str(), request.container_id.as_str()), ("net", "c0ffee"));
    assert_eq!(request.netns.as_deref(), Some("/var/run/netns/pod"));
    assert_eq!((request.ifname.as_str(), request.path.as_str()), ("eth0", "/opt/cni/bin"));
    assert_eq!(request.args().unwrap().k8s_pod_name, "web");
    let own = request.config.get("own").map(serde_json::Value::from);
    assert_eq!(own, Some(serde_json::json!({"key": [1]})));
    assert_eq!(request.stdin, text.as_bytes());
    assert_eq!(request.prev_result().unwrap(), None);
}
