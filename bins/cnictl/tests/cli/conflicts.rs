//! Conflicts by a look of this program, and the end of one.

use serde_json::{Value, json};
use testkit::rules::{Family, Variant};

use crate::fleet::{Fleet, Prepared, injected, with_proxy};
use crate::row;
use crate::schema::assert_described;

const MESH: &str = "table inet mesh { chain out { type nat hook output priority -110; tcp dport 25 accept; tcp dport 80 counter redirect to :9999; udp dport 9 accept; }; }";

fn fleet() -> Fleet {
    let mut fleet = Fleet::new();
    for name in ["quiet", "loud"] {
        let (metadata, spec) = (injected(), with_proxy());
        fleet.pod(&Prepared { name, metadata, spec, loaded: &["--backend nftables"], then: "" });
    }
    fleet.netns("loud").nft(MESH).unwrap();
    fleet
}

#[test]
fn conflicts_are_listed_with_place_and_advice_and_the_exit_code_says_whether_one_is_bad() {
    let fleet = fleet();
    let run = fleet.run("conflicts shop/loud").fails(1, &["shop/loud has CF-P1"]);
    let line = row(&run.stdout, "shop/loud");
    assert!(line.starts_with("CF-P1   error") && line.contains("inet mesh out"), "{run:?}");
    let json: Value = serde_json::from_str(&fleet.run("conflicts loud -o json").stdout).unwrap();
    assert_described(&json);
    assert_eq!(
        (&json["items"][0]["id"], &json["items"][0]["pod"]["name"]),
        (&json!("CF-P1"), &json!("loud"))
    );
    let quiet = fleet.run("conflicts quiet -o json");
    let json: Value = serde_json::from_str(&quiet.stdout).unwrap();
    let bad: Vec<&Value> =
        json["items"].as_array().unwrap().iter().filter(|one| one["severity"] == "error").collect();
    assert_eq!(bad, Vec::<&Value>::new(), "{json:#}");
    assert_eq!(quiet.exit, 0, "{quiet:?}");
    // Without the agent nobody looks at the node.
    fleet.run("conflicts --node").fails(4, &["the node's own network namespace"]);
    fleet.run("conflicts --fix CF-P3 quiet").fails(3, &["there is no conflict CF-P3"]);
    fleet.run("conflicts --node quiet").fails(2, &["cannot be used with"]);
}

#[test]
fn a_pod_whose_rules_are_overtaken_is_never_called_verified() {
    let fleet = fleet();
    let run = fleet.run("verify").fails(1, &["pod shop/loud is unverifiable (conflict): CF-P1: "]);
    let cells = |name: &str| {
        let line = run.stdout.lines().find(|line| line.split_whitespace().nth(1) == Some(name)).unwrap();
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((&*cells("loud")[3], &*cells("loud")[8]), ("unverifiable (conflict)", "CF-P1"), "{run:?}");
    assert_eq!((&*cells("quiet")[3], &*cells("quiet")[8]), ("verified", "-"), "{run:?}");
    fleet.netns("loud").nft("delete table inet mesh").unwrap();
    let run = fleet.run("verify loud").ok();
    assert!(run.contains(" verified ") && !run.contains("CF-P1"), "{run}");
}

/// Rules of ours in the other backend, too, are drift: what they do to a packet is not told of as if others did it.
#[test]
fn rules_of_ours_in_both_backends_are_no_conflict_and_what_others_do_beside_them_is_not_known() {
    let mut fleet = Fleet::new();
    let loaded = &["--backend nftables", "--backend iptables"];
    fleet.pod(&Prepared { name: "twice", metadata: injected(), spec: with_proxy(), loaded, then: MESH });
    let run = fleet.run("verify twice").fails(1, &["pod shop/twice is drifted"]);
    assert!(!run.stdout.contains("CF-P1"), "{run:?}");
    let gap = "pod shop/twice: rules of others: rules of ours are in another backend than planned";
    let run = fleet.run("conflicts twice").fails(4, &[&format!("not looked at: {gap}")]);
    assert!(!run.stdout.contains("CF-P"), "{run:?}");
    let json: Value = serde_json::from_str(&fleet.run("conflicts twice -o json").stdout).unwrap();
    assert_eq!(json["items"], json!([]), "{json:#}");
    assert!(json["not_looked_at"][0].as_str().is_some_and(|text| text.starts_with(gap)), "{json:#}");
}

#[test]
fn a_foreign_rule_is_deleted_after_a_yes_and_its_file_puts_it_back_to_the_byte() {
    let fleet = fleet();
    let netns = fleet.netns("loud");
    let listing = || netns.run(std::process::Command::new("nft").args(["list", "ruleset"])).unwrap();
    let before = listing();
    let run = fleet.run("conflicts loud --fix CF-P1 --dry-run").ok();
    assert!(run.contains("tcp dport 80 counter packets 0 bytes 0 redirect to :9999"), "{run}");
    fleet.run("conflicts loud --fix CF-P1").fails(2, &["there is no terminal to ask on: give --yes"]);
    assert_eq!(listing(), before);
    let run = fleet.run("conflicts loud --fix cf-p1 --yes").ok();
    assert!(!listing().contains("redirect to :9999"), "{run}");
    let undo = std::fs::read_dir(fleet.run_dir().join("undo")).unwrap().next().unwrap().unwrap().path();
    netns.run(std::process::Command::new("nft").arg("-f").arg(&undo)).unwrap();
    assert_eq!(listing(), before);
}

#[test]
fn a_foreign_rule_of_iptables_is_put_back_to_the_byte_too() {
    let fleet = fleet();
    let netns = fleet.netns("quiet");
    let rules = "*filter\n-A OUTPUT -p udp -j ACCEPT\n-A OUTPUT -p tcp -m tcp --dport 15001 -j DROP\n-A OUTPUT -p icmp -j ACCEPT\nCOMMIT\n";
    netns.iptables_restore(Variant::Nft, Family::V4, rules).unwrap();
    let listing = || {
        let text =
            netns.run(std::process::Command::new("iptables-nft-save").args(["-c", "-t", "filter"])).unwrap();
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.to_owned() + "\n")
            .collect::<String>()
    };
    let before = listing();
    fleet.run("conflicts quiet --fix CF-P3 --yes").ok();
    assert!(!listing().contains("DROP"), "{}", listing());
    let undo = std::fs::read_dir(fleet.run_dir().join("undo")).unwrap().next().unwrap().unwrap().path();
    netns
        .run(std::process::Command::new("iptables-nft-restore").args(["--noflush", "--counters"]).arg(&undo))
        .unwrap();
    assert_eq!(listing(), before);
}
