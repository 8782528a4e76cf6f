//! Where the pods are that policies may select: a file for each attachment in a folder of its own in the run directory.
//!
//! The plugin leaves it in an ADD, with the addresses that the pod has: an agent that starts later finds pods that wait for their policies, and
//! at the end of a pod it is known which addresses are given to others.

use std::path::{Path, PathBuf};

use super::sandbox::{self, Sandbox, all_in, write_in};
use super::{Error, RecordKey, list, name_of, remove_file};

/// Writes the file of an attachment in place of an earlier one.
///
/// # Errors
/// It is not written.
pub fn write(run_dir: &Path, container: &str, interface: &str, sandbox: &Sandbox) -> Result<(), Error> {
    write_in(&run_dir.join(rundir::POLICED_DIR), container, interface, sandbox)
}

/// Removes the file of an attachment; gives what it said, if it was there and could be read.
///
/// # Errors
/// It is still there.
pub fn take(run_dir: &Path, container: &str, interface: &str) -> Result<Option<Sandbox>, Error> {
    let path =
        run_dir.join(rundir::POLICED_DIR).join(name_of(RecordKey::Attachment { container, interface })?);
    let said = sandbox::read(&path).map(|(_, sandbox)| sandbox);
    remove_file(&path).map(|()| said)
}

/// Removes the files of all attachments but these; gives what they said.
///
/// # Errors
/// The folder cannot be read.
pub fn keep<'a>(
    run_dir: &Path,
    valid: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Sandbox>, Error> {
    let keys = valid.into_iter().map(|(container, interface)| RecordKey::Attachment { container, interface });
    let names: Vec<String> = keys.filter_map(|key| name_of(key).ok()).collect();
    let mut gone = Vec::new();
    for path in list(&run_dir.join(rundir::POLICED_DIR))? {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with('.') || names.iter().any(|valid| valid == name)) {
            continue;
        }
        let said = sandbox::read(&path);
        if remove_file(&path).is_ok() {
            gone.extend(said.map(|(_, sandbox)| sandbox));
        }
    }
    Ok(gone)
}

/// The same with the file of each.
///
/// # Errors
/// As of [`all`].
pub fn files(run_dir: &Path) -> Result<Vec<(PathBuf, Sandbox)>, Error> {
    let files = list(&run_dir.join(rundir::POLICED_DIR))?.into_iter().take(sandbox::MAX_FILES);
    Ok(files.filter_map(|path| sandbox::read(&path).map(|(_, said)| (path, said))).collect())
}

/// The pods that are there, the last one first. What is not believed, or cannot be read, is left out.
///
/// # Errors
/// The folder cannot be read.
pub fn all(run_dir: &Path) -> Result<Vec<Sandbox>, Error> {
    all_in(&run_dir.join(rundir::POLICED_DIR))
}

#[cfg(test)]
mod tests {
    use netns::NetnsId;

    use super::*;
    use crate::Origin;

    #[test]
    fn what_is_gone_says_which_addresses_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let pod = |number: u8| Sandbox {
            origin: Origin {
                netns: NetnsId { dev: 4, ino: number.into() },
                pod: "shop/web".to_owned(),
                uid: format!("uid-{number}"),
                interface: "eth0".to_owned(),
                addresses: vec![[10, 0, 0, number].into()],
            },
            path: format!("/run/netns/{number}").into(),
        };
        assert_eq!((all(dir.path()).unwrap(), take(dir.path(), "c0", "eth0").unwrap()), (vec![], None));
        for number in 1..=3 {
            write(dir.path(), &format!("c{number}"), "eth0", &pod(number)).unwrap();
        }
        assert_eq!(take(dir.path(), "c2", "eth0").unwrap(), Some(pod(2)));
        assert_eq!(keep(dir.path(), [("c3", "eth0")]).unwrap(), [pod(1)]);
        assert_eq!(all(dir.path()).unwrap(), [pod(3)]);
    }
}
