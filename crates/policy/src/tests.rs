//! Random clusters, policies and connections.

pub(crate) mod model;
pub(crate) mod sample;

use proptest::prelude::*;

use crate::verdict;
use sample::{SampleFlow, SampleWorld};

/// `PROPTEST_CASES` makes it long: `make soak PART=verdicts`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// The verdict is that of a model that shares no line with it, not even how objects are read.
    #[test]
    fn verdicts_are_those_of_an_independent_model(
        world in SampleWorld::any(),
        flows in proptest::collection::vec(SampleFlow::any(), 12),
    ) {
        let plain = world.plain();
        for flow in flows {
            let found = verdict(&plain, &flow.flow());
            let expected = model::allowed(&world, &flow);
            prop_assert_eq!([found.egress.is_allowed(), found.ingress.is_allowed()], expected,
                "{:?}: {}", flow, found);
        }
    }
}

/// The random worlds are worth something: verdicts of each kind occur in them.
#[test]
fn samples_have_verdicts_of_each_kind() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..300 {
        let world = SampleWorld::any().new_tree(&mut runner).unwrap().current().plain();
        for _ in 0..20 {
            let flow = SampleFlow::any().new_tree(&mut runner).unwrap().current().flow();
            let found = verdict(&world, &flow);
            for judgement in [found.egress, found.ingress] {
                let text = format!("{:?}", judgement.ground);
                *seen.entry(text.split('(').next().unwrap_or_default().to_owned()).or_default() += 1;
            }
        }
    }
    for kind in ["NotAPod", "Loopback", "OwnNode", "NotIsolated", "Accepted", "TunnelOpened", "NoRuleMatched"]
    {
        assert!(seen.get(kind).is_some_and(|count| *count >= 20), "{kind}: {seen:?}");
    }
}
