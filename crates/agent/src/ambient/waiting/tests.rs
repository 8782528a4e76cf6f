use facts::PodRef;

use super::*;

fn key(uid: &str) -> PodRef {
    PodRef { namespace: "mesh".into(), name: uid.into(), uid: uid.into() }
}

fn seconds(start: Instant, seconds: f64) -> Instant {
    start + Duration::from_secs_f64(seconds)
}

#[test]
fn many_pods_and_tries_make_few_lines() {
    let (waiting, start) = (Waiting::default(), Instant::now());
    let mut told = Vec::new();
    for second in 0..3600 {
        for pod in 0..50 {
            waiting.note(
                &key(&pod.to_string()),
                WaitCause::Ztunnel,
                "none",
                seconds(start, f64::from(second)),
            );
        }
        for line in waiting.lines(seconds(start, f64::from(second))) {
            let WaitLine::Waits { cause: WaitCause::Ztunnel, pods: 50, text, waited } = line else {
                panic!("{line:?}")
            };
            assert_eq!((text, waited.as_secs()), ("none".to_owned(), u64::try_from(second).unwrap()));
            told.push(second);
        }
    }
    assert_eq!(told, [1, 11, 31, 71, 151, 311, 631, 1231, 1831, 2431, 3031]);
    (0..50).for_each(|pod| waiting.over(&pod.to_string()));
    let end = seconds(start, 3600.0);
    let over = WaitLine::Over { cause: WaitCause::Ztunnel, waited: Duration::from_secs(3600) };
    assert_eq!(waiting.lines(end), [over]);
    assert!(waiting.is_quiet() && waiting.lines(end).is_empty());
}

#[test]
fn what_is_over_at_once_is_not_told() {
    let (waiting, start) = (Waiting::default(), Instant::now());
    waiting.note(&key("a"), WaitCause::ApiServer, "away", start);
    assert!(waiting.lines(seconds(start, 0.5)).is_empty() && !waiting.is_quiet());
    waiting.answered("a");
    assert!(waiting.lines(seconds(start, 0.9)).is_empty() && waiting.is_quiet());
}

#[test]
fn a_pod_has_one_event_after_some_tries_and_some_time() {
    let (waiting, start) = (Waiting::default(), Instant::now());
    let note = |at: f64| waiting.note(&key("a"), WaitCause::Ztunnel, "none", seconds(start, at));
    let wants = |at: f64| waiting.wants_event("a", seconds(start, at));
    (0..5).for_each(|_| note(0.0));
    assert!(!wants(0.1), "many tries at once");
    assert!(wants(2.0) && !wants(2.0));
    waiting.missed_event("a");
    assert!(wants(3.0) && !wants(9.0));
    waiting.over("a");
    note(10.0);
    assert!(!wants(20.0), "one try is not enough");
    assert!(!waiting.wants_event("b", seconds(start, 99.0)));
}

#[test]
fn a_success_ends_only_what_it_proves() {
    let (waiting, start) = (Waiting::default(), Instant::now());
    waiting.note(&key("a"), WaitCause::Ztunnel, "none", start);
    waiting.note(&key("b"), WaitCause::HostSide, "not ready", start);
    ["a", "b"].into_iter().for_each(|uid| waiting.answered(uid));
    // Its sandbox was given up, which is no ztunnel.
    assert_eq!((waiting.of(WaitCause::Ztunnel).unwrap().0, waiting.of(WaitCause::HostSide)), (1, None));
    waiting.retain(|key| key.uid == "a");
    assert!(waiting.of(WaitCause::Ztunnel).is_some());
    waiting.retain(|_| false);
    assert!(waiting.of(WaitCause::Ztunnel).is_none());
}

#[test]
fn a_pod_waits_for_one_thing_at_a_time() {
    let (waiting, start) = (Waiting::default(), Instant::now());
    waiting.note(&key("a"), WaitCause::HostSide, "not ready", start);
    waiting.note(&key("a"), WaitCause::Ztunnel, "none", seconds(start, 1.0));
    assert_eq!(waiting.of(WaitCause::HostSide), None);
    assert_eq!(waiting.of(WaitCause::Ztunnel), Some((1, "none".to_owned())));
}
