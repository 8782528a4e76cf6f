//! No name for two things: a type that other modules see has a name of its own in the whole product.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use layers::{Workspace, product};

/// The error of a module is written with its module: `route::Error`.
const OF_EACH_MODULE: &[&str] = &["Error"];

/// Names that are declared in more places than one, in how many, and why. A number may only fall.
const KNOWN: &[(&str, usize, &str)] = &[(
    "Lookup",
    2,
    "reads a variable by its name: the same in `cni` and in `options`, neither of which knows the other",
)];

/// The types and traits that a source text shows to other modules: to all, to its crate, or to some of it.
fn shown_types(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let names = code.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix("pub")?;
        let rest = match rest.strip_prefix('(') {
            Some(inside) => inside.split_once(") ")?.1,
            None => rest.strip_prefix(' ')?,
        };
        let kinds = ["struct ", "enum ", "trait ", "type ", "union "];
        let name = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?;
        Some(name.split(|c: char| !(c.is_alphanumeric() || c == '_')).next()?.to_owned())
    });
    names.collect()
}

#[test]
fn types_that_others_see_are_found() {
    let text = "pub struct A<T>(T);\n    pub enum B {\npub(crate) struct C;\nstruct D;\npub trait E: F {\npub(in crate::h) type I = u8;\npublic(J) struct K;\n#[cfg(test)]\nmod tests {\npub struct G;\n";
    assert_eq!(shown_types(text), ["A", "B", "C", "E", "I"]);
}

#[test]
fn no_name_is_given_to_two_things() {
    let root = Workspace::load().unwrap().workspace_root;
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in product(&root).unwrap() {
        for name in shown_types(&source.lines.join("\n")) {
            places.entry(name).or_default().push(source.path.display().to_string());
        }
    }
    assert!(places.len() > 600, "{} types", places.len());
    let known =
        |name: &str| KNOWN.iter().find(|(known, ..)| *known == name).map_or(1, |(_, places, _)| *places);
    let more: Vec<String> = places
        .iter()
        .filter(|(name, places)| !OF_EACH_MODULE.contains(&name.as_str()) && places.len() > known(name))
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    assert!(
        more.is_empty(),
        "give each thing a name of its own, by the field's words:\n  {}",
        more.join("\n  ")
    );
    for (name, number, why) in KNOWN {
        let found = places.get(*name).map_or(0, Vec::len);
        assert_eq!(found, *number, "{name} ({why}): write how many there are now");
    }
}
