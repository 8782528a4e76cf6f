//! What is installed on the node, for people.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cni::conflist::Document;
use cni::json::Value;
use rustix::fs::Access;
use rustix::io::Errno;

use crate::binaries::{PLUGIN, own_version, supported_versions};
use crate::config::{FileState, Obstacle, Problem, Scan, obstacle};
use crate::file::{FileContent, FileError};
use rundir::KUBECONFIG;

/// What is installed. Nothing was changed by looking.
#[derive(Debug)]
pub struct Installed {
    /// Network configurations in the order in which a container runtime tries them; it uses the first that is valid.
    pub networks: Vec<Network>,
    /// Files of the standalone mode, which hold nothing but the plugin: another plugin, such as Multus, refers to them.
    pub standalone: Vec<Standalone>,
    /// Files that were passed over.
    pub problems: Vec<Problem>,
    /// The one among them that a runtime uses, or may use, before the networks.
    pub obstacle: Option<Obstacle>,
    /// The directory of configurations could not be read.
    pub unreadable: Option<FileError>,
    /// The plugin's program in each directory.
    pub programs: Vec<Program>,
    /// The plugin's access to the API server; `None` when there is none.
    pub kubeconfig: Option<Kubeconfig>,
    /// What the caller may not look at: whether it is there, or in order, is not known.
    pub denied: Vec<PathBuf>,
}

/// A network configuration.
#[derive(Debug)]
pub struct Network {
    /// The file.
    pub path: PathBuf,
    /// `name`.
    pub name: Option<String>,
    /// Types of the plugins, in the order of ADD.
    pub plugins: Vec<String>,
    /// Our plugin's options as they are written; `None` if it is not in there.
    pub entry: Option<Value>,
    /// Whether the file was changed by us and its original is kept.
    pub has_original: bool,
    /// Whether a runtime loads it. If not, others have broken it since the plugin was put into it, and what is told here is of its
    /// original.
    pub is_valid: bool,
}

/// A file that holds nothing but the plugin.
#[derive(Debug)]
pub struct Standalone {
    /// The file.
    pub path: PathBuf,
    /// The plugin's options as they are written.
    pub entry: Value,
}

/// The plugin's program.
#[derive(Debug)]
pub struct Program {
    /// Where.
    pub path: PathBuf,
    /// Its version by its own word, or why it does not say so.
    pub version: Result<String, String>,
    /// The CNI versions that it supports by its own word, or why it does not say so.
    pub versions: Result<Vec<String>, String>,
    /// When it was written.
    pub modified: Option<SystemTime>,
}

/// A kubeconfig.
#[derive(Debug)]
pub struct Kubeconfig {
    /// Where.
    pub path: PathBuf,
    /// The API server's address, if the file has the form that the agent writes.
    pub server: Option<String>,
    /// When it was written; a token is good for an hour.
    pub modified: Option<SystemTime>,
}

/// Looks at a node. Each plugin's program is run, for its versions.
pub fn inspect(net_dir: &Path, bin_targets: &[PathBuf], run_dir: &Path) -> Installed {
    let mut denied = Vec::new();
    let (mut scan, unreadable) = match Scan::new(net_dir, None) {
        Ok(scan) => (scan, None),
        Err(error) if error.is_denied() => {
            denied.push(error.path().to_owned());
            (Scan::default(), None)
        }
        Err(error) => (Scan::default(), Some(error)),
    };
    let is_denied = |problem: &mut Problem| matches!(problem, Problem::File(error) if error.is_denied());
    denied.extend(scan.problems.extract_if(.., is_denied).map(|problem| problem.path().to_owned()));
    let standalone = scan.problems.extract_if(.., |problem| matches!(problem, Problem::Standalone(_)));
    let standalone = standalone.filter_map(|problem| match problem {
        Problem::Standalone(path) => standalone_file(path),
        _ => None,
    });
    let standalone = standalone.collect();
    let loaded = scan.loaded();
    let obstacle = obstacle::before(loaded.first().map(PathBuf::as_path), &[], &scan.problems);
    let networks = scan.candidates.into_iter().map(|candidate| Network {
        name: candidate.document.network(),
        plugins: candidate.document.plugin_types(),
        entry: candidate.document.entries().into_iter().next(),
        has_original: crate::config::has_original(&candidate.path),
        is_valid: candidate.state == FileState::Valid,
        path: candidate.listed,
    });
    let programs = bin_targets.iter().map(|target| target.join(PLUGIN));
    let (hidden, programs): (Vec<_>, Vec<_>) = programs.partition(|path| is_hidden(path));
    denied.extend(hidden);
    let programs = programs.into_iter().map(|path| Program {
        version: own_version(&path).map_err(|error| error.to_string()),
        versions: supported_versions(&path).map_err(|error| error.to_string()),
        modified: std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok(),
        path,
    });
    let kubeconfig = kubeconfig(run_dir.join(KUBECONFIG)).unwrap_or_else(|path| {
        denied.push(path);
        None
    });
    Installed {
        networks: networks.collect(),
        standalone,
        problems: scan.problems,
        obstacle,
        unreadable,
        programs: programs.collect(),
        kubeconfig,
        denied,
    }
}

/// Whether a program may not be looked at, or is one that this user may not start. Root may start whatever anybody may.
fn is_hidden(path: &Path) -> bool {
    let mut wanted = Access::EXISTS;
    if !rustix::process::geteuid().is_root() {
        wanted |= Access::EXEC_OK;
    }
    rustix::fs::access(path, wanted) == Err(Errno::ACCESS)
}

/// `None` if it has been replaced since it was seen.
fn standalone_file(path: PathBuf) -> Option<Standalone> {
    let document = Document::parse(&FileContent::read(&path).ok()?.bytes).ok()?;
    let entry = document.entries().into_iter().next()?;
    Some(Standalone { path, entry })
}

/// The error is its path, where it may not be looked at.
fn kubeconfig(path: PathBuf) -> Result<Option<Kubeconfig>, PathBuf> {
    let content = match FileContent::read_if_there(&path) {
        Ok(Some(content)) => content,
        Err(error) if error.is_denied() => return Err(path),
        Ok(None) | Err(_) => return Ok(None),
    };
    let text = String::from_utf8_lossy(&content.bytes);
    let server = text.lines().find_map(|line| line.trim().strip_prefix("server: "));
    let server = server.map(|server| server.trim_matches('"').to_owned());
    Ok(Some(Kubeconfig { path, server, modified: content.modified }))
}
