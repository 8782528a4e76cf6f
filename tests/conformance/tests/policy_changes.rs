//! Changes of policies, pods and namespaces while an agent runs: after each step of the reference cases the kernel soon has what the state comes to,
//! and nothing else was written.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use conformance::golden_dir;
use kernel::nft::{PartedTable, Thoroughness};
use netns::Host;
use policy::cases::CaseFile;
use policy::compile::CompiledNode;
use policy::compiled::CompiledNodes;
use ruleset::{Backend, TableKind};
use serde_json::Value;
use testkit::apiserver::{ApiServer, Resource};
use testkit::mesh::Mesh;
use testkit::rules::Comments;
use testkit::{PATIENCE, Process, TestNetns, until};

const FAMILY: &str = "changes";
const TABLE: &str = "istio-policy-mangle";
/// Where isolated pods are.
const MAPS: [&str; 4] =
    ["istio-np-egress-v4", "istio-np-egress-v6", "istio-np-ingress-v4", "istio-np-ingress-v6"];
/// The longest that a step may take on a busy machine, the time to list the rules included; it is printed how long steps took.
const LONGEST: Duration = Duration::from_millis(1500);

/// By case, step and node.
type Compiled = BTreeMap<(String, usize, String), CompiledNode>;

/// What a namespace's table has: definitions, rules by their place in their chain, elements; each with its set or chain.
type Listed = BTreeSet<(String, String)>;

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn each_step_is_in_force_at_once_and_writes_only_what_it_changes() {
    let text = std::fs::read_to_string(golden_dir().unwrap().join("policy/cases.json")).unwrap();
    let (compiled, file) =
        (compiled(&CaseFile::parse(&text).unwrap()), serde_json::from_str::<Value>(&text).unwrap());
    let cases = file["cases"].as_array().unwrap().iter();
    // A case of the other families changes nothing while the agent runs.
    let cases: Vec<&Value> =
        cases.filter(|case| case["family"] == FAMILY && case["steps"].is_array()).collect();
    let (mut took, mut written) = (Vec::new(), 0);
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let nodes: BTreeSet<&String> =
            compiled.keys().filter(|(of, ..)| of == name).map(|(_, _, node)| node).collect();
        // Where no rule and no member is another one after any step there is nothing to see.
        let steps = case["steps"].as_array().map_or(0, Vec::len);
        let at = |step: usize, node: &str| compiled.get(&(name.to_owned(), step, node.to_owned()));
        let nodes =
            nodes.into_iter().filter(|node| (1..=steps).any(|step| at(step, node) != at(step - 1, node)));
        for node in nodes {
            let wanted = |step: usize| at(step, node);
            run(&file, case, node, &wanted, &mut took, &mut written)
                .with_context(|| format!("{name} on {node}"))
                .unwrap();
        }
    }
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    println!(
        "{} cases, {} steps: p50 {:?}, longest {:?}; {written} elements and rules",
        cases.len(),
        took.len(),
        at(50),
        at(100)
    );
    assert!(took.len() >= 20 && at(100) < LONGEST, "{took:?}");
}

fn compiled(file: &CaseFile) -> Compiled {
    let mut all = Compiled::new();
    file.states(|state| {
        if state.family == FAMILY {
            for (node, rules) in CompiledNodes::new(state.world, Backend::Nftables).nodes() {
                all.insert((state.case.to_owned(), state.step, node.to_owned()), rules.clone());
            }
        }
        Ok(())
    })
    .unwrap();
    all
}

/// A case on one node, whose pods need no namespaces for it.
fn run<'c>(
    file: &Value,
    case: &Value,
    node: &str,
    wanted: &dyn Fn(usize) -> Option<&'c CompiledNode>,
    took: &mut Vec<Duration>,
    written: &mut usize,
) -> Result<()> {
    let mesh = Mesh::new()?;
    let api = &mesh.node.api;
    let cluster = &file["clusters"][case["cluster"].as_str().context("no cluster")?];
    for objects in cluster.as_object().context("no objects")?.values() {
        objects.as_array().into_iter().flatten().try_for_each(|object| put(api, object))?;
    }
    case["policies"].as_array().into_iter().flatten().try_for_each(|policy| put(api, policy))?;
    case["setup"].as_array().into_iter().flatten().try_for_each(|change| apply(api, change))?;
    let agent =
        mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on").env("NODE_NAME", node);
    let agent = agent.ready()?;
    let mut before = reached(&mesh.host, wanted(0))?;
    for (step, change) in (1..).zip(case["steps"].as_array().into_iter().flatten()) {
        let mut trace = Trace::start(&mesh.host)?;
        let start = Instant::now();
        change["change"].as_array().into_iter().flatten().try_for_each(|change| apply(api, change))?;
        let after = reached(&mesh.host, wanted(step))
            .with_context(|| format!("step {step}\n{}", agent.log().text()))?;
        if after != before {
            took.push(start.elapsed());
        }
        // Of several changes each is written, and what one takes away the next may bring back.
        if change["change"].as_array().is_some_and(|all| all.len() == 1) {
            *written += trace.compare(&before, &after).with_context(|| format!("step {step}"))?;
        }
        before = after;
    }
    Ok(())
}

/// Waits until a namespace has what such a node has.
fn reached(host: &TestNetns, wanted: Option<&CompiledNode>) -> Result<Listed> {
    let expected = match wanted {
        None => Listed::new(),
        Some(node) => {
            let own = TestNetns::new()?;
            Host::open(own.path())?.enter(|inside| -> Result<()> {
                let mut table = PartedTable::open(inside, policy::compile::POLICY_OWNER, TableKind::Mangle)?;
                table.ensure(&node.rules, &node.contents, Thoroughness::Everything)?;
                Ok(())
            })??;
            listed(&own)?
        }
    };
    // Where no policy is there is no table.
    let isolates = expected.iter().any(|(of, what)| MAPS.contains(&&**of) && is_element(what));
    let is_there = |found: &Listed| *found == expected || (!isolates && found.is_empty());
    let differs = || {
        let found = listed(host).unwrap();
        format!("missing: {:#?}\ntoo much: {:#?}", expected.difference(&found), found.difference(&expected))
    };
    let mut found = Listed::new();
    let looks = || {
        listed(host).is_ok_and(|now| {
            found = now;
            is_there(&found)
        })
    };
    until("the kernel has the rules of the state", PATIENCE, looks, differs)?;
    Ok(found)
}

fn is_element(what: &str) -> bool {
    what.starts_with("element ")
}

fn listed(netns: &TestNetns) -> Result<Listed> {
    let (mut listed, mut rules) = (Listed::new(), BTreeMap::<String, usize>::new());
    for object in netns.nft_json(Comments::Strip)? {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
        if body["table"] != TABLE {
            continue;
        }
        let mut body = body.clone();
        let of = body[if kind == "rule" { "chain" } else { "name" }].as_str().unwrap_or_default().to_owned();
        if let Some(elements) = body.as_object_mut().and_then(|body| body.remove("elem")) {
            let elements = elements.as_array().cloned().unwrap_or_default();
            listed.extend(elements.iter().map(|element| (of.clone(), format!("element {element}"))));
        }
        if kind == "rule" {
            let place = rules.entry(of.clone()).or_default();
            *place += 1;
            listed.insert((of, format!("rule {place} {body}")));
        } else {
            listed.insert((of, format!("{kind} {body}")));
        }
    }
    Ok(listed)
}

/// What nf_tables tells of changes.
struct Trace {
    host: std::path::PathBuf,
    lines: BufReader<ChildStdout>,
    _monitor: Process,
}

impl Trace {
    fn start(host: &TestNetns) -> Result<Self> {
        mark(host.path())?;
        let mut monitor =
            host.spawn(Command::new("stdbuf").args(["-oL", "nft", "monitor"]).stdout(Stdio::piped()))?;
        let lines = BufReader::new(monitor.child().stdout.take().context("no output")?);
        let mut trace = Self { host: host.path().to_owned(), lines, _monitor: monitor };
        // It has begun to listen when it tells of this; before, nobody is told.
        let begun = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let knocking = scope.spawn(|| {
                while !begun.load(std::sync::atomic::Ordering::Relaxed) {
                    mark(&trace.host)?;
                    std::thread::sleep(Duration::from_millis(5));
                }
                anyhow::Ok(())
            });
            let first = read_to_mark(&mut trace.lines);
            begun.store(true, std::sync::atomic::Ordering::Relaxed);
            knocking.join().unwrap()?;
            first
        })?;
        Ok(trace)
    }

    /// The lines since then are of what differs, and of nothing else. How many elements and rules they are about.
    fn compare(&mut self, before: &Listed, after: &Listed) -> Result<usize> {
        mark(&self.host)?;
        let differs: BTreeSet<&str> = before.symmetric_difference(after).map(|(of, _)| &**of).collect();
        let elements =
            |one: &Listed, other: &Listed| one.difference(other).filter(|(_, what)| is_element(what)).count();
        let (gained, lost) = (elements(after, before), elements(before, after));
        let (mut added, mut deleted, mut count) = (0, 0, 0);
        for line in read_to_mark(&mut self.lines)? {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [verb @ ("add" | "delete" | "insert" | "destroy"), kind, "inet", TABLE, rest @ ..] =
                &words[..]
            else {
                continue;
            };
            let of = rest.first().copied().unwrap_or_default();
            ensure!(rest.is_empty() || differs.contains(of), "{line}: it is as it was");
            let all = line.split_once('{').map_or(0, |(_, all)| all.split(',').count());
            match (*verb, *kind) {
                ("add", "element") => added += all,
                (_, "element") => deleted += all,
                (_, "rule") => count += 1,
                _ => {}
            }
        }
        ensure!(
            added <= gained && deleted <= lost,
            "{added} elements came and {deleted} went, of {gained} and {lost}"
        );
        Ok(count + added + deleted)
    }
}

/// A table that comes and goes, which others see as well.
fn mark(host: &std::path::Path) -> Result<()> {
    let status = Command::new("nsenter")
        .arg(format!("--net={}", host.display()))
        .args(["nft", "add table inet beacon; delete table inet beacon"])
        .status()?;
    ensure!(status.success(), "nft: {status}");
    Ok(())
}

fn read_to_mark(lines: &mut BufReader<ChildStdout>) -> Result<Vec<String>> {
    let mut all = Vec::new();
    loop {
        let mut line = String::new();
        ensure!(lines.read_line(&mut line)? > 0, "the monitor has ended");
        if line.starts_with("delete table inet beacon") {
            return Ok(all);
        }
        all.push(line);
    }
}

fn resource(kind: &str) -> Result<Resource> {
    Ok(match kind {
        "Pod" => Resource::Pods,
        "Namespace" => Resource::Namespaces,
        "Node" => Resource::Nodes,
        "NetworkPolicy" => Resource::NetworkPolicies,
        "Service" => Resource::Services,
        "EndpointSlice" => Resource::EndpointSlices,
        other => anyhow::bail!("no kind {other}"),
    })
}

fn put(api: &ApiServer, object: &Value) -> Result<()> {
    api.set_object(resource(object["kind"].as_str().context("no kind")?)?, object.clone());
    Ok(())
}

fn apply(api: &ApiServer, change: &Value) -> Result<()> {
    let (resource, object) = (resource(change["kind"].as_str().context("no kind")?)?, &change["object"]);
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    match change["op"].as_str() {
        Some("put") => api.set_object(resource, object.clone()),
        Some("delete") => drop(api.delete_object(resource, text("namespace"), text("name"))),
        other => anyhow::bail!("no change {other:?}"),
    }
    Ok(())
}
