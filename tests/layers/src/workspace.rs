//! `cargo metadata` and `cargo tree`, read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Every package that the workspace is built from on this machine.
#[derive(Debug, Deserialize)]
pub struct Workspace {
    /// Ours and other people's.
    pub packages: Vec<Package>,
    /// Ids of ours.
    pub workspace_members: BTreeSet<String>,
    /// Folder of the root Cargo.toml.
    pub workspace_root: PathBuf,
}

/// One package, as cargo describes it.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Unique among all packages.
    pub id: String,
    /// Name in its Cargo.toml.
    pub name: String,
    /// Version in its Cargo.toml.
    pub version: String,
    /// Edition, such as `2024`.
    pub edition: String,
    /// Oldest compiler, such as `1.91`; a package need not name one.
    pub rust_version: Option<String>,
    /// SPDX expression.
    pub license: Option<String>,
    /// Path of its Cargo.toml.
    pub manifest_path: PathBuf,
    /// Registries that it may be published to; empty means none.
    pub publish: Option<Vec<String>>,
    /// What its Cargo.toml asks for, on any platform.
    pub dependencies: Vec<Dependency>,
}

/// One dependency of a package.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// Name of the package asked for.
    pub name: String,
    /// `None` for a normal one, else `dev` or `build`.
    pub kind: Option<String>,
}

// === impl Workspace ===

impl Workspace {
    /// Asks cargo about the workspace that this crate belongs to. Errors: cargo fails, or writes what we cannot read.
    pub fn load() -> Result<Self> {
        let host = cargo("rustc", &["--print", "host-tuple"])?;
        let text = cargo(
            &std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()),
            &["metadata", "--format-version", "1", "--filter-platform", host.trim()],
        )?;
        serde_json::from_str(&text).context("cannot read what cargo metadata wrote")
    }

    /// Our packages.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.is_ours(package))
    }

    /// Whether the package is part of the workspace.
    pub fn is_ours(&self, package: &Package) -> bool {
        self.workspace_members.contains(&package.id)
    }

    /// The first folder below the root in which our package is, such as `crates`.
    pub fn folder(&self, package: &Package) -> String {
        let below = package.manifest_path.strip_prefix(&self.workspace_root).unwrap_or(Path::new(""));
        below.iter().next().map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Names of all packages that end up in the code of `package` on this machine with the features it asks for itself;
    /// procedural macros, which only run in the compiler, are left out.
    pub fn linked_into(&self, package: &str) -> Result<BTreeSet<String>> {
        let args =
            ["tree", "-p", package, "-e", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"];
        let text = cargo(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()), &args)?;
        let names: BTreeSet<String> =
            text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
        ensure!(names.contains(package), "cargo tree did not list {package} itself: {text}");
        Ok(names)
    }

    /// The packages of that name, in whatever versions.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Package> {
        self.packages.iter().filter(move |package| package.name == name)
    }
}

// === impl Package ===

impl Package {
    /// Names of the packages that its code, not its tests, uses or is built with.
    pub fn uses(&self) -> BTreeSet<&str> {
        self.dependencies
            .iter()
            .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
            .map(|dependency| dependency.name.as_str())
            .collect()
    }

    /// Folder of its Cargo.toml.
    pub fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}

fn cargo(program: &str, args: &[&str]) -> Result<String> {
    // Asked at run time: two checkouts that share a target folder may share this test's program too.
    let here = std::env::var("CARGO_MANIFEST_DIR").context("run this with cargo test")?;
    let output = Command::new(program)
        .args(args)
        .current_dir(here)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {} failed: {stderr}", args.join(" "));
    String::from_utf8(output.stdout).with_context(|| format!("{program} wrote no UTF-8"))
}
