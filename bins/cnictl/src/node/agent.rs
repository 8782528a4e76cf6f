//! What the node agent says of itself and leaves in its run directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http1::Deadline;
use podsource::{AgentSource, Cause};
use rundir::pods::PodsReport;
use rundir::{AgentStatus, FACTS_DIR, Holder, LOCK_NAME, UNCAPTURED_DIR, note};
use serde::Serialize;

use crate::configuration::AGENT_PATIENCE;

/// Most files that are counted: a node has some hundred pods.
const MAX_FILES: usize = 100_000;
/// Most notes that are read for the names of their pods.
const MAX_NOTES: usize = 100;

/// One socket of the run directory.
#[derive(Debug, Serialize)]
pub(crate) struct RunDirSocket {
    pub(crate) path: PathBuf,
    /// Whether somebody accepts connections; absent where this user may not connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listening: Option<bool>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// The agent may not be asked by this user, or why it does not say how it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    Denied,
    Failed(String),
}

/// Asks the agent how it is, for at most so long.
pub(crate) fn ask(run_dir: &Path, patience: Duration) -> Result<AgentStatus, Silence> {
    AgentSource::new(run_dir, env!("CARGO_PKG_VERSION")).status(patience).map_err(|error| {
        match &*error.cause {
            Cause::NoAgent(cause) if is_denied(cause) => Silence::Denied,
            _ => Silence::Failed(error.to_string()),
        }
    })
}

/// What the agent knows of the pods, if it is of a version that says so.
pub(super) fn pods(run_dir: &Path) -> Option<PodsReport> {
    AgentSource::new(run_dir, env!("CARGO_PKG_VERSION")).pods(false, AGENT_PATIENCE).ok()
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// The sockets that are there, or may be.
pub(crate) fn sockets(run_dir: &Path) -> Vec<RunDirSocket> {
    let there = |path: PathBuf| match std::fs::symlink_metadata(&path) {
        Ok(_) => Some(RunDirSocket::at(path)),
        Err(error) if is_denied(&error) => Some(RunDirSocket { path, listening: None, error: None }),
        Err(_) => None,
    };
    rundir::sockets(run_dir).into_iter().filter_map(there).collect()
}

/// The agent that works on this node, by the lock that it holds.
pub(super) fn holder(run_dir: &Path) -> Option<Holder> {
    rundir::holder(run_dir, LOCK_NAME).ok().flatten()
}

impl RunDirSocket {
    fn at(path: PathBuf) -> Self {
        let error = match http1::unix::connect(&path, Deadline::within(AGENT_PATIENCE)) {
            Ok(_) => None,
            // Its queue is full, so somebody made one.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => None,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Some("no process listens".to_owned())
            }
            Err(error) if is_denied(&error) => return Self { path, listening: None, error: None },
            Err(error) => Some(error.to_string()),
        };
        Self { path, listening: Some(error.is_none()), error }
    }
}

/// How many pods' last known facts are on disk; the error is the directory, where this user may not look.
pub(super) fn last_known(run_dir: &Path) -> Result<usize, PathBuf> {
    unless_denied(run_dir.join(FACTS_DIR), rundir::json_files(&run_dir.join(FACTS_DIR), MAX_FILES))
        .map(|files| files.len())
}

/// Pods that started without capture and are not marked yet, as `namespace/name`; a note that cannot be read has its file's name. The error is
/// as in [`last_known`].
pub(crate) fn uncaptured(run_dir: &Path) -> Result<Vec<String>, PathBuf> {
    let mut notes = unless_denied(run_dir.join(UNCAPTURED_DIR), note::list(run_dir, MAX_FILES))?;
    notes.sort();
    let name = |(index, path): (usize, &PathBuf)| {
        let report = if index < MAX_NOTES { note::read(path).ok() } else { None };
        let file = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        report.map_or_else(file, |report| report.pod().to_string())
    };
    Ok(notes.iter().enumerate().map(name).collect())
}

/// The files; or the directory, where this user may not look.
fn unless_denied(dir: PathBuf, files: io::Result<Vec<PathBuf>>) -> Result<Vec<PathBuf>, PathBuf> {
    match files {
        Err(error) if is_denied(&error) => Err(dir),
        files => Ok(files.unwrap_or_default()),
    }
}
