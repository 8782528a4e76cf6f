//! What every package must have: licence, edition, minimum Rust, lints.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use layers::{Package, Workspace};

/// The `allow` list of `[licenses]` in deny.toml.
fn allowed_licenses(workspace: &Workspace) -> Vec<String> {
    let text = fs::read_to_string(workspace.workspace_root.join("deny.toml")).unwrap();
    let section = text.split("[licenses]").nth(1).expect("deny.toml has a section [licenses]");
    let list = section.split("allow = [").nth(1).and_then(|rest| rest.split(']').next());
    let list = list.expect("[licenses] of deny.toml has a list `allow`");
    let names: Vec<String> = list.split(',').map(|name| name.trim().trim_matches('"').to_owned()).collect();
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

/// Whether an SPDX expression can be met with allowed licences only. `/` is an old way to write OR.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    let tokens: Vec<&str> = expression.split_whitespace().collect();
    let spaced = tokens.join(" ").replace('(', "( ").replace(')', " )");
    let tokens: Vec<&str> = spaced.split(' ').collect();
    let mut at = 0;
    let met = any(&tokens, &mut at, allowed);
    assert_eq!(at, tokens.len(), "cannot read the licence expression {expression:?}");
    met
}

fn any(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = all(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all(tokens, at, allowed);
    }
    met
}

fn all(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = one(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(tokens, at, allowed);
    }
    met
}

fn one(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let first = tokens.get(*at).copied().unwrap_or_default();
    *at += 1;
    if first == "(" {
        let met = any(tokens, at, allowed);
        assert_eq!(tokens.get(*at), Some(&")"), "unbalanced parentheses in {tokens:?}");
        *at += 1;
        return met;
    }
    let mut name = first.to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        name = format!("{first} WITH {}", tokens.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
    }
    allowed.contains(&name)
}

#[test]
fn licence_expressions_are_read_right() {
    let allowed = ["MIT".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned(), "ISC".to_owned()];
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("GPL-3.0/MIT", true),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("(GPL-3.0 OR MIT) AND BSD-3-Clause", false),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}

#[test]
fn every_licence_is_allowed() {
    let workspace = Workspace::load().unwrap();
    let allowed = allowed_licenses(&workspace);
    assert!(allowed.contains(&"MIT".to_owned()), "{allowed:?}");
    let named = |package: &Package| format!("{} {}: {:?}", package.name, package.version, package.license);
    let bad: Vec<String> = workspace
        .packages
        .iter()
        .filter(|package| !package.license.as_deref().is_some_and(|license| is_met(license, &allowed)))
        .map(named)
        .collect();
    assert!(bad.is_empty(), "licences that deny.toml does not allow (reason there):\n  {}", bad.join("\n  "));
}

fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[test]
fn our_packages_agree_on_edition_rust_version_licence_and_lints() {
    let workspace = Workspace::load().unwrap();
    let root = fs::read_to_string(workspace.workspace_root.join("Cargo.toml")).unwrap();
    let of_root = |key: &str| {
        let line = root.lines().find(|line| line.starts_with(&format!("{key} = ")));
        line.and_then(|line| line.split('"').nth(1)).map(str::to_owned)
    };
    let (edition, rust, license) = (of_root("edition"), of_root("rust-version"), of_root("license"));
    assert!(rust.is_some(), "Cargo.toml names a rust-version");
    for package in workspace.members() {
        let name = &package.name;
        assert_eq!(Some(&package.edition), edition.as_ref(), "{name}: edition");
        assert_eq!(package.rust_version, rust, "{name}: rust-version");
        assert_eq!(package.license, license, "{name}: license");
        assert_eq!(package.publish, Some(Vec::new()), "{name}: nothing here is published to a registry");
        let manifest = fs::read_to_string(&package.manifest_path).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name}: lints are the workspace's");
    }
}

#[test]
fn no_dependency_needs_a_newer_rust_than_we_promise() {
    let workspace = Workspace::load().unwrap();
    let ours = workspace.members().find_map(|package| package.rust_version.as_deref()).map(version).unwrap();
    for package in &workspace.packages {
        let theirs = package.rust_version.as_deref().map_or((0, 0), version);
        assert!(
            theirs <= ours,
            "{} {} needs Rust {theirs:?}, and Cargo.toml promises {ours:?}: setup would install one that is too old",
            package.name,
            package.version
        );
    }
}
