#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use intent::{Act, Look};
use serde_json::json;
use zds::Snapshot;

use super::*;

/// A pod in this process's namespace, with everything that makes it a member that is in.
fn complete(state: MemberState) -> Member {
    let pod = json!({"kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "u"}});
    let (mut member, _) = Member::of(&serde_json::from_value(pod).unwrap());
    member.move_to_keeping(Netns::current().unwrap());
    for act in [Act::AddProbes, Act::TellZtunnel, Act::LoadRules { spare: true }] {
        member.have.begin(&act);
        member.have.after(&act, 0);
    }
    Member { state, ..member }
}

/// What a member may lack, and how it comes to.
type Lack = (&'static str, fn(&mut Member));

fn noted(member: Member) -> MemberState {
    let members = MeshMembers::default();
    members.insert(member);
    members.state("u").unwrap()
}

#[test]
fn only_what_was_seen_is_in() {
    for state in [MemberState::Enrolled, MemberState::Unconfirmed] {
        assert_eq!(noted(complete(state)), MemberState::Enrolled);
        let lacks: [Lack; 6] = [
            ("namespace", |member| member.netns = None),
            ("a look", |member| member.have.see(Observation::Rules(Look::Unknown))),
            ("our rules", |member| member.have.see(Observation::Rules(Look::Left))),
            ("any rules", |member| member.have.after(&Act::RemoveRules, 0)),
            ("probes", |member| member.have.begin(&Act::RemoveProbes)),
            ("ztunnel", |member| member.have.begin(&Act::RemoveFromZtunnel)),
        ];
        let without =
            if state == MemberState::Enrolled { MemberState::Pending } else { MemberState::Unconfirmed };
        for (what, take) in lacks {
            let mut member = complete(state);
            take(&mut member);
            assert_eq!(noted(member), without, "{state:?} without {what}");
        }
    }
    for state in [MemberState::Pending, MemberState::Leaving] {
        assert_eq!(noted(complete(state)), state);
    }
    let mut drains = complete(MemberState::Leaving);
    drains.have.after(&Act::Drain, 7);
    assert_eq!(noted(drains), MemberState::Draining);
}

/// An answer is noted in between what a worker notes.
#[test]
fn an_answer_counts_until_there_is_another() {
    let members = MeshMembers::default();
    let told = Arc::new(Mutex::new(0));
    let count = told.clone();
    members.on_unsettled(move |_| *count.lock().unwrap() += 1);
    for before in [MemberState::Enrolled, MemberState::Unconfirmed] {
        members.insert(complete(before));
        let entry = members.entries().pop().unwrap();
        members.answered(&entry, Err("no"));
        assert_eq!(members.state("u"), Some(MemberState::Pending));
        members.change("u", |member| member.state = before);
        assert_eq!(members.state("u"), Some(MemberState::Pending), "{before:?}");
    }
    assert_eq!(*told.lock().unwrap(), 2);
    // A Keep, and an answer about a sandbox that was replaced, say nothing.
    let entry = members.entries().pop().unwrap();
    members.answered(&Entry { netns: None, ..entry }, Ok(()));
    let old = members.entries().pop().unwrap();
    members.change("u", |member| member.move_to_keeping(Netns::current().unwrap()));
    members.answered(&old, Ok(()));
    assert_ne!(members.get("u").unwrap().have.ztunnel, Ztunnel::Taken);
    assert_eq!(*told.lock().unwrap(), 2);
}

/// Whoever has compared may have begun before the pod's rules went.
#[test]
fn a_comparison_says_nothing_of_rules_that_are_gone() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let (members, told) = (MeshMembers::default(), Arc::new(AtomicUsize::new(0)));
    members.insert(complete(MemberState::Enrolled));
    let counted = told.clone();
    members.on_change(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    assert!(members.see_as_planned("u").is_none(), "that is known");
    assert_eq!(told.load(Ordering::Relaxed), 0, "and nobody has to look at all pods for it");
    members.change("u", |member| member.have.see(Observation::Rules(Look::Due)));
    let before = members.see_as_planned("u").unwrap();
    assert_eq!(before.have.look(), Some(Look::Due));
    assert_eq!(members.get("u").unwrap().have.look(), Some(Look::AsPlanned));
    for gone in [Act::Drain, Act::RemoveRules] {
        members.change("u", |member| member.have.after(&gone, 7));
        let before = members.get("u").unwrap().have;
        assert!(
            members.see_as_planned("u").is_none() && members.get("u").unwrap().have == before,
            "{gone:?}"
        );
    }
}
