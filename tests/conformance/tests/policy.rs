//! Every case of network policies: the verdicts of the semantic evaluator are those of the file.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use conformance::golden_dir;
use policy::cases::CaseFile;

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn each_verdict_is_as_the_file_says() {
    let text = std::fs::read_to_string(golden_dir().unwrap().join("policy/cases.json")).unwrap();
    let report = CaseFile::parse(&text).unwrap().compare(policy::verdict).unwrap();
    let different: Vec<String> = report.differences.iter().map(ToString::to_string).collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!((report.cases, report.cells, report.flows), (241, 35_416, 200));
}
