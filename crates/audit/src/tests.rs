//! Files as they are on a disk: rotation, faults, and what people do to them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::*;

const SCHEMA: &str = "test/v1";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn limits(bytes: u64) -> FileLimits {
    FileLimits { bytes, age: DAY, files: 1000, keep: 7 * DAY, gid: None }
}

fn set(dir: &Path) -> FileSet {
    FileSet::of(&dir.join("audit.jsonl")).unwrap()
}

fn open(dir: &Path, bytes: u64) -> (ChainWriter, ChainStart) {
    ChainWriter::open(set(dir), SCHEMA, limits(bytes), SystemTime::now()).unwrap()
}

fn write(writer: &mut ChainWriter, count: u64) {
    for _ in 0..count {
        let body = format!(r#"{{"n":{},"text":"{}"}}"#, writer.link().seq + 1, "x".repeat(50));
        writer.append(SystemTime::now(), &[&body]).unwrap();
    }
}

fn check(dir: &Path) -> Result<Option<Verified>, BrokenChain> {
    verify(&set(dir).list().unwrap(), &[])
}

/// With all rotated files packed: a writer packs what one before has left.
fn packed(dir: &Path) -> Vec<PathBuf> {
    drop(open(dir, 1 << 20));
    let files = set(dir).list().unwrap();
    assert!(files.iter().rev().skip(1).all(|path| is_packed(path)), "{files:?}");
    files
}

#[test]
fn a_chain_goes_on_over_files_and_writers() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let (mut writer, start) = open(dir.path(), 2000);
        assert_eq!(start, if round == 0 { ChainStart::New } else { ChainStart::Continued });
        write(&mut writer, 40);
    }
    let files = packed(dir.path());
    assert!(files.len() > 10, "{files:?}");
    let verified = check(dir.path()).unwrap().unwrap();
    assert_eq!((verified.lines, verified.first, verified.last.seq), (200, 1, 200));
    for path in files {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640, "{path:?}");
    }
}

#[test]
fn a_line_that_was_torn_is_removed_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("audit.jsonl");
    write(&mut open(dir.path(), 1 << 20).0, 10);
    let whole = fs::read(&live).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for cut in last + 1..whole.len() {
        fs::write(&live, &whole[..cut]).unwrap();
        let (mut writer, start) = open(dir.path(), 1 << 20);
        assert_eq!((start, writer.link().seq), (ChainStart::Torn, 9), "cut at {cut}");
        write(&mut writer, 2);
        assert_eq!(check(dir.path()).unwrap().unwrap().last.seq, 11);
    }
}

/// What people may do to files, and the words by which it is found.
#[test]
fn what_was_changed_removed_swapped_or_cut_off_is_found() {
    type Deed = fn(&[PathBuf]);
    fn edit(path: &Path, change: impl Fn(&mut Vec<&str>)) {
        let text = fs::read_to_string(path).unwrap();
        let mut lines = text.lines().collect();
        change(&mut lines);
        fs::write(path, lines.join("\n") + "\n").unwrap();
    }
    let deeds: [(&str, Deed, &str); 6] = [
        ("nothing", |_| (), ""),
        (
            "edited",
            |files| {
                let text = fs::read_to_string(files.last().unwrap()).unwrap();
                fs::write(files.last().unwrap(), text.replacen("xxx", "yyy", 1)).unwrap();
            },
            "line 1 does not have the hash",
        ),
        ("a line deleted", |files| edit(files.last().unwrap(), |lines| _ = lines.remove(1)), "are missing"),
        ("a file deleted", |files| fs::remove_file(&files[3]).unwrap(), "are missing"),
        (
            "files swapped",
            |files| {
                let other = files[0].with_extension("other");
                fs::rename(&files[2], &other).unwrap();
                fs::rename(&files[3], &files[2]).unwrap();
                fs::rename(&other, &files[3]).unwrap();
            },
            "not in their order",
        ),
        (
            "the end cut off",
            |files| edit(files.last().unwrap(), |lines| _ = lines.pop()),
            "missing at the end",
        ),
    ];
    for (name, deed, words) in deeds {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(dir.path(), 2000).0;
        write(&mut writer, 45);
        let anchor = Anchor { seq: writer.link().seq, hash_prefix: writer.link().hash[..16].to_owned() };
        drop(writer);
        deed(&packed(dir.path()));
        match verify(&set(dir.path()).list().unwrap(), &[anchor]) {
            Ok(_) => assert_eq!(words, "", "{name} is not found"),
            Err(broken) => {
                assert!(!words.is_empty() && broken.to_string().contains(words), "{name}: {broken}");
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    write(&mut open(dir.path(), 2000).0, 5);
    let anchor = Anchor { seq: 3, hash_prefix: "0123".to_owned() };
    let broken = verify(&set(dir.path()).list().unwrap(), &[anchor]).unwrap_err();
    assert!(broken.to_string().contains("written anew"), "{broken}");
}

#[test]
fn a_broken_end_is_told_and_numbers_do_not_come_again() {
    let dir = tempfile::tempdir().unwrap();
    write(&mut open(dir.path(), 1 << 20).0, 10);
    let live = dir.path().join("audit.jsonl");
    let text = fs::read_to_string(&live).unwrap();
    fs::write(&live, text + "{\"of\":\"another\"}\n").unwrap();
    let (mut writer, start) = open(dir.path(), 1 << 20);
    assert_eq!((start, writer.link().seq), (ChainStart::Broken, 10));
    write(&mut writer, 1);
    assert!(check(dir.path()).unwrap_err().to_string().contains("line 11"));
}

#[test]
fn old_and_surplus_files_are_removed_from_the_oldest_on() {
    let dir = tempfile::tempdir().unwrap();
    write(&mut open(dir.path(), 2000).0, 100);
    let files = packed(dir.path());
    let now = SystemTime::now();
    // The third is newer than those before it, so that those behind it stay however old they are.
    for path in files.iter().take(2).chain(files.iter().skip(3).take(1)) {
        fs::File::options().append(true).open(path).unwrap().set_modified(now - 8 * DAY).unwrap();
    }
    drop(open(dir.path(), 2000));
    assert_eq!(set(dir.path()).list().unwrap(), files[2..]);
    let limits = FileLimits { files: 3, ..limits(2000) };
    drop(ChainWriter::open(set(dir.path()), SCHEMA, limits, now).unwrap());
    assert_eq!(set(dir.path()).list().unwrap(), files[files.len() - 4..]);
    let verified = check(dir.path()).unwrap().unwrap();
    assert!(verified.first > 1 && verified.last.seq == 100, "{verified:?}");
}

#[test]
fn files_of_days_are_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let set = FileSet { dir: dir.path().to_owned(), naming: Naming::Daily("usage".to_owned()) };
    let limits = FileLimits { files: 35, keep: 100 * DAY, ..limits(0) };
    let begin = SystemTime::now();
    let (mut writer, _) = ChainWriter::open(set.clone(), SCHEMA, limits, begin).unwrap();
    for day in 0..40 {
        writer.append(begin + day * DAY, &["{\"a\":1}", "{\"a\":2}"]).unwrap();
    }
    let files = set.list().unwrap();
    assert_eq!(files.len(), 36, "35 and the one that is written");
    assert_eq!(files[35], set.live(begin + 39 * DAY));
    let verified = verify(&files, &[]).unwrap().unwrap();
    assert_eq!((verified.first, verified.last.seq), (9, 80));
}

#[test]
fn a_file_that_was_moved_away_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path(), 1 << 20).0;
    write(&mut writer, 3);
    fs::rename(dir.path().join("audit.jsonl"), dir.path().join("elsewhere")).unwrap();
    writer.sync().unwrap();
    write(&mut writer, 2);
    let verified = check(dir.path()).unwrap().unwrap();
    assert_eq!((verified.first, verified.last.seq), (4, 5));
}
