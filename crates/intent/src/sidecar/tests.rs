//! Whatever is known of a start, its acts end, and no prefix of them says of a captured pod that it is not.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// More acts than any start takes.
const MOST: usize = 8;

prop_compose! {
    fn have()(
        capture in select(&[Capture::Whole, Capture::Part, Capture::None][..]),
        label in select(&[Labelled::Missing, Labelled::Given, Labelled::Barred][..]),
        removal in select(&[Removal::Unwanted, Removal::Due, Removal::Done][..]),
        (told, settled) in (any::<bool>(), any::<bool>()),
    ) -> Started {
        Started { capture, label, removal, told, settled }
    }
}

/// What comes of an act.
#[derive(Debug, Clone, Copy)]
enum Came {
    Done,
    Failed,
    Seen(Hindrance),
}

fn wants() -> impl Strategy<Value = Aim> {
    select(&[Aim::Captured, Aim::LeftAlone][..])
}

fn outcomes() -> impl Strategy<Value = Vec<Came>> {
    let seen = [Hindrance::Gone, Hindrance::NoLabels, Hindrance::NoEvents].map(Came::Seen);
    prop::collection::vec(select([&[Came::Done, Came::Failed][..], &seen[..]].concat()), 0..6)
}

/// What can come of this act.
fn fits(act: Step, came: Came) -> bool {
    match came {
        Came::Done | Came::Failed => true,
        Came::Seen(Hindrance::Gone) => act != Step::Settle,
        Came::Seen(Hindrance::NoLabels) => act == Step::Label,
        Came::Seen(Hindrance::NoEvents) => act == Step::Tell,
    }
}

/// Does what is planned, act by act, each planned anew; `outcomes` come of the first ones, and the others are done. Gives each act with what was known
/// before it.
fn carry_out(want: Aim, have: &mut Started, outcomes: &[Came]) -> Vec<(Started, Step)> {
    let mut outcomes = outcomes.iter();
    let mut acts = Vec::new();
    for _ in 0..MOST + outcomes.len() {
        let Some(act) = steps(want, have).first().copied() else { break };
        acts.push((*have, act));
        let came = outcomes.next().copied().filter(|came| fits(act, *came));
        match came.unwrap_or(Came::Done) {
            Came::Done => have.after(act),
            Came::Failed => {}
            Came::Seen(hindrance) => have.see(hindrance),
        }
    }
    acts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn acts_end_with_a_start_that_is_settled(
        (want, mut have, outcomes) in (wants(), have(), outcomes())
    ) {
        let before = have;
        let acts = carry_out(want, &mut have, &outcomes);
        prop_assert!(have.settled && steps(want, &have).is_empty(), "{acts:?}");
        let lacks = want == Aim::Captured && before.capture != Capture::Whole && !before.settled;
        prop_assert!(!lacks || have.told, "nobody was told: {acts:?}");
    }

    /// What has the label may be deleted by others.
    #[test]
    fn no_prefix_labels_or_deletes_a_pod_that_is_captured_or_is_not_to_be(
        (first, last, mut have) in (wants(), wants(), have()),
        (some, others, mind) in (outcomes(), outcomes(), 0..5_usize),
        now in select(&[Capture::Whole, Capture::Part, Capture::None][..])
    ) {
        let mut acts = Vec::new();
        for came in some.iter().take(mind) {
            let Some(act) = steps(first, &have).first().copied() else { break };
            acts.push((first, have, act));
            if matches!(came, Came::Done) {
                have.after(act);
            }
        }
        // More may be seen of the pod, and another decision may come, after any act.
        have.capture = now;
        acts.extend(carry_out(last, &mut have, &others).into_iter().map(|(have, act)| (last, have, act)));
        for (want, before, act) in acts {
            let lacks_all = before.capture == Capture::None && want == Aim::Captured;
            prop_assert!(act != Step::Label || lacks_all && before.label == Labelled::Missing, "{before:?}");
            prop_assert!(act != Step::Delete || lacks_all && before.removal == Removal::Due, "{before:?}");
            let lacks = before.capture != Capture::Whole && want == Aim::Captured;
            prop_assert!(act != Step::Tell || lacks && !before.told, "{before:?}");
            prop_assert!(!before.settled, "{act} after the end: {before:?}");
        }
    }

    #[test]
    fn a_pod_is_labelled_before_it_has_its_event_and_settled_after_it(mut have in have()) {
        for (before, act) in carry_out(Aim::Captured, &mut have, &[]) {
            let labelled = before.capture != Capture::None
                || before.label != Labelled::Missing
                || before.removal == Removal::Done;
            prop_assert!(act != Step::Tell || labelled, "{before:?}");
            prop_assert!(act != Step::Settle || before.told || before.capture == Capture::Whole, "{before:?}");
        }
    }
}

#[test]
fn the_ways_of_a_start() {
    let acts = |want, capture, label| {
        let mut have = Started { label, ..Started::new(capture) };
        carry_out(want, &mut have, &[]).into_iter().map(|(_, act)| act.to_string()).collect::<Vec<_>>()
    };
    let captured = |capture, label| acts(Aim::Captured, capture, label);
    assert_eq!(captured(Capture::None, Labelled::Missing), ["label", "tell", "settle"]);
    assert_eq!(captured(Capture::None, Labelled::Barred), ["tell", "settle"]);
    assert_eq!(captured(Capture::Part, Labelled::Missing), ["tell", "settle"]);
    assert_eq!(captured(Capture::Whole, Labelled::Missing), ["settle"]);
    assert_eq!(acts(Aim::LeftAlone, Capture::None, Labelled::Missing), ["settle"]);
    let mut deleted = Started { removal: Removal::Due, ..Started::new(Capture::None) };
    let acts = carry_out(Aim::Captured, &mut deleted, &[]);
    assert_eq!(
        acts.iter().map(|(_, act)| *act).collect::<Vec<_>>(),
        [Step::Delete, Step::Tell, Step::Settle]
    );
}
