//! Random tenants, grants, namespaces and connections.

mod compiled;
mod events;
mod membership;
mod model;
mod plain;
mod sample;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::snapshot::PolicySnapshot;
use crate::{Ground, verdict};
use sample::{TenancyFlow, TenancySample};

/// Of all connections each of so many is looked at in a sample.
const STEP: usize = 29;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The verdict is that of the table of rows, written a second time: whether each end allows, by which rule, and what would be denied.
    #[test]
    fn verdicts_are_those_of_an_independent_model(sample in TenancySample::any(), from in 0..STEP) {
        let world = sample.world();
        for flow in TenancyFlow::all().iter().skip(from).step_by(STEP) {
            let found = verdict(&world, &flow.flow());
            let ends = [(&found.egress, model::egress(&sample, flow)), (&found.ingress, model::ingress(&sample, flow))];
            for (judgement, end) in ends {
                prop_assert_eq!(judgement.is_allowed(), end.is_allowed, "{:?}: {} {:?}", flow, found, end);
                let denied = match &judgement.ground {
                    Ground::Denied(rule) => Some(&*rule.name),
                    _ => judgement.audited.as_ref().map(|rule| &*rule.name),
                };
                prop_assert_eq!(denied, end.denied_by.as_deref(), "{:?}: {} {:?}", flow, found, end);
            }
        }
    }

    /// They are kept on disk as any policy is.
    #[test]
    fn tenants_are_read_from_disk_as_they_were_written(sample in TenancySample::any()) {
        let world = sample.world();
        let policies = sample.all_terms(&world).into_iter().map(Arc::new).collect();
        let snapshot = PolicySnapshot { policies, ..PolicySnapshot::default() };
        prop_assert_eq!(PolicySnapshot::from_bytes(&snapshot.to_bytes()), Ok(snapshot));
    }
}

/// The samples are worth something: each row of the table decides in some of them.
#[test]
fn each_row_decides_somewhere() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = BTreeMap::<String, usize>::new();
    for _ in 0..100 {
        let sample = TenancySample::any().new_tree(&mut runner).unwrap().current();
        for flow in TenancyFlow::all() {
            for end in [model::egress(&sample, flow), model::ingress(&sample, flow)] {
                *seen.entry(end.row.to_owned()).or_default() += 1;
                if end.denied_by.is_some() && end.is_allowed {
                    *seen.entry("audited".to_owned()).or_default() += 1;
                }
            }
        }
    }
    for row in [
        "denied range",
        "dns",
        "api server",
        "rule denies",
        "same tenant",
        "rule allows",
        "grant",
        "service",
        "range",
        "unassigned",
        "external",
        "else",
        "audited",
        "no tenant",
        "own node",
        "same pod",
        "networkpolicy",
    ] {
        assert!(seen.get(row).is_some_and(|count| *count >= 10), "{row}: {seen:?}");
    }
}
