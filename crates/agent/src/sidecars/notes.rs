//! Notes about pods that started without capture, or with a part of it: a directory with one for each container, which the plugin writes itself when
//! this agent does not answer. A note is removed when the pod has its Event and its label, or when it turns out that the pod is not one to capture.

use std::io;
use std::path::{Path, PathBuf};

use facts::PodRef;
use intent::sidecar::Capture;
use rundir::{Outcome, note};

use super::record::{Start, StartEvidence};

/// Those that are there.
pub(super) fn list(run_dir: &Path) -> io::Result<Vec<PathBuf>> {
    note::list(run_dir, usize::MAX)
}

/// What a note says.
pub(super) fn read(path: &Path) -> io::Result<(PodRef, Start)> {
    let report = note::read(path)?;
    let capture = if report.result == Outcome::Incomplete { Capture::Part } else { Capture::None };
    let pod = report.pod();
    Ok((pod, Start { error: report.error, ..Start::new(StartEvidence::Note(path.to_owned()), capture) }))
}

/// Removes a note that is done with.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
