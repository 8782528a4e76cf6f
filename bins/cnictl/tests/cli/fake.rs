//! A plugin that only writes down how it is called, for the protocol's input side.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use testkit::TestNetns;

use crate::{Files, Run};

/// Two such plugins, `first` and `second`, in a chain.
pub(crate) struct Fake {
    dir: PathBuf,
}

/// One call.
pub(crate) struct Call {
    plugin: String,
    env: Vec<(String, String)>,
    stdin: Value,
}

impl Call {
    fn variable(&self, name: &str) -> &str {
        self.env.iter().find(|(key, _)| key == name).map_or("(unset)", |(_, value)| value)
    }
}

impl Fake {
    /// `script` runs in each call after it is written down, with `$me` as the plugin's name, and prints the result. The whole
    /// environment is written by another program, because a shell has variables of its own.
    pub(crate) fn new(files: &Files, script: &str) -> Self {
        let dir = files.path("fake");
        std::fs::create_dir(&dir).unwrap();
        let text = format!(
            "#!/bin/sh\nme=$(basename \"$0\")\ncd {} || exit 9\nn=$(ls | grep -c '\\.env$')\nenv > $n-$me.env\n\
             cat > $n-$me.json\n{script}\n",
            dir.display()
        );
        for name in ["first", "second"] {
            let path = dir.join(name);
            std::fs::write(&path, &text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let conf = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [
            {"type": "first", "extra": 7},
            {"type": "second", "capabilities": {"io.kubernetes.cri.pod-annotations": true}},
        ]});
        files.write("fake.conflist", &conf.to_string());
        Self { dir }
    }

    pub(crate) fn line(&self, verb: &str, more: &str) -> String {
        let pod = if matches!(verb, "add" | "del" | "check") { "--pod @web.yaml" } else { "" };
        format!("{verb} --conf @fake.conflist {pod} --cni-path {} {more}", self.dir.display())
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        let mut names: Vec<String> = std::fs::read_dir(&self.dir)
            .unwrap()
            .filter_map(|file| {
                file.unwrap().file_name().into_string().unwrap().strip_suffix(".env").map(str::to_owned)
            })
            .collect();
        names.sort();
        let read =
            |name: &str, end: &str| std::fs::read_to_string(self.dir.join(format!("{name}.{end}"))).unwrap();
        let call = |name: &String| Call {
            plugin: name.split_once('-').unwrap().1.to_owned(),
            env: read(name, "env")
                .lines()
                .filter_map(|l| l.split_once('='))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            stdin: serde_json::from_str(&read(name, "json")).unwrap_or(Value::Null),
        };
        names.iter().map(call).collect()
    }

    fn order(&self) -> Vec<String> {
        self.calls().iter().map(|call| format!("{} {}", call.variable("CNI_COMMAND"), call.plugin)).collect()
    }
}

const ADD_PRINTS: &str = r#"[ $CNI_COMMAND = ADD ] && echo "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.0.0.$n/24\"}]}"; exit 0"#;

#[test]
fn plugins_are_called_as_a_runtime_does() {
    let files = Files::new();
    let netns = TestNetns::new().unwrap();
    let fake = Fake::new(&files, ADD_PRINTS);
    let path = netns.path().display().to_string();
    let text = files.run(&fake.line("add", &format!("--netns {path} --container-id c1 --ifname net1"))).ok();
    assert!(text.contains("net: net1 has 10.0.0.1/24"), "{text}");
    files.run(&fake.line("check", "--container-id c1 --ifname net1")).ok();
    files.run(&fake.line("del", "--container-id c1 --ifname net1")).ok();
    assert_eq!(
        fake.order(),
        ["ADD first", "ADD second", "CHECK first", "CHECK second", "DEL second", "DEL first"]
    );
    let calls = fake.calls();
    for call in &calls {
        assert_eq!(call.variable("CNI_CONTAINERID"), "c1");
        assert_eq!(call.variable("CNI_NETNS"), path);
        assert_eq!(call.variable("CNI_IFNAME"), "net1");
        assert_eq!(call.variable("CNI_PATH"), fake.dir.display().to_string());
        assert_eq!(
            call.variable("CNI_ARGS"),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=11d5e3c2-0001"
        );
        assert_eq!((&call.stdin["name"], &call.stdin["cniVersion"]), (&json!("net"), &json!("1.1.0")));
    }
    assert_eq!(calls[0].stdin["extra"], 7);
    assert_eq!(calls[0].stdin.get("prevResult"), None);
    assert_eq!(calls[0].stdin.get("runtimeConfig"), None);
    assert_eq!(calls[1].stdin["prevResult"]["ips"][0]["address"], "10.0.0.0/24");
    let annotations = &calls[1].stdin["runtimeConfig"]["io.kubernetes.cri.pod-annotations"];
    assert_eq!(annotations["traffic.sidecar.istio.io/excludeOutboundPorts"], "3306");
    for later in &calls[2..] {
        assert_eq!(later.stdin["prevResult"]["ips"][0]["address"], "10.0.0.1/24", "{}", later.plugin);
    }
    // what DEL forgot is gone for CHECK; another DEL is fine
    files
        .run(&fake.line("check", "--container-id c1 --ifname net1"))
        .fails(1, &["container c1 has no net1", "cnictl add"]);
    files.run(&fake.line("del", "--container-id c1 --ifname net1")).ok();
    let last = fake.calls();
    assert_eq!(last[last.len() - 1].stdin.get("prevResult"), None);
}

#[test]
fn a_failing_add_is_undone_and_told_in_the_plugins_words() {
    let files = Files::new();
    let netns = TestNetns::new().unwrap();
    let script = format!(
        r#"[ $CNI_COMMAND$me = ADDsecond ] && {{ echo '{{"code":11,"msg":"no luck","details":"try later"}}'; exit 1; }}; {ADD_PRINTS}"#
    );
    let fake = Fake::new(&files, &script);
    let netns = format!("--netns {}", netns.path().display());
    let run = files.run(&fake.line("add", &netns));
    let run = run.fails(1, &["error: plugin type=\"second\" failed (add): no luck\n"]);
    assert!(
        run.stdout.lines().any(|line| line.starts_with("second   ADD") && line.ends_with("failed")),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("\nsecond: try later\n"), "{}", run.stdout);
    assert_eq!(fake.order(), ["ADD first", "ADD second", "DEL second", "DEL first"]);
    // nothing is remembered, so the next ADD runs; this one is left as it is
    let run = files.run(&fake.line("add", &format!("{netns} --keep-failed -o json"))).fails(1, &["no luck"]);
    assert_eq!(fake.order().len(), 6);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&report["ok"], &report["plugins"][1]["error"]["code"]), (&json!(false), &json!(11)));
    assert_eq!(report.get("rollback"), None);
    assert_eq!(run.stdout.matches("no luck").count(), 1, "told once for programs: {}", run.stdout);
    assert_eq!(report["error"], "ADD of plugin second failed");
}

#[test]
fn a_second_add_needs_force() {
    let files = Files::new();
    let netns = TestNetns::new().unwrap();
    let fake = Fake::new(&files, ADD_PRINTS);
    let netns = format!("--netns {}", netns.path().display());
    files.run(&fake.line("add", &netns)).ok();
    files
        .run(&fake.line("add", &netns))
        .fails(1, &["container cnictl-shop-web already has eth0", "cnictl del", "--force"]);
    assert_eq!(fake.calls().len(), 2);
    files.run(&fake.line("add", &format!("{netns} --force"))).ok();
    assert_eq!(fake.calls().len(), 4);
}

/// What a plugin does wrong, and what is said.
const MISBEHAVIOUR: &[(&str, &[&str])] = &[
    ("exit 0", &["printed no JSON object as its result"]),
    ("echo '[]'; exit 0", &["printed no JSON object as its result"]),
    ("echo oops >&2; exit 7", &["exit status: 7", "standard error: oops"]),
    ("echo 'no json'; exit 1", &["printed no error object"]),
    ("kill -SEGV $$", &["signal: 11"]),
    ("[ $CNI_COMMAND = ADD ] && sleep 30", &["killed after 0.5 s", "--timeout"]),
];

#[test]
fn plugins_that_break_the_protocol_are_told_apart() {
    let netns = TestNetns::new().unwrap();
    for (script, parts) in MISBEHAVIOUR {
        let files = Files::new();
        let fake = Fake::new(&files, script);
        let line = fake.line("add", &format!("--netns {} --timeout 0.5", netns.path().display()));
        let run: Run = files.run(&line).fails(1, &["plugin type=\"first\" failed (add): "]);
        run.fails(1, parts);
        assert_eq!(fake.order()[0], "ADD first");
    }
}

#[test]
fn status_gc_and_version_reach_every_plugin() {
    let files = Files::new();
    let script = r#"[ $CNI_COMMAND = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'
        [ $CNI_COMMAND$me = STATUSsecond ] && { echo '{"code":50,"msg":"not now"}'; exit 1; }
        exit 0"#;
    let fake = Fake::new(&files, script);
    files.run(&fake.line("status", "")).fails(1, &["plugin type=\"second\" failed (status): not now"]);
    files.run(&fake.line("gc", "--valid c1/eth0 --valid c2/eth0")).ok();
    let text = files.run(&fake.line("version", "")).ok();
    assert!(text.starts_with("cnictl 0.") && text.contains("second   1.0.0 1.1.0"), "{text}");
    assert_eq!(
        fake.order(),
        ["STATUS first", "STATUS second", "GC first", "GC second", "VERSION first", "VERSION second"]
    );
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]);
    let gc = &fake.calls()[2];
    assert_eq!((&gc.stdin["cni.dev/valid-attachments"], &gc.stdin["cni.dev/attachments"]), (&valid, &valid));
    assert_eq!(gc.variable("CNI_NETNS"), "(unset)");
}
