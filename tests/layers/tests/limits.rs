//! How large the parts of the product may be, and that nothing is written twice.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use layers::{Source, Workspace, assert_none, functions, product, repetitions};

/// Most lines of a file.
const FILE: usize = 420;
/// Most lines of a function.
const FUNCTION: usize = 65;
/// One crate or program has at most this part of the product.
const SHARE: usize = 5;
/// Equal lines in a row that are a repetition.
const RUN: usize = 6;

/// Files that may be longer: a table is read row by row, and is not easier to read in two files.
const TABLES: &[(&str, &str)] = &[(
    "crates/options/src/agent/table.rs",
    "a row for each option of the agent, which the reference is made of",
)];

/// Repetitions that stay: the paths of both places, and why.
const REPEATED: &[(&str, &str, &str)] = &[
    (
        "crates/options/src/agent/table.rs",
        "crates/options/src/agent/table.rs",
        "the agent's options: rows that differ in few columns",
    ),
    (
        "crates/cni/src/result/wire.rs",
        "crates/cni/src/result/wire.rs",
        "a table of members each: routes of two versions, which print the same members in different orders",
    ),
];

fn sources() -> Vec<Source> {
    let root = Workspace::load().unwrap().workspace_root;
    let sources = product(&root).unwrap();
    assert!(sources.len() > 200, "only {} files of the product were found", sources.len());
    sources
}

#[test]
fn files_and_functions_are_short() {
    let sources = sources();
    let mut violations = Vec::new();
    for source in &sources {
        let (path, length) = (source.path.display(), source.lines.len());
        if length > FILE && !TABLES.iter().any(|(table, _)| source.path == PathBuf::from(table)) {
            violations.push(format!("{path}: {length} lines, and {FILE} are the most"));
        }
        let long = functions(&source.lines).into_iter().filter(|function| function.length > FUNCTION);
        violations.extend(long.map(|function| {
            format!(
                "{path}:{}: {} has {} lines, and {FUNCTION} are the most",
                function.line, function.name, function.length
            )
        }));
    }
    assert_none("A file and a function are read at once: divide them by what they do.", &violations);
    for (table, _) in TABLES {
        let length = sources
            .iter()
            .find(|source| source.path == PathBuf::from(table))
            .map(|source| source.lines.len());
        assert!(length.is_some_and(|length| length > FILE), "{table} needs no exception: {length:?} lines");
    }
}

#[test]
fn no_crate_is_more_than_a_fifth_of_the_product() {
    let sources = sources();
    let mut lines: BTreeMap<&PathBuf, usize> = BTreeMap::new();
    for source in &sources {
        *lines.entry(&source.package).or_default() += source.lines.len();
    }
    let all: usize = lines.values().sum();
    let large = lines.iter().filter(|(_, lines)| **lines * SHARE > all);
    let violations: Vec<String> =
        large.map(|(package, lines)| format!("{}: {lines} of {all} lines", package.display())).collect();
    assert_none(
        "A crate that is a large part of the product has several reasons to change: divide it.",
        &violations,
    );
}

#[test]
fn no_crate_needs_itself() {
    let workspace = Workspace::load().unwrap();
    let is_product =
        |name: &str| workspace.members().any(|m| m.name == name && workspace.folder(m) != "tests");
    // Tests of the product's crates count too: a crate that another one's tests need is no lower layer.
    let edges: BTreeMap<&str, BTreeSet<&str>> = workspace
        .members()
        .filter(|package| workspace.folder(package) != "tests")
        .map(|package| {
            let used = package.dependencies.iter().map(|dependency| dependency.name.as_str());
            (package.name.as_str(), used.filter(|name| is_product(name)).collect())
        })
        .collect();
    assert!(edges.len() > 15, "only {} crates of the product were found", edges.len());
    let mut violations = Vec::new();
    for start in edges.keys() {
        let (mut reached, mut next) = (BTreeSet::new(), vec![*start]);
        while let Some(name) = next.pop() {
            let used = edges.get(name).into_iter().flatten();
            next.extend(used.filter(|used| reached.insert(**used)));
        }
        if reached.contains(start) {
            violations.push(format!("{start} needs {reached:?}"));
        }
    }
    assert_none("No crate, with its tests, needs itself through others.", &violations);
}

#[test]
fn nothing_is_written_twice() {
    let sources = sources();
    let (mut violations, mut used) = (Vec::new(), BTreeSet::new());
    for found in repetitions(&sources, RUN) {
        let is_allowed = |(first, second, _): &(&str, &str, &str)| {
            found.first.starts_with(first) && found.second.starts_with(second)
        };
        match REPEATED.iter().position(is_allowed) {
            Some(allowed) => drop(used.insert(allowed)),
            None => violations.push(format!(
                "{} lines: {} is {} ({:?} …)",
                found.length, found.second, found.first, found.text
            )),
        }
    }
    assert_none("What stands twice is changed once: put it into one place.", &violations);
    let unused: Vec<_> = (0..REPEATED.len()).filter(|at| !used.contains(at)).map(|at| REPEATED[at]).collect();
    assert!(unused.is_empty(), "no such repetition is there any more: {unused:?}");
}
