//! As root: files of other users are real ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use super::*;

/// A directory of root's with a file of root's, mode 0644.
fn scene() -> (tempfile::TempDir, PathBuf) {
    assert!(rustix::process::geteuid().is_root(), "as root: the test makes files of other users");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "content").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    (dir, path)
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn refusal(path: &Path, links: Links) -> String {
    let error = read(path, links, 100).unwrap_err();
    assert!(error.is_disbelief(), "{error}");
    error.to_string()
}

#[test]
fn a_file_is_believed_by_owner_and_mode() {
    for (owner, group, bits, refused) in [
        (0, 0, 0o644, None),
        (0, 0, 0o600, None),
        // root's group is root
        (0, 0, 0o664, None),
        // a projected token of a pod with an fsGroup
        (0, 4242, 0o640, None),
        (0, 4242, 0o660, Some("it can be written by group 4242 (mode 0660)")),
        (0, 0, 0o646, Some("it can be written by all users (mode 0646)")),
        (4242, 0, 0o600, Some("it belongs to user 4242, and only files of root are trusted")),
        (4242, 4242, 0o444, Some("it belongs to user 4242")),
    ] {
        let (_dir, path) = scene();
        chown(&path, Some(owner), Some(group)).unwrap();
        mode(&path, bits);
        match refused {
            None => assert_eq!(read(&path, Links::Refused, 100).unwrap(), b"content", "{owner} {bits:o}"),
            Some(part) => {
                let text = refusal(&path, Links::Refused);
                assert!(text.contains(part) && text.contains(path.to_str().unwrap()), "{text}");
            }
        }
    }
}

#[test]
fn a_file_is_replaced_by_a_whole_one_or_stays() {
    let (dir, path) = scene();
    let unfinished = dir.path().join("unfinished");
    fs::write(&unfinished, "what a writer has left that was killed").unwrap();
    replace(&path, &unfinished, b"new").unwrap();
    assert_eq!(read(&path, Links::Refused, 100).unwrap(), b"new");
    replace_synced(&path, &unfinished, b"newer").unwrap();
    assert_eq!(read(&path, Links::Refused, 100).unwrap(), b"newer");
    assert!(!unfinished.exists());
    // Nothing can be put in the place of a directory.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    replace(&other, &unfinished, b"new").unwrap_err();
    assert!(other.is_dir() && !unfinished.exists());
}

#[test]
fn a_directory_is_believed_by_owner_and_mode() {
    for (owner, group, bits, refused) in [
        (0, 0, 0o755, None),
        (0, 0, 0o775, None),
        // as kubelet mounts tokens
        (0, 4242, 0o3777, None),
        (0, 4242, 0o775, Some("can be written by group 4242")),
        (0, 0, 0o777, Some("can be written by all users")),
        (4242, 0, 0o700, Some("belongs to user 4242")),
        (4242, 0, 0o1755, Some("belongs to user 4242")),
    ] {
        let (dir, path) = scene();
        chown(dir.path(), Some(owner), Some(group)).unwrap();
        mode(dir.path(), bits);
        let checked = check_directory(dir.path()).map_err(|error| error.to_string());
        match refused {
            None => {
                read(&path, Links::Refused, 100).unwrap();
                checked.unwrap();
            }
            Some(part) => {
                for text in [refusal(&path, Links::Refused), checked.unwrap_err()] {
                    assert!(
                        text.contains(&format!("its directory {} {part}", dir.path().display())),
                        "{text}"
                    );
                }
            }
        }
    }
    check_directory(Path::new("/nowhere/at/all")).unwrap();
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let (dir, path) = scene();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    rustix::fs::mknodat(CWD, at("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    symlink("/dev/zero", at("zero")).unwrap();
    symlink("fifo", at("to-fifo")).unwrap();
    for name in ["dir", "fifo", "socket", "zero", "to-fifo"] {
        for links in [Links::Refused, Links::Followed] {
            let text = refusal(&at(name), links);
            assert!(text.contains("not a regular file"), "{name}: {text}");
        }
    }
    // A link to a good file is one only where there may be links.
    symlink(&path, at("link")).unwrap();
    refusal(&at("link"), Links::Refused);
    assert_eq!(read(&at("link"), Links::Followed, 100).unwrap(), b"content");
    // What it leads to is judged all the same.
    chown(&path, Some(4242), None).unwrap();
    assert!(refusal(&at("link"), Links::Followed).contains("it belongs to user 4242"));
    // The parts before the last may be links.
    chown(&path, Some(0), None).unwrap();
    symlink(dir.path(), at("around")).unwrap();
    assert_eq!(read(&at("around/file"), Links::Refused, 100).unwrap(), b"content");
}

/// As kubelet lays out a volume: the directory of a projected token is sticky, that of a ConfigMap is not.
#[test]
fn a_volume_of_kubelets_is_believed_through_its_links() {
    for bits in [0o1777, 0o777, 0o2777] {
        a_volume_is_believed(bits);
    }
}

fn a_volume_is_believed(bits: u32) {
    let (dir, _) = scene();
    mode(dir.path(), bits);
    let data = dir.path().join("..2026_11_29");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("token"), "t").unwrap();
    chown(data.join("token"), None, Some(4242)).unwrap();
    mode(&data.join("token"), 0o640);
    symlink("..2026_11_29", dir.path().join("..data")).unwrap();
    symlink("..data/token", dir.path().join("token")).unwrap();
    let token = dir.path().join("token");
    assert_eq!(read(&token, Links::Followed, 100).unwrap(), b"t");
    refusal(&token, Links::Refused);
    // Others put files of their own there in vain.
    if bits & STICKY == 0 {
        fs::write(dir.path().join("other"), "o").unwrap();
        symlink("..2026_11_29/token", dir.path().join("link")).unwrap();
        for name in ["other", "link"] {
            assert!(refusal(&dir.path().join(name), Links::Followed).contains("can be written by all users"));
        }
    }
    chown(&data, Some(4242), None).unwrap();
    assert!(refusal(&token, Links::Followed).contains("belongs to user 4242"));
}

#[test]
fn size_and_absence_are_other_errors() {
    let (dir, path) = scene();
    assert_eq!(read(&path, Links::Refused, 7).unwrap(), b"content");
    let error = read(&path, Links::Refused, 6).unwrap_err();
    assert!(error.to_string().contains("larger than 6 bytes") && !error.is_disbelief(), "{error}");
    let error = read(&dir.path().join("none"), Links::Refused, 6).unwrap_err();
    assert!(error.is_not_found() && !error.is_disbelief(), "{error}");
    let error = read(&dir.path().join("no/dir"), Links::Refused, 6).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let error = io::Error::from(read(&dir.path().join("none"), Links::Refused, 6).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

/// On a thread of its own, because a thread's user is the process's for the system calls that it makes.
#[test]
fn another_user_believes_itself_and_root() {
    let (dir, path) = scene();
    mode(dir.path(), 0o755);
    for (owner, refused) in [(0, false), (1337, false), (4242, true)] {
        chown(&path, Some(owner), Some(0)).unwrap();
        let path = path.clone();
        let read = std::thread::spawn(move || {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(1337)).unwrap();
            read(&path, Links::Refused, 100).map_err(|error| error.to_string())
        });
        match read.join().unwrap() {
            Ok(content) => assert!(!refused && content == b"content", "{owner}"),
            Err(text) => assert!(refused && text.contains("files of root or user 1337"), "{text}"),
        }
    }
}
