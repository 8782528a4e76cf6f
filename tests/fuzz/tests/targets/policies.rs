//! What is kept of policies on disk, as the plugin and the agent read it.

use std::collections::BTreeMap;

use fuzz::{Outcome, Target, of_text};
use policy::snapshot::{PolicySnapshot, SubjectPod, find_isolation};
use proptest::prelude::*;

const DICTIONARY: &[&str] = &[
    "istio-cni policies 1\n",
    "node",
    "namespace",
    "policy",
    "seen",
    "rule",
    "set",
    "end",
    "np",
    "admin",
    "yes",
    "no",
    "named",
    "labelled",
    "in",
    "notin",
    "exists",
    "absent",
    "ingress",
    "egress",
    "accept",
    "deny",
    "next",
    "audit",
    "outside",
    "any",
    "pods",
    "ports",
    "own",
    "block",
    "all",
    "range",
    "name",
    "TCP",
    "UDP",
    "SCTP",
    "10.0.0.0/8",
    "fd00::1",
    "%",
    "%41",
    " 0",
    " 1",
    " 2",
    "18446744073709551615",
    "\n",
];

fn generate() -> BoxedStrategy<Vec<u8>> {
    let selector =
        || prop_oneof!["0", "1 [ab] (exists|absent)", "1 [ab] (in|notin) [0-2] a b", "2 a in 1 x b exists"];
    let pods = move || {
        prop_oneof![
            selector().prop_map(|s| format!("named x {s}")),
            (selector(), selector()).prop_map(|(a, b)| format!("labelled {a} {b}"))
        ]
    };
    let peers = move || {
        prop_oneof![
            Just("any".to_owned()),
            Just("0".to_owned()),
            pods().prop_map(|p| format!("1 pods {p}")),
            "1 outside [01] 10\\.0\\.0\\.0/8",
            "1 block 10\\.0\\.0\\.0/(8|16|33) [01] 10\\.1\\.0\\.0/16"
        ]
    };
    let ports =
        prop_oneof!["any", "0", "1 (all|range|name) (TCP|UDP|X)( 80| 0 9| http)?", "1 range TCP 80 90"];
    let line = prop_oneof![
        "node( 10\\.0\\.0\\.[0-9]| fd00::[0-9a-f])*",
        "namespace [xy%] [01] (a b)?",
        ("(np|admin|tenant|baseline)", "(yes|no)", "(yes|no)", pods())
            .prop_map(|(s, i, e, p)| format!("policy {s} x n {i} {e} {p}")),
        "seen( [a-z]+ [0-9]+)?",
        ("[01]", "(ingress|egress)", "(accept|deny|next|audit) (%|x)", (peers(), peers()), ports)
            .prop_map(|(n, d, a, (o, p), q)| format!("rule {n} {d} {a} {o} {p} {q}")),
        (pods(), "[0-2]( 10\\.0\\.0\\.[0-9]){0,2}").prop_map(|(p, m)| format!("set pods {p} {m}")),
        "set own http TCP [01]( 10\\.0\\.0\\.1 80)?",
    ];
    let whole = prop::collection::vec(line, 0..12).prop_map(|lines| {
        let count = lines.len() + 1;
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        format!("istio-cni policies 1\n{text}end {count}\n").into_bytes()
    });
    whole.boxed()
}

/// What is read is written so that the same is read; and the plugin, which reads the head only, understands that of each snapshot that the agent does.
fn run(input: &[u8]) -> Outcome {
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let heads =
        [None, Some(&labels)].map(|labels| find_isolation(input, &SubjectPod { namespace: "x", labels }));
    let head = match &heads[1] {
        Ok(found) => format!("{} {}", found.isolation, found.node.len().min(3)),
        Err(error) => error.to_string(),
    };
    match PolicySnapshot::from_bytes(input) {
        Err(error) => Outcome::of((of_text(&error.to_string()), of_text(&head))),
        Ok(read) => {
            let written = read.to_bytes();
            assert_eq!(PolicySnapshot::from_bytes(&written).as_ref(), Ok(&read), "what is written is read");
            let [without, with] = heads.map(|head| head.map(|found| found.isolation));
            if let (Ok(without), Ok(with)) = (without, with) {
                assert_eq!(without, without.or(with), "labels that are not known isolate less");
            }
            let rules = read
                .policies
                .iter()
                .map(|policy| policy.ingress.rules.len() + policy.egress.rules.len())
                .sum::<usize>();
            let lengths =
                [read.node.len(), read.namespaces.len(), read.policies.len(), rules, read.sets.len()];
            Outcome::of((lengths.map(|length| length.min(2)), of_text(&head)))
        }
    }
}

const TARGET: Target = Target {
    name: "policies",
    package: env!("CARGO_PKG_NAME"),
    dictionary: DICTIONARY,
    max_len: 8192,
    memory: 1 << 20,
    generate,
    run,
};

#[test]
fn fuzz_policies() {
    TARGET.fuzz();
}
