//! Alerts, dashboard and runbooks: what one of them names the others have, and the agent exports it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use layers::{Workspace, assert_none};
use serde_json::Value;

/// Metrics of others: Prometheus itself, the client's of a process, kube-state-metrics, node-exporter.
const OF_OTHERS: [&str; 6] = [
    "up",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "kube_daemonset_status_number_unavailable",
    "node_nf_conntrack_entries",
    "node_nf_conntrack_entries_limit",
];
/// What a runbook has, in this order.
const HEADINGS: [&str; 6] = [
    "What it means",
    "Who notices",
    "First commands",
    "Causes, the most frequent first",
    "Repair",
    "How to prevent it",
];

const RULES: &str = "deploy/charts/istio-cni/files/monitoring/rules.yaml";
const DASHBOARD: &str = "deploy/charts/istio-cni/files/monitoring/dashboard.json";

fn root() -> PathBuf {
    Workspace::load().unwrap().workspace_root
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Names of metrics in an expression: words that are neither labels, nor functions, nor texts.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    // Texts and sets of labels have no metric.
    let (mut plain, mut depth, mut in_text) = (String::new(), 0, false);
    for c in expression.chars() {
        match c {
            '"' => in_text = !in_text,
            '{' if !in_text => depth += 1,
            '}' if !in_text => depth -= 1,
            c if !in_text && depth == 0 => plain.push(c),
            _ => {}
        }
        if c == '}' || c == '"' {
            plain.push(' ');
        }
    }
    let words = plain.split(|c| !is_word(c)).filter(|word| word.contains('_') || *word == "up");
    let known = |word: &&str| {
        !matches!(*word, "histogram_quantile" | "policy_set" | "label_values" | "__rate_interval")
    };
    let bare = |word: &str| word.strip_suffix("_bucket").unwrap_or(word).to_owned();
    words.filter(known).map(bare).collect()
}

/// Names that the agent registers.
fn exported() -> BTreeSet<String> {
    let dir = root().join("crates/metrics/src");
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let quoted = text.split('"').skip(1).step_by(2);
        let is_name = |name: &&str| {
            name.contains('_')
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        names.extend(quoted.filter(is_name).map(str::to_owned));
    }
    names
}

/// Expressions, alerts and runbooks of the rules, in their order.
fn rules() -> Vec<(String, String, String)> {
    let mut rules: Vec<(String, String, String)> = Vec::new();
    let text = read(RULES);
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        match line.split_once(": ") {
            Some(("- alert", name)) => rules.push((name.to_owned(), String::new(), String::new())),
            Some(("expr", "|-")) => rules.last_mut().unwrap().1 = lines.next().unwrap().to_owned(),
            Some(("runbook_url", path)) => rules.last_mut().unwrap().2 = path.to_owned(),
            _ => {}
        }
    }
    rules
}

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36 && dashboard["uid"] == "istio-cni-nodes");
    dashboard["panels"].as_array().unwrap().clone()
}

#[test]
fn every_metric_of_alerts_and_dashboard_is_exported() {
    let exported = exported();
    let mut expressions: Vec<String> = rules().into_iter().map(|(_, expression, _)| expression).collect();
    for panel in panels() {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        expressions.extend(targets.iter().map(|target| target["expr"].as_str().unwrap().to_owned()));
    }
    assert!(expressions.len() > 30, "{}", expressions.len());
    let mut missing = Vec::new();
    for expression in &expressions {
        let metrics = metrics_of(expression);
        assert!(!metrics.is_empty(), "no metric is found in {expression}");
        let is_missing =
            |metric: &&String| !exported.contains(*metric) && !OF_OTHERS.contains(&metric.as_str());
        missing.extend(metrics.iter().filter(is_missing).map(|metric| format!("{metric} in {expression}")));
    }
    assert_none("the agent exports every metric that alerts and dashboard name", &missing);
    assert_eq!(
        metrics_of(r#"sum by (le) (rate(a_b_bucket{x_y="c_d"}[5m])) / e_f > up"#)
            .into_iter()
            .collect::<Vec<_>>(),
        ["a_b", "e_f", "up"]
    );
}

#[test]
fn every_alert_and_panel_has_a_runbook_and_every_runbook_is_whole() {
    let root = root();
    let mut named = BTreeSet::new();
    for (name, expression, runbook) in rules() {
        assert!(!expression.is_empty() && root.join(&runbook).is_file(), "{name}: {runbook}");
        named.insert(runbook);
    }
    for panel in panels().iter().filter(|panel| panel["type"] != "row") {
        let link = panel["links"][0]["url"].as_str().unwrap().trim_start_matches('/');
        assert!(root.join(link).is_file(), "{}: {link}", panel["title"]);
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{}", panel["title"]);
    }
    let runbooks = fs::read_dir(root.join("docs/runbooks")).unwrap();
    for path in runbooks.map(|entry| entry.unwrap().path()) {
        let text = fs::read_to_string(&path).unwrap();
        let headings: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(headings, HEADINGS, "{}", path.display());
        let commands = text.split("```").nth(1).unwrap().lines().skip(1).count();
        assert_eq!(commands, 3, "{}", path.display());
        let below = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        assert!(named.contains(&below), "{below} is no alert's");
    }
}

/// `promtool`, which comes with Debian's package prometheus.
fn promtool(words: &[&str], input: &[u8]) -> (bool, String) {
    let mut command = Command::new("promtool");
    command
        .args(words)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is missing; scripts/setup installs it");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn promtool_takes_the_rules_and_their_tests_pass() {
    let tests = "tests/chart/monitoring/rules.test.yaml";
    for words in [["check", "rules", RULES], ["test", "rules", tests]] {
        let (is_good, said) = promtool(&words, b"");
        assert!(is_good, "promtool {}: {said}", words.join(" "));
    }
    // Each alert has a test that makes it fire.
    let text = read(tests);
    let untested: Vec<String> = rules()
        .into_iter()
        .map(|rule| rule.0)
        .filter(|name| !text.contains(&format!("alertname: {name}\n")))
        .collect();
    assert_none("each alert has a unit test that makes it fire", &untested);
}

#[test]
fn every_event_that_is_listed_is_written_somewhere() {
    let list = read("crates/cluster/src/write/reasons.rs");
    let entries = list.lines().map(str::trim);
    let reasons: Vec<&str> = entries
        .filter_map(|line| line.strip_prefix("warning(\"").or_else(|| line.strip_prefix("normal(\"")))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(reasons.len() > 30, "{reasons:?}");
    let mut code = String::new();
    let mut folders = vec![root().join("crates/agent/src"), root().join("crates/intent/src")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                code += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let is_unused = |reason: &&&str| !code.contains(&format!("\"{reason}\""));
    let unused: Vec<String> = reasons.iter().filter(is_unused).map(ToString::to_string).collect();
    assert_none("the agent writes every Event that is listed", &unused);
}
