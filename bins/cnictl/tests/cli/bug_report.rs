//! `cnictl bug-report` and `cnictl log`: what is in a report, and what never is.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Run;
use crate::machine::{CALICO, Machine};

/// Each where somebody might have it, of the form that it has there.
const JWT: &str =
    "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJrdWJlcm5ldGVzL3NlcnZpY2VhY2NvdW50In0.c2lnbmF0dXJl";
const PEM: &str = "-----BEGIN EC PRIVATE KEY-----\\nMHcCAQEEIPLANTED\\n-----END EC PRIVATE KEY-----";
const BEARER: &str = "Bearer planted-0123456789abcdef";
const SECRET: &str = "planted-secret-of-an-annotation";
const ENVIRONMENT: &str = "planted-value-of-a-variable";

/// The texts of a report by their names below its directory.
struct Report(Vec<(String, String)>);

impl Report {
    fn read(path: &Path) -> Self {
        let out = Command::new("tar")
            .arg("-xzf")
            .arg(path)
            .arg("--to-command=printf '\\036%s\\037' \"$TAR_FILENAME\"; cat")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        let entry = |entry: &str| {
            let (name, text) = entry.split_once('\u{1f}').unwrap();
            (name.split_once('/').unwrap().1.to_owned(), text.to_owned())
        };
        Self(text.split('\u{1e}').skip(1).map(entry).collect())
    }

    #[track_caller]
    fn text(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(of, _)| of == name);
        &found.unwrap_or_else(|| panic!("no {name} among {:?}", self.names())).1
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn index(&self) -> Value {
        serde_json::from_str(self.text("index.json")).unwrap()
    }

    fn item(&self, file: &str) -> Value {
        let index = self.index();
        index["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(|item| item["file"] == file)
            .cloned()
            .unwrap_or_default()
    }
}

/// A node with a sidecar pod, and secrets wherever users have them.
fn machine() -> Machine {
    let machine = Machine::new();
    let conf = CALICO.replace(
        "\"mtu\": 1440",
        &format!("\"mtu\": 1440, \"etcd_key\": \"{PEM}\", \"env\": {{\"TOKEN\": \"{JWT}\"}}"),
    );
    machine.files.write("net.d/10-calico.conflist", &conf);
    machine.files.write("net.d/README.json", "kubeconfig, not JSON: token: planted");
    fs::create_dir_all(machine.path("manifests")).unwrap();
    let pod = crate::WEB
        .replace("  annotations:\n", &format!("  annotations:\n    vault.example.com/secret: '{SECRET} {JWT}'\n    sidecar.example.com/auth: '{BEARER}'\n"))
        .replace("value: \"true\"}", &format!("value: \"true\"}}\n    - {{name: DB_PASSWORD, value: {ENVIRONMENT}}}"));
    assert!(pod.contains(SECRET) && pod.contains(ENVIRONMENT));
    machine.files.write("manifests/web.yaml", &pod);
    machine
}

fn report(machine: &Machine, file: &str, more: &str) -> Run {
    let line = format!(
        "bug-report --file @{file} --metrics 127.0.0.1:1 --bin-dir @bin --log-dir {} {more}",
        machine.path("logs").display()
    );
    machine.on_node(&line)
}

#[test]
fn a_report_has_what_a_reader_needs_and_no_secret() {
    let machine = machine();
    let agent = machine.agent(&["--monitoring-port=0"]);
    machine.files.write("run/istio-cni-kubeconfig", &format!("users: [{{user: {{token: {JWT}}}}}]\n"));
    let run = report(&machine, "report.tar.gz", "--max 5");
    assert_eq!(run.exit, 0, "{run:?}");
    let path = machine.path("report.tar.gz");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!machine.path("report.tar.gz.tmp").exists());
    let report = Report::read(&path);
    for (name, part) in [
        ("doctor.json", "\"CheckReport\""),
        ("status.json", "\"ready\": true"),
        ("pods.json", "\"name\": \"web\""),
        ("log.txt", "# what the agent has in memory"),
        ("log-levels.txt", "cni-agent   info"),
        ("settings.txt", "net.ipv4.ip_forward = "),
        ("net.d/10-calico.conflist.txt", "\"etcd_key\": \"(not shown)\""),
        ("net.d/files.txt", "10-calico.conflist"),
        ("run/files.txt", "istio-cni-kubeconfig"),
        ("node/nft.txt", ""),
        ("pods/shop_web.json", "\"wanted\": \"sidecar\""),
    ] {
        let is_there = part.is_empty() || report.text(name).contains(part);
        assert!(is_there, "{name}: {part:?}: {}", report.text(name));
    }
    for (name, text) in &report.0 {
        for secret in [JWT, "PLANTED", BEARER, SECRET, ENVIRONMENT, "token: planted"] {
            assert!(!text.contains(secret), "{secret} in {name}");
        }
    }
    let status = report.item("status.json");
    assert_eq!(status["exit_code"], 0, "{status}");
    assert!(status["command"].as_str().unwrap().starts_with("cnictl status -o json"), "{status}");
    assert!(report.item("metrics.txt")["problem"] != "", "no port is open");
    // All that is there is listed.
    for (name, _) in report.0.iter().filter(|(name, _)| name != "index.json") {
        assert!(report.item(name)["bytes"].as_u64() > Some(0), "{name}");
    }

    // Logs are free text, so a secret in one of them ends it.
    for (secret, kind) in [
        (JWT, "a token (JWT)"),
        (&PEM.replace("\\n", " "), "a certificate or a key"),
        (BEARER, "a credential"),
    ] {
        let log = machine.path("logs/istio-system_istio-cni-node-x_1/install-cni");
        fs::create_dir_all(&log).unwrap();
        fs::write(
            log.join("0.log"),
            format!("2100-01-01T00:00:00Z stdout F 2100-01-01T00:00:00Z\tinfo\tx\t{secret}\n"),
        )
        .unwrap();
        let refused = self::report(&machine, "refused.tar.gz", "")
            .fails(1, &["nothing is written: line ", "of log.txt", kind, "--skip log.txt"]);
        assert!(!refused.stderr.contains(secret) && !machine.path("refused.tar.gz").exists(), "{refused:?}");
    }
    let skipped = self::report(&machine, "skipped.tar.gz", "--skip log.txt");
    assert_eq!(skipped.exit, 0, "{skipped:?}");
    assert!(!Report::read(&machine.path("skipped.tar.gz")).names().contains(&"log.txt"));
    drop(agent);
}

/// The agent is dead, and tools of the node do not answer, are not there, or print without end.
#[test]
fn a_report_is_made_without_an_agent_and_with_tools_that_hang() {
    let machine = machine();
    machine.agent(&[]).kill().unwrap();
    let tools = machine.path("tools");
    fs::create_dir(&tools).unwrap();
    for (name, script) in [
        ("nft", "exec /bin/sleep 60"),
        ("ip", "echo 192.0.2.7 via 10-0-0-1.shop; echo \"$*: 192.0.2.7, 198.51.100.1\" >&2; exit 7"),
    ] {
        machine.files.write(&format!("tools/{name}"), &format!("#!/bin/sh\n{script}\n"));
        machine.mode(&format!("tools/{name}"), 0o755);
    }
    let begun = Instant::now();
    let mut command = machine
        .files
        .command("bug-report --file @report.tar.gz --redact ips --net-dir @net.d --run-dir @run --log-dir");
    let output = command.arg(machine.path("logs")).env("PATH", &tools).output().unwrap();
    let taken = begun.elapsed();
    assert!(output.status.success() && taken < Duration::from_secs(50), "{taken:?}: {output:?}");
    println!("bug-report with a tool that hangs: {taken:?}");
    let report = Report::read(&machine.path("report.tar.gz"));
    let nft = report.item("node/nft.txt");
    assert!(nft["problem"].as_str().unwrap().starts_with("killed after 10 s"), "{nft}");
    assert_eq!(report.item("node/ipset.txt")["problem"], "there is no such program here");
    let rule = report.item("node/rules-ipv4.txt");
    assert_eq!(rule["exit_code"], 7);
    let address = report.text("node/rules-ipv4.txt").split_whitespace().next().unwrap();
    assert!(
        address.starts_with("ip4-")
            && rule["problem"].as_str().unwrap().contains(&format!(": {address}, ip4-")),
        "{rule}"
    );
    assert!(
        report.text("node/rules-ipv4.txt").contains(" via ip4-"),
        "{}",
        report.text("node/rules-ipv4.txt")
    );
    assert_eq!(report.index()["addresses_replaced"], true);
    for (name, text) in &report.0 {
        assert!(!text.contains("192.0.2.7") && !text.contains("198.51.100.1"), "{name}");
    }
    let status = report.text("doctor.json");
    assert!(status.contains("no agent answers"), "{status}");
}

#[test]
fn a_report_has_its_limits() {
    let machine = machine();
    let mut command =
        machine.files.command("bug-report --file - --max 1 --pods shop/none --net-dir @net.d --run-dir @run");
    let big = machine.path("logs/a_b_c/install-cni");
    fs::create_dir_all(&big).unwrap();
    let mut random = vec![0; 900_000];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(big.join("0.log"), format!("2100-01-01T00:00:00Z stdout F {hex}\n")).unwrap();
    let output = command.arg("--log-dir").arg(machine.path("logs")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.len() < 1_000_000);
    fs::write(machine.path("out.tar.gz"), &output.stdout).unwrap();
    let report = Report::read(&machine.path("out.tar.gz"));
    assert!(report.item("log.txt")["problem"].as_str().unwrap().starts_with("left out"));
    assert_eq!(report.index()["output"], serde_json::json!(["no pod shop/none is known on this node"]));
    machine.files.run("bug-report --max 0").fails(2, &["--max"]);
    machine.files.run("bug-report --no-redact").fails(2, &["--no-redact"]);
}

#[test]
fn the_log_of_a_pod_is_what_agent_and_plugin_say_of_it() {
    let machine = machine();
    machine.files.run("log shop/web --run-dir @run --log-dir @logs").fails(1, &["no log can be read here"]);
    let agent = machine.agent(&[]);
    let log = |line: &str| machine.files.run(&format!("log {line} --run-dir @run --log-dir @logs"));
    assert!(log("").ok().contains("\tinfo\t"));
    log("shop/nobody").fails(3, &["no line about pod shop/nobody in what the agent has in memory"]);
    log("web").fails(2, &["NAMESPACE/NAME"]);
    agent.kill().unwrap();
    let line = "{\"level\":\"error\",\"time\":\"2100-01-01T00:00:00Z\",\"msg\":\"m\",\"pod\":\"shop/web\",\"container\":\"abcdef12\"}";
    machine.files.write("run/istio-cni.log", &format!("{line}\n"));
    let dir = machine.path("logs/istio-system_istio-cni-node-x_1/install-cni");
    fs::create_dir_all(&dir).unwrap();
    let written = "2100-01-01T00:00:01Z\tinfo\tx\tleft\tcontainer=abcdef12";
    fs::write(
        dir.join("0.log"),
        format!("2100-01-01T00:00:01Z stdout F {written}\n2100-01-01T00:00:01Z stdout F other\n"),
    )
    .unwrap();
    assert_eq!(log("web -n shop").ok(), format!("{line}\n{written}\n"));
    assert_eq!(log("shop/web --tail 1").ok(), format!("(1 older lines: --tail 0 shows them)\n{written}\n"));
}
