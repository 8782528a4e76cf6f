//! Files as somebody might write or break them, each alone on a node, against what two releases of `libcni` make of them (reference
//! data). A file that both load is merged; every other one stays as it is, with a reason; at the end everything is as it was.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cni::conflist::Form;
use cni::libcni::{Folder, LibcniRelease, load};
use conformance::libcni::{File, Network, files};
use serde_json::Value;

use crate::support::Node;

/// How many nodes there are at a time: most of what they do is waiting for the disk.
const AT_ONCE: usize = 8;

fn run(file: &File) {
    let node = Node::new();
    fs::write(node.net(&file.name), &file.bytes).unwrap();
    let before = node.snapshot("net.d");
    let running = node.start();
    running.until("judged", || running.told.is_ready() || running.told.has("NOT READY: "));
    if file.is_merged() {
        running.until_ready();
        check_merged(file, &node);
        assert_eq!(running.told.count("wrote CNI config file"), 1, "{:?}", running.told.all());
    } else {
        assert!(!running.told.is_ready(), "ready: {:?}", running.told.all());
        assert_eq!(node.snapshot("net.d"), before);
        if file.new.is_some() || file.old.is_some() {
            let path = node.net(&file.name);
            running.until_told(&format!("NOT READY: pods start without the plugin: {}", path.display()));
        }
        if file.new != file.old {
            let (loads, does_not) = if file.new.is_some() { ("1.3", "1.1") } else { ("1.1", "1.3") };
            running.until_told(&format!("libcni {loads} "));
            assert!(running.told.has(" loads it, ") && running.told.has(&format!("libcni {does_not} ")));
        }
    }
    assert!(running.stop().cleanup(&[]).errors.is_empty());
    assert_eq!(node.snapshot("net.d"), before, "after the end");
}

fn check_merged(file: &File, node: &Node) {
    let (list, is_single) = (file.list_name(), file.list_name() != file.name);
    let loadable: Vec<_> = node.names().into_iter().filter(|name| Form::of(name).is_some()).collect();
    assert_eq!(loadable, [list.as_str()]);
    let merged = fs::read(node.net(&list)).unwrap();
    let verdict = load(Form::List, &merged, &Folder::default());
    for (release, before) in [(LibcniRelease::V1_1, &file.old), (LibcniRelease::V1_3, &file.new)] {
        let (before, after) = (before.as_ref().unwrap(), verdict.of(release).unwrap());
        assert_eq!(after.plugins.split_last().unwrap(), (&"istio-cni".to_owned(), before.types.as_slice()));
        assert!(after.name == before.name || before.name.is_empty() && after.name == "k8s-pod-network");
        assert!(after.version == before.version || before.version.is_empty() && after.version == "0.3.1");
    }
    // Broken text and depth are not serde_json's: such files are compared by their plugins only.
    let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let (Some(mut before), Some(mut after)) = (parsed(&file.bytes), parsed(&merged)) else { return };
    after["plugins"].as_array_mut().unwrap().pop();
    if is_single {
        before.as_object_mut().unwrap().remove("cniVersion");
        before = Value::Array(vec![before]);
        after = after["plugins"].take();
    }
    assert_eq!(after, before);
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn the_verdict_is_that_of_both_releases() {
    let mut wrong = Vec::new();
    for file in files().unwrap() {
        let verdict = Form::of(&file.name).map(|form| load(form, &file.bytes, &Folder::default()));
        for (release, wanted) in [(LibcniRelease::V1_1, &file.old), (LibcniRelease::V1_3, &file.new)] {
            let found = verdict.as_ref().and_then(|verdict| verdict.of(release).ok());
            let found = found.map(|found| Network {
                name: found.name.clone(),
                version: found.version.clone(),
                types: found.plugins.clone(),
            });
            if found != *wanted {
                wrong.push(format!("{} {release}: {found:?}, and not {wanted:?}", file.case));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn every_file_is_merged_or_left_alone_with_a_reason_and_comes_back() {
    let (files, next, wrong) = (files().unwrap(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(file))).is_err() {
                        wrong.lock().unwrap().push(&file.case);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), files.len());
}
