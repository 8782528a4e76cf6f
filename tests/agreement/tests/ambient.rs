//! Ambient mode with random options: both backends' plans say the same, and real packets do what the evaluator says.

use std::cell::Cell;

use agreement::lab::{Lab, Loader, compare};
use agreement::run::{SEED, runner};
use agreement::strategy::{ambient_attempt, ambient_options, packet};
use agreement::way::{Attempt, End, predict};
use capture::ambient::{NodeOptions, PodOptions, plan_pod, plan_translating_pod};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use ruleset::eval::evaluate;
use ruleset::{Backend, Family, NoMembers, Plan};

#[test]
fn both_backends_say_the_same() {
    let (mut runner, seed) = runner("ambient-backends", 500, 10_000);
    let strategy = (ambient_options(), any::<bool>(), vec(packet(), 40));
    let result = runner.run(&strategy, |((node, pod), translates, packets)| {
        let [nft, iptables] =
            [Backend::Nftables, Backend::Iptables].map(|b| planner(translates)(&node, &pod, b));
        for (packet, hook, nat) in &packets {
            // Without IPv6, ip6tables is not run.
            if packet.family() == Family::V6 && !node.ipv6 {
                continue;
            }
            let look = |plan: &Plan| {
                let o = evaluate(&plan.layers, plan.backend, packet, *hook, *nat, &NoMembers);
                (o.verdict, o.mark, o.ct_mark, o.zone)
            };
            prop_assert_eq!(look(&nft), look(&iptables), "{:?} {:?} {:?} {:?}", packet, hook, node, pod);
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
}

#[test]
fn real_packets_go_where_the_evaluator_says() {
    let lab = Lab::new().expect("a lab");
    let (mut runner, seed) = runner("ambient-packets", 40, 100);
    let ends: [Cell<u32>; 4] = [const { Cell::new(0) }; 4];
    let strategy = (ambient_options(), any::<bool>(), vec(ambient_attempt(), 1..=12));
    let result = runner.run(&strategy, |((node, pod), translates, attempts)| {
        for loader in Loader::ALL {
            let plan = planner(translates)(&node, &pod, loader.backend());
            let found = disagreement(&lab, loader, &plan, &attempts, &ends)
                .unwrap_or_else(|error| panic!("{loader:?}: {error:#}\n{node:?} {pod:?}"));
            if let Some(found) = found {
                return Err(TestCaseError::fail(format!("{loader:?}: {found}\n{node:?} {pod:?}")));
            }
        }
        Ok(())
    });
    println!("outbound, inbound, resolver, others: {ends:?}");
    if let Err(failure) = result {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
    let met: u32 = ends.iter().map(Cell::get).sum();
    assert!(met < 500 || ends.iter().all(|end| end.get() > 0), "not every kind of end was met: {ends:?}");
}

/// The plan of a pod that translates itself, or of another one.
fn planner(translates: bool) -> fn(&NodeOptions, &PodOptions, Backend) -> Plan {
    if translates { plan_translating_pod } else { plan_pod }
}

fn disagreement(
    lab: &Lab,
    loader: Loader,
    plan: &Plan,
    attempts: &[Attempt],
    ends: &[Cell<u32>; 4],
) -> anyhow::Result<Option<String>> {
    lab.load(loader, plan)?;
    let mut found = None;
    for attempt in attempts {
        let way = predict(plan, attempt);
        let kind = match way.end {
            End::Listener { port: 15001, .. } => 0,
            End::Listener { port: 15006, .. } => 1,
            End::Listener { port: 15053, .. } => 2,
            _ => 3,
        };
        ends[kind].set(ends[kind].get() + 1);
        if let Err(difference) = compare(attempt, &way.end, &lab.attempt(attempt)?) {
            found = Some(format!("{difference}\n{attempt:?}\nwhat the evaluator says:\n{way}"));
            break;
        }
    }
    lab.unload(loader, plan)?;
    Ok(found)
}
