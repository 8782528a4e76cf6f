//! Rules of others beside ours, in every way to load ours: what lets packets escape is named, and nothing else is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/way.rs"]
mod way;

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use capture::ambient::{NodeOptions, PodOptions, plan_pod};
use capture::{PlanTarget, Settings};
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::{Choice, Difference, Kernel, Shadows};
use ruleset::{Backend, Plan};
use testkit::TestNetns;
use way::Way;

const OWN: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 44, 0, 9)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd44, 0, 0, 0, 0, 0, 0, 9)),
];

fn kernel(iptables: &Iptables) -> Kernel<'_> {
    Kernel { nftables: &Nftables, iptables }
}

impl Way {
    fn load(self, ns: &TestNetns, plan: &Plan) {
        let iptables = self.iptables();
        let choice = Choice::Only(plan.backend);
        ns.enter(|inside| kernel(&iptables).apply(inside, choice, |_| plan.clone())).unwrap().unwrap();
    }

    fn look(self, ns: &TestNetns, plan: &Plan) -> Shadows {
        let iptables = self.iptables();
        let kernel = kernel(&iptables);
        let record = kernel.record(plan).unwrap();
        let owners: Vec<_> =
            plan.layers.iter().map(|l| ruleset::Ruleset { tables: Vec::new(), ..l.clone() }).collect();
        ns.enter(|inside| kernel.shadows(inside, &record, &owners, &OWN, "eth0", &|_| ())).unwrap().unwrap()
    }
}

fn sidecar(backend: Backend) -> Plan {
    capture::plan(&Settings::default(), PlanTarget { backend, ipv6: true })
}

fn ambient(backend: Backend) -> Plan {
    plan_pod(&NodeOptions::default(), &PodOptions::default(), backend)
}

fn plant(ns: &TestNetns, line: &str) {
    ns.run(Command::new("sh").args(["-ec", line])).unwrap();
}

fn texts(proven: &[Difference]) -> String {
    proven.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Plants rules after ours are loaded, and expects each part in what is proven.
#[track_caller]
fn escapes(plan: fn(Backend) -> Plan, ways: &[Way], line: &str, says: &[&str]) {
    for way in ways {
        let (ns, plan) = (TestNetns::new().unwrap(), plan(way.backend()));
        way.load(&ns, &plan);
        assert_eq!(way.look(&ns, &plan), Shadows::default(), "{way:?}, nothing planted");
        plant(&ns, line);
        let found = way.look(&ns, &plan);
        let text = texts(&found.proven);
        for part in says {
            assert!(text.contains(part), "{way:?}, {line}: {part:?} is not in: {text} ({found:?})");
        }
        assert!(!found.proven.is_empty(), "{way:?}, {line}: {found:?}");
        assert!(text.len() < 4000);
    }
}

#[track_caller]
fn harmless(plan: fn(Backend) -> Plan, ways: &[Way], line: &str) {
    for way in ways {
        let (ns, plan) = (TestNetns::new().unwrap(), plan(way.backend()));
        way.load(&ns, &plan);
        plant(&ns, line);
        assert_eq!(way.look(&ns, &plan), Shadows::default(), "{way:?}, {line}");
    }
}

/// Nothing is proven, and something is said.
#[track_caller]
fn perhaps(plan: fn(Backend) -> Plan, ways: &[Way], line: &str, says: &str) {
    for way in ways {
        let (ns, plan) = (TestNetns::new().unwrap(), plan(way.backend()));
        way.load(&ns, &plan);
        plant(&ns, line);
        let found = way.look(&ns, &plan);
        assert_eq!(found.proven, [], "{way:?}, {line}");
        assert!(found.possible.iter().any(|text| text.contains(says)), "{way:?}, {line}: {found:?}");
    }
}

#[test]
fn earlier_chains_of_nf_tables_that_take_connections() {
    for plan in [sidecar, ambient] {
        escapes(
            plan,
            &Way::ALL,
            "nft 'table inet mesh2 { chain out { type nat hook output priority -110; ip daddr 172.20.0.0/14 tcp dport 5000-5100 redirect to :4140; }; }'",
            &[
                "chain out of table inet mesh2",
                "redirect to :4140",
                "goes to port 4140 instead of to port 15001",
                "TCP to 172.2",
            ],
        );
        escapes(
            plan,
            &Way::ALL,
            "nft 'table ip6 t { set s { type inet_service; flags interval; elements = { 70, 6000-6010 }; }; chain c { type nat hook prerouting priority -101; jump d; }; chain d { tcp dport @s dnat to [fd55::1]:99; }; }'",
            &[
                "chain d of table ip6 t",
                "that comes in to [fd44::9]:",
                "goes to fd55::1, port 99, instead of to port 150",
            ],
        );
        escapes(
            plan,
            &Way::ALL,
            "nft 'table ip t { chain c { type nat hook output priority -150; tcp dport { 2100, 2200 } meta skuid 4321 ip daddr != 10.0.0.0/8 counter dnat to 192.0.2.1; }; }'",
            &["from uid 4321", "goes to 192.0.2.1"],
        );
        escapes(
            plan,
            &Way::ALL,
            "nft 'table ip t { chain c { type nat hook output priority -150; ct original ip daddr 172.21.0.9 meta l4proto tcp ct original proto-dst 3000-3010 ct direction original redirect to :9; }; }'",
            &[
                "TCP to 172.21.0.9:300",
                "goes to port 9 instead of to port 15001",
                "ct original proto-dst 3000-3010",
            ],
        );
    }
}

/// At the same priority the one that was registered last comes first, which the numbers of tables tell.
#[test]
fn chains_of_equal_priority() {
    let chain = "{ chain c { type nat hook output priority -100; tcp dport 7777 redirect to :9; }; }";
    escapes(sidecar, &Way::ALL[..2], &format!("nft 'table ip younger {chain}'"), &["table ip younger"]);
    for way in &Way::ALL[..2] {
        let (ns, plan) = (TestNetns::new().unwrap(), ambient(way.backend()));
        plant(&ns, &format!("nft 'table ip older {chain}'"));
        way.load(&ns, &plan);
        let found = way.look(&ns, &plan);
        assert_eq!(found.proven, [], "{way:?}");
        // A chain can be younger than its table.
        assert!(found.possible.iter().any(|text| text.contains("table ip older")), "{way:?}: {found:?}");
    }
}

#[test]
fn untracked_packets_meet_no_translation() {
    for plan in [sidecar, ambient] {
        escapes(
            plan,
            &Way::ALL,
            "nft 'table inet fast { chain pre { type filter hook prerouting priority raw; ip saddr 198.18.0.0/15 tcp dport 8443 notrack; }; }'",
            &["table inet fast", "notrack", "that comes in to 10.44.0.9:8443", "goes on instead of to port"],
        );
        for program in ["iptables-nft", "iptables-legacy"] {
            escapes(
                plan,
                &Way::ALL,
                &format!(
                    "{program} -t raw -A OUTPUT -d 203.0.113.0/24 -p tcp -m multiport --dports 81,82 -m comment --comment \"a -j ACCEPT\" -j CT --notrack"
                ),
                &["chain OUTPUT of table ip raw", "--notrack", "TCP to 203.0.113."],
            );
        }
    }
    // After connections are looked up it does nothing.
    harmless(
        sidecar,
        &Way::ALL,
        "nft 'table ip t { chain c { type filter hook output priority -150; notrack; }; }'",
    );
}

/// In the built-in chains of iptables, which others share, before our jump.
#[test]
fn rules_before_ours_in_a_built_in_chain() {
    for (way, program) in [(Way::ALL[1], "iptables-nft"), (Way::ALL[2], "iptables-legacy")] {
        for plan in [sidecar, ambient] {
            for (rule, says) in [
                ("-I OUTPUT -p tcp -m owner --gid-owner 777 -j ACCEPT", "gid 777"),
                ("-I OUTPUT -d 192.0.2.128/25 -p tcp -j RETURN", "TCP to 192.0.2.1"),
                (
                    "-I OUTPUT -p tcp -m conntrack --ctorigdst 172.21.0.9 -m conntrack --ctorigdstport 80:90 -m conntrack --ctdir ORIGINAL -j REDIRECT --to-ports 9",
                    "TCP to 172.21.0.9:",
                ),
                ("-I PREROUTING -p tcp --dport 6379 -j REDIRECT --to-ports 6380", "goes to port 6380"),
                (
                    "-N OTHER; iptables -t nat -A OTHER -p tcp --dport 3306 -j DNAT --to-destination 10.9.9.9:3307; iptables -t nat -I PREROUTING -j OTHER",
                    "chain OTHER of table ip nat",
                ),
            ] {
                let line = format!("iptables -t nat {rule}").replace("iptables ", &format!("{program} "));
                escapes(plan, &[way], &line, &[says]);
                // In the other variant an accept ends a chain that ours are not in.
                let other = if program == "iptables-nft" { "iptables-legacy" } else { "iptables-nft" };
                if rule.contains("ACCEPT") || rule.contains("RETURN") {
                    harmless(plan, &[way, Way::Nft], &line.replace(program, other));
                }
            }
            // Behind our jump, which redirects, a rule meets nothing.
            harmless(
                plan,
                &[way],
                &format!("{program} -t nat -A OUTPUT -p tcp --dport 81 -j REDIRECT --to-ports 1"),
            );
        }
    }
}

/// Marks by which ztunnel's own connections are told, and TPROXY.
#[test]
fn marks_and_transparent_sockets() {
    let mark = "nft 'table inet m { chain c { type route hook output priority -160; tcp dport 4000 meta mark set 0x539; }; }'";
    escapes(
        ambient,
        &Way::ALL,
        mark,
        &["table inet m", "meta mark set 0x539", "goes on instead of to port 15001"],
    );
    harmless(sidecar, &Way::ALL, mark);
    harmless(ambient, &Way::ALL, &mark.replace("0x539", "0x1000"));
    let take = "nft 'table ip m { chain c { type filter hook prerouting priority -151; tcp dport 4000 tproxy to :777 accept; }; }'";
    escapes(sidecar, &Way::ALL, take, &["tproxy to :777", "goes to port 777 instead of to port 15006"]);
    let tproxy = |backend| {
        let settings = Settings { mode: capture::settings::Mode::Tproxy, ..Settings::default() };
        capture::plan(&settings, PlanTarget { backend, ipv6: true })
    };
    escapes(tproxy, &Way::ALL, take, &["tproxy to :777"]);
    // What is not tracked is handed over all the same; what is sent is translated, and so escapes.
    harmless(
        tproxy,
        &Way::ALL,
        "nft 'table ip m { chain c { type filter hook prerouting priority -301; tcp dport 4000 notrack; }; }'",
    );
}

#[test]
fn what_lets_nothing_escape() {
    for plan in [sidecar, ambient] {
        for line in [
            // Drops, and policies.
            "nft 'table inet fw { chain o { type filter hook output priority 0; policy drop; tcp dport 15001 drop; }; }'",
            "iptables-nft -A OUTPUT -p tcp --dport 80 -j REJECT; iptables-nft -P INPUT DROP",
            // Accepts in chains of others end those.
            "nft 'table ip t { chain o { type nat hook output priority -150; accept; }; chain f { type filter hook prerouting priority -250; ct state new accept; limit rate 1/second log; }; }'",
            // Later ones.
            "nft 'table ip t { chain o { type nat hook output priority -90; meta l4proto tcp redirect to :1; }; chain p { type nat hook postrouting priority 100; masquerade; }; }'",
            // Dormant, and without chains that are attached.
            "nft 'table ip t { flags dormant; chain o { type nat hook output priority -150; meta l4proto tcp redirect to :1; }; }'",
            "nft 'table ip t { chain o { meta l4proto tcp redirect to :1; }; }'",
            // Of other families' hooks, and our table's name without a chain.
            "nft 'table bridge t { chain o { type filter hook output priority 0; accept; }; }; table ip istio-proxy-nat; table ip6 istio-ambient-nat'",
            // The same port.
            "nft 'table ip t { chain o { type nat hook output priority -150; tcp dport 81 redirect to :15001; }; }'",
            // UDP that nobody captures, and ports that are the proxy's.
            "nft 'table ip t { chain o { type nat hook output priority -150; udp dport 9999 redirect to :1; }; chain i { type nat hook prerouting priority -150; tcp dport 15008 redirect to :1; }; }'",
        ] {
            harmless(plan, &Way::ALL, line);
        }
    }
}

/// The pod's own service for an address that it does not have.
#[test]
fn the_pods_own_translation_is_its_own_affair() {
    for plan in [sidecar, ambient] {
        for line in [
            "iptables-nft -t nat -I PREROUTING -d 100.64.3.3 -p tcp --dport 443 -j DNAT --to-destination 10.8.0.3:80",
            "nft 'table ip gw { chain p { type nat hook prerouting priority -150; ip daddr 100.64.3.0/24 dnat to 10.8.0.3; }; }'",
            "nft 'table ip gw { chain p { type nat hook output priority -150; ip daddr 169.254.169.254 tcp dport 80 dnat to 127.0.0.1:8181; }; }'",
        ] {
            harmless(plan, &Way::ALL, line);
        }
        // For its own address, for all addresses, or to where it went anyway, it is not.
        for line in [
            "nft 'table ip gw { chain p { type nat hook prerouting priority -150; ip daddr 10.44.0.9 tcp dport 443 dnat to 10.8.0.3; }; }'",
            "nft 'table ip gw { chain p { type nat hook output priority -150; tcp dport 443 dnat to 10.8.0.3; }; }'",
            "nft 'table ip gw { chain p { type nat hook output priority -150; ip daddr 192.0.2.9 dnat to 192.0.2.9; }; }'",
        ] {
            escapes(plan, &Way::ALL, line, &["dnat"]);
        }
    }
}

/// What cannot be read proves nothing.
#[test]
fn what_cannot_be_read_is_said_to_be_possible() {
    for line in [
        "nft 'table ip t { chain o { type nat hook output priority -150; fib daddr type local tcp dport 1-65535 redirect to :1; }; }'",
        "nft 'table ip t { map m { type inet_service : verdict; elements = { 80 : accept }; }; chain o { type filter hook output priority -350; tcp dport vmap @m; notrack; }; }'",
        "nft 'table ip t { chain o { type nat hook output priority -150; limit rate 1/second tcp dport 80 redirect to :1; }; }'",
    ] {
        perhaps(sidecar, &Way::ALL, line, "table ip t");
    }
    perhaps(
        ambient,
        &Way::ALL,
        "iptables-legacy -t raw -I PREROUTING -p tcp -m statistic --mode random --probability 0.5 -j NOTRACK",
        "table ip raw (legacy)",
    );
    // Before what would be certain, too.
    perhaps(
        sidecar,
        &Way::ALL,
        "nft 'table ip t { chain o { type nat hook output priority -150; jhash ip saddr mod 2 vmap { 0 : accept }; tcp dport 80 redirect to :1; }; }'",
        "table ip t",
    );
}

/// Whoever plants very many rules holds nobody up.
#[test]
fn many_rules_of_others() {
    let mut rules = String::from("table ip big {\n chain o {\n type nat hook output priority -150\n");
    for n in 0..20_000 {
        rules += &format!(" ip daddr 172.16.{}.{} tcp dport {} redirect to :1\n", n / 250, n % 250, 1000 + n);
    }
    rules += " }\n}\n";
    for n in 0..500 {
        rules += &format!("table ip t{n} {{ chain c {{ type filter hook output priority 0; }}; }}\n");
    }
    for way in Way::ALL {
        let (ns, plan) = (TestNetns::new().unwrap(), sidecar(way.backend()));
        way.load(&ns, &plan);
        ns.nft(&rules).unwrap();
        plant(
            &ns,
            "(echo '*nat'; for n in $(seq 20000); do echo \"-I PREROUTING -p udp --dport $n -j REDIRECT --to-ports 1\"; done; echo COMMIT) | iptables-nft-restore --noflush",
        );
        let began = Instant::now();
        let found = way.look(&ns, &plan);
        // A build without optimisation on a busy machine.
        assert!(began.elapsed() < Duration::from_secs(5), "{way:?}: {:?}", began.elapsed());
        let notes = found.possible.join("\n");
        for part in [
            "table ip big has more rules",
            "more tables than are looked at",
            "nft iptables has is not looked at",
        ] {
            assert!(notes.contains(part), "{way:?}: {part:?} is not in {notes}");
        }
    }
}

/// A table of ours that another program owns can go at any time, and nobody else can change it.
#[test]
fn an_owned_table_is_told() {
    use std::io::Write;
    let (ns, plan) = (TestNetns::new().unwrap(), ambient(Backend::Nftables));
    let text = ruleset::nft::render(&ruleset::Transaction::Add(&plan.layers));
    let netns = format!("--net={}", ns.path().display());
    let mut owner = Command::new("nsenter")
        .args([&netns, "nft", "-i"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = owner.stdin.take().unwrap();
    writeln!(stdin, "add table inet istio-ambient-nat {{ flags owner; }}").unwrap();
    let owned = text.replace("add table inet istio-ambient-nat\n", "");
    stdin.write_all(owned.as_bytes()).unwrap();
    stdin.flush().unwrap();
    let found = testkit::eventually("the table is seen", testkit::PATIENCE, || {
        let found = Way::Nft.look(&ns, &plan);
        anyhow::ensure!(!found.possible.is_empty(), "{found:?}");
        Ok(found)
    });
    let found = found.unwrap();
    drop(stdin);
    owner.wait().unwrap();
    assert_eq!(found.proven, []);
    assert!(found.possible[0].contains("istio-ambient-nat belongs to another program"), "{found:?}");
}
