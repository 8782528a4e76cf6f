//! Whatever a pod has, its acts lead to what is wanted, and each of them leaves it safe.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// More plans than any way takes.
const PLANS: usize = 4;
const NOW: u64 = 1_800_000_000;

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    prop::collection::btree_set(0..4_u8, 0..3).prop_map(|set| set.into_iter().map(ip).collect())
}

fn looks() -> [Look; 4] {
    [Look::Unknown, Look::AsPlanned, Look::Left, Look::Due]
}

fn rules() -> Vec<Rules> {
    let mut all = vec![
        Rules::None,
        Rules::Maybe,
        Rules::Rest,
        Rules::Drain { since: NOW - 60 },
        Rules::Reload { since: NOW - 60 },
    ];
    all.extend(looks().map(Rules::Capture));
    all
}

prop_compose! {
    fn have()(
        namespace in select(&[PodNetns::Unknown, PodNetns::Known, PodNetns::Gone][..]),
        rules in select(rules()),
        (strict, entries) in (any::<bool>(), any::<bool>()),
        ztunnel in select(&[Ztunnel::None, Ztunnel::Listed, Ztunnel::Taken, Ztunnel::Refused, Ztunnel::Unlisted][..]),
        probes in select(&[Probes::None, Probes::Maybe, Probes::In][..]),
        mark in select(&[None, Some(RedirectionMark::Enabled), Some(RedirectionMark::Pending)][..]),
        (addresses, stale) in (addresses(), addresses()),
    ) -> Have {
        let stale = stale.into_iter().filter(|ip| !addresses.contains(ip)).collect();
        Have { recorded: true, namespace, rules, strict, entries, ztunnel, addresses, stale, probes, mark }
    }
}

fn births() -> impl Strategy<Value = Birth> {
    select(&[Birth::New, Birth::Running][..])
}

fn wants() -> impl Strategy<Value = Want> {
    prop_oneof![
        addresses().prop_map(|addresses| Want::In { addresses }),
        addresses().prop_map(|addresses| Want::Held { addresses }),
        Just(Want::Verified),
        Just(Want::Tracked),
        any::<bool>().prop_map(|for_good| Want::Refused { for_good }),
        Just(Want::Out),
        Just(Want::Ended),
        Just(Want::Gone),
        Just(Want::GivenUp),
    ]
}

/// Does the acts, plan after plan; `fails` says which of them fail, by their number. Gives each act with what there was before and after it.
fn carry_out(
    want: &Want,
    have: &mut Have,
    birth: Birth,
    mut fails: impl FnMut(usize) -> Option<bool>,
) -> Vec<(Have, Act, Have)> {
    let mut done = Vec::new();
    for _ in 0..PLANS {
        let mut complete = true;
        for act in steps(want, have, birth) {
            let before = have.clone();
            have.begin(&act);
            if let Some(overdue) = fails(done.len()) {
                have.failed(&act, overdue);
                done.push((before, act, have.clone()));
                complete = false;
                break;
            }
            have.after(&act, NOW);
            done.push((before, act.clone(), have.clone()));
            if act == Act::Locate {
                complete = false;
                break;
            }
        }
        if complete {
            break;
        }
    }
    done
}

/// Whether the pod has what is wanted, said without the plan.
fn is_reached(want: &Want, have: &Have, birth: Birth) -> bool {
    match want {
        Want::In { addresses } => {
            let marked = birth == Birth::New || have.mark == Some(RedirectionMark::Enabled);
            let moved = addresses.is_empty() || have.has_addresses(addresses);
            have.is_complete() && have.stale.is_empty() && marked && moved
        }
        Want::Held { addresses } => {
            let moved = addresses.is_empty() || have.has_addresses(addresses);
            moved && have.probes == Probes::In && have.stale.is_empty()
        }
        Want::Verified => {
            !have.is_captured() || have.namespace != PodNetns::Known || have.look() == Some(Look::AsPlanned)
        }
        Want::Tracked => have.namespace != PodNetns::Known || !have.strict,
        Want::Refused { for_good: true } => have.mark.is_none(),
        Want::Refused { .. } => {
            have.mark != Some(RedirectionMark::Enabled) && (have.mark.is_none() || have.is_captured())
        }
        Want::Out | Want::Ended | Want::Gone | Want::GivenUp => *have == Have::default(),
    }
}

/// An annotation says no more than what is there, unless it was untrue before.
fn is_true(before: &Have, after: &Have) -> bool {
    let enabled = |have: &Have| have.mark == Some(RedirectionMark::Enabled);
    !enabled(after) || after.is_complete() || enabled(before)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn acts_lead_to_what_is_wanted_and_nothing_is_left_to_do(
        (want, mut have, birth) in (wants(), have(), births())
    ) {
        let done = carry_out(&want, &mut have, birth, |_| None);
        prop_assert!(steps(&want, &have, birth).is_empty(), "{done:#?}");
        prop_assert!(is_reached(&want, &have, birth), "{have:?} after {done:#?}");
    }

    #[test]
    fn acts_that_fail_and_are_planned_anew_lead_there_too(
        (want, mut have, birth) in (wants(), have(), births()),
        failures in prop::collection::vec((0..10_usize, any::<bool>()), 0..4)
    ) {
        for (at, overdue) in failures {
            carry_out(&want, &mut have, birth, |number| (number == at).then_some(overdue));
        }
        let done = carry_out(&want, &mut have, birth, |_| None);
        prop_assert!(is_reached(&want, &have, birth), "{have:?} after {done:#?}");
    }

    /// Another decision may come after any act, one that failed included.
    #[test]
    fn a_change_of_mind_at_any_act_leads_to_the_last_wish(
        (first, last, mut have, birth) in (wants(), wants(), have(), births()),
        (at, overdue) in (0..10_usize, any::<bool>())
    ) {
        carry_out(&first, &mut have, birth, |number| (number == at).then_some(overdue));
        // What is forgotten begins anew.
        have.recorded = true;
        let done = carry_out(&last, &mut have, Birth::Running, |_| None);
        prop_assert!(is_reached(&last, &have, Birth::Running), "{have:?} after {done:#?}");
    }

    #[test]
    fn no_act_makes_an_annotation_untrue(
        (want, mut have, birth) in (wants(), have(), births()),
        (at, overdue) in (0..10_usize, any::<bool>())
    ) {
        // Those of a pod that is given up go with its sandbox, and its annotation when the queue comes to it.
        let given_up = want == Want::GivenUp;
        for (before, act, after) in carry_out(&want, &mut have, birth, |n| (n == at).then_some(overdue)) {
            prop_assert!(given_up || is_true(&before, &after), "{act}: {before:?} -> {after:?}");
        }
    }

    #[test]
    fn a_running_pod_is_redirected_only_when_there_is_somebody_to_take_it(
        (addresses, mut have) in (addresses(), have()),
        (at, overdue) in (0..10_usize, any::<bool>())
    ) {
        let want = Want::In { addresses };
        for (before, act, after) in carry_out(&want, &mut have, Birth::Running, |n| (n == at).then_some(overdue)) {
            let comes = !before.is_captured() && after.is_captured();
            let taken = after.ztunnel == Ztunnel::Taken && after.probes == Probes::In;
            prop_assert!(!comes || taken, "{act}: {before:?} -> {after:?}");
        }
    }

    /// What fails later must let nothing of a pod past its rules.
    #[test]
    fn the_rules_of_a_new_pod_come_before_everything_else((addresses, mut have) in (addresses(), have())) {
        let done = carry_out(&Want::In { addresses }, &mut have, Birth::New, |_| None);
        let tells = |act: &Act| matches!(act, Act::TellZtunnel | Act::AddProbes | Act::Annotate(_));
        for (before, act, _) in done.iter().filter(|(_, act, _)| tells(act)) {
            prop_assert!(before.look() == Some(Look::AsPlanned), "{act} before the rules: {done:#?}");
        }
        prop_assert!(!done.iter().any(|(_, act, _)| matches!(act, Act::Annotate(_))), "{done:#?}");
    }

    #[test]
    fn on_the_way_out_redirects_go_first_and_what_translates_goes_last(
        mut have in have(),
        failures in prop::collection::vec((0..10_usize, any::<bool>()), 0..3)
    ) {
        let mut done = Vec::new();
        for (at, overdue) in failures {
            done.extend(carry_out(&Want::Out, &mut have, Birth::Running, |n| (n == at).then_some(overdue)));
        }
        done.extend(carry_out(&Want::Out, &mut have, Birth::Running, |_| None));
        for (before, act, after) in &done {
            let known = before.namespace == PodNetns::Known;
            match act {
                Act::Annotate(mark) => prop_assert_eq!(*mark, None),
                Act::LoadRules { .. } | Act::RepairRules | Act::TellZtunnel | Act::AddProbes => {
                    prop_assert!(false, "{} on the way out", act);
                }
                // The pod says that it is out before it is, and nothing is redirected to a ztunnel that has let go of it.
                Act::Drain => prop_assert_eq!(before.mark, None),
                Act::RemoveProbes | Act::RemoveFromZtunnel | Act::EndConnections => {
                    prop_assert!(!known || !before.may_redirect(), "{act}: {done:#?}");
                }
                Act::RemoveRules => {
                    prop_assert!(before.ztunnel == Ztunnel::None && before.probes == Probes::None);
                }
                _ => {}
            }
            prop_assert!(after.mark.is_none() || after.mark == before.mark);
        }
        let place = |wanted: &Act| done.iter().rposition(|(_, act, _)| act == wanted);
        if let (Some(rules), Some(wait)) = (place(&Act::RemoveRules), place(&Act::Wait)) {
            prop_assert!(wait < rules && place(&Act::EndConnections).is_some_and(|end| end < rules));
        }
        prop_assert_eq!(done.last().map(|(_, act, _)| act), Some(&Act::Forget));
    }

    /// What is in the node's sets and at ztunnels never outlives what is known of the pod.
    #[test]
    fn nothing_is_forgotten_before_the_node_and_ztunnels_have_let_go(
        (want, mut have, birth) in (wants(), have(), births())
    ) {
        for (before, _, _) in
            carry_out(&want, &mut have, birth, |_| None).iter().filter(|(_, act, _)| *act == Act::Forget)
        {
            prop_assert!(before.probes == Probes::None && before.ztunnel == Ztunnel::None && before.stale.is_empty());
        }
    }
}

#[test]
fn each_act_has_a_name_of_its_own() {
    let mut names: Vec<_> = Act::KINDS.iter().map(Act::name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Act::KINDS.len());
}

/// An answer of a ztunnel comes at any time.
#[test]
fn an_answer_counts_for_a_pod_that_is_listed() {
    let mut have = Have::new();
    have.see(Observation::Taken);
    assert_eq!(have.ztunnel, Ztunnel::None);
    have.begin(&Act::TellZtunnel);
    have.see(Observation::Refused);
    assert_eq!(have.ztunnel, Ztunnel::Refused);
    have.see(Observation::Taken);
    assert_eq!(have.ztunnel, Ztunnel::Taken);
    have.see(Observation::NewSandbox);
    assert_eq!(have.ztunnel, Ztunnel::Listed);
    have.begin(&Act::RemoveFromZtunnel);
    have.see(Observation::Taken);
    assert_eq!(have.ztunnel, Ztunnel::Unlisted);
}

/// A running pod's way in and out, as it is documented.
#[test]
fn the_ways_of_a_running_pod() {
    let mut have = Have::new();
    let want = Want::In { addresses: vec![ip(1)] };
    let names = |done: Vec<(Have, Act, Have)>| done.iter().map(|(_, act, _)| act.name()).collect::<Vec<_>>();
    let way_in = names(carry_out(&want, &mut have, Birth::Running, |_| None));
    assert_eq!(way_in, ["locate", "take-addresses", "add-probes", "tell-ztunnel", "load-rules", "annotate"]);
    let way_out = names(carry_out(&Want::Out, &mut have, Birth::Running, |_| None));
    let expected = [
        "remove-annotation",
        "drain",
        "remove-probes",
        "wait",
        "remove-from-ztunnel",
        "end-connections",
        "remove-rules",
        "forget-entries",
        "forget",
    ];
    assert_eq!(way_out, expected);
}
