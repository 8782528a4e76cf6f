//! What policies need of rules, in random rulesets: the backends by what the kernel lists, and real packets by what they are answered, where they
//! are counted, and what is logged of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Command;
use std::slice::from_ref;

use agreement::lab::{Loader, owners};
use agreement::nflog::Listener;
use agreement::raw::Answer;
use agreement::rulesets::{Attempt, DISCOVERY, GROUPS, OPEN, attempt, ruleset};
use agreement::run::{SEED, runner};
use anyhow::{Context as _, Result, ensure};
use kernel::nft::Nftables;
use kernel::{Change, RuleStore};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use ruleset::{
    Action, Base, Chain, ChainKind, CtState, Hook, Limit, Match, Ports, Protocol, RejectWith, Rule, Ruleset,
    Table, TableKind,
};
use testkit::{Families, Pod};

const CASES: u32 = 30;
const SHRINK: u32 = 60;
/// The first of the source ports, of which each attempt takes one.
const FIRST_PORT: u16 = 20_000;

/// A pod where each packet that comes in is one that was sent for it.
struct Range {
    pod: Pod,
    ears: Listener,
    _open: TcpListener,
    next_port: Cell<u16>,
    /// Packets and what was counted, logged and answered of them.
    seen: Cell<[u64; 4]>,
}

impl Range {
    fn new() -> Result<Self> {
        let pod = Pod::new(Families::Dual)?;
        for namespace in [pod.own(), pod.peer()] {
            // What is refused is told each time.
            namespace.set_sysctl("net.ipv4.icmp_ratelimit", "0")?;
            namespace.set_sysctl("net.ipv6.icmp.ratelimit", "0")?;
            namespace.set_sysctl("net.ipv4.icmp_msgs_per_sec", "100000")?;
            namespace.set_sysctl("net.ipv4.icmp_msgs_burst", "100000")?;
        }
        // The peer has no sockets, and would reset what the pod accepts.
        pod.peer()
            .nft("add table inet quiet; add chain inet quiet out { type filter hook output priority 0 ; }")?;
        pod.peer().nft("add rule inet quiet out tcp flags & rst == rst drop")?;
        let open = pod.own().enter(|_| TcpListener::bind(("::", OPEN)))??;
        let ears = Listener::new(pod.own(), &GROUPS)?;
        Ok(Self { pod, ears, _open: open, next_port: Cell::new(FIRST_PORT), seen: Cell::default() })
    }

    /// Whether the kernel holds what was planned, in each of the ways to ask.
    fn load(&self, loader: Loader, rules: &Ruleset) -> Result<()> {
        let iptables = loader.iptables();
        let store: &(dyn RuleStore + Sync) = if loader == Loader::Nft { &Nftables } else { &iptables };
        let layers = from_ref(rules);
        self.pod.own().enter(|inside| {
            ensure!(store.setup(inside, layers)? == Change::Fresh, "something was there");
            let differences = store.observe(inside, layers)?;
            ensure!(differences.is_empty(), "after loading: {differences:?}");
            let record = store.recorded(layers);
            let differences = store.observe_recorded(inside, &owners(layers), &record)?;
            ensure!(differences == Some(Vec::new()), "by the record: {differences:?}");
            ensure!(store.setup(inside, layers)? == Change::None, "the second time");
            Ok(())
        })?
    }

    fn unload(&self, loader: Loader, rules: &Ruleset) -> Result<()> {
        let iptables = loader.iptables();
        let store: &(dyn RuleStore + Sync) = if loader == Loader::Nft { &Nftables } else { &iptables };
        self.pod.own().enter(|inside| {
            store.cleanup(inside, from_ref(rules))?;
            ensure!(!store.exists(inside, from_ref(rules))?, "rules are left after a cleanup");
            Ok(())
        })?
    }

    /// The packets of each counter since the rules were loaded.
    fn counts(&self, loader: Loader) -> Result<BTreeMap<String, u64>> {
        let mut counts = BTreeMap::new();
        let mut add = |name: &str, packets: u64| {
            if name != DISCOVERY && packets > 0 {
                *counts.entry(name.to_owned()).or_default() += packets;
            }
        };
        if loader == Loader::Nft {
            let text = self.pod.own().run(Command::new("nft").args(["-j", "list", "counters"]))?;
            let all: serde_json::Value = serde_json::from_str(&text)?;
            let counters =
                all["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("counter"));
            counters.for_each(|c| {
                add(c["name"].as_str().unwrap_or("?"), c["packets"].as_u64().unwrap_or(u64::MAX));
            });
            return Ok(counts);
        }
        let variant = if loader == Loader::IptablesNft { "nft" } else { "legacy" };
        for program in ["iptables", "ip6tables"] {
            let program = format!("{program}-{variant}-save");
            let text = self.pod.own().run(Command::new(program).args(["-c", "-t", "filter"]))?;
            for line in text.lines().filter(|line| line.starts_with('[')) {
                let packets = line[1..].split(':').next().context("a count")?.parse()?;
                let name = line.split_once(" --comment ").and_then(|(_, rest)| rest.split(' ').next());
                name.into_iter().for_each(|name| add(name, packets));
            }
        }
        Ok(counts)
    }

    /// What is not as the evaluator says, in words. After an error nothing of the rules is left either: the next case, or a smaller one, would find
    /// them.
    fn disagreement(
        &self,
        loader: Loader,
        loaded: &Ruleset,
        expected: &Ruleset,
        attempts: &[Attempt],
    ) -> Result<Option<String>> {
        let found = self.disagreement_after_loading(loader, loaded, expected, attempts);
        if found.is_err() {
            self.flush()?;
        }
        found
    }

    /// Takes everything away, whoever has loaded it.
    fn flush(&self) -> Result<()> {
        self.pod.own().nft("flush ruleset")?;
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            for (table, what) in [("filter", "-F"), ("filter", "-X"), ("nat", "-F"), ("nat", "-X")] {
                self.pod.own().run(Command::new(program).args(["-t", table, what]))?;
            }
        }
        Ok(())
    }

    fn disagreement_after_loading(
        &self,
        loader: Loader,
        loaded: &Ruleset,
        expected: &Ruleset,
        attempts: &[Attempt],
    ) -> Result<Option<String>> {
        self.load(loader, loaded)?;
        let mut found = None;
        let mut counts = BTreeMap::new();
        for attempt in attempts {
            let port = self.next_port.get();
            self.next_port.set(port.checked_add(1).unwrap_or(FIRST_PORT));
            let (shot, times, from_peer) = attempt.shots(port);
            let wanted = attempt.expected(expected, loader.backend(), port);
            let sender = if from_peer { self.pod.peer() } else { self.pod.own() };
            let quiet = matches!(wanted.answer, None | Some(Answer::Nothing));
            let mut answer = Answer::Nothing;
            for _ in 0..times {
                answer = shot.fire(sender, quiet)?;
            }
            let logged = match self.ears.next(wanted.logged.len()) {
                Ok(logged) => logged,
                Err(error) => {
                    found = Some(format!("{loader:?}: {attempt:?}: {error:#}"));
                    break;
                }
            };
            let what = match wanted.answer.filter(|wanted| *wanted != answer) {
                Some(wanted) => format!("predicted {wanted:?}, but the answer is {answer:?}"),
                None if logged != wanted.logged => {
                    format!("predicted {:?}, but logged is {logged:?}", wanted.logged)
                }
                None if !self.ears.is_silent() => "more was logged than predicted".to_owned(),
                None => String::new(),
            };
            let [packets, counted, logs, answers] = self.seen.get();
            let here: u64 = wanted.counts.values().sum();
            let told = u64::from(!matches!(answer, Answer::Nothing));
            self.seen.set([
                packets + u64::from(times),
                counted + here,
                logs + logged.len() as u64,
                answers + told,
            ]);
            wanted.counts.into_iter().for_each(|(name, count)| *counts.entry(name).or_default() += count);
            let there = self.counts(loader)?;
            if !what.is_empty() || there != counts {
                found = Some(format!(
                    "{loader:?}: {attempt:?}: {what}\npredicted counts {counts:?}\nthe kernel's      {there:?}"
                ));
                break;
            }
        }
        self.unload(loader, loaded)?;
        Ok(found)
    }
}

fn text(rules: &Ruleset) -> String {
    ruleset::nft::render(&ruleset::Transaction::Add(from_ref(rules)))
}

#[test]
fn real_packets_are_counted_logged_and_answered_as_the_evaluator_says() {
    let range = Range::new().expect("a pod, as root");
    let (mut runner, seed) = runner("rules", CASES, SHRINK);
    let result = runner.run(&(ruleset(), vec(attempt(), 8..=16)), |(rules, attempts)| {
        prop_assert_eq!(ruleset::check(&rules), Ok(()));
        for loader in Loader::ALL {
            let found = range.disagreement(loader, &rules, &rules, &attempts);
            let found = found.unwrap_or_else(|error| panic!("{loader:?}: {error:#}\n{}", text(&rules)));
            if let Some(found) = found {
                return Err(TestCaseError::fail(format!("{found}\n{}", text(&rules))));
            }
        }
        Ok(())
    });
    let seen = range.seen.get();
    println!("packets, counted, logged, answered: {seen:?}");
    if let Err(failure) = result {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
    assert!(seen[0] < 500 || seen.iter().all(|number| *number > 50), "too little was met: {seen:?}");
}

fn input(rules: Vec<Rule>) -> Ruleset {
    let kind = TableKind::Filter;
    let base =
        Some(Base { kind: ChainKind::Filter, hook: Hook::Input, priority: kind.priority(Hook::Input) });
    let jump = Rule::new(Vec::new(), Action::Jump("istio-np-a".into()), "to all of them").counted_as("jump");
    let first = Chain { name: "input".into(), base, rules: vec![jump], leading: 0 };
    let chain = Chain { name: "istio-np-a".into(), base: None, rules, leading: 0 };
    let rules = Ruleset {
        owner: "istio-agree".into(),
        known_chains: Vec::new().into(),
        ipv6: true,
        tables: vec![Table { kind, sets: Vec::new(), chains: vec![first, chain] }],
    };
    assert_eq!(ruleset::check(&rules), Ok(()));
    rules
}

fn port(ports: Ports) -> Match {
    Match::DestinationPort { ports, not: false }
}

/// Otherwise what a failure shrinks to would be what the failures before it have left.
#[test]
fn a_failure_leaves_nothing_to_the_next_case() {
    let range = Range::new().expect("a pod, as root");
    let rules = input(vec![Rule::new(Vec::new(), Action::Accept, "all").counted_as("count-0")]);
    for loader in Loader::ALL {
        range.load(loader, &rules).expect("the rules load");
        let error = range.disagreement(loader, &rules, &rules, &[]).expect_err("they are there already");
        assert!(error.to_string().contains("something was there"), "{loader:?}: {error:#}");
        assert_eq!(range.disagreement(loader, &rules, &rules, &[]).expect("nothing is left"), None);
    }
}

/// The comparison itself can fail: without a rule that a packet meets, the packet gives it away.
#[test]
fn a_missing_rule_is_noticed() {
    let range = Range::new().expect("a pod, as root");
    let log = Action::Log { group: GROUPS[0], prefix: "ic1:1".into(), limit: None };
    let of = Match::Protocol;
    let inbound = |protocol, to, icmp| Attempt::In { protocol, v6: false, to, icmp, again: false };
    let all = [
        (vec![of(Protocol::Tcp), port(Ports::Range(80, 90))], log, inbound(Protocol::Tcp, 81, (0, 0))),
        (
            vec![of(Protocol::Udp), Match::OriginalPort { ports: Ports::Range(80, 90), not: false }],
            Action::Reject(RejectWith::AdminProhibited),
            inbound(Protocol::Udp, 90, (0, 0)),
        ),
        (vec![of(Protocol::Sctp), port(Ports::One(91))], Action::Drop, inbound(Protocol::Sctp, 91, (0, 0))),
        (
            vec![of(Protocol::Icmp), Match::IcmpType { kind: 8, code: Some(0) }],
            Action::Accept,
            inbound(Protocol::Icmp, 0, (8, 0)),
        ),
        (
            vec![Match::Reply, Match::CtState(CtState::Established)],
            Action::Accept,
            Attempt::Echo { v6: false },
        ),
        (vec![Match::CtState(CtState::Related)], Action::Accept, Attempt::Closed { v6: false, to: 443 }),
    ];
    let rule =
        |at: usize| Rule::new(all[at].0.clone(), all[at].1.clone(), "one").counted_as(format!("count-{at}"));
    let whole = input((0..all.len()).map(rule).collect());
    let attempts = all.clone().map(|(_, _, attempt)| attempt);
    for loader in Loader::ALL {
        assert_eq!(range.disagreement(loader, &whole, &whole, &attempts).expect("an attempt"), None);
        for (at, attempt) in attempts.iter().enumerate() {
            let without = input((0..all.len()).filter(|other| *other != at).map(rule).collect());
            let found = range.disagreement(loader, &without, &whole, from_ref(attempt)).expect("an attempt");
            assert!(found.is_some(), "{loader:?}: the rule of {attempt:?} is not missed");
        }
    }
}

/// Rules that differ in one part, by twos.
fn changed() -> Vec<[Rule; 2]> {
    let of = Match::Protocol;
    let (tcp, icmp) = (|| of(Protocol::Tcp), || of(Protocol::Icmp));
    let net = |text: &str| text.parse().expect("a prefix");
    let original = |text, not| Match::OriginalDestination { net: net(text), not };
    let original_port = |ports| Match::OriginalPort { ports, not: false };
    let kind = |kind, code| Match::IcmpType { kind, code };
    let log = |group, prefix: &'static str, limit: Option<(u32, u32)>| {
        let limit = limit.map(|(per_second, burst)| Limit { per_second, burst });
        Action::Log { group, prefix: prefix.into(), limit }
    };
    let matches = [
        [vec![tcp(), port(Ports::Range(80, 90))], vec![tcp(), port(Ports::Range(80, 91))]],
        [vec![tcp(), port(Ports::Range(80, 90))], vec![tcp(), port(Ports::One(80))]],
        [vec![of(Protocol::Sctp), port(Ports::One(1))], vec![tcp(), port(Ports::One(1))]],
        [vec![icmp(), kind(8, None)], vec![icmp(), kind(13, None)]],
        [vec![icmp(), kind(3, Some(4))], vec![icmp(), kind(3, Some(3))]],
        [vec![icmp(), kind(3, Some(0))], vec![icmp(), kind(3, None)]],
        [vec![original("10.0.0.1/32", false)], vec![original("10.0.0.2/32", false)]],
        [vec![original("10.0.0.0/8", false)], vec![original("10.0.0.0/8", true)]],
        [
            vec![original("10.0.0.0/8", false)],
            vec![Match::Destination { net: net("10.0.0.0/8"), not: false }],
        ],
        [vec![tcp(), original_port(Ports::Range(80, 90))], vec![tcp(), original_port(Ports::Range(80, 91))]],
        [vec![tcp(), original_port(Ports::One(80))], vec![tcp(), port(Ports::One(80))]],
        [vec![Match::CtState(CtState::Related)], vec![Match::CtState(CtState::Established)]],
        [vec![tcp(), Match::Reply], vec![tcp()]],
    ];
    let accept = |matches| Rule::new(matches, Action::Accept, "");
    let actions = [
        [Action::Reject(RejectWith::TcpReset), Action::Reject(RejectWith::PortUnreachable)],
        [Action::Reject(RejectWith::AdminProhibited), Action::Reject(RejectWith::PortUnreachable)],
        [Action::Reject(RejectWith::AdminProhibited), Action::Drop],
        [log(7, "a", None), log(8, "a", None)],
        [log(7, "a", None), log(7, "b", None)],
        [log(7, "a", None), log(7, "a", Some((10, 50)))],
        [log(7, "a", Some((10, 51))), log(7, "a", Some((10, 50)))],
        [log(7, "a", Some((11, 50))), log(7, "a", Some((10, 50)))],
    ];
    let act = |action| Rule::new(vec![tcp()], action, "");
    let counted = [
        [accept(vec![]).counted_as("a"), accept(vec![]).counted_as("b")],
        [accept(vec![]).counted_as("a"), accept(vec![])],
    ];
    let matches = matches.into_iter().map(|two| two.map(accept));
    matches.chain(actions.into_iter().map(|two| two.map(act))).chain(counted).collect()
}

#[test]
fn a_change_of_any_part_is_a_difference() {
    let range = Range::new().expect("a pod, as root");
    let all = changed();
    let loaded = input(all.iter().map(|[first, _]| first.clone()).collect());
    for loader in Loader::ALL {
        range.load(loader, &loaded).expect("the rules load");
        let iptables = loader.iptables();
        let store: &dyn RuleStore = if loader == Loader::Nft { &Nftables } else { &iptables };
        for (at, [first, second]) in all.iter().enumerate() {
            let mut planned = loaded.clone();
            planned.tables[0].chains[1].rules[at] = second.clone();
            let found = range
                .pod
                .own()
                .enter(|inside| store.observe(inside, from_ref(&planned)))
                .expect("a pod")
                .expect("a list");
            let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert!(!texts.is_empty(), "{loader:?}: {first:?} is taken for {second:?}");
            assert!(texts.iter().any(|text| text.contains("lacks the rule")), "{texts:?}");
        }
        range.unload(loader, &loaded).expect("the rules go");
    }
}
