//! One user of a namespace at a time, and only users with rights.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use netns::{Lock, LockError, NetnsId};
use rundir::LOCKS_NAME;
use testkit::Process;

const ONE: NetnsId = NetnsId { dev: 4, ino: 4_026_531_840 };
const OTHER: NetnsId = NetnsId { dev: 4, ino: u32::MAX as u64 };

#[test]
fn a_namespace_has_one_holder_and_others_are_free() {
    let dir = tempfile::tempdir().unwrap();
    // As where no agent has been: the directory is made.
    let run = dir.path().join("new/run");
    let held = Lock::take(&run, ONE, Duration::ZERO).unwrap().unwrap();
    let start = Instant::now();
    assert!(Lock::take(&run, ONE, Duration::from_millis(50)).unwrap().is_none());
    assert!(start.elapsed() >= Duration::from_millis(50));
    let _free = Lock::take(&run, OTHER, Duration::ZERO).unwrap().unwrap();
    drop(held);
    let _mine = Lock::take(&run, ONE, Duration::ZERO).unwrap().unwrap();
    let file = fs::metadata(run.join(LOCKS_NAME)).unwrap();
    assert_eq!((file.permissions().mode() & 0o777, file.len()), (0o600, 0));
}

#[test]
fn a_waiter_gets_the_lock_when_the_holder_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let held = Lock::take(dir.path(), ONE, Duration::ZERO).unwrap().unwrap();
    let (waiting, is_waiting) = mpsc::channel();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            waiting.send(()).unwrap();
            Lock::take(dir.path(), ONE, Duration::from_secs(60)).map(|lock| lock.is_some())
        });
        is_waiting.recv().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiter.is_finished());
        drop(held);
        assert!(waiter.join().unwrap().unwrap());
    });
}

#[test]
fn a_program_that_goes_on_keeps_the_lock_until_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let held = Lock::take(dir.path(), ONE, Duration::ZERO).unwrap().unwrap();
    let shared = Stdio::from(held.share().unwrap());
    let program = Process::new(Command::new("sleep").arg("60").stdout(shared).spawn().unwrap());
    drop(held);
    assert!(Lock::take(dir.path(), ONE, Duration::ZERO).unwrap().is_none());
    drop(program);
    assert!(Lock::take(dir.path(), ONE, Duration::from_secs(10)).unwrap().is_some());
}

/// Whoever has no rights on the node holds what it can open: flock(2) and byte locks, for reading and for writing.
#[test]
fn an_unprivileged_process_can_hold_nothing_that_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    drop(Lock::take(dir.path(), ONE, Duration::ZERO).unwrap());
    let path = dir.path().join(LOCKS_NAME);
    for open in ["<", ">>"] {
        let mut other = Command::new("setpriv");
        other.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "sh", "-c"]);
        other.arg(format!("exec 3{open}\"$0\" && flock -n 3 && echo held")).arg(&path);
        let output = other.output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("ermission denied"), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    }
    // Root's own flock(2) is another kind of lock, and no reason to wait.
    let file = fs::File::open(&path).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(Lock::take(dir.path(), ONE, Duration::ZERO).unwrap().is_some());
}

#[test]
fn a_file_that_others_can_open_is_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LOCKS_NAME);
    let is_foreign =
        || matches!(Lock::take(dir.path(), ONE, Duration::ZERO).unwrap_err(), LockError::Foreign { .. });
    for mode in [0o644, 0o620, 0o604] {
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(is_foreign(), "{mode:o}");
        fs::remove_file(&path).unwrap();
    }
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(1000), None).unwrap();
    assert!(is_foreign());
    fs::remove_file(&path).unwrap();
    symlink("/dev/null", &path).unwrap();
    assert!(matches!(Lock::take(dir.path(), ONE, Duration::ZERO).unwrap_err(), LockError::File { .. }));
}
