//! Files as somebody might write or break them, each alone on a node, against what two releases of `libcni` make of them (reference
//! data). A file that both load is merged; every other one stays as it is, with a reason; at the end everything is as it was.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use cni::conflist::Form;
use cni::libcni::{Folder, Network, Release, load};
use serde_json::Value;

use crate::golden::reference;
use crate::support::Node;

/// How many nodes there are at a time: most of what they do is waiting for the disk.
const AT_ONCE: usize = 8;

struct Case {
    name: String,
    file: String,
    bytes: Vec<u8>,
    /// What each release makes of it.
    old: Option<Network>,
    new: Option<Network>,
}

impl Case {
    fn of(case: &Value) -> Self {
        let text = |key: &str| case[key].as_str().unwrap().to_owned();
        let network = |found: &Value| {
            let is_loaded = found["loads"] == true && found["seen"] != false;
            is_loaded.then(|| Network {
                name: found["name"].as_str().unwrap_or_default().to_owned(),
                version: found["version"].as_str().unwrap_or_default().to_owned(),
                plugins: found["types"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|kind| kind.as_str().unwrap().to_owned())
                    .collect(),
            })
        };
        let new = &case["libcni-1.3.0"];
        let bytes = match case["base64"].as_str() {
            Some(encoded) => base64::prelude::BASE64_STANDARD.decode(encoded).unwrap(),
            None => text("text").into_bytes(),
        };
        Self {
            name: text("case"),
            file: text("file"),
            bytes,
            old: network(case.get("libcni-1.1.1").unwrap_or(new)),
            new: network(new),
        }
    }

    /// Whether the plugin is put into it: both releases load the same, and the name says that it may be changed.
    fn is_merged(&self) -> bool {
        self.new.is_some() && self.old == self.new && !self.file.ends_with(".json")
    }

    fn run(&self) {
        let node = Node::new();
        fs::write(node.net(&self.file), &self.bytes).unwrap();
        let before = node.snapshot("net.d");
        let running = node.start();
        running.until("judged", || running.told.is_ready() || running.told.has("NOT READY: "));
        if self.is_merged() {
            running.until_ready();
            self.check_merged(&node);
            assert_eq!(running.told.count("wrote CNI config file"), 1, "{:?}", running.told.all());
        } else {
            assert!(!running.told.is_ready(), "ready: {:?}", running.told.all());
            assert_eq!(node.snapshot("net.d"), before);
            if self.new.is_some() || self.old.is_some() {
                running.until_told(&format!(
                    "NOT READY: pods start without the plugin: {}",
                    node.net(&self.file).display()
                ));
            }
            if self.new != self.old {
                let (loads, does_not) = if self.new.is_some() { ("1.3", "1.1") } else { ("1.1", "1.3") };
                running.until_told(&format!("libcni {loads} "));
                assert!(running.told.has(" loads it, ") && running.told.has(&format!("libcni {does_not} ")));
            }
        }
        assert!(running.stop().cleanup(&[]).errors.is_empty());
        assert_eq!(node.snapshot("net.d"), before, "after the end");
    }

    fn check_merged(&self, node: &Node) {
        let is_single = !self.file.ends_with(".conflist");
        let list = if is_single { self.file.replace(".conf", ".conflist") } else { self.file.clone() };
        assert_eq!(
            node.names().into_iter().filter(|name| Form::of(name).is_some()).collect::<Vec<_>>(),
            [list.as_str()]
        );
        let merged = fs::read(node.net(&list)).unwrap();
        let verdict = load(Form::List, &merged, &Folder::default());
        for (release, before) in [(Release::V1_1, &self.old), (Release::V1_3, &self.new)] {
            let (before, after) = (before.as_ref().unwrap(), verdict.of(release).unwrap());
            assert_eq!(after.plugins[..after.plugins.len() - 1], before.plugins);
            assert_eq!(after.plugins.last().unwrap(), "istio-cni");
            assert!(after.name == before.name || before.name.is_empty() && after.name == "k8s-pod-network");
            assert!(after.version == before.version || before.version.is_empty() && after.version == "0.3.1");
        }
        // Go's floats, broken text and depth are not serde_json's: such files are compared by their plugins only.
        let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
        let (Some(mut before), Some(mut after)) = (parsed(&self.bytes), parsed(&merged)) else { return };
        after["plugins"].as_array_mut().unwrap().pop();
        if is_single {
            before.as_object_mut().unwrap().remove("cniVersion");
            before = Value::Array(vec![before]);
            after = after["plugins"].take();
        }
        assert_eq!(after, before);
    }
}

fn cases() -> Vec<Case> {
    let file: Value = serde_json::from_str(&reference("libcni/cases.json")).unwrap();
    let cases: Vec<_> = file["cases"].as_array().unwrap().iter().map(Case::of).collect();
    assert!(cases.len() > 500, "{} cases", cases.len());
    cases
}

#[test]
fn the_verdict_is_that_of_both_releases() {
    let mut wrong = Vec::new();
    for case in cases() {
        let verdict = Form::of(&case.file).map(|form| load(form, &case.bytes, &Folder::default()));
        for (release, wanted) in [(Release::V1_1, &case.old), (Release::V1_3, &case.new)] {
            let found = verdict.as_ref().and_then(|verdict| verdict.of(release).ok());
            if found != wanted.as_ref() {
                wrong.push(format!("{} {release}: {found:?}, and not {wanted:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_is_merged_or_left_alone_with_a_reason_and_comes_back() {
    let (cases, next, wrong) = (cases(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.run())).is_err() {
                        wrong.lock().unwrap().push(&case.name);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), cases.len());
}
