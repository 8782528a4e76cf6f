//! The thread with real files: a disk that is not there, agents that follow one another.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rundir::denials::DenyingPolicies;

use super::*;
use crate::event::{AUDIT_GAP, AUDIT_START};
use crate::files::lines;

const PATIENCE: Duration = Duration::from_secs(20);

fn start(path: &Path) -> AuditLog {
    let day = Duration::from_secs(24 * 3600);
    let config = LogConfig {
        path: Some(path.to_owned()),
        to_stdout: false,
        limits: FileLimits { bytes: 50 << 20, age: day, files: 5, keep: 7 * day, gid: None },
        node: "n1".to_owned(),
        boot_id: "boot".to_owned(),
        version: "1".to_owned(),
        options: BTreeMap::new(),
        tell: Box::new(|_| ()),
    };
    AuditLog::start(config).unwrap()
}

fn rule() -> RuleKey {
    RuleKey { netns: 7, id: "ic1:1".to_owned() }
}

/// About one packet.
fn event() -> AuditEvent {
    let policy = Some(DenyingPolicies { id: rule().id, ..DenyingPolicies::default() });
    AuditEvent {
        policy,
        packets: Some(1),
        netns: rule().netns,
        ..AuditEvent::plain("policy_violation", "n1")
    }
}

fn read(path: &Path) -> Vec<AuditEvent> {
    let files = FileSet::of(path).unwrap().list().unwrap();
    let lines = files.iter().flat_map(|file| lines(file).unwrap().map(Result::unwrap));
    lines.map(|line| AuditEvent::read(&line.text).unwrap()).collect()
}

fn sum(events: &[AuditEvent]) -> u64 {
    events.iter().filter_map(|event| event.accounted()).map(|(_, packets)| packets).sum()
}

#[test]
fn what_finds_no_room_is_stated_when_the_disk_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let (blocker, path) = (dir.path().join("log"), dir.path().join("log/audit.jsonl"));
    std::fs::write(&blocker, "").unwrap();
    let log = start(&path);
    let began = Instant::now();
    (0..6000).for_each(|_| log.push(event()));
    println!("6,000 events in {:?} without a disk", began.elapsed());
    let lost = log.standing().lost_events;
    assert!(lost > 1000, "{lost}");
    std::fs::remove_file(&blocker).unwrap();
    log.flush(PATIENCE).unwrap();
    log.stop(PATIENCE);
    let events = read(&path);
    let gap = events.iter().find(|event| event.kind == AUDIT_GAP).unwrap();
    assert_eq!((gap.lost_events, gap.place.as_str(), sum(&events)), (lost, "disk", 6000));
}

#[test]
fn a_line_that_no_file_takes_is_told_as_lost_and_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let log = start(&path);
    let long = AuditEvent { after: "x".repeat(70 << 10), ..event() };
    for event in [event(), long, event(), event()] {
        log.push(event);
    }
    log.flush(PATIENCE).unwrap();
    // What is lost is told with what comes next.
    log.push(event());
    log.stop(PATIENCE).unwrap();
    let events = read(&path);
    let gap: Vec<&AuditEvent> = events.iter().filter(|event| event.kind == AUDIT_GAP).collect();
    assert_eq!((gap.len(), gap[0].lost, gap[0].lost_events), (1, Some(1), 1), "{events:#?}");
    assert_eq!(events.iter().filter(|event| event.kind == "policy_violation").count(), 4);
    assert_eq!(sum(&events), 5);
}

#[test]
fn the_next_agent_knows_what_lines_tell_of_a_rule() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let log = start(&path);
    assert_eq!(log.before(PATIENCE), Some(Before::default()));
    (0..10).for_each(|_| log.push(event()));
    let link = log.flush(PATIENCE).unwrap();
    log.keep("boot", &link, vec![(rule(), 10)]).unwrap();
    (0..5).for_each(|_| log.push(event()));
    log.flush(PATIENCE).unwrap();
    // As a kill leaves it.
    let killed = tempfile::tempdir().unwrap();
    for entry in dir.path().read_dir().unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), killed.path().join(entry.file_name())).unwrap();
    }
    log.stop(PATIENCE);
    for (path, after) in [(path, "stop"), (killed.path().join("audit.jsonl"), "unclean")] {
        let log = start(&path);
        let before = log.before(PATIENCE).unwrap();
        assert_eq!((before.is_known, before.rules.get(&rule())), (true, Some(&15)), "{after}");
        log.stop(PATIENCE);
        let starts: Vec<String> = read(&path)
            .into_iter()
            .filter(|event| event.kind == AUDIT_START)
            .map(|event| event.after)
            .collect();
        assert_eq!(starts, ["new", after]);
        assert!(crate::verify(&FileSet::of(&path).unwrap().list().unwrap(), &[]).is_ok());
    }
}
