//! The record of what was applied to each pod's network namespace: a file for each in the run directory.
//!
//! Whoever loads rules into a namespace writes it, so that CHECK compares with that, and not with what today's annotations, options or
//! version would make. It is evidence and nothing else: where it cannot be written, the pod is captured all the same.
//!
//! The plugin names its records by attachment, as CNI does; the node agent, which programs running pods too, by namespace.
//!
//! Beside the rules is what their plan was made from, as text of whoever planned (`capture::PlanInputs`): an agent that comes later has the
//! plan in force from it.
//!
//! [`sandbox`] and [`policed`] have the same head without rules: where the pods of manifests are, and those that policies may select. [`settings`], too: what was changed beside rules.

mod attachment;
pub mod policed;
pub mod sandbox;
pub mod settings;

use std::collections::HashSet;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kernel::Record;
use netns::NetnsId;
use rustix::fs::OFlags;
use trusted::Links;

pub use attachment::{AttachmentRecord, RecordHead, attachments, origins_with_inputs};

/// The largest record, in bytes. The most rules that annotations can ask for make about three million.
const MAX_BYTES: u64 = 8 << 20;
/// The longest part of a file's name, in bytes; runtimes' ids have 64.
const MAX_NAME: usize = 160;
/// The most attachments of one container that are read.
pub const MAX_SIBLINGS: usize = 8;
/// The most attachments that are read; a node has some hundred pods.
const MAX_ATTACHMENTS: usize = 16 << 10;
/// The most of a record before its rules, in bytes.
const MAX_HEAD: u64 = 8 << 10;
/// The first line.
const MAGIC: &str = "istio-cni applied 1";

/// Which record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKey<'a> {
    /// One that the plugin wrote.
    Attachment {
        /// `CNI_CONTAINERID`.
        container: &'a str,
        /// `CNI_IFNAME`.
        interface: &'a str,
    },
    /// One that the node agent wrote.
    Namespace(NetnsId),
}

/// Where it was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The namespace. The kernel gives the number of one that is gone to another, so the pod has to be the same too.
    pub netns: NetnsId,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// The pod's uid, where it was known.
    pub uid: String,
    /// The pod's interface, where it was known.
    pub interface: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// A record as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedRecord {
    /// Where.
    pub origin: Origin,
    /// What; absent where this version cannot read it.
    pub record: Option<Record>,
    /// What its plan was made from; empty where that is not known.
    pub inputs: String,
}

/// A record that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container's id or the interface's name cannot name a file.
    #[error("attachment {container:?} {interface:?} cannot name a record")]
    Name {
        /// `CNI_CONTAINERID`.
        container: String,
        /// `CNI_IFNAME`.
        interface: String,
    },
    /// The system's.
    #[error("{operation} the record {}: {cause}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// Others can write it, or it is no file.
    #[error("{0}; without this record CHECK compares with nothing")]
    Foreign(trusted::Error),
    /// More than a record can be.
    #[error("the record {} would have {bytes} bytes, and at most {MAX_BYTES} are kept", path.display())]
    TooLarge {
        /// Where.
        path: PathBuf,
        /// How many.
        bytes: u64,
    },
    /// There is no room for more.
    #[error("directory {} has more files than are kept; remove those of pods that are gone", path.display())]
    TooMany {
        /// Where.
        path: PathBuf,
    },
    /// Not a record.
    #[error("the record {} cannot be read: it is not whole, or of another version", path.display())]
    Unreadable {
        /// Where.
        path: PathBuf,
    },
}

/// Writes a record in place of an earlier one of the same key.
///
/// # Errors
/// It is not written; an earlier one is as it was, or gone.
pub fn write(
    run_dir: &Path,
    key: RecordKey<'_>,
    origin: &Origin,
    record: &Record,
    inputs: &str,
) -> Result<(), Error> {
    let bytes = to_bytes(origin, record, inputs);
    replace(&run_dir.join(rundir::APPLIED_DIR), &name_of(key)?, &bytes)
}

fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let (path, temporary) = (dir.join(name), dir.join(format!(".{name}.tmp")));
    let result = if bytes.len() as u64 > MAX_BYTES {
        Err(Error::TooLarge { path: path.clone(), bytes: bytes.len() as u64 })
    } else {
        let written = write_file(&temporary, bytes).or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                return Err(error);
            }
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            write_file(&temporary, bytes)
        });
        let renamed = written.and_then(|()| std::fs::rename(&temporary, &path));
        renamed.map_err(|cause| Error::Io { operation: "write", path: path.clone(), cause })
    };
    result.inspect_err(|_| {
        // What an earlier call applied is not there any more.
        let _ = std::fs::remove_file(&temporary);
        let _ = std::fs::remove_file(&path);
    })
}

/// Not synced: a record is worth nothing after a restart of the machine, as the namespaces are gone then.
fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(nofollow);
    options.open(path)?.write_all(bytes)
}

/// Reads a record; `None` where there is none.
///
/// # Errors
/// What is there cannot be used.
pub fn read(run_dir: &Path, key: RecordKey<'_>) -> Result<Option<AppliedRecord>, Error> {
    read_file(run_dir.join(rundir::APPLIED_DIR).join(name_of(key)?))
}

/// When a record was written; `None` where there is none.
#[must_use]
pub fn written(run_dir: &Path, key: RecordKey<'_>) -> Option<SystemTime> {
    let path = run_dir.join(rundir::APPLIED_DIR).join(name_of(key).ok()?);
    trusted::open(&path, Links::Refused).ok()?.metadata().ok()?.modified().ok()
}

/// The records of all attachments of a container that can be read, up to [`MAX_SIBLINGS`].
#[must_use]
pub fn of_container(run_dir: &Path, container: &str) -> Vec<AppliedRecord> {
    let prefix = format!("{ATTACHMENT}{container},");
    let is_its = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix))
    };
    let its = list(&run_dir.join(rundir::APPLIED_DIR))
        .unwrap_or_default()
        .into_iter()
        .filter(is_its)
        .take(MAX_SIBLINGS);
    its.filter_map(|path| read_file(path).ok().flatten()).collect()
}

fn read_file(path: PathBuf) -> Result<Option<AppliedRecord>, Error> {
    let failed = |cause| Error::Io { operation: "read", path: path.clone(), cause };
    let mut file = match trusted::open(&path, Links::Refused) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) if error.is_disbelief() => return Err(Error::Foreign(error)),
        Err(error) => return Err(failed(error.into())),
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.len() > MAX_BYTES {
        return Err(Error::TooLarge { path, bytes: metadata.len() });
    }
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    parse(&bytes).map(Some).ok_or(Error::Unreadable { path })
}

/// Removes a record. One that is not there is success.
///
/// # Errors
/// It is still there.
pub fn remove(run_dir: &Path, key: RecordKey<'_>) -> Result<(), Error> {
    remove_file(&run_dir.join(rundir::APPLIED_DIR).join(name_of(key)?))
}

/// Removes the plugin's records of all attachments but these; gives how many it removed.
///
/// # Errors
/// The folder cannot be read; what could be removed is gone.
pub fn keep_attachments<'a>(
    run_dir: &Path,
    valid: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<usize, Error> {
    keep_attachments_in(&run_dir.join(rundir::APPLIED_DIR), valid)
}

fn keep_attachments_in<'a>(
    dir: &Path,
    valid: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<usize, Error> {
    let keys = valid.into_iter().map(|(container, interface)| RecordKey::Attachment { container, interface });
    let names: Vec<String> = keys.filter_map(|key| name_of(key).ok()).collect();
    let found = list(dir)?;
    Ok(keep(&found, |name| !name.starts_with(ATTACHMENT) || names.iter().any(|valid| valid == name)))
}

/// Removes the node agent's records of namespaces but those that `valid` names and those that `stays`; `valid` is asked after the records were
/// listed, so that one that is written meanwhile stays. Where it says nothing, nothing is removed. Gives how many were removed.
///
/// # Errors
/// As [`keep_attachments`].
pub fn keep_namespaces(
    run_dir: &Path,
    valid: impl FnOnce() -> Option<HashSet<NetnsId>>,
    stays: impl Fn(&RecordHead) -> bool,
) -> Result<usize, Error> {
    let dir = run_dir.join(rundir::APPLIED_DIR);
    let found = list(&dir)?;
    let Some(valid) = valid() else { return Ok(0) };
    let names: HashSet<String> =
        valid.iter().filter_map(|id| name_of(RecordKey::Namespace(*id)).ok()).collect();
    // What cannot be read now may be readable when it is asked for.
    let is_kept = |name: &str| match attachment::read_head(&dir.join(name)) {
        Ok(head) => head.is_some_and(|head| stays(&head)),
        Err(_) => true,
    };
    Ok(keep(&found, |name| !name.starts_with(NAMESPACE) || names.contains(name) || is_kept(name)))
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(cause) => Err(Error::Io { operation: "list", path: dir.to_owned(), cause }),
    }
}

fn keep(found: &[PathBuf], stays: impl Fn(&str) -> bool) -> usize {
    let stale = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| !stays(name)) && remove_file(path).is_ok()
    };
    found.iter().filter(stale).count()
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => {
            Err(Error::Io { operation: "remove", path: path.to_owned(), cause })
        }
        _ => Ok(()),
    }
}

/// Begins the line that says how many bytes of inputs follow.
const INPUTS: &str = "inputs ";
/// The most digits of that number, and the end of its line.
const MAX_DIGITS: usize = 8;
const ATTACHMENT: &str = "attachment-";
const NAMESPACE: &str = "netns-";

/// Neither an id nor an interface's name has a slash, so `,` cannot make two of them one: no id has it.
fn name_of(key: RecordKey<'_>) -> Result<String, Error> {
    match key {
        RecordKey::Namespace(NetnsId { dev, ino }) => Ok(format!("{NAMESPACE}{dev}-{ino}")),
        RecordKey::Attachment { container, interface } => {
            let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let plain = |text: &str| !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(usable);
            // An interface may have any other name that the protocol layer lets through; its bytes then name it.
            let interface_name = if plain(interface) {
                interface.to_owned()
            } else {
                interface.bytes().take(64).map(|byte| format!("%{byte:02x}")).collect()
            };
            if !plain(container) || interface.is_empty() {
                return Err(Error::Name { container: container.into(), interface: interface.into() });
            }
            Ok(format!("{ATTACHMENT}{container},{interface_name}"))
        }
    }
}

fn head(origin: &Origin) -> String {
    let Origin { netns: NetnsId { dev, ino }, pod, uid, interface, addresses } = origin;
    let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
    let (pod, uid, interface) = (clean(pod), clean(uid), clean(interface));
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let addresses = addresses.join(" ");
    format!(
        "{MAGIC}\nnetns {dev} {ino}\npod {pod}\nuid {uid}\ninterface {interface}\naddresses {addresses}\n\n"
    )
}

/// The inputs stand before the rules in a form that earlier versions take for a record of another version.
fn to_bytes(origin: &Origin, record: &Record, inputs: &str) -> Vec<u8> {
    let inputs = match inputs {
        "" => String::new(),
        inputs => format!("{INPUTS}{}\n{inputs}", inputs.len()),
    };
    [head(origin).as_bytes(), inputs.as_bytes(), &record.to_bytes()].concat()
}

fn parse(bytes: &[u8]) -> Option<AppliedRecord> {
    let (origin, rest) = parse_head(bytes)?;
    let (inputs, record) = match rest.strip_prefix(INPUTS.as_bytes()) {
        None => (String::new(), rest),
        Some(rest) => {
            let end = rest.iter().take(MAX_DIGITS).position(|byte| *byte == b'\n')?;
            let length = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
            let (inputs, record) = rest[end + 1..].split_at_checked(length)?;
            (String::from_utf8(inputs.to_vec()).ok()?, record)
        }
    };
    Some(AppliedRecord { origin, record: Record::from_bytes(record), inputs })
}

/// Where it was applied, and the rest.
fn parse_head(bytes: &[u8]) -> Option<(Origin, &[u8])> {
    let end = bytes.windows(2).position(|two| two == b"\n\n")?;
    let mut lines = std::str::from_utf8(&bytes[..end]).ok()?.lines();
    (lines.next() == Some(MAGIC)).then_some(())?;
    let mut line = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
    let (dev, ino) = line("netns")?.split_once(' ')?;
    let netns = NetnsId { dev: dev.parse().ok()?, ino: ino.parse().ok()? };
    let (pod, uid, interface) = (line("pod")?, line("uid")?, line("interface")?);
    let addresses: Option<Vec<IpAddr>> =
        line("addresses")?.split_whitespace().map(|address| address.parse().ok()).collect();
    let origin = Origin {
        netns,
        pod: pod.to_owned(),
        uid: uid.to_owned(),
        interface: interface.to_owned(),
        addresses: addresses?,
    };
    Some((origin, &bytes[end + 2..]))
}

#[cfg(test)]
mod tests;
