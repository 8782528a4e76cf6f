//! Container images without a registry: archives in the form of `docker save`, made of the host's static busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

/// The image of the pause container, which holds a pod's namespaces.
pub(crate) const PAUSE: &str = "localhost/pause:1";
/// The image of every container that a test asks for: busybox with its applets.
pub const APP: &str = "localhost/app:1";

/// Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";

/// Writes both images as archives into `dir` and returns their paths.
///
/// # Errors
/// When busybox is not installed or `tar` and `sha256sum` fail.
pub(crate) fn write_images(dir: &Path) -> Result<[PathBuf; 2]> {
    let layer = write_layer(dir)?;
    Ok([
        write_archive(dir, &layer, PAUSE, &["/bin/sleep", "2147483647"])?,
        write_archive(dir, &layer, APP, &["/bin/sh"])?,
    ])
}

/// The root file system as an uncompressed tar file.
fn write_layer(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("rootfs");
    for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "www"] {
        fs::create_dir_all(root.join(sub))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))
        .with_context(|| format!("copy {BUSYBOX}: install the package busybox-static"))?;
    for applet in output(Command::new(BUSYBOX).arg("--list"))?.lines().filter(|a| *a != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("link applet {applet}"))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\nproxy:x:1337:1337::/:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\nproxy:x:1337:\n")?;
    let tar = dir.join("layer.tar");
    output(
        Command::new("tar").arg("-C").arg(&root).args(["--owner=0", "--group=0", "-cf"]).arg(&tar).arg("."),
    )?;
    Ok(tar)
}

fn write_archive(dir: &Path, layer: &Path, tag: &str, entrypoint: &[&str]) -> Result<PathBuf> {
    let diff = sha256(layer)?;
    let name = tag.rsplit(['/', ':']).nth(1).unwrap_or("image");
    let stage = dir.join(format!("{name}.d"));
    fs::create_dir_all(stage.join(&diff))?;
    fs::hard_link(layer, stage.join(&diff).join("layer.tar"))?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": entrypoint},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]},
    });
    let draft = stage.join("config");
    fs::write(&draft, config.to_string())?;
    let config = format!("{}.json", sha256(&draft)?);
    fs::rename(&draft, stage.join(&config))?;
    let manifest = json!([{"Config": config, "RepoTags": [tag], "Layers": [format!("{diff}/layer.tar")]}]);
    fs::write(stage.join("manifest.json"), manifest.to_string())?;
    let archive = dir.join(format!("{name}.tar"));
    output(Command::new("tar").arg("-C").arg(&stage).arg("-cf").arg(&archive).arg("."))?;
    Ok(archive)
}

/// The architecture as OCI images spell it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(file: &Path) -> Result<String> {
    let line = output(Command::new("sha256sum").arg(file))?;
    line.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

/// Runs a program that must succeed and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("run {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
