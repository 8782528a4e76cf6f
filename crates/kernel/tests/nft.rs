//! nf_tables in real namespaces: what we load is what `nft -f` loads, and it is replaced whole or not at all. Needs root and the
//! program `nft`.

#[path = "nft/sample.rs"]
mod sample;

use kernel::nft::{self, Nftables};
use kernel::{Change, Difference, RuleStore};
use ruleset::{
    Action, Base, Chain, ChainKind, Content, Family, Hook, KeyType, Rule, Ruleset, Set, Table, TableKind,
    Transaction,
};
use testkit::TestNetns;
use testkit::rules::Comments;

const NAT: &str = "istio-proxy-nat";

type Check = fn(&[Difference]) -> bool;
type Outcome = Result<(), Box<dyn std::error::Error>>;

fn setup(ns: &TestNetns, ruleset: &Ruleset) -> Result<Change, Box<dyn std::error::Error>> {
    Ok(ns.enter(|inside| Nftables.setup(inside, std::slice::from_ref(ruleset)))??)
}

fn observe(ns: &TestNetns, ruleset: &Ruleset) -> Result<Vec<Difference>, Box<dyn std::error::Error>> {
    Ok(ns.enter(|inside| Nftables.observe(inside, std::slice::from_ref(ruleset)))??)
}

#[test]
fn loads_what_nft_loads() -> Outcome {
    let ruleset = sample::everything();
    ruleset::check(&ruleset).map_err(|e| format!("{e:?}"))?;
    let (ours, theirs) = (TestNetns::new()?, TestNetns::new()?);
    assert_eq!(setup(&ours, &ruleset)?, Change::Fresh);
    theirs.nft(&ruleset::nft::render(&Transaction::Add(std::slice::from_ref(&ruleset))))?;

    let (a, b) = (ours.nft_json(Comments::Keep)?, theirs.nft_json(Comments::Keep)?);
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a, b);
    }
    assert_eq!(ours.nft_text()?, theirs.nft_text()?);
    // The instructions are the same too, not only their text: nft's own read back as planned.
    assert_eq!(observe(&theirs, &ruleset)?, []);
    assert_eq!(observe(&ours, &ruleset)?, []);
    Ok(())
}

#[test]
fn setup_changes_only_what_differs() -> Outcome {
    let mut ruleset = sample::everything();
    ruleset.tables.retain(|table| table.kind != TableKind::Filter);
    let ns = TestNetns::new()?;
    ns.nft("add table inet others\nadd table ip istio-proxy-nat")?;
    assert!(!ns.enter(|inside| Nftables.exists(inside, std::slice::from_ref(&ruleset)))??);
    assert_eq!(setup(&ns, &ruleset)?, Change::Fresh);
    assert!(ns.enter(|inside| Nftables.exists(inside, std::slice::from_ref(&ruleset)))??);
    let before = ns.nft_json(Comments::Keep)?;
    assert_eq!(setup(&ns, &ruleset)?, Change::None);
    ns.nft("add rule inet istio-proxy-nat prerouting counter accept")?;
    assert_eq!(setup(&ns, &ruleset)?, Change::Replaced);
    ns.nft("add table inet istio-proxy-filter")?;
    assert_eq!(
        observe(&ns, &ruleset)?,
        [Difference::UnexpectedTable { table: "istio-proxy-filter".to_owned() }]
    );
    assert_eq!(setup(&ns, &ruleset)?, Change::Replaced);
    assert_eq!(ns.nft_json(Comments::Keep)?, before);

    assert_eq!(ns.enter(|inside| Nftables.cleanup(inside, std::slice::from_ref(&ruleset)))??, Change::Fresh);
    assert_eq!(ns.enter(|inside| Nftables.cleanup(inside, std::slice::from_ref(&ruleset)))??, Change::None);
    let left = ns.nft_text()?;
    let tables: Vec<&str> = left.lines().filter(|line| line.starts_with("table ")).collect();
    assert_eq!(tables, ["table inet others {", "table ip istio-proxy-nat {"]);
    Ok(())
}

#[test]
fn observe_names_every_kind_of_difference() -> Outcome {
    let ruleset = sample::everything();
    let ns = TestNetns::new()?;
    // Each command makes one difference; the next starts from the planned state again.
    let cases: [(&str, Check); 8] = [
        ("delete table inet istio-proxy-raw", |d| {
            d == [Difference::MissingTable { table: "istio-proxy-raw".to_owned() }]
        }),
        ("add table inet istio-proxy-nat { flags dormant ; }", |d| {
            d == [Difference::MissingTable { table: NAT.to_owned() }]
        }),
        ("add chain inet istio-proxy-nat x", |d| {
            d == [Difference::UnexpectedChain { table: NAT.to_owned(), chain: "x".to_owned() }]
        }),
        ("add chain inet istio-proxy-raw prerouting { policy drop ; }", |d| {
            let table = "istio-proxy-raw".to_owned();
            d == [Difference::MissingChain { table, chain: "prerouting".to_owned() }]
        }),
        ("add rule inet istio-proxy-nat prerouting log prefix \"x\" comment \"mine\"", |d| {
            let [Difference::UnexpectedRule { rule, .. }] = d else { return false };
            rule == "[log 2: \"x\" 5: 0x00000004] comment \"mine\""
        }),
        ("insert rule inet istio-proxy-nat prerouting tcp dport { 1, 2-5 } accept", |d| {
            matches!(d, [Difference::UnexpectedRule { .. }])
        }),
        ("flush chain inet istio-proxy-nat prerouting", |d| {
            let [Difference::MissingRule { table, chain, rule, why }] = d else { return false };
            table == NAT && chain == "prerouting" && rule.contains("jump istio-inbound") && !why.is_empty()
        }),
        ("add set inet istio-proxy-nat extra { type ipv4_addr ; }", |d| {
            let set = "extra".to_owned();
            d == [Difference::DifferentSet { table: NAT.to_owned(), set, how: "is not planned" }]
        }),
    ];
    for (command, expected) in cases {
        setup(&ns, &ruleset)?;
        ns.nft(command)?;
        let differences = observe(&ns, &ruleset)?;
        assert!(expected(&differences), "{command}: {differences:#?}");
        assert_eq!(setup(&ns, &ruleset)?, Change::Replaced, "{command}");
        assert_eq!(observe(&ns, &ruleset)?, [], "{command}");
    }
    Ok(())
}

#[test]
fn a_rule_in_other_order_is_missing_here_and_unexpected_there() -> Outcome {
    let ruleset = sample::everything();
    let ns = TestNetns::new()?;
    setup(&ns, &ruleset)?;
    let mut other = ruleset;
    let chain = &mut other.tables[0].chains[1];
    chain.rules.swap(0, 2);
    let differences = observe(&ns, &other)?;
    let missing = differences.iter().filter(|d| matches!(d, Difference::MissingRule { .. })).count();
    let unexpected = differences.iter().filter(|d| matches!(d, Difference::UnexpectedRule { .. })).count();
    assert_eq!((missing, unexpected, differences.len()), (2, 2, 4), "{differences:#?}");
    // Both show words, as the unexpected rules are planned at another place.
    assert!(differences.iter().all(|d| !d.to_string().contains("[meta")), "{differences:#?}");
    Ok(())
}

#[test]
fn a_refused_batch_leaves_the_old_rules() -> Outcome {
    let good = sample::everything();
    let ns = TestNetns::new()?;
    setup(&ns, &good)?;
    let before = ns.nft_json(Comments::Keep)?;

    let mut bad = sample::everything();
    let last = bad.tables.last_mut().and_then(|t| t.chains.last_mut()).ok_or("no chain")?;
    let mut rule = last.rules[0].clone();
    rule.action = Action::Jump("nowhere".into());
    last.rules.push(rule);
    let error = setup(&ns, &bad).expect_err("a jump to nowhere must fail");
    let text = error.to_string();
    assert!(text.starts_with("cannot add rule \""), "{text}");
    assert!(
        text.contains("counter jump nowhere") && text.contains("of table inet istio-proxy-raw"),
        "{text}"
    );
    assert_eq!(ns.nft_json(Comments::Keep)?, before);

    // Into a fresh namespace: nothing at all.
    let ns = TestNetns::new()?;
    setup(&ns, &bad).expect_err("a jump to nowhere must fail");
    assert_eq!(ns.nft_text()?, "");
    Ok(())
}

#[test]
fn a_failing_commit_is_an_error_with_the_old_rules_in_force() -> Outcome {
    let ns = TestNetns::new()?;
    let mut looping = sample::everything();
    setup(&ns, &looping)?;
    let before = ns.nft_json(Comments::Keep)?;
    // A chain that jumps to itself is found out only when the transaction is complete.
    let chain = looping.tables[0].chains.iter_mut().find(|c| c.base.is_none()).ok_or("no chain")?;
    let mut rule = chain.rules[0].clone();
    rule.action = Action::Jump(chain.name.clone());
    chain.rules.push(rule);
    let error = setup(&ns, &looping).expect_err("a loop must fail");
    assert!(error.to_string().contains("jumps to itself"), "{error}");
    assert_eq!(ns.nft_json(Comments::Keep)?, before);
    Ok(())
}

#[test]
fn sets_of_any_size_load() -> Outcome {
    let ns = TestNetns::new()?;
    // More than one message of elements, more than the default send buffer.
    let big = sample::big_set(20_000);
    assert_eq!(setup(&ns, &big)?, Change::Fresh);
    assert_eq!(setup(&ns, &big)?, Change::None);
    assert_eq!(observe(&ns, &sample::big_set(19_999))?.len(), 1);
    assert_eq!(setup(&ns, &sample::big_set(3))?, Change::Replaced);
    Ok(())
}

#[test]
fn probing_finds_all_here_and_leaves_nothing() -> Outcome {
    let ns = TestNetns::new()?;
    let support = ns.enter(nft::probe)??;
    assert_eq!(support, nft::Support { tables: true, redirect: true, marks: true, tproxy: true });
    assert_eq!(ns.nft_text()?, "");
    Ok(())
}

#[test]
fn rules_without_the_right_to_change_them_are_denied() -> Outcome {
    let ruleset = sample::everything();
    let ns = TestNetns::new()?;
    let error = ns.enter(|inside| {
        // The thread ends with the closure, and its rights with it.
        let none = rustix::thread::CapabilitySet::empty();
        let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, sets).map_err(|e| e.to_string())?;
        Nftables.setup(inside, std::slice::from_ref(&ruleset)).map_err(|e| e.to_string())
    })?;
    let text = error.expect_err("must be denied");
    assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    assert!(ruleset.table(TableKind::Nat).is_some());
    Ok(())
}

/// Rules, sets and elements: it is certain that the table differs long before all of it is read.
#[test]
fn what_is_planted_in_our_tables_is_not_read_to_its_end() -> Outcome {
    let ruleset = sample::everything();
    let table = format!("inet {NAT}");
    let rules: String =
        (0..6000).map(|n| format!("add rule {table} prerouting tcp dport {n} accept\n")).collect();
    let sets: String =
        (0..6000).map(|n| format!("add set {table} s{n} {{ type inet_service; }}\n")).collect();
    let ports = (1..60_000).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let elements = format!("add set {table} planted {{ type inet_service; elements = {{ {ports} }}; }}\n");
    for planted in [rules, sets, elements] {
        let ns = TestNetns::new()?;
        assert_eq!(setup(&ns, &ruleset)?, Change::Fresh);
        assert_eq!(observe(&ns, &ruleset)?, []);
        ns.nft(&planted)?;
        let found = observe(&ns, &ruleset)?;
        let crowded = |d: &Difference| matches!(d, Difference::Crowded { table } if *table == NAT);
        assert!(found.iter().any(crowded), "{:?}", found.first());
        assert!(found.len() > 1 && found.len() < 3000, "{}", found.len());
        assert_eq!(setup(&ns, &ruleset)?, Change::Replaced);
        assert_eq!(observe(&ns, &ruleset)?, []);
    }
    Ok(())
}

/// Elements that are part of the plan cannot be changed in the kernel, and those of another plan are seen.
#[test]
fn fixed_elements_are_compared_and_nobody_changes_them() -> Outcome {
    let ruleset = sample::everything();
    let ns = TestNetns::new()?;
    setup(&ns, &ruleset)?;
    let recorded = Nftables.recorded(std::slice::from_ref(&ruleset));
    for (set, other) in
        [("some4", "203.0.113.7"), ("ports4", "10.0.0.9 . tcp . 9"), ("map4", "10.0.0.9 : drop")]
    {
        ns.nft(&format!("add element inet {NAT} {set} {{ {other} }}")).expect_err(set);
        let mut changed = ruleset.clone();
        let sets = changed.tables.iter_mut().flat_map(|table| &mut table.sets);
        for set in sets.filter(|s| s.name == set) {
            let Content::Fixed(elements) = &mut set.content else { unreachable!("a fixed set") };
            elements.pop();
        }
        assert_eq!(setup(&ns, &changed)?, Change::Replaced);
        let different = [Difference::DifferentSet {
            table: NAT.to_owned(),
            set: set.to_owned(),
            how: "has other elements",
        }];
        assert_eq!(observe(&ns, &ruleset)?, different);
        let of_the_record =
            ns.enter(|inside| Nftables.observe_recorded(inside, std::slice::from_ref(&ruleset), &recorded))??;
        assert_eq!(of_the_record, Some(different.to_vec()));
        assert_eq!(setup(&ns, &ruleset)?, Change::Replaced);
        let of_the_record =
            ns.enter(|inside| Nftables.observe_recorded(inside, std::slice::from_ref(&ruleset), &recorded))??;
        assert_eq!(of_the_record, Some(vec![]));
    }
    Ok(())
}

/// A table that stays for its sets has no counters that no rule names any more, and the others go on.
#[test]
fn counters_of_a_kept_table_go_on() -> Outcome {
    let ns = TestNetns::new()?;
    let rules = |names: &[&'static str]| {
        let kind = TableKind::Filter;
        let base =
            Base { kind: ChainKind::Filter, hook: Hook::Output, priority: kind.priority(Hook::Output) };
        let counted = names.iter().map(|name| Rule::new(vec![], Action::Return, "").counted_as(*name));
        // The first returns from the chain.
        let chain = Chain { name: "output".into(), base: Some(base), rules: counted.collect(), leading: 0 };
        let set = Set::kept("peers", KeyType::Address(Family::V4));
        Ruleset {
            owner: "istio-proxy".into(),
            known_chains: Vec::new().into(),
            ipv6: true,
            tables: vec![Table { kind, sets: vec![set], chains: vec![chain] }],
        }
    };
    let mut counts =
        ns.enter(|inside| nft::NamedCounts::open(inside, "istio-proxy", TableKind::Filter))??;
    assert_eq!(counts.read()?, [], "without the table");
    // Those of another table.
    let other = Ruleset { owner: "istio-other".into(), ..rules(&["a"]) };
    setup(&ns, &other)?;
    let mut counters = || -> Result<Vec<(String, u64)>, Box<dyn std::error::Error>> {
        let mut found = counts.read()?;
        // A datagram of one byte, and perhaps an error with it inside, which is sent from here, too.
        found.iter().for_each(|one| {
            assert!(matches!((one.packets, one.bytes), (0, 0) | (1, 29) | (2, 86)), "{one:?}");
        });
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found.into_iter().map(|one| (one.name, one.packets)).collect())
    };
    assert_eq!(setup(&ns, &rules(&["a", "b"]))?, Change::Fresh);
    assert_eq!(counters()?, [("a".to_owned(), 0), ("b".to_owned(), 0)]);
    ns.enter(|_| std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(&[1], "127.0.0.1:9"))??;
    let sent = counters()?[0].1;
    assert!(sent > 0);
    assert_eq!(setup(&ns, &rules(&["c", "a"]))?, Change::Replaced);
    assert_eq!(counters()?, [("a".to_owned(), sent), ("c".to_owned(), 0)]);
    assert_eq!(observe(&ns, &rules(&["c", "a"]))?, []);
    Ok(())
}
