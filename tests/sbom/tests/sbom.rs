//! The document against the standard, `Cargo.lock`, and what cargo links.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use cyclonedx_bom::prelude::{Bom, Validate as _};
use layers::Workspace;
use sbom::PROGRAMS;
use serde_json::Value;

fn document() -> &'static Value {
    static BOM: OnceLock<Value> = OnceLock::new();
    BOM.get_or_init(|| sbom::bom().unwrap())
}

fn components() -> &'static [Value] {
    document()["components"].as_array().unwrap()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_else(|| panic!("no {field} in {object}"))
}

#[test]
fn it_is_cyclonedx() {
    let read = |document: &Value| Bom::parse_from_json(document.to_string().as_bytes()).unwrap();
    let bom = read(document());
    let result = bom.validate();
    assert!(result.passed(), "{:?}", result.errors().collect::<Vec<_>>());
    assert_eq!(bom.components.unwrap().0.len(), components().len());

    let mut broken = document().clone();
    broken["components"][0]["licenses"][0]["expression"] = "as you like".into();
    assert!(!read(&broken).validate().passed(), "the validation looks at nothing");
}

#[test]
fn it_has_the_crates_that_cargo_links_and_no_others() {
    let workspace = Workspace::load().unwrap();
    let linked: BTreeSet<String> =
        PROGRAMS.iter().flat_map(|program| workspace.linked_into(program).unwrap()).collect();
    let listed: BTreeSet<String> = components()
        .iter()
        .filter(|component| !text(component, "bom-ref").starts_with("toolchain:"))
        .map(|component| text(component, "name").to_owned())
        .collect();
    assert_eq!(listed, linked);
    for never in ["testkit", "proptest", "serde_derive"] {
        assert!(!listed.contains(never), "{never} does not ship");
    }
}

#[test]
fn programs_are_applications_with_the_toolchains_libraries() {
    let mut applications: Vec<&str> =
        components().iter().filter(|c| c["type"] == "application").map(|c| text(c, "name")).collect();
    applications.sort_unstable();
    assert_eq!(applications, PROGRAMS);
    let uses = uses();
    for program in PROGRAMS {
        let reference = format!("workspace:{program}@{}", env!("CARGO_PKG_VERSION"));
        for part in ["rust-std", "glibc", "libgcc"] {
            let prefix = format!("toolchain:{part}@");
            assert!(
                uses[reference.as_str()].iter().any(|used| used.starts_with(&prefix)),
                "{program}: {part}"
            );
        }
    }
}

#[test]
fn published_crates_are_those_of_the_lock_file() {
    let lock = std::fs::read_to_string(sbom::root().join("Cargo.lock")).unwrap();
    let mut published = 0;
    for component in components().iter().filter(|component| component["purl"].is_string()) {
        let (name, version) = (text(component, "name"), text(component, "version"));
        let checksum = text(&component["hashes"][0], "content");
        let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        let entry = lock.split("[[package]]\n").find(|text| text.starts_with(&entry));
        let entry = entry.unwrap_or_else(|| panic!("{name} {version} is not in Cargo.lock"));
        assert!(entry.contains(&format!("checksum = \"{checksum}\"")), "{name} {version}: {checksum}");
        published += 1;
    }
    assert!(published > 50, "only {published}");
}

#[test]
fn everything_has_a_licence() {
    for component in components() {
        assert!(!text(&component["licenses"][0], "expression").is_empty(), "{component}");
    }
}

fn uses() -> BTreeMap<&'static str, Vec<&'static str>> {
    let list = document()["dependencies"].as_array().unwrap();
    let names = |entry: &'static Value| {
        entry["dependsOn"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
    };
    let map: BTreeMap<_, _> = list.iter().map(|entry| (text(entry, "ref"), names(entry))).collect();
    assert_eq!(map.len(), list.len(), "a component is described twice");
    map
}

#[test]
fn everything_is_reached_from_the_image() {
    let uses = uses();
    let mut reached = BTreeSet::new();
    let mut next = vec![text(&document()["metadata"]["component"], "bom-ref")];
    while let Some(name) = next.pop() {
        if reached.insert(name) {
            next.extend(uses.get(name).unwrap_or_else(|| panic!("{name} is not described")));
        }
    }
    let described: BTreeSet<&str> = components().iter().map(|component| text(component, "bom-ref")).collect();
    assert_eq!(described.len() + 1, reached.len());
    assert!(described.is_subset(&reached));
}

#[test]
fn it_is_the_same_each_time() {
    assert_eq!(document().to_string(), sbom::bom().unwrap().to_string());
}
