//! The plain manifests in the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use chart::{check_fields, parse, root};

/// Name and content of each file.
fn read(dir: &Path) -> BTreeMap<String, String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn they_are_current() {
    let fresh = tempfile::tempdir().unwrap();
    let status = Command::new(root().join("scripts/render-manifests")).arg(fresh.path()).status().unwrap();
    assert!(status.success());
    let (fresh, kept) = (read(fresh.path()), read(&root().join("deploy/manifests")));
    assert_eq!(kept.keys().collect::<Vec<_>>(), fresh.keys().collect::<Vec<_>>());
    for (name, text) in &kept {
        assert!(
            *text == fresh[name],
            "deploy/manifests/{name} is not what the chart renders: make manifests"
        );
    }
}

#[test]
fn they_are_objects_of_one_namespace_without_traces_of_helm() {
    let files = read(&root().join("deploy/manifests"));
    assert_eq!(files.len(), 7, "{:?}", files.keys());
    for (name, text) in files {
        assert!(!text.to_lowercase().contains("helm"), "{name}");
        let objects = parse(&text).unwrap();
        assert!(objects.find("DaemonSet", "istio-cni-node").is_some(), "{name}");
        for object in objects.iter() {
            check_fields(object).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let namespace = object["metadata"]["namespace"].as_str();
            let wanted = match object["kind"].as_str().unwrap() {
                "ClusterRole" | "ClusterRoleBinding" => None,
                "NetworkAttachmentDefinition" => Some("default"),
                _ => Some("istio-system"),
            };
            assert_eq!(namespace, wanted, "{name}: {object}");
        }
    }
}
