use proptest::prelude::*;

use super::*;
use crate::tests::sample::{SampleFlow, SampleWorld};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each verdict between pods that changes is predicted, and no other one.
    #[test]
    fn what_changes_is_predicted(
        world in SampleWorld::any(),
        other in SampleWorld::any(),
        keeps in any::<bool>(),
        flows in prop::collection::vec(SampleFlow::any(), 60),
    ) {
        let before = world.plain();
        let mut after = world.clone();
        after.policies = if keeps { [world.policies, other.policies].concat() } else { other.policies };
        let after = after.plain();
        let found = preview(&before, &after).unwrap();
        for flow in flows.iter().map(|flow| PolicyFlow { route: FlowRoute::Direct, ..flow.flow() }) {
            // There is no such connection.
            let is_mixed = flow.source.is_ipv6() != flow.destination.is_ipv6();
            if is_mixed || before.pod_at(flow.source).is_none() || before.pod_at(flow.destination).is_none() {
                continue;
            }
            let [was, is] = [&before, &after].map(|world| verdict(world, &flow).is_allowed());
            prop_assert_eq!(found.predicts(&flow), (was != is).then_some(is), "{:?}", flow);
        }
    }
}
