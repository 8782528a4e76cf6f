//! The executor against an API server and a disk that refuse, at each call.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Mutex;

use intent::sidecar::Labelled;

use super::*;

/// How a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Done,
    Gone,
    NoRight,
    Away,
}

const ANSWERS: [Answer; 4] = [Answer::Done, Answer::Gone, Answer::NoRight, Answer::Away];

/// What was asked, and how the next calls are answered; those after them are done.
#[derive(Debug, Default)]
struct Outside {
    asked: Mutex<Vec<(&'static str, Answer)>>,
    answers: Mutex<Vec<Answer>>,
}

impl Outside {
    fn answering(answers: &[Answer]) -> Self {
        Self { answers: Mutex::new(answers.iter().rev().copied().collect()), ..Self::default() }
    }

    fn call(&self, what: &'static str) -> Answer {
        let answer = self.answers.lock().unwrap().pop().unwrap_or(Answer::Done);
        self.asked.lock().unwrap().push((what, answer));
        answer
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().unwrap().iter().map(|(what, _)| *what).collect()
    }

    fn done(&self, what: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|call| **call == (what, Answer::Done)).count()
    }

    fn api(&self, what: &'static str) -> Result<(), WriteRefused> {
        let error = || cluster::Error::ClosedEarly { operation: what.to_owned() };
        match self.call(what) {
            Answer::Done => Ok(()),
            Answer::Gone => Err(WriteRefused::Gone),
            Answer::NoRight => Err(WriteRefused::NoRight(error())),
            Answer::Away => Err(WriteRefused::Other(error())),
        }
    }
}

impl SidecarPorts for Outside {
    async fn delete(&self, _: &PodRef) -> Result<(), WriteRefused> {
        self.api("delete")
    }

    async fn label(&self, _: &PodRef) -> Result<(), WriteRefused> {
        self.api("label")
    }

    async fn tell(&self, _: &PodRef, _: &Start) -> Result<(), WriteRefused> {
        self.api("tell")
    }

    fn settle(&self, _: &PodRef, _: &Start) -> Result<(), MarkFailure> {
        match self.call("settle") {
            Answer::Done => Ok(()),
            _ => {
                Err(MarkFailure::Note { path: "note".into(), cause: io::ErrorKind::PermissionDenied.into() })
            }
        }
    }
}

fn pod() -> PodRef {
    PodRef { uid: "u1".to_owned(), ..PodRef::named("shop", "web") }
}

fn note(capture: Capture) -> Start {
    Start::new(StartEvidence::Note("c0ffee.json".into()), capture)
}

/// Works on the start until nothing fails any more, as the queue does; how often that was.
async fn work(outside: &Outside, start: Start, wanted: Aim) -> (StartRecords, usize) {
    let records = StartRecords::default();
    let evidence = start.evidence.clone();
    records.add(pod(), start);
    for tries in 1..20 {
        let start = records.start(&pod(), &evidence).unwrap();
        if carry_out(outside, &records, &pod(), start, wanted).await.is_ok() {
            return (records, tries);
        }
    }
    panic!("it never ends: {outside:?}");
}

/// Every way in which the first three calls can be answered.
fn ways() -> impl Iterator<Item = [Answer; 3]> {
    let each = || ANSWERS.into_iter();
    each().flat_map(move |a| each().flat_map(move |b| each().map(move |c| [a, b, c])))
}

#[tokio::test]
async fn whatever_is_refused_a_start_is_settled_and_nobody_is_told_twice() {
    for start in [note(Capture::None), note(Capture::Part), Start::new(StartEvidence::Times, Capture::None)] {
        for way in ways() {
            let outside = Outside::answering(&way);
            let (records, _) = work(&outside, start.clone(), Aim::Captured).await;
            let known = records.start(&pod(), &start.evidence).unwrap();
            assert!(known.have.settled && known.have.told, "{way:?}: {outside:?}");
            assert_eq!(outside.done("settle"), 1, "{way:?}: {outside:?}");
            assert!(outside.done("label") <= 1 && outside.done("tell") <= 1, "{way:?}: {outside:?}");
            let labelled = outside.asked().contains(&"label");
            assert_eq!(labelled, start.have.capture == Capture::None, "{way:?}: {outside:?}");
            let gone = outside.asked.lock().unwrap().iter().any(|(_, answer)| *answer == Answer::Gone);
            let no_right = outside.asked.lock().unwrap().contains(&("tell", Answer::NoRight));
            assert!(outside.done("tell") == 1 || gone || no_right, "{way:?}: {outside:?}");
        }
    }
}

#[tokio::test]
async fn a_pod_that_is_not_one_to_capture_is_settled_and_nothing_is_said_of_it() {
    let outside = Outside::answering(&[Answer::Away]);
    let (_, tries) = work(&outside, note(Capture::None), Aim::LeftAlone).await;
    assert_eq!((outside.asked(), tries), (vec!["settle", "settle"], 2));
}

/// The right may come with the chart's next objects.
#[tokio::test]
async fn an_event_without_a_right_is_tried_some_times_and_a_label_once() {
    let mut answers = vec![Answer::NoRight; 20];
    let older = Start::new(StartEvidence::Times, Capture::None);
    answers[7] = Answer::Done;
    let outside = Outside::answering(&answers);
    let (records, tries) = work(&outside, older, Aim::Captured).await;
    assert_eq!(tries, TRIES as usize + 1);
    let expected = [vec!["label"], vec!["tell"; TRIES as usize + 1], vec!["settle"]].concat();
    assert_eq!(outside.asked(), expected);
    assert_eq!(records.start(&pod(), &StartEvidence::Times).unwrap().have.label, Labelled::Barred);

    let outside = Outside::answering(&[Answer::NoRight]);
    let (_, tries) = work(&outside, note(Capture::Part), Aim::Captured).await;
    assert_eq!((outside.asked(), tries), (vec!["tell", "settle"], 1));
}

/// One that is found to be captured while the API server is asked is forgotten.
#[tokio::test]
async fn nothing_more_is_done_for_a_start_that_is_forgotten() {
    let outside = Outside::default();
    let records = StartRecords::default();
    let start = note(Capture::None);
    carry_out(&outside, &records, &pod(), start, Aim::Captured).await.unwrap();
    assert_eq!(outside.asked(), ["label"]);
}

#[test]
fn the_others_wait_where_the_server_has_not_answered_about_this_pod() {
    let api = || cluster::Error::ClosedEarly { operation: "label".to_owned() };
    assert!(MarkFailure::Api(api()).is_of_the_server());
    assert!(!MarkFailure::NoRight(api()).is_of_the_server());
    let note = MarkFailure::Note { path: "note".into(), cause: io::ErrorKind::PermissionDenied.into() };
    assert!(!note.is_of_the_server() && note.retry() == Retry::Backoff);
}
