//! Random settings without a kernel: plans are valid, both backends' plans say the same, and both keep the specification's
//! promises.

use std::cell::RefCell;

use agreement::oracle::{Case, PROMISES};
use agreement::run::{SEED, runner};
use agreement::strategy::{packet, settings};
use capture::{PlanTarget, Settings, plan};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use ruleset::eval::{Evaluation, Packet, State, Verdict, evaluate};
use ruleset::{Action, Backend, Family, Hook, Match, NoMembers, Plan, Protocol, Transaction};

const CASES: u32 = 500;
const PACKETS: usize = 40;
const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

fn plans(settings: &Settings, ipv6: bool) -> [Plan; 2] {
    BACKENDS.map(|backend| plan(settings, PlanTarget { backend, ipv6 }))
}

/// Runs `test` over random settings and packets.
fn check(name: &str, test: impl Fn(&Settings, bool, &[(Packet, Hook, bool)]) -> Result<(), TestCaseError>) {
    let (mut runner, seed) = runner(name, CASES, 10_000);
    let strategy = (settings(), any::<bool>(), vec(packet(), PACKETS));
    if let Err(failure) = runner.run(&strategy, |(settings, ipv6, packets)| test(&settings, ipv6, &packets)) {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
}

fn look<'a>(plan: &'a Plan, (packet, hook, nat): &(Packet, Hook, bool)) -> Evaluation<'a> {
    evaluate(&plan.layers, plan.backend, packet, *hook, *nat, &NoMembers)
}

fn trace(outcome: &Evaluation<'_>) -> String {
    let line = |p: &ruleset::eval::RulePlace<'_>| {
        format!("\n    {}/{}[{}]: {}", p.table, p.chain.name, p.index, ruleset::nft::render_rule(p.rule))
    };
    let rules: String = outcome.trace.iter().map(line).collect();
    format!(
        "{:?} mark {} ct {} zone {:?}{rules}",
        outcome.verdict, outcome.mark, outcome.ct_mark, outcome.zone
    )
}

/// Every difference between the backends that is meant, as narrow as it can be said.
fn may_differ(
    settings: &Settings,
    ipv6: bool,
    packet: &Packet,
    iptables: &Evaluation<'_>,
    nft: &Evaluation<'_>,
) -> bool {
    // 1. Without IPv6, ip6tables is not run and sees nothing; an inet table of nf_tables sees all packets.
    if packet.family() == Family::V6 && !ipv6 {
        return iptables.trace.is_empty() && iptables.verdict == Verdict::Pass;
    }
    // 2. Drop invalid: iptables drops every protocol, nf_tables TCP only.
    settings.drop_invalid
        && packet.state == State::Invalid
        && packet.protocol != Protocol::Tcp
        && iptables.verdict == Verdict::Drop
        && nft.verdict == Verdict::Pass
}

#[test]
fn both_backends_say_the_same() {
    check("backends", |settings, ipv6, packets| {
        let [nft, iptables] = plans(settings, ipv6);
        for at in packets {
            let (a, b) = (look(&nft, at), look(&iptables, at));
            let same = (a.verdict, a.mark, a.ct_mark, a.zone) == (b.verdict, b.mark, b.ct_mark, b.zone);
            prop_assert!(
                same || may_differ(settings, ipv6, &at.0, &b, &a),
                "{at:?}\nnftables: {}\niptables: {}\n{settings:#?}\n{}",
                trace(&a),
                trace(&b),
                ruleset::nft::render(&Transaction::Add(&nft.layers))
            );
        }
        Ok(())
    });
}

/// The third meant difference has no owner at all: the kernel's own packets, such as a reset.
#[test]
fn without_a_socket_only_inverted_owner_matches_tell_the_backends_apart() {
    check("ownerless", |settings, ipv6, packets| {
        let [nft, iptables] = plans(settings, ipv6);
        for (packet, hook, nat) in packets {
            let at = (Packet { owner: None, ..packet.clone() }, *hook, *nat);
            let (a, b) = (look(&nft, &at), look(&iptables, &at));
            let inverted = |p: &ruleset::eval::RulePlace<'_>| {
                let negative =
                    |m: &Match| matches!(m, Match::Uid { not: true, .. } | Match::Gid { not: true, .. });
                p.rule.matches.iter().any(negative) && p.rule.action == Action::Return
            };
            prop_assert!(
                a.verdict == b.verdict
                    || b.trace.iter().any(inverted)
                    || may_differ(settings, ipv6, &at.0, &b, &a),
                "{at:?}\nnftables: {}\niptables: {}\n{settings:#?}",
                trace(&a),
                trace(&b)
            );
            prop_assert!(
                !a.trace.iter().any(inverted),
                "nf_tables ends a rule that asks for the owner of nobody's packet"
            );
        }
        Ok(())
    });
}

#[test]
fn every_plan_is_valid_and_is_the_same_when_made_again() {
    check("valid", |settings, ipv6, _| {
        for plan in plans(settings, ipv6) {
            let [rules] = &plan.layers[..] else { panic!("a plan has one layer") };
            prop_assert_eq!(ruleset::check(rules), Ok(()), "{:#?}", settings);
            prop_assert_eq!(&plan, &capture::plan(settings, PlanTarget { backend: plan.backend, ipv6 }));
            for rule in rules.tables.iter().flat_map(|t| &t.chains).flat_map(|c| &c.rules) {
                prop_assert!(
                    !rule.why.is_empty() && rule.why.len() <= ruleset::nft::COMMENT_MAX,
                    "{:?}",
                    rule
                );
                prop_assert!(!rule.why.contains(['"', '\\', '\n']), "{:?} cannot be a comment", rule.why);
            }
            if plan.backend == Backend::Iptables {
                for family in [Family::V4, Family::V6] {
                    prop_assert!(ruleset::iptables::render(&plan.layers, family).is_ok());
                }
            }
        }
        Ok(())
    });
}

#[test]
fn both_backends_keep_the_promises() {
    let met = RefCell::new(vec![0_u32; PROMISES.len()]);
    check("promises", |settings, ipv6, packets| {
        for plan in plans(settings, ipv6) {
            for at @ (packet, hook, nat) in packets {
                // Nothing is promised about what ip6tables never sees.
                if packet.family() == Family::V6 && !ipv6 {
                    continue;
                }
                let case = Case { settings, ipv6, packet, hook: *hook, nat: *nat };
                let outcome = look(&plan, at);
                for (number, promise) in PROMISES.iter().enumerate().filter(|(_, p)| (p.holds_for)(&case)) {
                    met.borrow_mut()[number] += 1;
                    prop_assert!(
                        (promise.keeps)(&case, outcome.verdict),
                        "broken: {}\n{at:?}\n{}: {}\n{settings:#?}",
                        promise.text,
                        plan.backend,
                        trace(&outcome)
                    );
                }
            }
        }
        Ok(())
    });
    for (promise, met) in PROMISES.iter().zip(met.into_inner()) {
        println!("{met:6} times: {}", promise.text);
        assert!(met >= 20, "{:?} was tried {met} times only", promise.text);
    }
}
