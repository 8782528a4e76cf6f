use std::os::unix::fs::{MetadataExt, symlink};

use facts::PodRef;

use super::*;

fn record(uid: &str) -> PodRecord {
    let key = PodRef { namespace: "shop".into(), name: "web".into(), uid: uid.into() };
    PodRecord {
        netns: Some(Place { path: "/host/netns/a".into(), dev: 4, ino: 4_026_532_001, given: true }),
        ips: vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
        options: RecordedOptions {
            ingress: true,
            dns_capture: Some(false),
            virtual_interfaces: vec!["net1".into()],
        },
        translates: true,
        tcp_loose_before: Some(1),
        ..PodRecord::new(&key, "sa", Stage::Enrolled)
    }
}

/// Without what the directory adds by itself.
fn plain(mut record: PodRecord) -> PodRecord {
    record.boot.clear();
    record
}

fn read(dir: &Path) -> (Vec<PodRecord>, Vec<String>) {
    let (mut records, errors) = Records::new(dir).read();
    records.sort_by(|a, b| a.uid.cmp(&b.uid));
    (records.into_iter().map(plain).collect(), errors.iter().map(ToString::to_string).collect())
}

#[test]
fn what_is_written_is_read_by_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read(dir.path()), (vec![], vec![]), "no directory yet");
    let records = Records::new(dir.path());
    let stages = [Stage::Pending, Stage::Enrolled, Stage::Leaving, Stage::Draining { since: 1_900_000_000 }];
    for (n, stage) in stages.into_iter().enumerate() {
        records.write(PodRecord { stage, ..record(&format!("uid-{n}")) }).unwrap();
    }
    let (found, errors) = read(dir.path());
    assert_eq!(errors, Vec::<String>::new());
    for (n, stage) in stages.into_iter().enumerate() {
        assert_eq!(found[n], PodRecord { stage, ..record(&format!("uid-{n}")) });
    }
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&dir.path().join(AMBIENT_DIR)), 0o700);
    assert_eq!(mode(&dir.path().join(AMBIENT_DIR).join("uid-0.json")), 0o600);
    for n in 0..4 {
        records.remove(&format!("uid-{n}")).unwrap();
    }
    records.remove("uid-0").unwrap();
    records.close();
    assert!(!dir.path().join(AMBIENT_DIR).exists());
}

/// An ambient event must not wait for a disk that has nothing new to keep.
#[test]
fn only_what_differs_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::new(dir.path());
    let file = dir.path().join(AMBIENT_DIR).join("uid.json");
    records.write(record("uid")).unwrap();
    let inode = |file: &Path| std::fs::metadata(file).unwrap().ino();
    let first = inode(&file);
    // Holds the first inode, so that its number is not given away.
    std::fs::hard_link(&file, dir.path().join("held")).unwrap();
    records.write(record("uid")).unwrap();
    assert_eq!(inode(&file), first);
    records.write(PodRecord { stage: Stage::Pending, ..record("uid") }).unwrap();
    assert_ne!(inode(&file), first);
    // Nor what an earlier agent has written.
    let second = inode(&file);
    let next = Records::new(dir.path());
    next.read();
    next.write(PodRecord { stage: Stage::Pending, ..record("uid") }).unwrap();
    assert_eq!(inode(&file), second);
}

#[test]
fn broken_files_are_named_and_the_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::new(dir.path());
    for uid in ["good", "moved", "cut", "large"] {
        records.write(record(uid)).unwrap();
    }
    let file = |name: &str| dir.path().join(AMBIENT_DIR).join(name);
    std::fs::rename(file("moved.json"), file("other.json")).unwrap();
    let text = std::fs::read(file("cut.json")).unwrap();
    std::fs::write(file("cut.json"), &text[..text.len() / 2]).unwrap();
    std::fs::write(file("large.json"), " ".repeat(MAX_FILE) + "{}").unwrap();
    std::fs::create_dir(file("dir.json")).unwrap();
    symlink(file("good.json"), file("link.json")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        file("pipe.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    std::fs::write(file("bad.unfinished"), "x").unwrap();
    let (found, errors) = read(dir.path());
    assert_eq!(found, [record("good")]);
    for says in ["other.json", "cut.json", "large.json", "dir.json", "link.json", "pipe.json"] {
        assert!(errors.iter().any(|error| error.contains(says)), "{says} is not in {errors:?}");
    }
    assert_eq!(errors.len(), 6);
    std::fs::remove_dir(file("dir.json")).unwrap();
    assert!(records.sweep(|uid| uid == "good").is_empty());
    let left: Vec<_> = std::fs::read_dir(dir.path().join(AMBIENT_DIR)).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// Inode numbers come again after a start of the machine.
#[test]
fn a_record_from_before_the_machine_started_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let before = Records { boot: "another".into(), ..Records::new(dir.path()) };
    before.write(record("uid")).unwrap();
    assert_eq!(read(dir.path()), (vec![], vec![]));
    assert!(!dir.path().join(AMBIENT_DIR).join("uid.json").exists());
}

#[test]
fn a_later_agents_record_counts_as_something_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::new(dir.path());
    records.write(record("uid")).unwrap();
    let file = dir.path().join(AMBIENT_DIR).join("uid.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("\"enrolled\"", "\"frozen\",\"temperature\":3");
    std::fs::write(&file, text).unwrap();
    assert_eq!(read(dir.path()).0, [PodRecord { stage: Stage::Other, ..record("uid") }]);
}

#[test]
fn no_uid_leads_out_of_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::new(dir.path());
    for uid in ["", "..", "../x", "a/b", "a.b", "\u{e9}", &"x".repeat(MAX_UID + 1)] {
        let error = records.write(record(uid)).unwrap_err().to_string();
        assert!(error.contains("not the name of a file"), "{uid:?}: {error}");
        records.remove(uid).unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
