use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Instant, UNIX_EPOCH};

use tempfile::TempDir;

use super::*;

/// 2026-08-01T09:30:00Z
const NOON: Duration = Duration::from_secs(1_785_576_600);

fn now() -> SystemTime {
    UNIX_EPOCH + NOON
}

fn names(dir: &TempDir) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Longer than a process has, as other tests take the processor.
const PATIENCE: Duration = Duration::from_millis(50);

fn append(file: &mut RollingFile, lines: &[u8], now: SystemTime) -> io::Result<()> {
    file.append(lines, now, &mut PATIENCE.clone())
}

#[test]
fn lines_are_appended_to_a_private_file() {
    let dir = TempDir::new().unwrap();
    let run_dir = dir.path().join("not/yet");
    let mut file = RollingFile::new(&run_dir, FILE_MAX_BYTES);
    append(&mut file, b"one\n", now()).unwrap();
    append(&mut file, b"two\n", now()).unwrap();
    append(&mut RollingFile::new(&run_dir, FILE_MAX_BYTES), b"three\n", now()).unwrap();
    let path = run_dir.join(FILE_NAME);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_full_file_becomes_the_only_backup() {
    let dir = TempDir::new().unwrap();
    let mut file = RollingFile::new(dir.path(), 10);
    append(&mut file, b"123456789\n", now()).unwrap();
    assert_eq!(names(&dir), ["istio-cni.log"]);
    append(&mut file, b"a\n", now()).unwrap();
    assert_eq!(names(&dir), ["istio-cni-2026-08-01T09-30-00.000.log", "istio-cni.log"]);
    append(&mut file, b"abcdefgh\n", now() + Duration::from_millis(1500)).unwrap();
    assert_eq!(names(&dir), ["istio-cni-2026-08-01T09-30-01.500.log", "istio-cni.log"]);
    let backup = dir.path().join("istio-cni-2026-08-01T09-30-01.500.log");
    assert_eq!(std::fs::read_to_string(&backup).unwrap(), "a\n");
    assert_eq!(std::fs::metadata(backup).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "abcdefgh\n");
}

#[test]
fn the_limit_is_ten_megabytes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE_NAME);
    File::create(&path).unwrap().set_len(10 * 1024 * 1024 - 4).unwrap();
    let mut file = RollingFile::new(dir.path(), FILE_MAX_BYTES);
    append(&mut file, b"fit\n", now()).unwrap();
    assert_eq!(names(&dir).len(), 1);
    append(&mut file, b"x\n", now()).unwrap();
    assert_eq!(names(&dir).len(), 2);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n");
}

#[test]
fn backups_older_than_two_days_and_all_but_the_newest_go() {
    let dir = TempDir::new().unwrap();
    let put = |name: &str| std::fs::write(dir.path().join(name), "x").unwrap();
    put("istio-cni-2026-07-30T09-30-00.000.log"); // exactly two days: stays if it is the newest
    put("istio-cni-2026-07-29T00-00-00.000.log");
    put("istio-cni-kubeconfig");
    put("istio-cni-2026-07-29T00-00-00.log");
    put("istio-cni-2020-01-01T00-00-00.000.log.gz");
    append(&mut RollingFile::new(dir.path(), FILE_MAX_BYTES), b"x\n", now()).unwrap();
    let others = ["istio-cni-2020-01-01T00-00-00.000.log.gz", "istio-cni-2026-07-29T00-00-00.log"];
    let kept = ["istio-cni-2026-07-30T09-30-00.000.log", "istio-cni-kubeconfig", "istio-cni.log"];
    assert_eq!(names(&dir), [&others[..], &kept[..]].concat());

    let later = now() + Duration::from_millis(1);
    append(&mut RollingFile::new(dir.path(), FILE_MAX_BYTES), b"x\n", later).unwrap();
    assert_eq!(names(&dir), [&others[..], &kept[1..]].concat());
}

#[test]
fn processes_that_write_at_once_lose_no_line_and_keep_the_limit() {
    const WRITERS: usize = 8;
    const LINES: usize = 200;
    const LIMIT: u64 = 16 * 1024;
    let dir = TempDir::new().unwrap();
    // flock belongs to an open file description, so threads that open on their own exclude each other as processes do.
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let dir = &dir;
            scope.spawn(move || {
                for n in 0..LINES {
                    let line = format!("{writer:02}:{n:04}:{}\n", "x".repeat(40));
                    append(&mut RollingFile::new(dir.path(), LIMIT), line.as_bytes(), SystemTime::now())
                        .unwrap();
                }
            });
        }
    });
    let names = names(&dir);
    assert_eq!(names.len(), 2, "{names:?}");
    for name in names {
        let text = std::fs::read_to_string(dir.path().join(&name)).unwrap();
        assert!(text.len() as u64 <= LIMIT, "{name}: {}", text.len());
        assert!(text.lines().all(|line| line.len() == 48 && line.ends_with('x')), "{name} has a torn line");
    }
}

#[test]
fn a_file_that_is_renamed_while_we_wait_for_its_lock_is_not_written() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE_NAME);
    std::fs::write(&path, "old\n").unwrap();
    let holder = File::open(&path).unwrap();
    holder.lock().unwrap();
    std::thread::scope(|scope| {
        let writer =
            scope.spawn(|| append(&mut RollingFile::new(dir.path(), FILE_MAX_BYTES), b"new\n", now()));
        std::thread::sleep(PATIENCE / 5);
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        drop(holder);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("moved")).unwrap(), "old\n");
}

#[test]
fn a_stuck_lock_holder_delays_but_stops_nobody() {
    let dir = TempDir::new().unwrap();
    let mut file = RollingFile::new(dir.path(), 12);
    append(&mut file, b"one\n", now()).unwrap();
    let holder = File::open(file.path()).unwrap();
    holder.lock().unwrap();
    let started = Instant::now();
    append(&mut file, b"two\n", now()).unwrap();
    assert!(started.elapsed() < PATIENCE * 10, "{:?}", started.elapsed());
    let err = append(&mut file, b"does not fit\n", now()).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "one\ntwo\n");
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let dir = TempDir::new().unwrap();
    let mut file = RollingFile::new(dir.path(), FILE_MAX_BYTES);
    let target = dir.path().join("target");
    std::fs::write(&target, "").unwrap();
    symlink(&target, file.path()).unwrap();
    append(&mut file, b"x\n", now()).unwrap_err();
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "");
    std::fs::remove_file(file.path()).unwrap();

    rustix::fs::mkfifoat(rustix::fs::CWD, file.path(), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .unwrap();
    append(&mut file, b"x\n", now()).unwrap_err();
    std::fs::remove_file(file.path()).unwrap();

    std::fs::create_dir(file.path()).unwrap();
    append(&mut file, b"x\n", now()).unwrap_err();
}

#[test]
fn a_run_directory_that_is_a_file_fails_the_write_only() {
    let dir = TempDir::new().unwrap();
    let in_the_way = dir.path().join("run");
    std::fs::write(&in_the_way, "").unwrap();
    append(&mut RollingFile::new(&in_the_way, FILE_MAX_BYTES), b"x\n", now()).unwrap_err();
    assert_eq!(std::fs::read_to_string(&in_the_way).unwrap(), "");
}
