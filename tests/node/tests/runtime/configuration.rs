//! What a real containerd loads: files of every kind, and what becomes of them with the plugin in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use cni::conflist::{Document, Form, PluginEntry};
use cni::libcni::Folder;
use conformance::libcni::{File, Network, files};
use node::{CniStatus, Node};
use serde_json::{Value, json};

use crate::fixture::{PLUGIN, bridge};

/// How many files of each kind are loaded.
const OF_EACH: usize = 12;
/// Longest wait for containerd to look at its directory again, which takes milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// Files of each kind, spread over those that there are. What the releases differ about are kinds of their own.
fn sample(files: Vec<File>) -> Vec<File> {
    let mut kinds: BTreeMap<_, Vec<File>> = BTreeMap::new();
    for file in files.into_iter().filter(|file| Form::of(&file.name).is_some()) {
        let extension = Path::new(&file.name).extension().map(ToOwned::to_owned);
        kinds.entry((extension, file.old.is_some(), file.new.is_some())).or_default().push(file);
    }
    let some = |files: Vec<File>| {
        let step = files.len().div_ceil(OF_EACH);
        files.into_iter().step_by(step)
    };
    kinds.into_values().flat_map(some).collect()
}

/// The network that containerd has loaded beside its loopback network.
fn loaded(status: &CniStatus) -> Option<Network> {
    let network = status.networks.iter().find(|network| network["Name"] != "cni-loopback")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let plugins = network["Plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    Some(Network {
        name: text(&network["Name"]),
        version: text(&network["CNIVersion"]),
        types: plugins.iter().map(|plugin| text(&plugin["Network"]["type"])).collect(),
    })
}

/// Waits until containerd has loaded its directory with this outcome.
fn wait_for(node: &Node, what: &str, met: impl Fn(&CniStatus) -> bool) {
    let status = || node.cni_status().expect("containerd answers");
    let loaded = testkit::until(what, LIMIT, || met(&status()), || format!("{:?}", status()));
    loaded.unwrap_or_else(|error| panic!("{error:#}"));
}

/// Lets containerd load one file, alone in its directory.
fn check(node: &Node, name: &str, bytes: &[u8], wanted: Option<&Network>, what: &str) {
    // containerd 1.6 notices a renaming by the name that goes, in its own directory
    let (aside, place) = (node.conf_dir().join("aside"), node.conf_dir().join(name));
    fs::write(&aside, bytes).expect("written");
    fs::rename(aside, &place).expect("placed");
    wait_for(node, what, |status| match wanted {
        Some(wanted) => status.last_load == "OK" && loaded(status).as_ref() == Some(wanted),
        None => status.last_load.contains(&*place.to_string_lossy()) && loaded(status).is_none(),
    });
    // so that the next outcome is not taken for this one
    fs::remove_file(place).expect("removed");
    wait_for(node, "an empty directory", |status| status.last_load.contains("no network config found"));
}

fn with_plugin(network: &Network) -> Network {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    let mut types = network.types.clone();
    types.push(PLUGIN.to_owned());
    Network { name: or(&network.name, "k8s-pod-network"), version: or(&network.version, "0.3.1"), types }
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn it_loads_what_we_say_that_it_loads() {
    let conflist = json!({"cniVersion": "1.0.0", "name": "plain", "plugins": [bridge()]});
    let node = Node::start(&conflist, &[]).expect("a node with containerd");
    fs::remove_file(node.conf_dir().join("10-chain.conflist")).expect("removed");
    wait_for(&node, "an empty directory", |status| status.last_load.contains("no network config found"));

    let (mut loads, mut merges) = (0, 0);
    for file in sample(files().expect("reference data")) {
        check(&node, &file.name, &file.bytes, file.old.as_ref(), &file.case);
        loads += 1;
        let Some(network) = file.old.as_ref().filter(|_| file.is_merged()) else { continue };
        let document = Document::of_form(Form::of(&file.name), &file.bytes).expect("an object");
        let merged = document.merge(&PluginEntry::default(), &Folder::default()).expect("merged");
        let mut wanted = with_plugin(network);
        // An explicit empty text stays one.
        let own = |key: &str| serde_json::from_slice::<Value>(&merged).ok().map(|list| list[key] == "");
        for (key, text) in [("name", &mut wanted.name), ("cniVersion", &mut wanted.version)] {
            if own(key) == Some(true) {
                text.clear();
            }
        }
        check(&node, &file.list_name(), &merged, Some(&wanted), &format!("{} with the plugin", file.case));
        merges += 1;
    }
    assert!(loads > 4 * OF_EACH && merges > OF_EACH, "{loads} files, {merges} with the plugin");
}
