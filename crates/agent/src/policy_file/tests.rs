use policy::snapshot::PolicySnapshot;
use rundir::policy::PrepareAnswer;
use telemetry::{Journal, Levels};

use super::*;
use crate::policy_socket::tests::FakePolicies;

fn snapshot(node: &str) -> PolicySnapshot {
    PolicySnapshot { node: vec![node.parse().unwrap()], ..PolicySnapshot::default() }
}

fn read(path: &Path) -> PolicySnapshot {
    PolicySnapshot::from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

fn log() -> Scope {
    Journal::new(Levels::default(), false, std::io::sink()).unwrap().scope("test")
}

async fn settle() {
    // Longer than a write takes; time passes only when nothing else is to be done.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn it_is_written_when_something_changed_and_not_more_often_than_it_is_worth() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(rundir::POLICIES_NAME);
    let policies = FakePolicies::new(Duration::ZERO, Ok(PrepareAnswer::default()));
    let task = tokio::spawn(live(dir.path().to_owned(), policies.clone(), log()));
    settle().await;
    assert!(!path.exists());
    let know = |node| {
        *policies.snapshot.lock().unwrap() = Some(snapshot(node));
        policies.known.send_modify(|number| *number += 1);
    };
    know("10.0.0.1");
    settle().await;
    assert_eq!(read(&path), snapshot("10.0.0.1"));
    know("10.0.0.2");
    tokio::time::sleep(PAUSE - Duration::from_secs(1)).await;
    assert_eq!(read(&path), snapshot("10.0.0.1"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(read(&path), snapshot("10.0.0.2"));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn its_time_says_when_it_was_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(rundir::POLICIES_NAME);
    let policies = FakePolicies::new(Duration::ZERO, Ok(PrepareAnswer::default()));
    let earlier = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    *policies.snapshot.lock().unwrap() = Some(snapshot("10.0.0.1"));
    *policies.known_at.lock().unwrap() = Some(earlier);
    let task = tokio::spawn(live(dir.path().to_owned(), policies.clone(), log()));
    settle().await;
    let kept = super::read(&path).unwrap().unwrap();
    assert_eq!((kept.snapshot, kept.as_of), (snapshot("10.0.0.1"), earlier));
    // The same is known now.
    *policies.known_at.lock().unwrap() = None;
    policies.known.send_modify(|number| *number += 1);
    tokio::time::sleep(PAUSE + Duration::from_secs(1)).await;
    let age = super::read(&path).unwrap().unwrap().as_of.elapsed().unwrap();
    assert!(age < Duration::from_secs(600), "{age:?}");
    task.abort();
}

#[test]
fn what_cannot_be_read_is_told_from_what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(rundir::POLICIES_NAME);
    assert!(super::read(&path).unwrap().is_none());
    let whole = snapshot("10.0.0.1").to_bytes();
    for (content, why) in [
        (&b"istio-cni policies 1\nend 1\n"[..], "another version"),
        (&whole[..whole.len() - 2], "not whole"),
        (b"", "no snapshot"),
    ] {
        write(&path, content).unwrap();
        let error = super::read(&path).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
