//! Every reference case: the reference rules in one namespace, ours in another, and the kernel's lists of both must be equal.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};
use conformance::{Case, GROUPS, Golden, cases};
use kernel::RuleStore;
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use ruleset::Backend;
use testkit::TestNetns;
use testkit::rules::{Comments, Family, Variant};

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn the_reference_data_is_complete() {
    let cases = cases().unwrap();
    let count = |suite| cases.iter().filter(|case| case.suite == suite).count();
    assert_eq!(
        (count("cni-plugin"), count("iptables-capture"), count("nftables-capture"), cases.len()),
        (9, 27, 28, 64)
    );
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn nftables() {
    check("nftables-capture", compare_nft);
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn iptables_legacy() {
    check("iptables-capture", |case, failures| compare_iptables(case, Variant::Legacy, failures));
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn iptables_nft() {
    check("iptables-capture", |case, failures| compare_iptables(case, Variant::Nft, failures));
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn plugin_decision() {
    check("cni-plugin", |case, failures| compare_iptables(case, Variant::Nft, failures));
}

fn check(suite: &str, compare: impl Fn(&Case, &mut String) -> Result<()>) {
    let mut failures = String::new();
    let mut run = 0;
    for case in cases().unwrap().iter().filter(|case| case.suite == suite) {
        run += 1;
        if let Err(error) = compare(case, &mut failures) {
            let _ = writeln!(failures, "== {suite}/{}: {error:#}", case.name);
        }
    }
    println!("{suite}: {run} cases");
    assert!(run > 0 && failures.is_empty(), "{failures}");
}

fn compare_nft(case: &Case, failures: &mut String) -> Result<()> {
    let Golden::Nft(golden) = case.golden()? else { unreachable!("an nftables case") };
    let reference = TestNetns::new()?;
    with_groups(&reference, Command::new("nft").args(["-f", "-"]), &with_drops(&golden))?;
    let ours = TestNetns::new()?;
    let plan = capture::plan(
        &case.settings()?,
        capture::PlanTarget { backend: Backend::Nftables, ipv6: case.ipv6() },
    );
    ours.enter(|inside| Nftables.setup(inside, &plan.layers))??;
    let expected = reference.nft_json(Comments::Strip)?;
    let found = ours.nft_json(Comments::Strip)?;
    if expected != found {
        report(case, &reference.nft_text()?, &ours.nft_text()?, failures);
    }
    Ok(())
}

/// The one deviation from the reference rules (docs/compatibility.md): behind each tproxy rule one that drops what it did not take, because
/// nothing listens. It matches what the tproxy rule matches.
fn with_drops(golden: &str) -> String {
    let drop =
        |line: &str| line.split_once(" tproxy ").map(|(matches, _)| format!("{matches} counter drop\n"));
    golden.lines().map(|line| format!("{line}\n{}", drop(line).unwrap_or_default())).collect()
}

fn compare_iptables(case: &Case, variant: Variant, failures: &mut String) -> Result<()> {
    let Golden::Iptables { v4, v6 } = case.golden()? else { unreachable!("an iptables case") };
    let reference = TestNetns::new()?;
    let ours = TestNetns::new()?;
    let plan = capture::plan(
        &case.settings()?,
        capture::PlanTarget { backend: Backend::Iptables, ipv6: case.ipv6() },
    );
    let forced = match variant {
        Variant::Legacy => kernel::iptables::Variant::Legacy,
        Variant::Nft => kernel::iptables::Variant::Nft,
    };
    ours.enter(|inside| Iptables::forced(forced).setup(inside, &plan.layers))??;
    for (family, golden) in [(Family::V4, v4), (Family::V6, v6)] {
        if golden.is_empty() {
            continue;
        }
        let program = restore_program(variant, family);
        with_groups(&reference, Command::new(program).arg("--noflush"), &golden)?;
        let expected = reference.iptables_save(variant, family)?;
        let found = ours.iptables_save(variant, family)?;
        if expected != found {
            report(case, &expected, &found, failures);
        }
    }
    Ok(())
}

fn restore_program(variant: Variant, family: Family) -> &'static str {
    match (variant, family) {
        (Variant::Legacy, Family::V4) => "iptables-legacy-restore",
        (Variant::Legacy, Family::V6) => "ip6tables-legacy-restore",
        (Variant::Nft, Family::V4) => "iptables-nft-restore",
        (Variant::Nft, Family::V6) => "ip6tables-nft-restore",
    }
}

/// Runs a loader that sees a group database with the groups of the reference data, in a mount namespace of its own.
fn with_groups(netns: &TestNetns, command: &mut Command, input: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let text: String = GROUPS.iter().map(|(name, gid)| format!("{name}:x:{gid}:\n")).collect();
    std::fs::write(file.path(), text)?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/group && exec \"$@\""]).arg(file.path());
    unshare.arg(command.get_program()).args(command.get_args());
    netns.pipe(&mut unshare, input).with_context(|| format!("load the reference rules:\n{input}")).map(drop)
}

fn report(case: &Case, expected: &str, found: &str, failures: &mut String) {
    let _ = writeln!(failures, "== {}/{}", case.suite, case.name);
    for line in expected.lines().filter(|line| !found.lines().any(|l| l == *line)) {
        let _ = writeln!(failures, "- {line}");
    }
    for line in found.lines().filter(|line| !expected.lines().any(|l| l == *line)) {
        let _ = writeln!(failures, "+ {line}");
    }
    let _ = writeln!(failures, "(lines without a mark differ in order only)\n{expected}\n---\n{found}");
}

/// The deviation is exactly the drop rules: one for each tproxy rule of the reference data, and without them the rules differ.
#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn nothing_but_a_drop_behind_each_tproxy_rule_is_added_to_the_reference_rules() {
    let mut families = 0;
    for case in cases().unwrap().iter().filter(|case| case.suite == "nftables-capture") {
        let Golden::Nft(golden) = case.golden().unwrap() else { unreachable!("an nftables case") };
        let added: Vec<String> = with_drops(&golden).lines().map(str::to_owned).collect();
        let rest: Vec<&String> = added.iter().filter(|line| !line.ends_with(" counter drop")).collect();
        let drops = golden.lines().filter(|line| line.ends_with(" counter drop")).count();
        let tproxy = golden.lines().filter(|line| line.contains(" tproxy ")).count();
        assert_eq!(added.len() - rest.len(), drops + tproxy, "{}", case.name);
        assert_eq!(rest.len() + drops, golden.lines().count(), "{}", case.name);
        families += tproxy;
    }
    assert_eq!(families, 4, "three cases, one of them with both families");
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn a_difference_is_found() {
    // The comparison itself: one rule less must show.
    let cases = cases().unwrap();
    let case = cases.iter().find(|case| case.suite == "nftables-capture" && case.name == "empty").unwrap();
    let Golden::Nft(golden) = case.golden().unwrap() else { unreachable!("an nftables case") };
    let (whole, less) = (TestNetns::new().unwrap(), TestNetns::new().unwrap());
    let cut: Vec<&str> = golden.lines().take(golden.lines().count() - 1).collect();
    whole.nft(&golden).unwrap();
    less.nft(&(cut.join("\n") + "\n")).unwrap();
    assert_ne!(whole.nft_json(Comments::Strip).unwrap(), less.nft_json(Comments::Strip).unwrap());
}
