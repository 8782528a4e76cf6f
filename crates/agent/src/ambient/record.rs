//! The agent's own record of each pod that has something of ours: a file for each pod in the run directory, by which the next agent knows
//! what this one did without asking anybody. A pod's annotation is no such record: whoever may write the pod writes that, too.
//!
//! A file is replaced by renaming another one over it, so that whoever kills the agent finds it whole or not there. It is not synced: a crash
//! of the machine ends all namespaces, and what is from before the machine's start is not read. It is written before anything of ours comes
//! into a namespace, and removed when nothing of ours is left.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use facts::PodRef;
use kernel::branch_eni::Branch;
use netns::NetnsId;
use rundir::AMBIENT_DIR;
use serde::{Deserialize, Serialize};
use trusted::Links;

/// Largest file that is read, in bytes: [`capture::ambient::MAX_INTERFACES`] names of 15 bytes, and room.
const MAX_FILE: usize = 64 << 10;
/// The most files that are read. A node has some hundred pods.
const MAX_FILES: usize = 16 << 10;
/// Longest uid that a file is named by, in bytes; those of Kubernetes have 36.
const MAX_UID: usize = 128;

/// What the agent knows of a pod that has, or is about to have, something of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    /// `metadata.uid`; the file is named by it.
    pub(crate) uid: String,
    /// `metadata.namespace`
    pub(crate) namespace: String,
    /// `metadata.name`
    pub(crate) name: String,
    /// `spec.serviceAccountName`, which ztunnel is told.
    pub(crate) service_account: String,
    /// Where it is, as soon as that is known.
    #[serde(default)]
    pub(crate) netns: Option<Place>,
    /// What the runtime calls it, where that is not its uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) called: Option<String>,
    /// Its addresses, in the node's sets or on their way there.
    #[serde(default)]
    pub(crate) ips: Vec<IpAddr>,
    /// How far it is.
    #[serde(flatten)]
    pub(crate) stage: Stage,
    /// The options by which its rules are programmed.
    #[serde(default)]
    pub(crate) options: RecordedOptions,
    /// Its rules are those of a pod that translates destinations itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) translates: bool,
    /// Routing rules of the node for these addresses, which nothing but this tells from those of others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) branches: Vec<BranchRules>,
    /// What `nf_conntrack_tcp_loose` was in its namespace before the agent set it to 0; absent if the agent left it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tcp_loose_before: Option<u8>,
    /// See [`crate::boot`].
    #[serde(default)]
    boot: String,
}

/// A namespace by its path and identity. It is the same one only while the path leads to this identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The path by which this agent opens it.
    pub(crate) path: PathBuf,
    /// Device number of nsfs.
    pub(crate) dev: u64,
    /// Inode number.
    pub(crate) ino: u64,
    /// A plugin named it, so that the runtime removes the path with the sandbox; otherwise it was found by a process.
    pub(crate) given: bool,
}

/// [`kernel::branch_eni::Branch`] as a file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BranchRules {
    ip: IpAddr,
    table: u32,
    interface: String,
    priority: u32,
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// On its way in by an ADD that is not answered yet.
    Announced,
    /// On its way in.
    Pending,
    /// Rules, ztunnel and probes were all in place.
    Enrolled,
    /// On its way out, its rules perhaps gone already.
    Leaving,
    /// Its rules are gone, and what they redirected goes on for a while.
    Draining {
        /// When that began, in seconds since 1970.
        since: u64,
    },
    /// Written by a later agent: whatever it means, something of ours may be there.
    #[serde(other)]
    Other,
}

/// [`capture::ambient::PodOptions`] as a file has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RecordedOptions {
    ingress: bool,
    dns_capture: Option<bool>,
    virtual_interfaces: Vec<String>,
}

/// A record that cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The uid would lead out of the directory, or is no file name.
    #[error(
        "the uid {0:?} of a pod is not the name of a file; a manifest's metadata.uid must consist of letters, digits and hyphens"
    )]
    Uid(String),
    /// The system refused.
    #[error("{operation} {path}: {cause}; free space, or make the directory writable for the agent", path = path.display())]
    Io {
        /// Such as `write`.
        operation: &'static str,
        /// The file or the directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Too large, not a file, not JSON, or of another pod than its name says.
    #[error("the record {path} of a pod cannot be used and is ignored: {why}", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// All records.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    boot: String,
    /// What the files say, so that only what differs is written.
    written: Mutex<HashMap<String, PodRecord>>,
}

// === impl Place ===

impl Place {
    /// Its identity.
    pub(crate) fn id(&self) -> NetnsId {
        NetnsId { dev: self.dev, ino: self.ino }
    }
}

// === impl BranchRules ===

impl From<Branch> for BranchRules {
    fn from(Branch { ip, table, interface, priority }: Branch) -> Self {
        Self { ip, table, interface, priority }
    }
}

impl From<BranchRules> for Branch {
    fn from(BranchRules { ip, table, interface, priority }: BranchRules) -> Self {
        Self { ip, table, interface, priority }
    }
}

// === impl RecordedOptions ===

impl From<&capture::ambient::PodOptions> for RecordedOptions {
    fn from(options: &capture::ambient::PodOptions) -> Self {
        let capture::ambient::PodOptions { ingress, dns_capture, virtual_interfaces } = options.clone();
        Self { ingress, dns_capture, virtual_interfaces }
    }
}

impl From<RecordedOptions> for capture::ambient::PodOptions {
    fn from(options: RecordedOptions) -> Self {
        let RecordedOptions { ingress, dns_capture, virtual_interfaces } = options;
        Self { ingress, dns_capture, virtual_interfaces }
    }
}

// === impl PodRecord ===

impl PodRecord {
    /// The beginning of a record; its other members are the caller's to set.
    pub(crate) fn new(key: &PodRef, service_account: &str, stage: Stage) -> Self {
        Self {
            uid: key.uid.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            service_account: service_account.to_owned(),
            netns: None,
            called: None,
            ips: Vec::new(),
            stage,
            options: RecordedOptions::default(),
            translates: false,
            branches: Vec::new(),
            tcp_loose_before: None,
            boot: String::new(),
        }
    }
}

// === impl Records ===

impl Records {
    /// The records in `<run_dir>/`[`AMBIENT_DIR`], which is made when the first is written.
    pub(crate) fn new(run_dir: &Path) -> Self {
        let boot = crate::boot::id();
        Self { dir: run_dir.join(AMBIENT_DIR), boot, written: Mutex::default() }
    }

    /// Every record that can be used, and why others cannot. Those of another start of the machine are removed: their namespaces are gone.
    pub(crate) fn read(&self) -> (Vec<PodRecord>, Vec<RecordError>) {
        let mut errors = Vec::new();
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return (Vec::new(), errors),
            Err(cause) => return (Vec::new(), vec![io_error("read", &self.dir, cause)]),
        };
        let mut records = Vec::new();
        for entry in entries.flatten().take(MAX_FILES) {
            let path = entry.path();
            let Some(uid) = uid_of(&path) else { continue };
            match read_one(&path, uid) {
                Ok(record) if record.boot == self.boot => {
                    self.written().insert(record.uid.clone(), record.clone());
                    records.push(record);
                }
                Ok(_) => errors.extend(self.remove(uid).err()),
                Err(error) => errors.push(error),
            }
        }
        (records, errors)
    }

    /// Makes the pod's file say this, if it does not yet.
    ///
    /// # Errors
    /// The file could not be written; it says what it said before.
    pub(crate) fn write(&self, mut record: PodRecord) -> Result<(), RecordError> {
        record.boot.clone_from(&self.boot);
        if self.written().get(&record.uid) == Some(&record) {
            return Ok(());
        }
        let path = self.path(&record.uid)?;
        let failed = |cause| io_error("write", &path, cause);
        let text = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
        trusted::replace(&path, &path.with_extension("unfinished"), &text).map_err(failed)?;
        self.written().insert(record.uid.clone(), record);
        Ok(())
    }

    /// Removes the pod's file.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub(crate) fn remove(&self, uid: &str) -> Result<(), RecordError> {
        self.written().remove(uid);
        let Ok(path) = self.path(uid) else { return Ok(()) };
        match std::fs::remove_file(&path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => Err(io_error("remove", &path, cause)),
            _ => Ok(()),
        }
    }

    /// Removes the files of pods that `known` does not know, broken and unfinished ones included; gives what could not be removed.
    pub(crate) fn sweep(&self, known: impl Fn(&str) -> bool) -> Vec<RecordError> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let left = paths.filter(|path| !uid_of(path).is_some_and(&known));
        let removed =
            left.map(|path| std::fs::remove_file(&path).map_err(|cause| io_error("remove", &path, cause)));
        removed.filter_map(Result::err).collect()
    }

    /// Removes the directory, if no record is left in it.
    pub(crate) fn close(&self) {
        let _ = std::fs::remove_dir(&self.dir);
    }

    fn path(&self, uid: &str) -> Result<PathBuf, RecordError> {
        let usable = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if uid.is_empty() || uid.len() > MAX_UID || !uid.chars().all(usable) {
            return Err(RecordError::Uid(uid.chars().take(MAX_UID).collect()));
        }
        Ok(self.dir.join(format!("{uid}.json")))
    }

    fn written(&self) -> MutexGuard<'_, HashMap<String, PodRecord>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The uid that a record's file is named by.
fn uid_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(".json")
}

fn read_one(path: &Path, uid: &str) -> Result<PodRecord, RecordError> {
    let broken = |why: String| RecordError::Broken { path: path.to_owned(), why };
    let failed = |cause| io_error("read", path, cause);
    let text = trusted::read(path, Links::Refused, MAX_FILE).map_err(|error| match error.problem {
        trusted::Distrust::Io(cause) => failed(cause),
        problem => broken(problem.to_string()),
    })?;
    let record: PodRecord = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
    if record.uid != uid {
        return Err(broken(format!("it is of the pod with uid {:?}", record.uid)));
    }
    Ok(record)
}

fn io_error(operation: &'static str, path: &Path, cause: io::Error) -> RecordError {
    RecordError::Io { operation, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests;
