//! Seeds, kept inputs and failing ones, on disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::Target;
use crate::outcome::Outcome;

/// Inputs with new outcomes that are kept for the next run.
const MOST_KEPT: usize = 4096;

/// The seeds of the repository.
pub(crate) fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let seeds = read_folder(&folder);
    assert!(!seeds.is_empty(), "no seed in {}: a target needs some", folder.display());
    seeds
}

/// What earlier runs kept.
pub(crate) fn kept(target: &Target) -> Vec<Vec<u8>> {
    read_folder(&kept_folder(target))
}

/// Keeps an input for the next run. One that cannot be written is lost.
pub(crate) fn keep(target: &Target, input: &[u8], outcome: Outcome) {
    let folder = kept_folder(target);
    if read_names(&folder).len() < MOST_KEPT {
        let _ = write(&folder.join(name(outcome)), input);
    }
}

/// Writes a failing input; its path.
pub(crate) fn write_failure(target: &str, input: &[u8]) -> PathBuf {
    let path = output().join("failures").join(format!("{target}-{}", name(Outcome::of(input))));
    if let Err(error) = write(&path, input) {
        panic!("write a failing input of {target} to {}: {error}: {input:?}", path.display());
    }
    path
}

fn name(outcome: Outcome) -> String {
    format!("{:x}", outcome.number())
}

fn kept_folder(target: &Target) -> PathBuf {
    output().join("kept").join(target.name)
}

/// `target/fuzz`: test programs are in `<target>/[<triple>/]<profile>/deps`.
fn output() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.map_or_else(|| std::env::temp_dir().join("fuzz"), |target| target.join("fuzz"))
}

fn write(path: &Path, input: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, input)
}

/// The files of a folder in the order of their names; none if it is not there.
fn read_folder(folder: &Path) -> Vec<Vec<u8>> {
    read_names(folder).into_iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

fn read_names(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort_unstable();
    paths
}
