//! Policies and pods of any JSON: whatever the API gives is read, judged and compiled, and rules do what the verdict says.

use fuzz::{Outcome, Target, of_text};
use policy::cases::CaseFile;
use policy::compiled::{CompiledNodes, CompiledPods};
use policy::{FlowRoute, PlainPod, PlainWorld, PolicyFlow, Traffic, verdict};
use proptest::prelude::*;
use proptest::sample::select;
use ruleset::Backend;

const WORDS: &[&str] = &[
    "\"podSelector\":{}",
    "\"ingress\":[{}]",
    "\"egress\":[]",
    "\"policyTypes\":[\"Ingress\"]",
    "\"policyTypes\":[\"egress\"]",
    "\"from\":[{\"podSelector\":{}}]",
    "\"to\":[{\"ipBlock\":{\"cidr\":\"10.0.0.0/8\",\"except\":[\"10.0.0.2/32\"]}}]",
    "\"from\":[{}]",
    "\"ports\":[{\"port\":80,\"endPort\":90}]",
    "\"ports\":[{\"port\":\"http\"}]",
    "\"ports\":[]",
    "\"protocol\":\"SCTP\"",
    "\"endPort\":1",
    "\"matchLabels\":{\"a\":\"b\"}",
    "\"operator\":\"NotIn\"",
    "\"values\":[]",
    "\"cidr\":\"::ffff:10.0.0.0/104\"",
    "\"cidr\":\"010.0.0.0/8\"",
    "0.0.0.0/0",
    "::/0",
    "15008",
    "65536",
    "-1",
    "null",
    "{}",
    "[]",
];

/// The policy, then the pod that it is about, in two lines.
fn generate() -> BoxedStrategy<Vec<u8>> {
    let words = || prop::collection::vec(select(WORDS), 0..5).prop_map(|words| words.join(","));
    words().prop_map(|spec| {
        let policy = format!("{{\"metadata\":{{\"name\":\"p\",\"namespace\":\"x\"}},\"spec\":{{{spec}}}}}");
        let port = "\"ports\":[{\"name\":\"http\",\"containerPort\":80}]";
        let pod = format!("{{\"metadata\":{{\"labels\":{{\"a\":\"b\"}}}},\"spec\":{{\"nodeName\":\"n\",\"containers\":[{{{port}}}]}},\
            \"status\":{{\"phase\":\"Running\",\"podIPs\":[{{\"ip\":\"10.0.0.1\"}},{{\"ip\":\"fd00::1\"}}]}}}}");
        format!("{policy}\n{pod}").into_bytes()
    }).boxed()
}

fn run(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.lines();
    let (policy, pod) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    // The same text as a file of cases, too.
    let _ = CaseFile::parse(&text);
    let policy: facts::NetworkPolicy = match serde_json::from_str(policy) {
        Ok(policy) => policy,
        Err(error) => return of_text(&error.to_string()),
    };
    let mut world = PlainWorld::default();
    world.put_node("n", vec![[192, 0, 2, 1].into()]);
    world.put_networkpolicy(&policy);
    let refused = policy.refused.count;
    if let Ok(facts) = serde_json::from_str::<facts::Peer>(pod) {
        world.put_pod(PlainPod { namespace: "x".into(), name: "a".into(), is_enrolled: false, facts });
    }
    let other = r#"{"spec":{"nodeName":"n"},"status":{"phase":"Running","podIPs":[{"ip":"10.0.0.2"}]}}"#;
    let facts = serde_json::from_str(other).unwrap();
    world.put_pod(PlainPod { namespace: "x".into(), name: "b".into(), is_enrolled: false, facts });
    let mut allowed = 0;
    for backend in [Backend::Nftables, Backend::Iptables] {
        let nodes = CompiledNodes::new(&world, backend);
        let pods = CompiledPods::new(&world, backend, |_| false);
        let addresses = ["10.0.0.1", "10.0.0.2", "192.0.2.1", "203.0.113.9"].map(|one| one.parse().unwrap());
        let pairs = addresses.iter().flat_map(|one| addresses.iter().map(move |other| (*one, *other)));
        for (source, destination) in pairs.filter(|(one, other)| one != other) {
            let tcp = facts::networkpolicy::PolicyProtocol::Tcp;
            for traffic in [Traffic::Port(tcp, 80), Traffic::Port(tcp, 15008), Traffic::Portless] {
                let flow = PolicyFlow { source, destination, traffic, route: FlowRoute::Direct };
                let meant = verdict(&world, &flow).is_allowed();
                let found = pods.egress(&flow, None).is_allowed && pods.ingress(&flow).is_allowed;
                // A pod with the node's address cannot be told from the node in another pod.
                let is_taken = world
                    .live_on("n")
                    .any(|pod| pod.facts.addresses.iter().any(|one| one.to_string() == "192.0.2.1"));
                assert!(is_taken || found == meant, "{backend}: {flow:?}: {meant}");
                assert!(
                    is_taken || nodes.judge(&flow).is_allowed == meant,
                    "node, {backend}: {flow:?}: {meant}"
                );
                allowed += usize::from(meant);
            }
        }
    }
    Outcome::of((refused.min(4), allowed))
}

const TARGET: Target = Target {
    name: "verdicts",
    package: env!("CARGO_PKG_NAME"),
    dictionary: WORDS,
    max_len: 2048,
    memory: 4 << 20,
    generate,
    run,
};

#[test]
fn fuzz_verdicts() {
    TARGET.fuzz();
}
