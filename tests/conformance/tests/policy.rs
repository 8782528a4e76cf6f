//! Every case of network policies: the verdicts of the semantic evaluator are those of the file.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use conformance::golden_dir;
use policy::cases::{CaseFile, PointDifference};
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
