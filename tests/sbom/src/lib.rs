//! What the programs that ship are made of.
//!
//! Listed is what ends up in them: crates without procedural macros and build scripts, which only run in the compiler, and, because
//! the programs are static, the parts of the toolchain and of the C library.

mod document;
mod toolchain;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The programs that ship.
pub const PROGRAMS: [&str; 4] = ["cnictl", "install-cni", "istio-cni", "istio-iptables"];

/// The document for this checkout and this machine's toolchain.
///
/// # Errors
/// When cargo, rustc, gcc or getconf fail or print what we cannot read, or `Cargo.lock` is not current.
pub fn bom() -> Result<Value> {
    let crates = tree::read(&root())?;
    let lock = root().join("Cargo.lock");
    let lock = cargo_lock::Lockfile::load(&lock).with_context(|| format!("read {}", lock.display()))?;
    document::render(&crates, &lock, &toolchain::parts()?)
}

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs a program in the checkout and returns what it printed.
fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = std::process::Command::new(program)
        .args(args)
        .current_dir(root())
        .output()
        .with_context(|| format!("run {program}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{program} {} failed: {}", args.join(" "), stderr.trim());
    String::from_utf8(output.stdout).with_context(|| format!("{program} wrote no UTF-8"))
}
