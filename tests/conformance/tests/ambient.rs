//! Every reference case of ambient mode: the reference rules in one namespace, ours in another, and the kernel's lists of both must
//! be equal.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

use anyhow::Result;
use capture::ambient::{PROBES_V4, PROBES_V6, SET_COMMENT};
use conformance::ambient::{Case, cases};
use conformance::{Golden, golden_dir};
use kernel::RuleStore;
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use ruleset::Backend;
use testkit::TestNetns;
use testkit::rules::{Comments, Family, Variant};

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn each_reference_file_has_a_case() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        let folder = golden_dir().unwrap().join(format!("ambient-{backend}"));
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
        let mut files: Vec<String> = files.map(|name| name.into_string().unwrap()).collect();
        let mut names: Vec<String> =
            cases(backend).iter().map(|case| format!("{}.golden", case.name)).collect();
        files.sort();
        names.sort();
        assert_eq!((files.len(), files), (14, names));
    }
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn nftables() {
    let different: Vec<String> =
        cases(Backend::Nftables).iter().filter_map(|case| compare_nft(case).unwrap()).collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn iptables() {
    for variant in [Variant::Legacy, Variant::Nft] {
        let cases = cases(Backend::Iptables);
        let different: Vec<String> =
            cases.iter().filter_map(|case| compare_iptables(case, variant).unwrap()).collect();
        assert!(different.is_empty(), "{variant:?}\n{}", different.join("\n"));
    }
}

fn compare_nft(case: &Case) -> Result<Option<String>> {
    let Golden::Nft(golden) = case.golden()? else { unreachable!("an nftables case") };
    let (reference, ours) = (TestNetns::new()?, TestNetns::new()?);
    if case.host {
        reference.nft(&sets(case.node.ipv6))?;
    }
    reference.nft(&golden)?;
    set_up(&ours, &Nftables, case)?;
    let expected = reference.nft_json(Comments::Strip)?;
    assert!(expected.len() > 3, "{}: {expected:?}", case.name);
    // Our rules have comments and the reference's none; sets have the same.
    let sets_are_equal = set_text(&reference)? == set_text(&ours)?;
    let equal = expected == ours.nft_json(Comments::Strip)? && sets_are_equal;
    Ok((!equal).then(|| report(case, &reference.nft_text().unwrap(), &ours.nft_text().unwrap())))
}

fn compare_iptables(case: &Case, variant: Variant) -> Result<Option<String>> {
    let Golden::Iptables { v4, v6 } = case.golden()? else { unreachable!("an iptables case") };
    assert_eq!(v6.is_empty(), !case.node.ipv6, "{}", case.name);
    let (reference, ours) = (TestNetns::new()?, TestNetns::new()?);
    if case.host {
        for namespace in [&reference, &ours] {
            for (set, family) in [(PROBES_V4, "inet"), (PROBES_V6, "inet6")] {
                namespace.run(
                    Command::new("ipset").args(["create", set, "hash:ip", "family", family, "comment"]),
                )?;
            }
        }
    }
    let forced = match variant {
        Variant::Legacy => kernel::iptables::Variant::Legacy,
        Variant::Nft => kernel::iptables::Variant::Nft,
    };
    set_up(&ours, &Iptables::forced(forced), case)?;
    for (family, golden) in [(Family::V4, v4), (Family::V6, v6)] {
        // Without IPv6 there is nothing to read, not even by ip6tables.
        if !golden.is_empty() {
            reference.iptables_restore(variant, family, &format!("{golden}\n"))?;
        }
        let (expected, found) =
            (reference.iptables_save(variant, family)?, ours.iptables_save(variant, family)?);
        assert_eq!(expected.contains("ISTIO_"), family == Family::V4 || case.node.ipv6, "{}", case.name);
        if expected != found {
            return Ok(Some(report(case, &expected, &found)));
        }
    }
    Ok(None)
}

fn set_up(namespace: &TestNetns, store: &dyn RuleStore, case: &Case) -> Result<()> {
    let plan = case.plan();
    namespace.enter(|inside| store.setup(inside, &plan.layers))??;
    Ok(())
}

/// What creates the sets before the rules of the node, as the reference has it.
fn sets(ipv6: bool) -> String {
    let table = "inet istio-ambient-nat";
    let mut text = format!("add table {table}\n");
    for (set, kind) in [(PROBES_V4, "ipv4_addr"), (PROBES_V6, "ipv6_addr")].iter().take(1 + usize::from(ipv6))
    {
        text += &format!("add set {table} {set} {{ type {kind} ; comment \"{SET_COMMENT}\" ; }}\n");
    }
    text
}

fn set_text(namespace: &TestNetns) -> Result<String> {
    namespace.run(Command::new("nft").args(["list", "sets"]))
}

fn report(case: &Case, expected: &str, found: &str) -> String {
    let differing = |one: &str, other: &str, mark: &str| -> String {
        let only = one.lines().filter(|line| !other.lines().any(|l| l == *line));
        only.map(|line| format!("{mark} {line}\n")).collect()
    };
    let (less, more) = (differing(expected, found, "-"), differing(found, expected, "+"));
    format!(
        "== {}\n{less}{more}(lines without a mark differ in order only)\n{expected}\n---\n{found}",
        case.name
    )
}
