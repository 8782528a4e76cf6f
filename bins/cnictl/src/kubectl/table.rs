//! Answers of nodes for people.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ask::NodeAnswer;
use crate::output::{Colour, columns, one_line, paint};

/// `namespace/name` of an item.
pub(super) fn pod_of(item: &Value) -> String {
    format!("{}/{}", text(item, "namespace"), text(item, "name"))
}

fn text<'a>(item: &'a Value, name: &str) -> &'a str {
    item[name].as_str().unwrap_or_default()
}

/// One line for each node, and what lags behind below.
pub(super) fn of_nodes(nodes: &[NodeAnswer]) -> String {
    let mut rows = vec![["NODE", "AGENT", "PLUGIN", "CAPTURED", "HEALTH"].map(str::to_owned).to_vec()];
    let mut versions: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for node in nodes {
        let Some(said) = &node.said else {
            let health = paint("no answer", Colour::Yellow);
            rows.push(vec![
                node.node.clone(),
                "-".into(),
                "-".into(),
                "-".into(),
                format!("{health}: {}", one_line(&node.error)),
            ]);
            continue;
        };
        let agent = text(&said["agent"], "version").to_owned();
        versions.entry(agent.clone()).or_default().push(&node.node);
        let plugins = said["plugins"].as_array().into_iter().flatten();
        let plugins: Vec<&str> = plugins.map(|plugin| plugin["version"].as_str().unwrap_or("?")).collect();
        let counts = &said["verification"];
        let captured = match (counts["verified"].as_u64(), counts["expected"].as_u64()) {
            (Some(verified), Some(expected)) => format!("{verified} of {expected}"),
            _ => "not known".to_owned(),
        };
        let health = match (said["healthy"] == true, said["problems"][0].as_str()) {
            (true, _) => paint("healthy", Colour::Green),
            (false, Some(problem)) => format!("{}: {}", paint("unhealthy", Colour::Red), one_line(problem)),
            (false, None) => paint("partly unknown", Colour::Yellow),
        };
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        rows.push(vec![node.node.clone(), or_dash(agent), or_dash(plugins.join(", ")), captured, health]);
    }
    columns(&rows) + &lagging(&versions)
}

/// The nodes whose agents are of another version than most.
fn lagging(versions: &BTreeMap<String, Vec<&str>>) -> String {
    let Some((usual, _)) = versions.iter().max_by_key(|(_, nodes)| nodes.len()) else { return String::new() };
    let others = versions.iter().filter(|(version, _)| *version != usual);
    let line = |(version, nodes): (&String, &Vec<&str>)| {
        let version = if version.is_empty() { "whose agent does not answer" } else { version };
        format!(
            "{} most nodes have {usual}; {version}: {}\n",
            paint("versions:", Colour::Yellow),
            nodes.join(", ")
        )
    };
    others.map(line).collect()
}

/// One line for each pod.
pub(super) fn of_pods<'a>(items: impl Iterator<Item = &'a Value>) -> String {
    let mut rows = vec![
        ["NODE", "NAMESPACE", "NAME", "WANTED", "STATE", "REASON", "PROBLEM"].map(str::to_owned).to_vec(),
    ];
    rows.extend(items.map(|item| {
        let cells = ["node", "namespace", "name", "wanted", "state", "reason", "problem"];
        let cell = |name: &str| match text(item, name) {
            "" => "-".to_owned(),
            text => text.to_owned(),
        };
        cells.map(cell).to_vec()
    }));
    if rows.len() == 1 { String::new() } else { columns(&rows) }
}
