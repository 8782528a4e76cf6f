//! The executables under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Everything that ships.
const PACKAGES: [&str; 4] = ["istio-cni", "istio-iptables", "cnictl", "install-cni"];

static DIR: OnceLock<PathBuf> = OnceLock::new();

/// Lets [`programs`] be this folder; it has no effect once somebody has asked.
pub fn use_programs(dir: &Path) {
    let _ = DIR.set(dir.to_owned());
}

/// The folder with the programs that ship: that of [`use_programs`], or `ISTIO_CNI_BIN_DIR`, which `make` sets, else they are built,
/// once for each test program.
///
/// # Panics
/// When they cannot be built.
pub fn programs() -> &'static Path {
    DIR.get_or_init(|| match std::env::var_os("ISTIO_CNI_BIN_DIR") {
        Some(dir) => dir.into(),
        None => build().unwrap_or_else(|error| panic!("build the programs under test: {error:#}")),
    })
}

/// Copies a program that is to be started from its new place.
///
/// Another process does it: as long as a file is open for writing anywhere, the kernel starts no program from it (`ETXTBSY`), and a process
/// that another thread of this one starts meanwhile inherits what this one has open, until its own program begins.
///
/// # Errors
/// It cannot be copied.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("cp").arg("--").args([from, to]).output().context("start cp")?;
    ensure!(output.status.success(), "copy {}: {}", from.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--profile", "e2e", "--message-format", "json"])
        .args(PACKAGES.iter().flat_map(|package| ["-p", package]))
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "cargo build failed");
    let executable = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo named no executable")?;
    Ok(executable.parent().context("an executable without a folder")?.to_owned())
}
