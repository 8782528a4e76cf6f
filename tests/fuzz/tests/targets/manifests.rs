//! A directory of manifests, which the plugin and the node agent each read in a way of their own, and must understand alike.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use capture::Pod;
use capture::annotations::PROXY_VARIABLES;
use capture::decide::PROXY_CONTAINER;
use cluster::{Cluster, Event, Source};
use facts::PodRef;
use fuzz::{Outcome, Target, of_text};
use podsource::{ManifestFile, Manifests, PodSource};
use proptest::prelude::*;
use proptest::sample::select;

/// Begins a line that names the next file.
const FILE: &str = "=== ";
/// The names that files may have here: after a pod, with its namespace, after the namespace, and others.
const FILES: &[&str] = &["web.yaml", "shop_web.yaml", "shop.yaml", "a.yml", "b.json", "z.yaml"];
/// What the agent writes on a pod; it does not believe a manifest that has it.
const REDIRECTION: &str = "ambient.istio.io/redirection";

const WORDS: &[&str] = &[
    "kind: Pod\n",
    "kind: Namespace\n",
    "kind: PodList\n",
    "kind: List\n",
    "kind: Service\n",
    "metadata: {name: web}\n",
    "metadata:\n  name: web\n  namespace: shop\n",
    "metadata: {name: shop, labels: {a: b}}\n",
    "spec: {containers: [{name: c}]}\n",
    "spec:\n  containers:\n  - name: c\n",
    "items:\n- ",
    "---\n",
    "...\n",
    "  annotations: {sidecar.istio.io/status: '{}'}\n",
    "  labels: {istio.io/dataplane-mode: ambient}\n",
    "  uid: u-1\n",
    "  hostNetwork: true\n",
    "&a ",
    "*a",
    "<<: *a\n",
    "null",
    "~",
    "\"we\\x62\"",
    ">-\n   web\n",
    "'web'",
    "!!str ",
    "# ",
    "{\"kind\":\"Pod\",\"metadata\":{\"name\":\"web\"},\"spec\":{\"containers\":[{\"name\":\"c\"}]}}",
    "=== web.yaml\n",
    "=== shop.yaml\n",
    "=== a.yml\n",
    "=== b.json\n",
    "\t",
    "\u{feff}",
    "0x10",
    "1e3",
    "yes",
    "[",
    "{",
    "? ",
    "- ",
];

fn generate() -> BoxedStrategy<Vec<u8>> {
    let name = || select(&["web", "shop", "db-0", "0", "\"w\"", "~"][..]);
    let pod = (name(), prop::option::of(name()), select(&["c", "istio-proxy"][..]), any::<bool>()).prop_map(
        |(name, namespace, container, host)| {
            let namespace = namespace.map(|namespace| format!(", namespace: {namespace}")).unwrap_or_default();
            let host = if host { ", hostNetwork: true" } else { "" };
            format!(
                "kind: Pod\nmetadata: {{name: {name}{namespace}, labels: {{a: {name}}}}}\nspec: {{containers: [{{name: {container}}}]{host}}}\n"
            )
        },
    );
    let namespace = (name(), name()).prop_map(|(name, label)| {
        format!("kind: Namespace\nmetadata: {{name: {name}, labels: {{mode: {label}}}}}\n")
    });
    let junk = prop::collection::vec(select(WORDS), 1..5).prop_map(|words| words.concat());
    let document = prop_oneof![4 => pod, 2 => namespace, 1 => junk];
    let file = (select(FILES), prop::collection::vec(document, 1..3))
        .prop_map(|(name, documents)| format!("{FILE}{name}\n{}", documents.join("---\n")));
    prop::collection::vec(file, 1..4).prop_map(|files| files.concat().into_bytes()).boxed()
}

/// Writes the files that the input describes.
fn lay_out(input: &[u8], dir: &Path) -> Vec<String> {
    let (mut names, mut name, mut content) = (Vec::new(), FILES[0], Vec::new());
    let mut close = |name: &'static str, content: &mut Vec<u8>| {
        std::fs::write(dir.join(name), &*content).unwrap();
        content.clear();
        names.push(name.to_owned());
    };
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        let named = line.strip_prefix(FILE.as_bytes()).map(<[u8]>::trim_ascii);
        match named.and_then(|named| FILES.iter().find(|known| known.as_bytes() == named)) {
            Some(next) => {
                if !content.is_empty() {
                    close(name, &mut content);
                }
                name = next;
            }
            None => content.extend_from_slice(line),
        }
    }
    close(name, &mut content);
    names
}

fn run(input: &[u8]) -> Outcome {
    let dir = tempfile::Builder::new().prefix("fuzz-manifests").tempdir().unwrap();
    let files = lay_out(input, dir.path());
    let (agent, unreadable) = what_the_agent_reads(dir.path());
    let plugin = Manifests::new(dir.path());
    let mut pods: BTreeSet<(String, String)> =
        agent.index().pods().map(|pod| (pod.namespace().to_owned(), pod.name().to_owned())).collect();
    for file in &files {
        let read = ManifestFile::read(dir.path().join(file)).unwrap_or_default();
        pods.extend(read.pods.iter().map(|pod| (pod.namespace().to_owned(), pod.name().to_owned())));
    }
    let mut kinds = Vec::new();
    for (namespace, name) in pods.iter().filter(|(namespace, name)| is_name(namespace) && is_name(name)) {
        let id = PodRef { namespace: namespace.clone(), name: name.clone(), uid: String::new() };
        let (asked, labels) = (plugin.pod(&id), plugin.namespace_labels(namespace));
        let known = agent.index().facts(namespace, name);
        kinds.push((asked.is_ok(), known.is_some(), labels.as_ref().map_or(0, |labels| labels.len())));
        if !unreadable.is_empty() {
            continue;
        }
        let known =
            known.unwrap_or_else(|| panic!("the agent has no pod {namespace}/{name}; the plugin: {asked:?}"));
        // A file that is named after the pod and does not say whole what it describes may be unfinished. The agent sees writers, the
        // plugin does not and refuses: the runtime tries again.
        let unfinished = |error: &podsource::Error| error.to_string().contains(" is broken at ");
        let asked = match asked {
            Err(error) if unfinished(&error) => continue,
            asked => {
                asked.unwrap_or_else(|error| panic!("the plugin has no pod {namespace}/{name}: {error}"))
            }
        };
        let told = known.pod.as_ref().clone().into_pod(&id).expect("the agent's pod is whole");
        assert_eq!(without_made(asked, &known.pod), without_made(told, &known.pod), "{namespace}/{name}");
        assert_eq!(labels.ok(), known.namespace_labels, "labels of {namespace}");
    }
    let unreadable = unreadable.first().map(|text| of_text(text.rsplit(": ").next().unwrap_or_default()));
    kinds.sort_unstable();
    Outcome::of((kinds, unreadable, files.len()))
}

/// A pod without what the agent makes for one, or takes away because it is no fact.
fn without_made(mut pod: Pod, agents: &facts::Object) -> Pod {
    if agents.has_made_uid() {
        pod.uid = None;
    }
    let of_istio = |key: &str| {
        key.split_once('/').is_some_and(|(domain, _)| format!(".{domain}").ends_with(".istio.io"))
    };
    pod.annotations.retain(|key, _| of_istio(key) && key != REDIRECTION);
    for container in pod.init_containers.iter_mut().chain(&mut pod.containers) {
        if container.name != PROXY_CONTAINER {
            (container.args, container.env) = (Vec::new(), Vec::new());
        }
        container.args.truncate(2);
        container.env.retain(|(name, _)| PROXY_VARIABLES.contains(&name.as_str()));
    }
    pod
}

/// Other names are no pods' names, and no runtime asks for them.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    !text.is_empty() && !text.starts_with('.') && text.chars().all(allowed)
}

/// What it knows after a first look, and of which files it could make nothing.
fn what_the_agent_reads(dir: &Path) -> (Cluster, Vec<String>) {
    let (cluster, unreadable) = (Cluster::new(), Arc::new(Mutex::new(Vec::new())));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let synced = tokio::sync::Notify::new();
    let source = Source::Manifests { dir: dir.to_owned(), own: None };
    runtime.block_on(async {
        let watch = cluster::watch::run(source, cluster.clone(), |event| match event {
            Event::Synced => synced.notify_one(),
            Event::Unreadable { error, .. } => unreadable.lock().unwrap().push(error.to_string()),
            Event::WatchFailed { error, .. } => panic!("the directory cannot be read: {error}"),
            _ => {}
        });
        // The watch first: with the news of the first look come those of its files.
        tokio::select! {
            biased;
            never = watch => match never {},
            () = synced.notified() => {}
        }
    });
    let unreadable = std::mem::take(&mut *unreadable.lock().unwrap());
    (cluster, unreadable)
}

const TARGET: Target = Target {
    name: "manifests",
    package: env!("CARGO_PKG_NAME"),
    dictionary: WORDS,
    max_len: 4096,
    memory: 4 << 20,
    generate,
    run,
};

#[test]
fn fuzz_manifests() {
    TARGET.fuzz();
}
