//! Settings of a pod's network namespace as they were before the node agent changed them: a file for each namespace in a folder of its own in the run
//! directory. Who takes the agent's rules out of the namespace puts them back.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use netns::NetnsId;
use trusted::Links;

use super::attachment::read_head;
use super::{Error, MAX_HEAD, Origin, RecordKey, head, list, name_of, parse_head, remove_file, replace};

/// The most files that are kept: beyond, nothing more is changed that would have to be put back.
const MAX_FILES: usize = 4 << 10;

/// Values by name below `/proc/sys`.
pub type SettingsBefore = BTreeMap<String, String>;

/// Keeps the value of a setting that is about to change, unless one is kept already. The number of a namespace that is gone may be another one's: what
/// another pod left is replaced.
///
/// # Errors
/// It is not kept.
pub fn remember(run_dir: &Path, origin: &Origin, name: &str, value: &str) -> Result<(), Error> {
    let dir = run_dir.join(rundir::SETTINGS_DIR);
    let mut settings = remembered(run_dir, origin.netns, &origin.uid);
    let is_new = settings.is_empty();
    settings.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    if is_new && list(&dir)?.len() >= MAX_FILES {
        return Err(Error::TooMany { path: dir });
    }
    let lines: String = settings.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    replace(
        &dir,
        &name_of(RecordKey::Namespace(origin.netns))?,
        format!("{}{lines}", head(origin)).as_bytes(),
    )
}

/// What is kept of a pod's namespace; nothing where that cannot be read or believed.
#[must_use]
pub fn remembered(run_dir: &Path, netns: NetnsId, uid: &str) -> SettingsBefore {
    let read = || -> Option<SettingsBefore> {
        let name = name_of(RecordKey::Namespace(netns)).ok()?;
        let file = trusted::open(&run_dir.join(rundir::SETTINGS_DIR).join(name), Links::Refused).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_HEAD).read_to_end(&mut bytes).ok()?;
        let (origin, lines) = parse_head(&bytes)?;
        (origin.uid == uid && origin.netns == netns).then_some(())?;
        let lines = std::str::from_utf8(lines).ok()?.lines();
        Some(
            lines
                .filter_map(|line| line.split_once('='))
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .collect(),
        )
    };
    read().unwrap_or_default()
}

/// Forgets a namespace. One that nothing is kept of is success.
///
/// # Errors
/// It is still there.
pub fn forget(run_dir: &Path, netns: NetnsId) -> Result<(), Error> {
    remove_file(&run_dir.join(rundir::SETTINGS_DIR).join(name_of(RecordKey::Namespace(netns))?))
}

/// Forgets the namespaces of pods but those that stay; `stays` is asked for after the files were listed, so that one that is written meanwhile stays. Gives
/// how many were forgotten.
///
/// # Errors
/// The folder cannot be read; what could be removed is gone.
pub fn keep<F: Fn(&Origin) -> bool>(run_dir: &Path, stays: impl FnOnce() -> F) -> Result<usize, Error> {
    let dir = run_dir.join(rundir::SETTINGS_DIR);
    let found = list(&dir)?;
    let stays = stays();
    Ok(super::keep(&found, |name| match read_head(&dir.join(name)) {
        Ok(head) => head.is_some_and(|head| stays(&head.origin)),
        // What cannot be read now may be readable when it is asked for.
        Err(_) => true,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_kept_for_the_pod_that_had_it() {
        let dir = tempfile::tempdir().unwrap();
        let netns = NetnsId { dev: 4, ino: 7 };
        let origin = |uid: &str| Origin {
            netns,
            pod: "shop/web".to_owned(),
            uid: uid.to_owned(),
            interface: String::new(),
            addresses: Vec::new(),
        };
        let all = |uid| remembered(dir.path(), netns, uid);
        assert_eq!(all("1"), SettingsBefore::new());
        for (name, value) in [("a", "1"), ("a", "2"), ("b", "32768 60999")] {
            remember(dir.path(), &origin("1"), name, value).unwrap();
        }
        assert_eq!(all("1"), [("a", "1"), ("b", "32768 60999")].map(|(a, b)| (a.into(), b.into())).into());
        assert_eq!(all("2"), SettingsBefore::new(), "the namespace is another pod's now");
        remember(dir.path(), &origin("2"), "a", "0").unwrap();
        assert_eq!((all("1").len(), all("2").len()), (0, 1));
        forget(dir.path(), netns).unwrap();
        forget(dir.path(), netns).unwrap();
        assert_eq!(all("2"), SettingsBefore::new());
    }

    #[test]
    fn pods_that_are_gone_are_forgotten_and_what_is_written_meanwhile_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let stays = |origin: &Origin| origin.uid == "1";
        assert_eq!(keep(dir.path(), || stays).unwrap(), 0, "nothing was ever kept");
        let origin = |ino: u64, uid: &str| Origin {
            netns: NetnsId { dev: 4, ino },
            pod: "shop/web".to_owned(),
            uid: uid.to_owned(),
            interface: String::new(),
            addresses: Vec::new(),
        };
        for (ino, uid) in [(1, "1"), (2, "2")] {
            remember(dir.path(), &origin(ino, uid), "a", "1").unwrap();
        }
        std::fs::write(dir.path().join(rundir::SETTINGS_DIR).join("netns-4-9"), "cut o").unwrap();
        let meanwhile = || {
            remember(dir.path(), &origin(3, "3"), "a", "1").unwrap();
            stays
        };
        assert_eq!(keep(dir.path(), meanwhile).unwrap(), 2);
        let there = |ino, uid| !remembered(dir.path(), NetnsId { dev: 4, ino }, uid).is_empty();
        assert_eq!((there(1, "1"), there(2, "2"), there(3, "3")), (true, false, true));
        assert_eq!(list(&dir.path().join(rundir::SETTINGS_DIR)).unwrap().len(), 2);
    }
}
