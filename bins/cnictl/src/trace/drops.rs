//! `trace --drops`: which rules drop packets in a time.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use conflicts::ObservedNetns;
use facts::PodRef;
use kernel::nft::{DropCount, drop_counts};
use serde::Serialize;

use crate::node::in_host;
use crate::output::{Format, VerbAnswer, columns, structured};
use crate::pods::{API_VERSION, LocatedNetns, NOTHING};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DropsDocument<'a> {
    api_version: &'static str,
    kind: &'static str,
    pod: &'a PodRef,
    seconds: f64,
    items: &'a [Dropped],
}

/// A rule that has dropped something.
#[derive(Debug, Serialize)]
struct Dropped {
    /// `pod` or `node`.
    place: &'static str,
    packets: u64,
    table: String,
    chain: String,
    handle: u64,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// The counters of both namespaces before and after.
pub(super) fn run(
    pod: &PodRef,
    place: &LocatedNetns,
    observed: &ObservedNetns,
    time: Duration,
    format: Format,
) -> Result<VerbAnswer> {
    let before = [in_pod(place)?, on_node()?];
    std::thread::sleep(time);
    let after = [in_pod(place)?, on_node()?];
    let mut dropped = Vec::new();
    for ((name, before), after) in ["pod", "node"].into_iter().zip(before).zip(after) {
        let before: HashMap<_, u64> =
            before.into_iter().map(|count| ((count.table, count.handle), count.packets)).collect();
        for count in after {
            let DropCount { table, chain, handle, packets, text } = count;
            let earlier = before.get(&(table.clone(), handle)).copied().unwrap_or_default();
            if packets > earlier {
                let why = why(observed, &table, handle).filter(|_| name == "pod");
                let packets = packets - earlier;
                dropped.push(Dropped { place: name, packets, table, chain, handle, text, why });
            }
        }
    }
    dropped.sort_by_key(|rule| std::cmp::Reverse(rule.packets));
    answer(pod, time, &dropped, format)
}

fn in_pod(place: &LocatedNetns) -> Result<Vec<DropCount>> {
    let counts = place.netns.enter(drop_counts).context("enter the network namespace of the pod")?;
    counts.context("read the counters of the pod's rules")
}

fn on_node() -> Result<Vec<DropCount>> {
    let counts = in_host(|host| drop_counts(host.inside())).context("enter the node's network namespace")?;
    counts.context("read the counters of the node's rules")
}

fn why(observed: &ObservedNetns, table: &str, handle: u64) -> Option<String> {
    let table = observed.tables.iter().find(|listed| listed.name == table)?;
    let mut rules = table.chains.iter().flat_map(|chain| &chain.rules);
    rules.find(|rule| rule.handle == Some(handle))?.why.as_deref().map(str::to_owned)
}

fn answer(pod: &PodRef, time: Duration, dropped: &[Dropped], format: Format) -> Result<VerbAnswer> {
    let seconds = time.as_secs_f64();
    let text = match format {
        Format::Json | Format::Yaml => structured(
            format,
            &DropsDocument { api_version: API_VERSION, kind: "DropList", pod, seconds, items: dropped },
        )?,
        Format::Table | Format::Wide if dropped.is_empty() => String::new(),
        Format::Table | Format::Wide => {
            let head = ["PACKETS", "WHERE", "TABLE", "CHAIN", "HANDLE", "RULE", "WHY"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(dropped.iter().map(|rule| {
                let Dropped { place, packets, table, chain, handle, text, why } = rule;
                let (packets, handle) = (packets.to_string(), handle.to_string());
                let why = why.as_deref().unwrap_or_default();
                [packets.as_str(), place, table, chain, &handle, text, why].map(str::to_owned).to_vec()
            }));
            columns(&rows)
        }
    };
    if dropped.is_empty() {
        let problem = format!(
            "no rule with a counter dropped anything in {seconds} seconds, in pod {pod} or on the node"
        );
        return Ok(VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(text, problem) });
    }
    Ok(VerbAnswer::text(text))
}
