//! Where the pods of manifests are: a file for each attachment in a folder of its own in the run directory.
//!
//! A manifest says nothing of the pod that runs by it, and there is no API server that does. The plugin leaves here what the runtime told it of a
//! pod that starts without rules of its own, so that the node agent can take it into the mesh when its labels or those of its namespace change.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use trusted::Links;

use super::{Error, MAX_HEAD, Origin, RecordKey, head, list, name_of, parse_head, remove_file, replace};

/// The most files that are read.
pub(super) const MAX_FILES: usize = 16 << 10;

/// A pod's network namespace as the runtime named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Whose it is.
    pub origin: Origin,
    /// `CNI_NETNS`.
    pub path: PathBuf,
}

/// Writes the file of an attachment in place of an earlier one.
///
/// # Errors
/// It is not written.
pub fn write(run_dir: &Path, container: &str, interface: &str, sandbox: &Sandbox) -> Result<(), Error> {
    write_in(&run_dir.join(rundir::SANDBOXES_DIR), container, interface, sandbox)
}

pub(super) fn write_in(dir: &Path, container: &str, interface: &str, sandbox: &Sandbox) -> Result<(), Error> {
    let bytes = [head(&sandbox.origin).as_bytes(), sandbox.path.as_os_str().as_bytes()].concat();
    replace(dir, &name_of(RecordKey::Attachment { container, interface })?, &bytes)
}

/// Removes the file of an attachment. One that is not there is success.
///
/// # Errors
/// It is still there.
pub fn remove(run_dir: &Path, container: &str, interface: &str) -> Result<(), Error> {
    remove_file(
        &run_dir.join(rundir::SANDBOXES_DIR).join(name_of(RecordKey::Attachment { container, interface })?),
    )
}

/// Removes the files of all attachments but these; gives how many it removed.
///
/// # Errors
/// The folder cannot be read.
pub fn keep<'a>(run_dir: &Path, valid: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<usize, Error> {
    super::keep_attachments_in(&run_dir.join(rundir::SANDBOXES_DIR), valid)
}

/// The sandboxes of a pod (`namespace/name`), the last one first. What is not believed, or cannot be read, is left out.
///
/// # Errors
/// The folder cannot be read.
pub fn of_pod(run_dir: &Path, pod: &str) -> Result<Vec<Sandbox>, Error> {
    let mut found = all(run_dir)?;
    found.retain(|sandbox| sandbox.origin.pod == pod);
    Ok(found)
}

/// The sandboxes of all pods, as [`of_pod`].
///
/// # Errors
/// As there.
pub fn all(run_dir: &Path) -> Result<Vec<Sandbox>, Error> {
    all_in(&run_dir.join(rundir::SANDBOXES_DIR))
}

pub(super) fn all_in(dir: &Path) -> Result<Vec<Sandbox>, Error> {
    let files = list(dir)?.into_iter().take(MAX_FILES);
    let mut found: Vec<(SystemTime, Sandbox)> = files.filter_map(|path| read(&path)).collect();
    found.sort_by(|(a, _), (b, _)| b.cmp(a));
    Ok(found.into_iter().map(|(_, sandbox)| sandbox).collect())
}

pub(super) fn read(path: &Path) -> Option<(SystemTime, Sandbox)> {
    // Not whole yet.
    if path.file_name()?.as_bytes().starts_with(b".") {
        return None;
    }
    let file = trusted::open(path, Links::Refused).ok()?;
    let modified = file.metadata().ok()?.modified().ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_HEAD).read_to_end(&mut bytes).ok()?;
    let (origin, path) = parse_head(&bytes)?;
    Some((modified, Sandbox { origin, path: OsStr::from_bytes(path).into() }))
}

#[cfg(test)]
mod tests {
    use netns::NetnsId;

    use super::*;

    fn sandbox(pod: &str, ino: u64) -> Sandbox {
        let origin = Origin {
            netns: NetnsId { dev: 4, ino },
            pod: pod.to_owned(),
            uid: "c0ffee".to_owned(),
            interface: "eth0".to_owned(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
        };
        Sandbox { origin, path: format!("/run/netns/{ino}").into() }
    }

    #[test]
    fn the_last_sandbox_of_a_pod_comes_first_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_pod(dir.path(), "a/b").unwrap(), []);
        remove(dir.path(), "c1", "eth0").unwrap();
        for (container, pod, ino) in [("c1", "a/b", 1), ("c2", "a/b", 2), ("c3", "a/bb", 3)] {
            write(dir.path(), container, "eth0", &sandbox(pod, ino)).unwrap();
            // Times of files may be as coarse as the clock's tick.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let inodes = |pod| -> Vec<u64> {
            of_pod(dir.path(), pod).unwrap().iter().map(|found| found.origin.netns.ino).collect()
        };
        assert_eq!((inodes("a/b"), inodes("a/bb"), inodes("a")), (vec![2, 1], vec![3], vec![]));
        assert_eq!(of_pod(dir.path(), "a/bb").unwrap(), [sandbox("a/bb", 3)]);
        remove(dir.path(), "c2", "eth0").unwrap();
        assert_eq!(inodes("a/b"), [1]);
        assert_eq!(keep(dir.path(), [("c3", "eth0")]).unwrap(), 1);
        assert_eq!((inodes("a/b"), inodes("a/bb")), (vec![], vec![3]));
    }

    #[test]
    fn what_is_no_such_file_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "c1", "eth0", &sandbox("a/b", 1)).unwrap();
        let folder = dir.path().join(rundir::SANDBOXES_DIR);
        std::fs::write(folder.join("attachment-x,eth0"), "istio-cni applied 1\nnetns 4").unwrap();
        std::os::unix::fs::symlink(folder.join("attachment-c1,eth0"), folder.join("attachment-l,eth0"))
            .unwrap();
        std::fs::create_dir(folder.join("attachment-d,eth0")).unwrap();
        std::fs::File::create(folder.join("attachment-e,eth0")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(of_pod(dir.path(), "a/b").unwrap(), [sandbox("a/b", 1)]);
    }
}
