//! What needs no kernel.

use std::path::PathBuf;
use std::time::Duration;

use ruleset::{Action, Chain, Family, Match, Ports, Protocol, Rule, Ruleset, Table, TableKind};

use super::change::TableSide;
use super::counts::log_counts;
use super::error::{Failure, ProgramFailure};
use super::job::{IptablesJob, JobReport, ProgramRun, TableStep};
use super::program::Variant;
use super::saved::Saved;
use super::wire::{decode_job, decode_report, encode_job, encode_report};

fn job() -> IptablesJob {
    let step = |kind| TableStep {
        kind,
        forward: "*nat\nCOMMIT\n".to_owned(),
        backward: String::new(),
        before: Some(vec!["-N A".to_owned(), String::new()]),
    };
    let run = ProgramRun {
        save: PathBuf::from("/sbin/save"),
        restore: PathBuf::from("/sbin/restore"),
        family: Family::V6,
        variant: Variant::Legacy,
        unproven: true,
        tables: vec![step(TableKind::Nat), step(TableKind::Filter)],
    };
    let empty = ProgramRun { variant: Variant::Nft, unproven: false, tables: Vec::new(), ..run.clone() };
    IptablesJob {
        timeout: Duration::from_millis(1500),
        path: "/bin:/sbin".to_owned(),
        node: true,
        runs: vec![run, empty],
    }
}

#[test]
fn jobs_and_reports_survive_the_way_and_nothing_shorter_or_longer_does() {
    let bytes = encode_job(&job());
    assert_eq!(decode_job(&bytes), Some(job()));
    for cause in [
        ProgramFailure::Start("no such file".to_owned()),
        ProgramFailure::Exit(-1),
        ProgramFailure::Signal(9),
        ProgramFailure::Timeout(Duration::from_secs(30)),
        ProgramFailure::TooMuch(1 << 40),
    ] {
        let failure = Failure {
            program: PathBuf::from("/sbin/restore"),
            cause,
            said: "line 3 failed".to_owned(),
            left: vec!["x".to_owned()],
        };
        let report = JobReport { warnings: vec!["w".to_owned()], failure: Some((1, failure)) };
        let bytes = encode_report(&report);
        assert_eq!(decode_report(&bytes), Some(report));
        assert!((0..bytes.len()).all(|end| decode_report(&bytes[..end]).is_none()));
    }
    assert!((0..bytes.len()).all(|end| decode_job(&bytes[..end]).is_none()));
    assert_eq!(decode_job(&[bytes.as_slice(), b"x"].concat()), None);
    assert_eq!(decode_report(&encode_report(&JobReport::default())), Some(JobReport::default()));
}

#[test]
fn saved_tables_are_read_without_what_does_not_concern_us() {
    let saved = Saved::parse(
        "# Generated\n*security\n:A - [0:0]\n-A A -j DROP\nCOMMIT\n*nat\n:PREROUTING ACCEPT [3:180]\n:ISTIO_A - [0:0]\n\
         -A PREROUTING -m comment --comment \"a -j ISTIO_B \\\" -j C\" -j ISTIO_A\n-A ISTIO_A -p tcp\nCOMMIT\n*raw\n:X - [0:0]\n",
    );
    assert_eq!(saved.tables.len(), 1, "a table that does not end is not taken: {saved:?}");
    let nat = saved.table(TableKind::Nat).unwrap();
    assert_eq!(nat.chains, ["ISTIO_A"]);
    let targets: Vec<_> = nat.rules.iter().map(super::saved::SavedRule::target).collect();
    assert_eq!(targets, [Some("ISTIO_A"), None]);
    assert_eq!(saved.content(TableKind::Nat).len(), 3);
    assert!(saved.content(TableKind::Filter).is_empty());
}

#[test]
fn five_thousand_rules_are_compared() {
    let ports: Vec<Rule> = (1..=5000)
        .map(|port| {
            let port = Match::DestinationPort { ports: Ports::One(port), not: false };
            Rule::new(vec![Match::Protocol(Protocol::Tcp), port], Action::Return, "test")
        })
        .collect();
    let chain = Chain { name: "istio-inbound".into(), base: None, rules: ports, leading: 0 };
    let table = Table { kind: TableKind::Nat, sets: Vec::new(), chains: vec![chain] };
    let ruleset = Ruleset {
        owner: "istio-proxy".into(),
        known_chains: Vec::new().into(),
        ipv6: false,
        tables: vec![table],
    };
    let line = |port: u32| format!("-A ISTIO_INBOUND -p tcp -m tcp --dport {port} -j RETURN\n");
    let differences = |ports: &mut dyn Iterator<Item = u32>| {
        let rules: String = ports.map(line).collect();
        let saved = Saved::parse(&format!("*nat\n:ISTIO_INBOUND - [0:0]\n{rules}COMMIT\n"));
        TableSide {
            layers: std::slice::from_ref(&ruleset),
            before: &[],
            family: Family::V4,
            planned: true,
            saved: Some(saved),
            ordered: false,
            label: "",
        }
        .differences()
    };
    assert_eq!(differences(&mut (1..=5000)), []);
    let moved = differences(&mut (2..=4000).chain([6000, 1]).chain(4001..=5000));
    let texts: Vec<String> = moved.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[0].contains("lacks the rule \"-p tcp") && texts[0].contains("--dport 1 "), "{texts:?}");
    assert!(texts[1].contains("--dport 6000") && texts[2].contains("--dport 1 "), "{texts:?}");
    assert_eq!(differences(&mut (1..=5000).rev()).len(), 9998);
}

/// A node's nat table with the rules that kube-proxy has for ten thousand services.
#[test]
fn thousands_of_chains_of_others_take_no_time() {
    let jump = |to: &'static str| vec![Rule::new(vec![], Action::Jump(to.into()), "test")];
    let base =
        ruleset::Base { kind: ruleset::ChainKind::Nat, hook: ruleset::Hook::Postrouting, priority: 100 };
    let table = Table {
        kind: TableKind::Nat,
        sets: Vec::new(),
        chains: vec![
            Chain {
                name: "postrouting".into(),
                base: Some(base),
                rules: jump("istio-postrouting"),
                leading: 1,
            },
            Chain { name: "istio-postrouting".into(), base: None, rules: jump("istio-other"), leading: 0 },
        ],
    };
    let ruleset = Ruleset {
        owner: "istio-ambient".into(),
        known_chains: Vec::new().into(),
        ipv6: false,
        tables: vec![table],
    };
    let chains: String = (0..30_000).map(|n| format!(":KUBE-SVC-{n} - [0:0]\n")).collect();
    let rules: String = (0..60_000)
        .map(|n| format!("-A KUBE-SVC-{} ! -s 10.244.0.0/16 -d 10.96.0.1/32 -p tcp -m tcp --dport {n} -j KUBE-MARK-MASQ\n", n / 2))
        .collect();
    let text = format!(
        "*nat\n:ISTIO_POSTRT - [0:0]\n{chains}-A POSTROUTING -j ISTIO_POSTRT\n{rules}-A ISTIO_POSTRT -j ISTIO_OTHER\nCOMMIT\n"
    );
    let start = std::time::Instant::now();
    let side = TableSide {
        layers: std::slice::from_ref(&ruleset),
        before: &[],
        family: Family::V4,
        planned: true,
        saved: Some(Saved::parse(&text)),
        ordered: false,
        label: "",
    };
    assert_eq!(side.differences(), []);
    assert!(side.holds_ours());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// As versions of both variants print it.
#[test]
fn counters_are_those_of_rules_that_follow_a_log_in_their_chain() {
    let saved = "*mangle\n:A - [0:0]\n:B - [0:0]\n[1:60] -A PREROUTING -j A\n\
        [9:540] -A A -m limit --limit 10/sec --limit-burst 50 -m comment --comment \"a --nflog-prefix \\\" b\" -j NFLOG --nflog-prefix  \"ic1:1\" \
        --nflog-group 115\n[20:1200] -A A -j DROP\n[30:1800] -A A -j DROP\n[4:4] -A A -j NFLOG --nflog-prefix ic1a:2\n[5:5] -A B -j RETURN\n\
        [6:6] -A B -j NFLOG --nflog-prefix ic1a:3 --nflog-group 115\n[7:7] -A B -j RETURN\nCOMMIT\n";
    let found: Vec<(String, String, u64)> =
        log_counts(saved).map(|count| (count.chain, count.prefix, count.packets)).collect();
    let wanted = [("A", "ic1:1", 20), ("B", "ic1a:3", 7)];
    assert_eq!(found, wanted.map(|(chain, prefix, count)| (chain.to_owned(), prefix.to_owned(), count)));
}
