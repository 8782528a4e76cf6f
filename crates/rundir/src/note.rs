//! Notes about pods that started without capture, for the node agent to find.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use trusted::Links;

use crate::{MAX_REPORT, OperationReport, UNCAPTURED_DIR, json_files};

/// Longest id of a container that a note is named by, in bytes; runtimes use 64.
const MAX_ID: usize = 200;

/// Keeps a report in the run directory until the agent has marked the pod: whole or not at all, and synced, because nothing else tells of this
/// pod.
///
/// # Errors
/// The container's id is none, the report is too large, or the system's.
pub fn leave(run_dir: &Path, report: &OperationReport) -> io::Result<()> {
    let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let id = &report.container;
    if id.is_empty() || id.len() > MAX_ID || id.starts_with('.') || !id.chars().all(usable) {
        return refused("the container's id is not valid");
    }
    let text = serde_json::to_vec(report)?;
    if text.len() > MAX_REPORT {
        return refused("the report is too large");
    }
    let dir = run_dir.join(UNCAPTURED_DIR);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let temporary = dir.join(format!(".{id}.tmp"));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&temporary, dir.join(format!("{id}.json")))
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

/// The notes that are there, at most so many.
///
/// # Errors
/// The directory cannot be read.
pub fn list(run_dir: &Path, most: usize) -> io::Result<Vec<PathBuf>> {
    json_files(&run_dir.join(UNCAPTURED_DIR), most)
}

/// Reads a note, unless others could have written it.
///
/// # Errors
/// It cannot be read, is not believed, or is no report.
pub fn read(path: &Path) -> io::Result<OperationReport> {
    Ok(serde_json::from_slice(&trusted::read(path, Links::Refused, MAX_REPORT)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_whole_and_stays_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let report = |container: &str| OperationReport {
            container: container.into(),
            name: "web".into(),
            ..OperationReport::default()
        };
        leave(&run_dir, &report("c0ffee")).unwrap();
        assert_eq!(list(&run_dir, 9).unwrap(), [run_dir.join("uncaptured/c0ffee.json")]);
        assert_eq!(read(&run_dir.join("uncaptured/c0ffee.json")).unwrap(), report("c0ffee"));
        assert_eq!(std::fs::read_dir(run_dir.join("uncaptured")).unwrap().count(), 1);
        for id in ["", "..", ".x", "a/b", "../x", &"x".repeat(201)] {
            assert!(
                leave(&run_dir, &report(id)).unwrap_err().to_string().contains("id is not valid"),
                "{id:?}"
            );
        }
        let large = OperationReport { error: "x".repeat(MAX_REPORT), ..report("large") };
        assert!(leave(&run_dir, &large).unwrap_err().to_string().contains("too large"));
    }
}
