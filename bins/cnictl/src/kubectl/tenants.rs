//! Tenants on all nodes, and the nodes that lag behind.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use super::ask::NodeAnswer;
use super::{ClusterArgs, document, finished, with_node};
use crate::output::{Colour, Format, VerbAnswer, columns, paint};
use crate::pods::NOTHING;

#[derive(Debug, clap::Args)]
pub(super) struct TenantsOfNodes {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

impl TenantsOfNodes {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        let nodes = self.cluster.ask(&["tenants", "list", "-o", "json"])?;
        // Only a comparison shows that a node has not heard of a change at all.
        let mut newest: BTreeMap<String, u64> = BTreeMap::new();
        for (name, _, tenant) in nodes.iter().flat_map(tenants) {
            let known = newest.entry(name.to_owned()).or_default();
            *known = (*known).max(tenant["generation"].as_u64().unwrap_or_default());
        }
        if newest.is_empty() && nodes.iter().all(NodeAnswer::knows) {
            let problem = "no node knows of a tenant".to_owned();
            return Ok(VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(String::new(), problem) });
        }
        let mut items = Vec::new();
        for (name, generation) in &newest {
            for node in nodes.iter().filter(|node| node.answers()) {
                let found = tenants(node).find(|(of, ..)| of == name);
                let in_force = found.and_then(|(_, in_force, _)| in_force);
                let item = json!({"name": name, "generation": generation, "in_force": in_force,
                    "lags": in_force != Some(*generation)});
                items.extend(with_node(&node.node, item));
            }
        }
        let lagging: Vec<&Value> = items.iter().filter(|item| item["lags"] == true).collect();
        let wrong = lagging.first().map(|first| {
            let (name, node) = (first["name"].as_str().unwrap_or_default(), first["node"].as_str().unwrap_or_default());
            let count = lagging.len();
            format!("the last change of a tenant is not in force on a node ({count} times, the first is tenant {name} on node {node})")
        });
        let text = match self.output {
            Format::Json | Format::Yaml => document("NodeTenantList", &nodes, items.clone(), self.output)?,
            Format::Table | Format::Wide => table(&newest, &items),
        };
        Ok(finished(text, wrong, &nodes))
    }
}

/// Name and generation in force of each tenant that a node knows of.
fn tenants(node: &NodeAnswer) -> impl Iterator<Item = (&str, Option<u64>, &Value)> {
    let items = node.said.as_ref().and_then(|said| said["items"].as_array());
    let items = items.into_iter().flatten();
    items.filter_map(|item| Some((item["name"].as_str()?, item["in_force"].as_u64(), item)))
}

fn table(newest: &BTreeMap<String, u64>, items: &[Value]) -> String {
    let mut rows = vec![["TENANT", "GENERATION", "NODES", "LAGGING"].map(str::to_owned).to_vec()];
    for (name, generation) in newest {
        let own = || items.iter().filter(|item| item["name"] == **name);
        let lagging: Vec<&str> =
            own().filter(|item| item["lags"] == true).filter_map(|item| item["node"].as_str()).collect();
        let said = match lagging.is_empty() {
            true => "-".to_owned(),
            false => paint(&lagging.join(", "), Colour::Red),
        };
        rows.push(vec![name.clone(), generation.to_string(), own().count().to_string(), said]);
    }
    if rows.len() == 1 { String::new() } else { columns(&rows) }
}
