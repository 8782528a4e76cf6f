//! Which crate may use which.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use layers::{
    LONG_LIVED, Layer, NATIVE_BUILD_TOOLS, PROGRAM_BANS, PURE_BANS, RUNTIME_BANS, SOURCE_BANS, Workspace,
    assert_none, find_banned_paths, layer_of,
};

#[test]
fn dependencies_point_only_to_the_layers_allowed() {
    let workspace = Workspace::load().unwrap();
    let mut violations = Vec::new();
    for package in workspace.members() {
        let name = &package.name;
        let Some(layer) = layer_of(name, &workspace.folder(package)) else {
            violations.push(format!("{name}: no layer; give it a line in tests/layers/src/rules.rs"));
            continue;
        };
        for used in package.uses() {
            let ours = workspace.members().find(|member| member.name == used);
            let used_layer = ours.and_then(|member| layer_of(used, &workspace.folder(member)));
            let allowed = match (layer, ours) {
                (Layer::Pure { ours, .. } | Layer::Effect { ours }, Some(_)) => ours.contains(&used),
                (Layer::Pure { theirs, .. }, None) => theirs.contains(&used),
                (Layer::Composition, Some(_)) => {
                    matches!(used_layer, Some(Layer::Pure { .. } | Layer::Effect { .. }))
                }
                (Layer::Program, Some(_)) => !matches!(used_layer, Some(Layer::Program | Layer::Test)),
                (Layer::Test, Some(_)) => !matches!(used_layer, Some(Layer::Program | Layer::Composition)),
                (Layer::Effect { .. } | Layer::Composition | Layer::Program | Layer::Test, None) => true,
            };
            if !allowed {
                violations.push(format!("{name} uses {used}, but is {layer:?}"));
            }
        }
    }
    assert_none(
        "A dependency points only to what its layer allows (ARCHITECTURE.md): pure crates compute, effect crates own one \
         outside thing each and do not know one another, programs put them together.",
        &violations,
    );
}

#[test]
fn pure_crates_reach_no_system_calls_through_others() {
    let workspace = Workspace::load().unwrap();
    let mut violations = Vec::new();
    for package in workspace.members() {
        let layer = layer_of(&package.name, &workspace.folder(package));
        if matches!(layer, Some(Layer::Pure { .. })) {
            let linked = workspace.linked_into(&package.name).unwrap();
            for (ban, reason) in PURE_BANS {
                if linked.contains(*ban) {
                    violations.push(format!("{} reaches {ban}: {reason}", package.name));
                }
            }
        }
    }
    assert_none("Pure crates reach no crate that touches the world.", &violations);
}

#[test]
fn sources_of_pure_crates_name_nothing_of_the_world() {
    let workspace = Workspace::load().unwrap();
    let (mut violations, mut files) = (Vec::new(), 0);
    for package in workspace.members() {
        if !matches!(layer_of(&package.name, &workspace.folder(package)), Some(Layer::Pure { .. })) {
            continue;
        }
        for path in sources(&package.folder().join("src")) {
            files += 1;
            let text = fs::read_to_string(&path).unwrap();
            for finding in find_banned_paths(&text, SOURCE_BANS) {
                let path = path.strip_prefix(&workspace.workspace_root).unwrap().display();
                violations.push(format!("{path} names {}: {}", finding.path, finding.reason));
            }
        }
    }
    assert!(files > 0, "no source file of a pure crate was found");
    assert_none("Pure crates look at nothing but their arguments.", &violations);
}

/// Source files below `dir`, without those of tests.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name == "tests" {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn programs_that_ship_have_no_foreign_tls_and_no_c_library_and_short_lived_ones_no_runtime() {
    let workspace = Workspace::load().unwrap();
    let (mut violations, mut programs) = (Vec::new(), 0);
    for program in workspace.members() {
        if layer_of(&program.name, &workspace.folder(program)) != Some(Layer::Program) {
            continue;
        }
        programs += 1;
        let linked = workspace.linked_into(&program.name).unwrap();
        let runtime = if LONG_LIVED.contains(&program.name.as_str()) { &[] } else { RUNTIME_BANS };
        for (ban, reason) in PROGRAM_BANS.iter().chain(runtime) {
            if linked.contains(*ban) {
                violations.push(format!("{} reaches {ban}: {reason}", program.name));
            }
        }
        for name in &linked {
            // ring and psm carry their own assembly and C, compiled into them. The others are constants and types in Rust.
            if ["ring", "psm", "stacker", "linux-raw-sys", "inotify-sys"].contains(&name.as_str()) {
                continue;
            }
            let builds_c = workspace.named(name).any(|package| {
                package.dependencies.iter().any(|dependency| {
                    dependency.kind.as_deref() == Some("build")
                        && NATIVE_BUILD_TOOLS.contains(&dependency.name.as_str())
                })
            });
            if name.ends_with("-sys") || builds_c {
                violations.push(format!(
                    "{} reaches {name}, which needs C code: the program is copied onto hosts whose libraries we do not know",
                    program.name
                ));
            }
        }
    }
    assert!(programs >= 4, "only {programs} programs found");
    assert_none("What ships is small, static and blocking.", &violations);
}
