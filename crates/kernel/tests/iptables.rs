//! The iptables backend against the kernel, in both variants and families. Needs root and the packages iptables and iproute2.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "iptables/support.rs"]
mod support;

use std::time::{Duration, Instant};

use kernel::iptables::{Iptables, Variant};
use kernel::{Change, Difference, RuleStore};
use ruleset::{Family, Ruleset};
use support::{Ns, Programs, classes, refuse_netfilter_sockets, rich, sh, sidecar};

const VARIANTS: [Variant; 2] = [Variant::Legacy, Variant::Nft];

fn setup(ns: &Ns, iptables: &Iptables, ruleset: &Ruleset) -> Result<Change, String> {
    ns.enter(|inside| iptables.setup(inside, std::slice::from_ref(ruleset)).map_err(|e| e.to_string()))
}

fn cleanup(ns: &Ns, iptables: &Iptables, ruleset: &Ruleset) -> Change {
    ns.enter(|inside| iptables.cleanup(inside, std::slice::from_ref(ruleset))).unwrap()
}

fn exists(ns: &Ns, iptables: &Iptables, ruleset: &Ruleset) -> bool {
    ns.enter(|inside| iptables.exists(inside, std::slice::from_ref(ruleset))).unwrap()
}

fn observe(ns: &Ns, iptables: &Iptables, ruleset: &Ruleset) -> Vec<Difference> {
    ns.enter(|inside| iptables.observe(inside, std::slice::from_ref(ruleset))).unwrap()
}

/// The same text loaded by the program alone.
fn loaded_by_hand(variant: Variant, ruleset: &Ruleset) -> String {
    let ns = Ns::new();
    for (family, program) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        let text = ruleset::iptables::render(std::slice::from_ref(ruleset), family).unwrap();
        if ruleset.families().contains(&family) {
            ns.sh(&format!("{program}-{variant}-restore --noflush <<EOF\n{text}EOF"));
        }
    }
    ns.save(variant)
}

#[test]
fn a_setup_loads_what_the_plan_says_and_a_second_one_does_nothing() {
    for variant in VARIANTS {
        for ruleset in [sidecar(false), sidecar(true), rich(true), rich(false)] {
            let (ns, iptables) = (Ns::new(), Iptables::forced(variant));
            assert!(!exists(&ns, &iptables, &ruleset));
            assert!(!observe(&ns, &iptables, &ruleset).is_empty());
            assert_eq!(setup(&ns, &iptables, &ruleset), Ok(Change::Fresh), "{variant}");
            let saved = ns.save(variant);
            assert_eq!(saved, loaded_by_hand(variant, &ruleset), "{variant}");
            assert_eq!(observe(&ns, &iptables, &ruleset), [], "{variant}");
            assert!(exists(&ns, &iptables, &ruleset));
            assert_eq!(setup(&ns, &iptables, &ruleset), Ok(Change::None), "{variant}");
            assert_eq!(ns.save(variant), saved);
            assert_eq!(iptables.take_warnings(), Vec::<String>::new());
        }
    }
}

#[test]
fn every_drift_is_seen_and_repaired_and_foreign_rules_stay_where_they_are() {
    let drifts = [
        "iptables-V -t nat -D ISTIO_OUTPUT 3",
        "iptables-V -t nat -D OUTPUT -j ISTIO_OUTPUT",
        "iptables-V -t nat -A OUTPUT -j ISTIO_OUTPUT",
        "iptables-V -t nat -A ISTIO_REDIRECT -j ACCEPT",
        "iptables-V -t nat -F",
        "iptables-V -t nat -F ISTIO_INBOUND",
        "iptables-V -t nat -F; iptables-V -t nat -X",
        "iptables-V -t raw -F; iptables-V -t raw -X",
        "ip6tables-V -t nat -I ISTIO_OUTPUT -d 2001:db8::1 -j RETURN",
        "ip6tables-V -t raw -D ISTIO_INBOUND 1",
        "iptables-V -t nat -D ISTIO_OUTPUT 1; iptables-V -t nat -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN",
        "iptables-V -t mangle -N ISTIO_TPROXY",
        "iptables-V -t mangle -N ISTIO_DIVERT; iptables-V -t mangle -I INPUT 1 -j ISTIO_DIVERT",
        "iptables-V -t raw -I OUTPUT -m comment --comment \"x -j y\" -j ISTIO_INBOUND",
    ];
    let foreign = [
        "iptables-V -t nat -A OUTPUT -d 198.51.100.1 -m comment --comment \"not -j ISTIO_OUTPUT\" -j ACCEPT",
        "iptables-V -t nat -I PREROUTING -i eth7 -j ACCEPT",
        "iptables-V -t filter -N ISTIO_UNKNOWN",
        "iptables-V -t nat -N ISTIO_PRERT",
        "iptables-V -t mangle -A OUTPUT -m limit --limit 1/s -j RETURN",
        "ip6tables-V -t nat -A OUTPUT -d 2001:db8::7 -j ACCEPT",
    ];
    let ruleset = sidecar(true);
    for variant in VARIANTS {
        let (ns, iptables) = (Ns::new(), Iptables::forced(variant));
        let line = |line: &str| ns.sh(&line.replace("-V", &format!("-{variant}")));
        line(foreign[0]);
        assert_eq!(setup(&ns, &iptables, &ruleset), Ok(Change::Fresh));
        for foreign in &foreign[1..] {
            line(foreign);
        }
        assert_eq!(observe(&ns, &iptables, &ruleset), [], "{variant}: foreign rules are no difference");
        assert_eq!(setup(&ns, &iptables, &ruleset), Ok(Change::None));
        let foreign_lines = |ns: &Ns| -> Vec<String> {
            let ours = [
                "ISTIO_INBOUND",
                "ISTIO_REDIRECT",
                "ISTIO_IN_REDIRECT",
                "ISTIO_OUTPUT",
                "ISTIO_OUTPUT_DNS",
                "ISTIO_DIVERT",
                "ISTIO_TPROXY",
            ];
            let of_ours =
                |line: &String| line.split(' ').any(|word| ours.contains(&word.trim_start_matches(':')));
            ns.content(variant)
                .into_iter()
                .filter(|line| line.contains("comment \"not") || !of_ours(line))
                .collect()
        };
        let good = foreign_lines(&ns);
        assert_eq!(good.len(), foreign.len(), "{good:?} {:?}", ns.content(variant));
        for drift in drifts {
            line(drift);
            assert_ne!(observe(&ns, &iptables, &ruleset), [], "{variant}: {drift}");
            let flushed = drift.contains("-F;") || drift.ends_with("-F");
            assert_eq!(setup(&ns, &iptables, &ruleset), Ok(Change::Replaced), "{variant}: {drift}");
            assert_eq!(observe(&ns, &iptables, &ruleset), [], "{variant}: {drift}");
            if flushed {
                // The drift itself took foreign rules away.
                continue;
            }
            assert!(foreign_lines(&ns).iter().all(|line| good.contains(line)), "{variant}: {drift}");
        }
    }
}

#[test]
fn another_ruleset_replaces_the_first() {
    for variant in VARIANTS {
        let (ns, iptables) = (Ns::new(), Iptables::forced(variant));
        assert_eq!(setup(&ns, &iptables, &sidecar(false)), Ok(Change::Fresh));
        assert_eq!(setup(&ns, &iptables, &rich(true)), Ok(Change::Replaced));
        assert_eq!(observe(&ns, &iptables, &rich(true)), []);
        // Back without IPv6: that part is a difference and goes.
        assert!(observe(&ns, &iptables, &sidecar(false)).iter().any(|d| d.to_string().contains("ip6 nat")));
        assert_eq!(setup(&ns, &iptables, &sidecar(false)), Ok(Change::Replaced));
        assert_eq!(observe(&ns, &iptables, &sidecar(false)), []);
        assert!(ns.sh(&format!("ip6tables-{variant}-save")).lines().all(|line| !line.contains("ISTIO_")));
    }
}

#[test]
fn a_cleanup_leaves_nothing_of_ours_and_all_of_others() {
    for variant in VARIANTS {
        let (ns, iptables, ruleset) = (Ns::new(), Iptables::forced(variant), rich(true));
        let foreign = format!(
            "iptables-{variant} -t nat -A OUTPUT -d 198.51.100.1 -j ACCEPT; ip6tables-{variant} -t mangle -N OTHER;
             iptables-{variant} -t filter -N ISTIO_OUTPUT; iptables-{variant} -t filter -A OUTPUT -j ISTIO_OUTPUT"
        );
        ns.sh(&foreign);
        let before = ns.content(variant);
        assert_eq!(setup(&ns, &iptables, &ruleset), Ok(Change::Fresh));
        assert!(ns.content(variant).len() > before.len() + 50);
        assert_eq!(cleanup(&ns, &iptables, &ruleset), Change::Fresh);
        assert_eq!(ns.content(variant), before);
        assert!(!exists(&ns, &iptables, &ruleset));
        assert_eq!(cleanup(&ns, &iptables, &ruleset), Change::None);
    }
}

/// What an earlier plan left is found, though this plan does not know its names.
#[test]
fn chains_whose_names_are_data_are_known_by_their_beginning() {
    for variant in VARIANTS {
        let (ns, iptables) = (Ns::new(), Iptables::forced(variant));
        ns.sh(&format!("iptables-{variant} -t mangle -N ISTIO_NPC; iptables-{variant} -t nat -N ISTIO_NP_A"));
        let before = ns.content(variant);
        assert_eq!(setup(&ns, &iptables, &classes(&["a", "b-1"])), Ok(Change::Fresh));
        assert_eq!(setup(&ns, &iptables, &classes(&["b-1", "a"])), Ok(Change::Replaced));
        assert_eq!(setup(&ns, &iptables, &classes(&["b-1", "c"])), Ok(Change::Replaced));
        assert_eq!(observe(&ns, &iptables, &classes(&["b-1", "c"])), []);
        assert!(!ns.save(variant).contains("-A POSTROUTING -p tcp -j ISTIO_NP_A"), "{}", ns.save(variant));
        assert!(exists(&ns, &iptables, &classes(&[])));
        assert_eq!(cleanup(&ns, &iptables, &classes(&[])), Change::Fresh);
        assert_eq!(ns.content(variant), before);
    }
}

#[test]
fn ambient_chains_are_not_ours() {
    for variant in VARIANTS {
        let (ns, iptables) = (Ns::new(), Iptables::forced(variant));
        for table in ["nat", "mangle", "raw"] {
            ns.sh(&format!(
                "iptables-{variant}-restore --noflush <<EOF\n*{table}\n-N ISTIO_PRERT\n-N ISTIO_OUTPUT\n\
                 -A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\nEOF"
            ));
        }
        let before = ns.save(variant);
        assert!(!exists(&ns, &iptables, &sidecar(true)), "{variant}: {}", ns.save(variant));
        assert_eq!(cleanup(&ns, &iptables, &sidecar(true)), Change::None);
        assert_eq!(ns.save(variant), before);
    }
}

#[test]
fn rules_in_the_other_variant_are_moved() {
    let ruleset = sidecar(true);
    // Into legacy, because somebody has begun to use it.
    let (ns, iptables) = (Ns::new(), Iptables::new());
    assert_eq!(setup(&ns, &iptables, &ruleset), Ok(Change::Fresh));
    assert!(ns.content(Variant::Legacy).is_empty() && !ns.content(Variant::Nft).is_empty());
    ns.sh("iptables-legacy -t filter -A INPUT -j ACCEPT; ip6tables-legacy -t filter -A INPUT -j ACCEPT");
    let unexpected = observe(&ns, &iptables, &ruleset);
    assert!(
        unexpected
            .iter()
            .any(|d| matches!(d, Difference::UnexpectedChain { table, .. } if table == "ip nat (nft)"))
    );
    assert_eq!(setup(&ns, &iptables, &ruleset), Ok(Change::Replaced));
    assert_eq!(observe(&ns, &iptables, &ruleset), []);
    assert_eq!(ns.content(Variant::Nft), Vec::<String>::new());
    // Into nft, because it was asked for.
    let forced = Iptables::forced(Variant::Nft);
    assert_eq!(setup(&ns, &forced, &ruleset), Ok(Change::Replaced));
    assert_eq!(observe(&ns, &forced, &ruleset), []);
    assert_eq!(ns.content(Variant::Legacy), ["-A INPUT -j ACCEPT", "-A INPUT -j ACCEPT"]);
    // A cleanup looks into both, whatever is asked for.
    assert_eq!(cleanup(&ns, &Iptables::forced(Variant::Legacy), &ruleset), Change::Fresh);
    assert_eq!(ns.content(Variant::Nft), Vec::<String>::new());
}

#[test]
fn the_lock_of_the_host_delays_nothing() {
    let lock = std::fs::OpenOptions::new().create(true).append(true).open("/run/xtables.lock").unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (ns, iptables) = (Ns::new(), Iptables::forced(Variant::Legacy));
    let start = Instant::now();
    assert_eq!(setup(&ns, &iptables, &sidecar(true)), Ok(Change::Fresh));
    assert_eq!(cleanup(&ns, &iptables, &sidecar(true)), Change::Fresh);
    assert!(start.elapsed() < Duration::from_secs(2));
    // Older versions know the mount only. The program of the test forgets what newer ones go by.
    let programs = Programs::none()
        .real("ip6tables-legacy")
        .link("iptables-legacy-save", "iptables-legacy-save")
        .script(
            "iptables-legacy-restore",
            "unset XTABLES_LOCKFILE; exec /usr/sbin/iptables-legacy-restore \"$@\"",
        );
    let old = Iptables::forced(Variant::Legacy).searching(programs.search());
    assert_eq!(setup(&Ns::new(), &old, &sidecar(true)), Ok(Change::Fresh));
    assert_eq!(old.take_warnings(), Vec::<String>::new());
}

#[test]
fn nobody_looks_user_names_up() {
    let programs = Programs::none().real("iptables-nft").script("iptables-legacy-save", "").script(
        "iptables-legacy-restore",
        "PATH=/bin:/usr/bin; echo \"[$(cat /etc/nsswitch.conf)] [$(env -u PATH)]\" >&2; exit 3",
    );
    let before = std::fs::read("/etc/nsswitch.conf").unwrap();
    assert!(!before.is_empty());
    let forced = Iptables::forced(Variant::Legacy).searching(programs.search());
    let error = setup(&Ns::new(), &forced, &sidecar(false)).unwrap_err();
    assert!(error.contains("[] [XTABLES_LOCKFILE=/run/xtables.lock; PWD="), "{error}");
    assert!(error.contains("code 3 (xtables version problem"), "{error}");
    assert_eq!(std::fs::read("/etc/nsswitch.conf").unwrap(), before, "the host keeps its own");
    assert!(!sh("cat /proc/mounts").contains("nsswitch"));
}

#[test]
fn only_rules_that_name_users_need_a_mount_namespace() {
    let show = "PATH=/bin:/usr/bin; readlink /proc/self/ns/mnt >&2; exit 3";
    let programs =
        Programs::none().script("iptables-nft-restore", show).link("iptables-nft-save", "iptables-nft-save");
    let forced = Iptables::forced(Variant::Nft).searching(programs.search());
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap().display().to_string();
    let mut ruleset = sidecar(false);
    assert!(!setup(&Ns::new(), &forced, &ruleset).unwrap_err().contains(&own));
    for chain in ruleset.tables.iter_mut().flat_map(|table| &mut table.chains) {
        let names = |m: &ruleset::Match| matches!(m, ruleset::Match::Uid { .. } | ruleset::Match::Gid { .. });
        chain.rules.retain(|rule| !rule.matches.iter().any(names));
    }
    let error = setup(&Ns::new(), &forced, &ruleset).unwrap_err();
    assert!(error.contains(&own), "{error}");
}

/// As where somebody has planted a million rules.
#[test]
fn what_a_program_prints_is_bounded() {
    let (ns, ruleset) = (Ns::new(), sidecar(false));
    assert_eq!(setup(&ns, &Iptables::forced(Variant::Nft), &ruleset), Ok(Change::Fresh));
    let programs = Programs::none()
        .link("iptables-nft-restore", "iptables-nft-restore")
        .script("iptables-nft-save", "exec /usr/bin/head -c 60000000 /dev/zero");
    let forced = Iptables::forced(Variant::Nft).searching(programs.search());
    let error = ns.enter(|inside| forced.observe(inside, std::slice::from_ref(&ruleset))).unwrap_err();
    let error = fault::chain(&error);
    assert!(error.contains("printed more than 33554432 bytes and was killed"), "{error}");
}

#[test]
fn missing_programs_and_wrong_variants_are_named() {
    let nothing = Programs::none();
    let error = setup(&Ns::new(), &nothing.iptables(), &sidecar(false)).unwrap_err();
    assert!(error.contains("cannot find iptables-nft-restore in"), "{error}");
    assert!(error.contains(nothing.directory.to_str().unwrap()) && error.contains("install"), "{error}");
    let wrong = Programs::none()
        .link("iptables-legacy-restore", "xtables-nft-multi")
        .link("iptables-legacy-save", "xtables-nft-multi");
    let forced = Iptables::forced(Variant::Legacy).searching(wrong.search());
    let error = setup(&Ns::new(), &forced, &sidecar(false)).unwrap_err();
    assert!(error.contains("is not the legacy variant but the nft one"), "{error}");
    // The name says nothing: the program is asked.
    let unsuffixed = Programs::none()
        .script("iptables-restore", "exec /usr/sbin/iptables-legacy-restore \"$@\"")
        .script("iptables-save", "exec /usr/sbin/iptables-legacy-save \"$@\"");
    let ns = Ns::new();
    let iptables = unsuffixed.iptables();
    assert_eq!(setup(&ns, &iptables, &sidecar(false)), Ok(Change::Fresh));
    assert_eq!(iptables.take_warnings(), Vec::<String>::new(), "another name is no problem");
    assert_eq!(setup(&ns, &iptables, &sidecar(false)), Ok(Change::None));
    assert!(!ns.content(Variant::Legacy).is_empty());
}

#[test]
fn legacy_tables_without_legacy_programs_are_only_warned_of() {
    let programs = Programs::none().real("iptables-nft").real("ip6tables-nft");
    let (ns, iptables, ruleset) = (Ns::new(), programs.iptables(), sidecar(true));
    // Whoever looks into a table makes it.
    ns.sh("iptables-legacy -t nat -L; ip6tables-legacy -t nat -L");
    let warned = || {
        let warnings = iptables.take_warnings();
        for program in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
            assert!(
                warnings.iter().any(|w| w.contains(&format!("cannot find {program} in"))),
                "{warnings:?}"
            );
        }
    };
    assert!(!exists(&ns, &iptables, &ruleset));
    warned();
    assert_eq!(cleanup(&ns, &iptables, &ruleset), Change::None);
    warned();
    assert_eq!(setup(&ns, &iptables, &ruleset), Ok(Change::Fresh));
    warned();
    assert_eq!(observe(&ns, &iptables, &ruleset), []);
    warned();
    assert_eq!(cleanup(&ns, &iptables, &ruleset), Change::Fresh);
    assert_eq!(ns.content(Variant::Nft), Vec::<String>::new());
    // Ours in nft are known without a program, and stay where none can remove them.
    setup(&ns, &iptables, &ruleset).unwrap();
    let nothing = Programs::none().iptables();
    assert!(exists(&ns, &nothing, &ruleset));
    assert!(ns.enter(|inside| nothing.cleanup(inside, std::slice::from_ref(&ruleset)).is_err()));
}

#[test]
fn without_nf_tables_the_legacy_variant_comes_first_and_no_program_fails() {
    let counted = |programs: Programs, stem: &str| {
        let log = programs.directory.join("started");
        ["restore", "save"].into_iter().fold(programs, |programs, kind| {
            programs.script(&format!("{stem}-{kind}"), &format!("echo $0 >> {}; exit 4", log.display()))
        })
    };
    let both_nft = |programs| counted(counted(programs, "iptables-nft"), "ip6tables-nft");
    let legacy = |programs: Programs| programs.real("iptables-legacy").real("ip6tables-legacy");
    let legacy_by_another_name = |programs: Programs, stem: &str| {
        ["restore", "save"].into_iter().fold(programs, |programs, kind| {
            let program = format!("exec /usr/sbin/{stem}-legacy-{kind} \"$@\"");
            programs.script(&format!("{stem}-{kind}"), &program)
        })
    };
    let links_to_nft = |programs: Programs| {
        programs.link("iptables-restore", "xtables-nft-multi").link("iptables-save", "xtables-nft-multi")
    };
    let cases = [
        (both_nft(legacy(Programs::none())), Ok(())),
        (both_nft(links_to_nft(legacy(Programs::none()))), Ok(())),
        (legacy_by_another_name(legacy_by_another_name(Programs::none(), "iptables"), "ip6tables"), Ok(())),
        (
            both_nft(links_to_nft(Programs::none())),
            Err("iptables-restore works by nf_tables, which this kernel"),
        ),
        (both_nft(Programs::none()), Err("cannot find iptables-legacy-restore in")),
        (Programs::none(), Err("cannot find iptables-legacy-restore in")),
    ];
    for (number, (programs, wanted)) in cases.into_iter().enumerate() {
        let (ns, iptables, ruleset) = (Ns::new(), programs.iptables(), sidecar(true));
        let result = ns.enter(|inside| {
            refuse_netfilter_sockets();
            iptables.setup(inside, std::slice::from_ref(&ruleset)).map_err(|error| error.to_string())
        });
        match (&result, wanted) {
            (Ok(change), Ok(())) => {
                assert_eq!(*change, Change::Fresh);
                assert_eq!(ns.save(Variant::Legacy), loaded_by_hand(Variant::Legacy, &ruleset));
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{number}: {error}"),
            _ => panic!("{number}: {result:?} instead of {wanted:?}"),
        }
        assert_eq!(iptables.take_warnings(), Vec::<String>::new(), "{number}");
        assert!(
            !programs.directory.join("started").exists(),
            "{number}: a program that can only fail was started"
        );
        assert_eq!(iptables.available_without_nftables().is_ok(), wanted.is_ok(), "{number}");
    }
}

#[test]
fn both_programs_of_one_variant_are_needed() {
    let available = |programs: &Programs| programs.iptables().available().map_err(|e| e.to_string());
    assert!(available(&Programs::none()).unwrap_err().contains("cannot find iptables-restore in"));
    for stem in ["iptables", "iptables-nft", "iptables-legacy"] {
        assert_eq!(available(&Programs::none().real(stem)), Ok(()));
        // One of each variant is no pair.
        for (program, of_another) in [("restore", "save"), ("save", "restore")] {
            let other = if stem == "iptables-nft" { "iptables-legacy" } else { "iptables-nft" };
            let (program, of_another) = (format!("{stem}-{program}"), format!("{other}-{of_another}"));
            let half = Programs::none().script(&program, "exit 1").script(&of_another, "exit 1");
            assert!(
                available(&half).unwrap_err().contains("cannot find iptables-"),
                "{program} {of_another}"
            );
        }
    }
}

#[test]
fn without_ip6tables_ipv4_works_and_ipv6_is_an_error() {
    let programs = Programs::none().real("iptables-nft");
    let ns = Ns::new();
    assert_eq!(setup(&ns, &programs.iptables(), &sidecar(false)), Ok(Change::Fresh));
    let error = setup(&Ns::new(), &programs.iptables(), &sidecar(true)).unwrap_err();
    assert!(error.contains("cannot find ip6tables-nft-restore"), "{error}");
    // Nothing was begun that could not be finished.
    let ns = Ns::new();
    setup(&ns, &programs.iptables(), &sidecar(true)).unwrap_err();
    assert_eq!(ns.content(Variant::Nft), Vec::<String>::new());
}

#[test]
fn a_failure_in_the_second_family_takes_the_first_back() {
    for variant in VARIANTS {
        let programs = Programs::none()
            .real(&format!("iptables-{variant}"))
            .link(&format!("ip6tables-{variant}-save"), &format!("ip6tables-{variant}-save"))
            .script(&format!("ip6tables-{variant}-restore"), "echo no such thing >&2; exit 2");
        let broken = Iptables::forced(variant).searching(programs.search());
        let ns = Ns::new();
        let error = setup(&ns, &broken, &sidecar(true)).unwrap_err();
        assert!(error.ends_with("failed with code 2 (xtables parameter problem): no such thing"), "{error}");
        assert_eq!(ns.content(variant), Vec::<String>::new());
        // The rules from before come back, with the foreign ones between.
        setup(&ns, &Iptables::forced(variant), &rich(true)).unwrap();
        ns.sh(&format!("iptables-{variant} -t nat -I OUTPUT -d 198.51.100.1 -j ACCEPT"));
        ns.sh(&format!("iptables-{variant} -t nat -I PREROUTING 2 -i eth7 -j ACCEPT"));
        let before = ns.save(variant);
        let mut other = sidecar(true);
        other.tables[0].chains[2].rules.pop();
        setup(&ns, &broken, &other).unwrap_err();
        assert_eq!(ns.save(variant), before);
    }
}

#[test]
fn a_failure_in_the_second_table_takes_the_first_back() {
    for variant in VARIANTS {
        // A rule that iptables refuses: more ports than its match has room for.
        let mut ruleset = sidecar(false);
        let mut bad = ruleset.tables[0].chains[2].rules[0].clone();
        bad.matches[1] =
            ruleset::Match::DestinationPort { ports: ruleset::Ports::AnyOf((1..=20).collect()), not: false };
        ruleset.tables[1].chains[3].rules.push(bad);
        let ns = Ns::new();
        let error = setup(&ns, &Iptables::forced(variant), &ruleset).unwrap_err();
        assert!(error.contains("xtables parameter problem") && !error.contains("taken back"), "{error}");
        assert_eq!(ns.content(variant), Vec::<String>::new());
    }
}

#[test]
fn what_the_kernel_lacks_is_tried_with_the_other_variant() {
    // As on a kernel without nf_tables: every program of the variant fails.
    let fails = "echo Could not fetch rule set generation id: Invalid argument >&2; exit 4";
    let mut programs = Programs::none().real("iptables-legacy").real("ip6tables-legacy");
    for name in ["iptables-nft-restore", "iptables-nft-save", "ip6tables-nft-restore", "ip6tables-nft-save"] {
        programs = programs.script(name, fails);
    }
    for ipv6 in [false, true] {
        let (ns, iptables) = (Ns::new(), programs.iptables());
        assert_eq!(setup(&ns, &iptables, &sidecar(ipv6)), Ok(Change::Fresh));
        assert_eq!(ns.save(Variant::Legacy), loaded_by_hand(Variant::Legacy, &sidecar(ipv6)));
        let warnings = iptables.take_warnings();
        assert!(
            warnings.iter().any(|w| w.contains("generation id: Invalid argument; trying another variant")),
            "{warnings:?}"
        );
        assert_eq!(setup(&ns, &iptables, &sidecar(ipv6)), Ok(Change::None));
    }
    // Asked for by name, it is an error that hides no cause.
    let forced = Iptables::forced(Variant::Nft).searching(programs.search());
    let error = setup(&Ns::new(), &forced, &sidecar(false)).unwrap_err();
    let message = "iptables-nft-restore failed with code 4 (xtables resource problem: the kernel lacks this variant, the lock is \
                   taken, or memory is short): Could not fetch rule set generation id: Invalid argument";
    assert!(error.ends_with(message), "{error}");
}

#[test]
fn what_cannot_be_looked_at_after_a_failure_is_not_built_upon() {
    // The first table is in force when the program fails.
    let programs = Programs::none()
        .real("iptables-legacy")
        .script("iptables-nft-save", "exit 4")
        .script("iptables-nft-restore", "/usr/sbin/iptables-nft-restore \"$@\"; exit 4");
    let ns = Ns::new();
    let error = setup(&ns, &programs.iptables(), &sidecar(false)).unwrap_err();
    assert!(error.contains("what was done before could not be taken back"), "{error}");
    assert_eq!(ns.content(Variant::Legacy), Vec::<String>::new());
}

#[test]
fn a_program_that_hangs_is_killed() {
    let programs = Programs::none()
        .real("iptables-legacy")
        .script("iptables-nft-save", "")
        .script("iptables-nft-restore", "exec /bin/sleep 60");
    let iptables = programs.iptables().timeout(Duration::from_millis(300));
    let start = Instant::now();
    let error = setup(&Ns::new(), &iptables, &sidecar(false)).unwrap_err();
    assert!(error.contains("did not end within 0.3 s and was killed"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_new_namespace_costs_one_program_for_each_family() {
    let log = Programs::none();
    let log = log.directory.join("log");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    let mut programs = Programs::none();
    for name in ["iptables-nft-restore", "iptables-nft-save", "ip6tables-nft-restore", "ip6tables-nft-save"] {
        programs =
            programs.script(name, &format!("echo {name} >> {}; exec /usr/sbin/{name} \"$@\"", log.display()));
    }
    let runs = || std::fs::read_to_string(&log).unwrap_or_default();
    let (ns, iptables) = (Ns::new(), programs.iptables());
    assert!(!exists(&ns, &iptables, &sidecar(true)));
    assert_eq!(setup(&ns, &iptables, &sidecar(false)), Ok(Change::Fresh));
    assert_eq!(runs(), "iptables-nft-restore\n");
    std::fs::write(&log, "").unwrap();
    assert!(exists(&ns, &iptables, &sidecar(true)));
    assert_eq!(runs(), "");
    assert_eq!(setup(&Ns::new(), &iptables, &sidecar(true)), Ok(Change::Fresh));
    assert_eq!(runs(), "iptables-nft-restore\nip6tables-nft-restore\n");
    // Nor is anything listed where all rules are others'.
    std::fs::write(&log, "").unwrap();
    let ns = Ns::new();
    others(&ns);
    assert_eq!(setup(&ns, &iptables, &sidecar(true)), Ok(Change::Fresh));
    assert_eq!(runs(), "iptables-nft-restore\nip6tables-nft-restore\n");
    assert_eq!(observe(&ns, &iptables, &sidecar(true)), []);
    // A chain that has a name of ours, but is another owner's, may be in the way.
    std::fs::write(&log, "").unwrap();
    let ns = Ns::new();
    ns.sh("iptables-nft -t nat -N ISTIO_PRERT; iptables-nft -t nat -N ISTIO_OUTPUT");
    assert!(!exists(&ns, &iptables, &sidecar(false)));
    setup(&ns, &iptables, &sidecar(false)).unwrap_err();
    assert!(runs().starts_with("iptables-nft-save\niptables-nft-restore\n"), "{}", runs());
    assert_eq!(ns.content(Variant::Nft), [":ISTIO_OUTPUT -", ":ISTIO_PRERT -"]);
    let _ = std::fs::remove_dir_all(log.parent().unwrap());
}

/// Rules of somebody else, by iptables-nft.
fn others(ns: &Ns) {
    ns.sh("iptables-nft -t nat -N OTHERS; iptables-nft -t nat -I OUTPUT -j OTHERS");
    ns.sh("iptables-nft -t nat -A OTHERS -d 198.51.100.1 -j ACCEPT");
    ns.sh("iptables-nft -t mangle -A OUTPUT -m limit --limit 1/s -j RETURN");
    ns.sh("ip6tables-nft -t nat -A PREROUTING -i eth7 -j ACCEPT");
}

#[test]
fn a_failure_takes_everything_back_where_nothing_was_listed() {
    // The second table of the first family, and the second family.
    let mut bad = sidecar(true);
    let mut rule = bad.tables[0].chains[2].rules[0].clone();
    rule.matches[1] =
        ruleset::Match::DestinationPort { ports: ruleset::Ports::AnyOf((1..=20).collect()), not: false };
    bad.tables[1].chains[3].rules.push(rule);
    let of_v6 =
        Programs::none().real("iptables-nft").link("ip6tables-nft-save", "ip6tables-nft-save").script(
            "ip6tables-nft-restore",
            "/usr/sbin/ip6tables-nft-restore \"$@\"; test -e ${0%/*}/once || { : >${0%/*}/once; exit 2; }",
        );
    for (iptables, ruleset) in [
        (Iptables::forced(Variant::Nft), bad),
        (Iptables::forced(Variant::Nft).searching(of_v6.search()), sidecar(true)),
    ] {
        let ns = Ns::new();
        others(&ns);
        let before = ns.content(Variant::Nft);
        let error = setup(&ns, &iptables, &ruleset).unwrap_err();
        assert!(error.contains("xtables parameter problem") && !error.contains("taken back"), "{error}");
        assert_eq!(ns.content(Variant::Nft), before);
    }
}

#[test]
fn a_namespace_of_another_user_namespace_is_set_up() {
    for variant in VARIANTS {
        let mut holder = std::process::Command::new("unshare").args(["-Un", "sleep", "60"]).spawn().unwrap();
        let path = format!("/proc/{}/ns/net", holder.id());
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let is_apart = || std::fs::read_link(&path).unwrap() != own;
        testkit::until("a namespace of its own", testkit::PATIENCE, is_apart, || "it has none").unwrap();
        // The kernel takes user ids only that the user namespace has.
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{map}", holder.id()), "0 100000 65536").unwrap();
        }
        let netns = netns::Netns::open(&path).unwrap();
        let iptables = Iptables::forced(variant);
        let result = netns.enter(|inside| {
            let set_up = iptables.setup(inside, &[sidecar(true)]).map_err(|e| e.to_string());
            (set_up, iptables.observe(inside, &[sidecar(true)]).map_err(|e| e.to_string()))
        });
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(result.unwrap(), (Ok(Change::Fresh), Ok(Vec::new())), "{variant}");
        assert_eq!(iptables.take_warnings(), Vec::<String>::new());
    }
}

#[test]
fn what_iptables_prints_reads_back_as_the_rule() {
    for variant in VARIANTS {
        let (ns, ruleset) = (Ns::new(), rich(true));
        setup(&ns, &Iptables::forced(variant), &ruleset).unwrap();
        for (family, program) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
            for table in &ruleset.tables {
                for chain in &table.chains {
                    let name = ruleset::iptables::chain_name(chain);
                    let saved = ns.sh(&format!("{program}-{variant} -t {} -S {name}", table.kind));
                    let read: Vec<_> = saved
                        .lines()
                        .filter_map(|line| line.strip_prefix(&format!("-A {name} ")))
                        .map(|line| ruleset::iptables::parse_rule(line).unwrap_or_else(|| panic!("{line}")))
                        .collect();
                    let planned: Vec<_> =
                        ruleset::iptables::rules(chain, family).map(ruleset::iptables::canonical).collect();
                    assert_eq!(read, planned, "{variant} {program} {name}");
                }
            }
        }
    }
}

#[test]
fn a_replacement_leaves_no_gap() {
    for variant in VARIANTS {
        let (ns, iptables) = (Ns::new(), Iptables::forced(variant));
        let first = sidecar(false);
        let mut second = first.clone();
        second.tables[0].chains[2].rules.pop();
        setup(&ns, &iptables, &first).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let looks = std::thread::scope(|scope| {
            let looker = scope.spawn(|| {
                let mut looks = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let saved = ns.sh(&format!("iptables-{variant}-save -t nat"));
                    for line in [
                        "-A OUTPUT -j ISTIO_OUTPUT",
                        "-A PREROUTING -p tcp -j ISTIO_INBOUND",
                        "-j REDIRECT --to-ports 15001",
                    ] {
                        assert!(saved.contains(line), "{variant}: {line} is missing from {saved}");
                    }
                    looks += 1;
                }
                looks
            });
            for round in 0..20 {
                let ruleset = if round % 2 == 0 { &second } else { &first };
                let changed = setup(&ns, &iptables, ruleset);
                if changed != Ok(Change::Replaced) || round == 19 {
                    stop.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                assert_eq!(changed, Ok(Change::Replaced), "{variant}");
            }
            looker.join().unwrap()
        });
        assert!(looks > 5, "{looks}");
    }
}
