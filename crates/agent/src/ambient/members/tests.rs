#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::json;
use zds::Snapshot;

use super::*;

/// A pod in this process's namespace, with everything that makes it a member that is in.
fn complete(state: State) -> Member {
    let pod = json!({"kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "u"}});
    let (mut member, _) = Member::of(&serde_json::from_value(pod).unwrap());
    member.netns = Some(Arc::new(Netns::current().unwrap()));
    (member.state, member.look, member.ruled, member.probed) = (state, Look::AsPlanned, true, true);
    member.listed = true;
    member.acked.set(true);
    member
}

/// What a member may lack, and how it comes to.
type Lack = (&'static str, fn(&mut Member));

fn noted(member: &Member) -> State {
    let members = Members::default();
    members.put(member);
    members.state("u").unwrap()
}

#[test]
fn only_what_was_seen_is_in() {
    for state in [State::Enrolled, State::Unconfirmed] {
        assert_eq!(noted(&complete(state)), State::Enrolled);
        let lacks: [Lack; 6] = [
            ("namespace", |member| member.netns = None),
            ("a look", |member| member.look = Look::Unknown),
            ("our rules", |member| member.look = Look::Left),
            ("any rules", |member| member.ruled = false),
            ("probes", |member| member.probed = false),
            ("ztunnel", |member| member.acked.set(false)),
        ];
        let without = if state == State::Enrolled { State::Pending } else { State::Unconfirmed };
        for (what, take) in lacks {
            let mut member = complete(state);
            take(&mut member);
            assert_eq!(noted(&member), without, "{state:?} without {what}");
        }
    }
    for state in [State::Pending, State::Leaving, State::Draining] {
        assert_eq!(noted(&complete(state)), state);
    }
}

/// Whoever works on a pod has a copy from before a ztunnel's answer, and notes it afterwards.
#[test]
fn an_answer_outlasts_copies_from_before() {
    let members = Members::default();
    let told = Arc::new(Mutex::new(0));
    let count = told.clone();
    members.on_unsettled(move |_| *count.lock().unwrap() += 1);
    for before in [State::Enrolled, State::Unconfirmed] {
        members.put(&complete(before));
        let copy = members.get("u").unwrap();
        let entry = members.entries().pop().unwrap();
        members.answered(&entry, Err("no"));
        assert_eq!(members.state("u"), Some(State::Pending));
        members.put(&Member { state: before, ..copy });
        assert_eq!(members.state("u"), Some(State::Pending), "{before:?}");
    }
    assert_eq!(*told.lock().unwrap(), 2);
    // A Keep, and an answer about a sandbox that was replaced, say nothing.
    let entry = members.entries().pop().unwrap();
    members.answered(&Entry { netns: None, ..entry }, Ok(()));
    let old = members.entries().pop().unwrap();
    let mut member = members.get("u").unwrap();
    member.move_to_keeping(Netns::current().unwrap());
    members.put(&member);
    members.answered(&old, Ok(()));
    assert!(!members.get("u").unwrap().acked.get());
    assert_eq!(*told.lock().unwrap(), 2);
}
