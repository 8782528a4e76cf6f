//! Configuration files as somebody might write or break them: merged, or left alone with a reason in `/readyz`.

use std::sync::Mutex;

use conformance::libcni::{File, files};
use testkit::Node;

/// Agents at a time.
const AT_ONCE: usize = 4;

fn judge(file: &File) {
    let node = Node::new().unwrap();
    std::fs::remove_file(node.conflist()).unwrap();
    let path = node.net_dir().join(&file.name);
    std::fs::write(&path, &file.bytes).unwrap();
    let mut agent = node.agent().start().unwrap();
    if file.is_merged() {
        agent.wait_ready().unwrap();
        // As text: some are nested deeper than this test's parser goes.
        let merged = std::fs::read(node.net_dir().join(file.list_name())).unwrap();
        let merged = String::from_utf8_lossy(&merged);
        assert!(merged.contains("\"type\": \"istio-cni\""), "{}: {merged}", file.case);
    } else {
        let reason = if file.old != file.new {
            &["libcni 1.1 (containerd 1.6)", "libcni 1.3 (containerd 2)", " loads it, "][..]
        } else if file.new.is_some() {
            &["install: pods start without the plugin", &file.name]
        } else {
            &["install: no ", "networks found"]
        };
        agent.wait_unready(reason).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), file.bytes);
    }
    assert_eq!(agent.stop().unwrap().status.code(), Some(0));
    let names: Vec<_> =
        std::fs::read_dir(node.net_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [file.name.as_str()]);
    assert_eq!(std::fs::read(&path).unwrap(), file.bytes);
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn reference_files_end_as_libcni_loads_them() {
    let files = files().unwrap();
    let (left, wrong) = (Mutex::new(files.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(file) = left.lock().unwrap().next() else { return };
                    if std::panic::catch_unwind(|| judge(file)).is_err() {
                        wrong.lock().unwrap().push(&file.case);
                    }
                }
            });
        }
    });
    assert_eq!(wrong.into_inner().unwrap(), Vec::<&String>::new());
}

#[test]
fn a_network_that_runtimes_use_first_is_a_reason_in_readyz() {
    let node = Node::new().unwrap();
    let first = node.net_dir().join("05-first.json");
    std::fs::write(&first, r#"{"cniVersion":"1.0.0","name":"first","type":"bridge"}"#).unwrap();
    let mut agent = node.agent().start().unwrap();
    agent
        .wait_unready(&["install: pods start without the plugin: ", "05-first.json", "rename it to .conf"])
        .unwrap();
    assert_eq!(agent.metric("istio_cni_install_ready").unwrap(), 0.0);
    std::fs::rename(&first, node.net_dir().join("15-last.json")).unwrap();
    agent.wait_ready().unwrap();
    node.entry().unwrap();
}
