//! Every case of network policies: the verdicts of the semantic evaluator are those of the file.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use conformance::golden_dir;
use policy::cases::{CaseFile, PointDifference};
use policy::preview::preview;
use policy::{FlowRoute, PlainWorld, World as _};
use ruleset::Backend;

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn each_verdict_is_as_the_file_says() {
    let text = std::fs::read_to_string(golden_dir().unwrap().join("policy/cases.json")).unwrap();
    let report = CaseFile::parse(&text).unwrap().compare(policy::verdict).unwrap();
    let different: Vec<String> = report.differences.iter().map(ToString::to_string).collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!((report.cases, report.cells, report.flows), (241, 35_416, 200));
}

/// A preview of each step of the cases that are about changes says which verdicts between pods change, and no other ones.
#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn changes_are_predicted() {
    let text = std::fs::read_to_string(golden_dir().unwrap().join("policy/cases.json")).unwrap();
    let file = CaseFile::parse(&text).unwrap();
    let (mut last, mut compared, mut changed): (Option<(String, PlainWorld)>, usize, usize) = (None, 0, 0);
    file.states(|state| {
        let before = last.take().filter(|(case, _)| state.step > 0 && case == state.case);
        if let Some((_, before)) = before {
            let found = preview(&before, state.world).unwrap();
            for flow in state.connections()?.iter().flat_map(|one| &one.flows) {
                let lives = |world: &PlainWorld, address| world.pod_at(address).map(ToString::to_string);
                let is_known = |address| {
                    let pod = lives(state.world, address);
                    pod.is_some() && pod == lives(&before, address)
                };
                if flow.route != FlowRoute::Direct || !is_known(flow.source) || !is_known(flow.destination) {
                    continue;
                }
                let [was, is] = [&before, state.world].map(|world| policy::verdict(world, flow).is_allowed());
                let predicted = found.predicts(flow);
                assert_eq!(
                    predicted,
                    (was != is).then_some(is),
                    "{} step {}: {flow:?}",
                    state.case,
                    state.step
                );
                compared += 1;
                changed += usize::from(was != is);
            }
        }
        if matches!(state.family, "changes" | "life") {
            last = Some((state.case.to_owned(), state.world.clone()));
        }
        Ok(())
    })
    .unwrap();
    println!("connections: {compared}, of which change: {changed}");
    assert!(compared > 500 && changed > 50, "{compared} {changed}");
}

/// What the rules of both pods do to each connection, each in its own namespace. Where these cannot tell two things apart, that is told.
#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn compiled_rules_do_what_the_file_says() {
    let text = std::fs::read_to_string(golden_dir().unwrap().join("policy/cases.json")).unwrap();
    let file = CaseFile::parse(&text).unwrap();
    for backend in [Backend::Nftables, Backend::Iptables] {
        let report = file.compare_rules(backend).unwrap();
        let different: Vec<String> = report.differences.iter().map(ToString::to_string).collect();
        assert!(different.is_empty(), "{backend}:\n{}", different.join("\n"));
        let known: Vec<_> = report.known.iter().map(|(one, why)| (&*one.case, *why)).collect();
        let expected = [
            ("services/all-endpoints-allowed", PointDifference::ServiceAddress),
            ("services/mixed-endpoints", PointDifference::MixedService),
            ("changes/endpoint-leaves-service", PointDifference::MixedService),
        ];
        assert_eq!(known, expected);
    }
}

/// What the rules of both ends' nodes do to each connection.
#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn compiled_rules_of_nodes_do_what_the_file_says() {
    let text = std::fs::read_to_string(golden_dir().unwrap().join("policy/cases.json")).unwrap();
    let file = CaseFile::parse(&text).unwrap();
    for backend in [Backend::Nftables, Backend::Iptables] {
        let report = file.compare_node_rules(backend).unwrap();
        let different: Vec<String> = report.differences.iter().map(ToString::to_string).collect();
        assert!(different.is_empty(), "{backend}:\n{}", different.join("\n"));
        assert!(report.connections > 30_000, "{backend}: {}", report.connections);
    }
}
