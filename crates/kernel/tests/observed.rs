//! What is read of a namespace, from real ones.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use capture::ambient::{MARK_MASK, NodeOptions, PodOptions, ZTUNNEL_MARK, plan_pod};
use capture::settings::Mode;
use capture::{PlanTarget, Settings};
use conflicts::{Conflict, LookedAt, NetnsScope, ObservedNetns, RuleLookup, Severity, conflicts};
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::observed::{ObservedSubject, PodProcesses, scan_processes};
use kernel::{Choice, Kernel};
use netns::NetnsId;
use ruleset::{Backend, Plan, Ruleset};
use testkit::{Families, Pod, TestNetns};

fn plan(backend: Backend) -> Plan {
    plan_pod(&NodeOptions::default(), &PodOptions::default(), backend)
}

fn load(ns: &TestNetns, plan: &Plan) {
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    ns.enter(|inside| kernel.apply(inside, Choice::Only(plan.backend), |_| plan.clone())).unwrap().unwrap();
}

fn observe(ns: &TestNetns, plan: &Plan, processes: &PodProcesses) -> ObservedNetns {
    observe_knowing(ns, plan, processes, None)
}

/// `older`: the tables of legacy iptables that were there before ours.
fn observe_knowing(
    ns: &TestNetns,
    plan: &Plan,
    processes: &PodProcesses,
    older: Option<&[String]>,
) -> ObservedNetns {
    observe_all(ns, plan, processes, (older, &[]))
}

/// `beside`: whose rules stand beside the plan's.
fn observe_beside(ns: &TestNetns, plan: &Plan, beside: &[Ruleset]) -> ObservedNetns {
    observe_all(ns, plan, &PodProcesses::default(), (None, beside))
}

fn observe_all(
    ns: &TestNetns,
    plan: &Plan,
    processes: &PodProcesses,
    (older, beside): (Option<&[String]>, &[Ruleset]),
) -> ObservedNetns {
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let proxy_mark = Some((ZTUNNEL_MARK, MARK_MASK));
    let subject = ObservedSubject {
        scope: NetnsScope::Pod,
        plan,
        beside,
        processes,
        proc_root: Path::new("/proc"),
        proxy_mark,
        older,
        rules: None,
    };
    ns.enter(|inside| kernel.observed(inside, &subject)).unwrap().unwrap()
}

fn ids(found: &[Conflict]) -> Vec<String> {
    found.iter().map(|conflict| conflict.id.to_string()).collect()
}

fn id(ns: &TestNetns) -> NetnsId {
    ns.netns().id()
}

#[test]
fn rules_of_others_are_beside_ours_with_their_order() {
    let (ns, plan) = (TestNetns::new().unwrap(), plan(Backend::Nftables));
    ns.nft(
        "table ip early { chain o { type nat hook output priority -101; tcp dport 80 redirect to :9999; }; }",
    )
    .unwrap();
    load(&ns, &plan);
    ns.nft("table inet late { chain o { type nat hook output priority -100; }; }").unwrap();
    let observed = observe(&ns, &plan, &PodProcesses::default());
    let table = |name: &str| observed.tables.iter().find(|table| table.name == name).unwrap();
    let (early, ours, late) = (table("ip early"), table("inet istio-ambient-nat"), table("inet late"));
    assert!(ours.ours && !early.ours && !late.ours);
    assert!(early.age < ours.age && ours.age < late.age, "{observed:?}");
    assert!(early.chains[0].rules[0].handle.is_some());
    assert_eq!(observed.not_looked_at, Vec::<String>::new());
}

#[test]
fn rules_of_others_in_our_chains_of_iptables_are_told_from_ours() {
    let (ns, plan) = (TestNetns::new().unwrap(), plan(Backend::Iptables));
    load(&ns, &plan);
    let insert =
        ["-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", "80", "-j", "REDIRECT", "--to-ports", "9999"];
    ns.run(Command::new("iptables-nft").args(insert)).unwrap();
    let observed = observe(&ns, &plan, &PodProcesses::default());
    let nat = observed.tables.iter().find(|table| table.name == "ip nat").unwrap();
    let output: Vec<bool> =
        nat.chain("OUTPUT").unwrap().rules.iter().map(|rule| rule.why.is_some()).collect();
    assert_eq!((nat.ours, output), (true, vec![false, true]), "{nat:?}");
}

/// Rules that isolate the pod are no conflict with those that capture it; what does more under their names is.
#[test]
fn rules_of_policies_beside_ours_are_nobody_elses() {
    let isolated = facts::networkpolicy::Isolation { ingress: true, egress: true };
    for backend in [Backend::Nftables, Backend::Iptables] {
        let (ns, plan) = (TestNetns::new().unwrap(), plan(backend));
        let admitted = policy::guard::Admitted::default();
        let guard = policy::guard::plan_guard(isolated, admitted, backend);
        let beside = [policy::guard::no_rules()];
        let layers = plan.layers.iter().cloned().chain([guard]).collect();
        load(&ns, &Plan { layers, ..plan.clone() });
        let found = |beside: &[Ruleset]| {
            let observed = observe_beside(&ns, &plan, beside);
            (observed.has_rules_of_others(), ids(&conflicts(&observed, &plan)))
        };
        let (there, unknown) = found(&[]);
        assert!(there, "{backend:?}");
        // Chains of theirs in iptables look like istio-init's.
        assert_eq!(unknown.contains(&"CF-P7".to_owned()), backend == Backend::Iptables, "{unknown:?}");
        assert_eq!(found(&beside), (false, Vec::new()), "{backend:?}");
        let more = match backend {
            Backend::Nftables => {
                "nft add chain inet istio-policy-mangle early '{ type nat hook output priority -101; }'
                 nft add rule inet istio-policy-mangle early meta nfproto ipv4 tcp dport 80 redirect to :9999"
            }
            Backend::Iptables => {
                "iptables-nft -t nat -N ISTIO_NP_EARLY
                 iptables-nft -t nat -A ISTIO_NP_EARLY -p tcp --dport 80 -j REDIRECT --to-ports 9999
                 iptables-nft -t nat -I OUTPUT -j ISTIO_NP_EARLY"
            }
        };
        ns.run(Command::new("sh").args(["-ec", more])).unwrap();
        assert!(found(&beside).0, "{backend:?}");
    }
}

#[test]
fn routing_sysctls_and_addresses_are_read() {
    let (ns, plan) = (TestNetns::new().unwrap(), plan(Backend::Nftables));
    load(&ns, &plan);
    ns.ip(&[
        "rule add pref 100 fwmark 0x40000/0xff0000 iif lo lookup 52",
        "rule add pref 101 unreachable to 203.0.113.0/24",
    ])
    .unwrap();
    ns.ip(&["link add ve0 type veth peer name ve1", "address add 100.64.0.5/32 dev ve0"]).unwrap();
    ns.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    ns.set_sysctl("net.ipv4.conf.all.rp_filter", "2").unwrap();
    ns.set_sysctl("net.ipv6.conf.lo.disable_ipv6", "1").unwrap();
    for setting in ["rp_filter", "route_localnet"] {
        ns.set_sysctl(&format!("net.ipv4.conf.ve0.{setting}"), "1").unwrap();
    }
    let observed = observe(&ns, &plan, &PodProcesses::default());
    let texts: Vec<&str> = observed.rules.iter().map(|rule| rule.text.as_str()).collect();
    assert_eq!(texts[1], "100: from all fwmark 0x40000/0xff0000 iif lo lookup 52", "{texts:?}");
    assert_eq!(texts[2], "101: from all to 203.0.113.0/24 unreachable");
    assert_eq!(observed.rules[2].lookup, RuleLookup::Gone);
    assert!(texts.contains(&"32764: from all fwmark 0x111/0xfff lookup 100"), "{texts:?}");
    assert!(observed.routes.iter().any(|route| route.table == 100 && route.local && route.interface == "lo"));
    let wanted = [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/ve0/rp_filter",
        "net/ipv4/conf/ve0/route_localnet",
        "net/ipv4/conf/lo/rp_filter",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/all/route_localnet",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/lo/disable_ipv6",
        "net/ipv4/ip_local_port_range",
    ];
    let missing = wanted.iter().find(|name| !observed.sysctls.contains_key(**name));
    assert_eq!(missing, None, "{:?}", observed.sysctls);
    assert_eq!(wanted[..3].iter().map(|name| &*observed.sysctls[*name]).collect::<Vec<_>>(), ["1"; 3]);
    // Whatever they were asked of, they are what the files say.
    for (name, value) in &observed.sysctls {
        let file = ns.enter(|_| std::fs::read_to_string(Path::new("/proc/sys").join(name))).unwrap().unwrap();
        assert_eq!(file.trim(), value, "{name}");
    }
    assert!(
        observed
            .addresses
            .iter()
            .any(|own| own.interface == "ve0" && own.address.to_string() == "100.64.0.5")
    );
    assert!(observed.links.iter().any(|link| link.name == "ve0" && link.kind == "veth"));
}

/// They come before rules on the way in, and after them on the way out.
#[test]
fn filters_of_interfaces_are_read() {
    let (ns, plan) = (TestNetns::new().unwrap(), plan(Backend::Nftables));
    load(&ns, &plan);
    ns.ip(&["link add ve0 type veth peer name ve1"]).unwrap();
    assert_eq!(observe(&ns, &plan, &PodProcesses::default()).filters, LookedAt::Found(Vec::new()));
    for line in [
        "qdisc add dev ve0 clsact",
        "filter add dev ve0 ingress bpf bytecode 1,6\u{a0}0\u{a0}0\u{a0}0,",
        "filter add dev ve0 egress u32 match u32 0 0 flowid 1:1",
    ] {
        let words = line.split(' ').map(|word| word.replace('\u{a0}', " "));
        ns.run(Command::new("tc").args(words)).unwrap();
    }
    let observed = observe(&ns, &plan, &PodProcesses::default());
    let LookedAt::Found(filters) = &observed.filters else { panic!("{:?}", observed.filters) };
    let of = |attached: &str| -> Vec<(&str, &str)> {
        let of = filters.iter().filter(|filter| filter.attached == attached);
        of.map(|filter| (&*filter.object, &*filter.name)).collect()
    };
    assert_eq!(of("tc ingress"), [("ve0", "bpf")], "{filters:?}");
    // The kernel lists the tables of this kind as well as what is in them.
    let egress = of("tc egress");
    assert!(!egress.is_empty() && egress.iter().all(|one| *one == ("ve0", "u32")), "{filters:?}");
    let found = conflicts(&observed, &plan);
    let shown: Vec<&str> = found.iter().map(|conflict| &*conflict.foreign).collect();
    assert!(shown.contains(&"filter bpf at tc ingress of ve0"), "{shown:?}");
    assert!(found.iter().all(|conflict| conflict.severity < Severity::Error), "{found:#?}");
}

/// A process that listens in the namespace, as a user.
struct Listening(Child);

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listen(ns: &TestNetns, port: u16, id: u32) -> Listening {
    listen_as(ns, port, id, id)
}

fn listen_as(ns: &TestNetns, port: u16, uid: u32, gid: u32) -> Listening {
    let script = format!(
        "import os, socket, time\nos.setgid({gid}); os.setuid({uid})\ns = socket.socket(); s.bind(('0.0.0.0', {port})); s.listen()\nprint('there', flush=True)\ntime.sleep(60)"
    );
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", ns.path().display()))
        .args(["python3", "-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "there\n");
    Listening(child)
}

#[test]
fn whoever_listens_on_a_port_of_the_proxy_is_found_by_its_process() {
    let (ns, plan) = (TestNetns::new().unwrap(), plan(Backend::Nftables));
    let (other, stranger) = (listen(&ns, 15006, 4711), listen(&ns, 8080, 1337));
    // Of either family, at whichever address.
    let more = ["[::]:15008", "[::1]:15053", "127.0.0.1:15001"];
    let _more = ns.enter(|_| more.map(|address| std::net::TcpListener::bind(address).unwrap())).unwrap();
    let processes: HashMap<NetnsId, PodProcesses> = scan_processes(Path::new("/proc")).unwrap();
    let observed = observe(&ns, &plan, &processes[&id(&ns)]);
    let mut ports: Vec<u16> = observed.listeners.iter().map(|listener| listener.port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [8080, 15001, 15006, 15008, 15053]);
    let on = |port| observed.listeners.iter().find(|listener| listener.port == port).unwrap();
    assert_eq!((on(15006).uid, on(15006).pid), (4711, Some(other.0.id())), "{observed:?}");
    // Only ports of the proxy are asked about.
    assert_eq!((on(8080).uid, on(8080).pid), (1337, None));
    let process = observed.processes.iter().find(|process| process.pid == stranger.0.id()).unwrap();
    assert_eq!((process.uid, process.gid, process.net_admin, process.proxy), (1337, 1337, false, false));
}

#[test]
fn twenty_thousand_rules_are_bounded_and_said_to_be_too_many() {
    let (ns, plan) = (TestNetns::new().unwrap(), plan(Backend::Nftables));
    load(&ns, &plan);
    let rules: String = (0..20_000)
        .map(|n| format!("add rule ip big c ip daddr 10.{}.{}.1 accept\n", n / 250, n % 250))
        .collect();
    ns.nft(&format!(
        "add table ip big\nadd chain ip big c {{ type filter hook output priority 0; }}\n{rules}"
    ))
    .unwrap();
    let start = Instant::now();
    let observed = observe(&ns, &plan, &PodProcesses::default());
    println!("read in {:?}", start.elapsed());
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert!(
        observed
            .not_looked_at
            .iter()
            .any(|text| text.contains("table ip big has more rules than are looked at")),
        "{:?}",
        observed.not_looked_at
    );
}

/// A transparent proxy runs as user 0 with its own group; another one as the user that its settings name.
#[test]
fn a_proxy_is_known_by_the_user_and_group_of_its_plan() {
    let of = |mode, id: u32| {
        let ids = Settings { proxy_uids: vec![id], proxy_gids: vec![id], mode, ..Settings::default() };
        capture::plan(&ids, PlanTarget { backend: Backend::Nftables, ipv6: true })
    };
    for (plan, uid, gid) in [(of(Mode::Redirect, 4711), 4711, 4711), (of(Mode::Tproxy, 1337), 0, 1337)] {
        let ns = TestNetns::new().unwrap();
        let _proxy = listen_as(&ns, 15006, uid, gid);
        let processes = scan_processes(Path::new("/proc")).unwrap();
        let found = conflicts(&observe(&ns, &plan, &processes[&id(&ns)]), &plan);
        let worse: Vec<&Conflict> =
            found.iter().filter(|conflict| conflict.severity == Severity::Error).collect();
        assert!(worse.is_empty(), "{worse:#?}");
    }
}

/// Of iptables-legacy the number of transactions says nothing.
#[test]
fn rules_of_either_kind_change_the_fingerprint_and_a_look_does_not() {
    let (ns, plan) = (TestNetns::new().unwrap(), plan(Backend::Nftables));
    load(&ns, &plan);
    let now = || ns.enter(kernel::watch::fingerprint).unwrap().unwrap();
    let legacy = |rule: &str| ns.run(Command::new("iptables-legacy").args(rule.split(' '))).unwrap();
    let mut before = now();
    let changes: [(&str, &dyn Fn()); 3] = [
        ("nf_tables", &|| ns.nft("add table ip other").unwrap()),
        ("a first rule of legacy", &|| drop(legacy("-t nat -A OUTPUT -p tcp --dport 80 -j ACCEPT"))),
        ("another one", &|| drop(legacy("-t nat -A OUTPUT -p tcp --dport 81 -j ACCEPT"))),
    ];
    for (what, change) in changes {
        change();
        let after = now();
        assert_ne!(before, after, "{what}");
        observe(&ns, &plan, &PodProcesses::default());
        assert_eq!(after, now(), "{what}");
        before = after;
    }
}

/// What a look at a pod costs that has nothing but rules of ours.
#[test]
fn a_pod_without_rules_of_others_costs_little() {
    let (ns, plan) = (TestNetns::new().unwrap(), plan(Backend::Nftables));
    load(&ns, &plan);
    let (rounds, none) = (50, PodProcesses::default());
    let start = Instant::now();
    ns.enter(|inside| {
        let iptables = Iptables::new();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        let proc_root = Path::new("/proc");
        let subject = ObservedSubject {
            scope: NetnsScope::Pod,
            plan: &plan,
            beside: &[],
            processes: &none,
            proc_root,
            proxy_mark: None,
            older: None,
            rules: None,
        };
        for _ in 0..rounds {
            kernel.observed(inside, &subject).unwrap();
        }
    })
    .unwrap();
    println!("{:?} for each look", start.elapsed() / rounds);
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

/// A foreign setting, loaded before ours or after it, and what is found of it at worst.
type Row = (&'static str, bool, &'static str, Option<(&'static str, Severity)>);

const NFT: &str = "nft add table ip x; nft add chain ip x c";
const ROWS: [Row; 14] = [
    (
        "a redirect at a lower priority",
        true,
        "'{ type nat hook output priority -101; }'; nft add rule ip x c tcp dport 80 redirect to :9999",
        Some(("CF-P1", Severity::Error)),
    ),
    (
        "the same at ours, later",
        false,
        "'{ type nat hook output priority -100; }'; nft add rule ip x c tcp dport 80 redirect to :9999",
        Some(("CF-P1", Severity::Error)),
    ),
    (
        "the same at ours, before",
        true,
        "'{ type nat hook output priority -100; }'; nft add rule ip x c tcp dport 80 redirect to :9999",
        None,
    ),
    (
        "legacy iptables, before",
        true,
        "iptables-legacy -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 9999",
        None,
    ),
    (
        "legacy iptables, later",
        false,
        "iptables-legacy -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 9999",
        Some(("CF-P1", Severity::Error)),
    ),
    (
        "iptables-nft, before",
        true,
        "iptables-nft -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 9999",
        None,
    ),
    (
        "an accept at a lower priority",
        true,
        "'{ type nat hook output priority -101; }'; nft add rule ip x c tcp dport 80 accept",
        None,
    ),
    (
        "no tracking",
        true,
        "'{ type filter hook output priority -300; }'; nft add rule ip x c tcp dport 80 notrack",
        Some(("CF-P5", Severity::Error)),
    ),
    (
        "a drop of what is redirected",
        false,
        "'{ type filter hook output priority 0; }'; nft add rule ip x c tcp dport 15001 drop",
        Some(("CF-P3", Severity::Error)),
    ),
    (
        "an accept before everything",
        true,
        "'{ type filter hook output priority -200; }'; nft add rule ip x c tcp dport 80 accept",
        None,
    ),
    (
        "the proxy's mark",
        true,
        "'{ type filter hook output priority -150; }'; nft add rule ip x c tcp dport 80 meta mark set 0x539",
        Some(("CF-P6", Severity::Error)),
    ),
    (
        "a mark with its low bits",
        true,
        "'{ type filter hook output priority -150; }'; nft add rule ip x c tcp dport 80 meta mark set 0x4539",
        Some(("CF-P6", Severity::Error)),
    ),
    (
        "a policy that drops",
        false,
        "'{ type filter hook input priority 0; policy drop; }'",
        Some(("CF-P3", Severity::Error)),
    ),
    (
        "a rule of policy routing",
        false,
        "ip rule add pref 100 lookup main",
        Some(("CF-P12", Severity::Error)),
    ),
];

#[test]
fn each_foreign_setting_is_found_and_what_changes_nothing_is_no_conflict() {
    let plan = plan(Backend::Nftables);
    for (what, before, script, wanted) in ROWS {
        let pod = Pod::new(Families::Dual).unwrap();
        let script = if script.starts_with('\'') { format!("{NFT} {script}") } else { script.to_owned() };
        let foreign = || pod.run(Command::new("sh").args(["-ec", &script])).unwrap();
        if before {
            foreign();
        }
        load(&pod, &plan);
        if !before {
            foreign();
        }
        let older = before.then(|| ["ip nat (legacy)".to_owned()]);
        let older = Some(older.as_ref().map_or(&[][..], |older| older));
        let observed = observe_knowing(&pod, &plan, &PodProcesses::default(), older);
        let found = conflicts(&observed, &plan);
        let worst = found.iter().filter(|found| found.severity > Severity::Info);
        let worst: Vec<(String, Severity)> =
            worst.map(|found| (found.id.to_string(), found.severity)).collect();
        match wanted {
            None => assert_eq!(worst, [], "{what}: {found:#?}"),
            Some((id, severity)) => {
                assert!(worst.contains(&(id.to_owned(), severity)), "{what}: {found:#?}");
            }
        }
    }
}

#[test]
fn an_application_as_the_proxys_user_and_one_on_its_port_are_conflicts() {
    let sidecar = capture::plan(&Settings::default(), PlanTarget { backend: Backend::Nftables, ipv6: true });
    let (ns, plan) = (TestNetns::new().unwrap(), sidecar);
    let (other, stranger) = (listen(&ns, 15006, 4711), listen(&ns, 8080, 1337));
    let processes = scan_processes(Path::new("/proc")).unwrap();
    let found = conflicts(&observe(&ns, &plan, &processes[&id(&ns)]), &plan);
    for (id, pid) in [("CF-P16", other.0.id()), ("CF-P17", stranger.0.id())] {
        let named = |conflict: &&Conflict| {
            let text = format!("{} {} {:?}", conflict.foreign, conflict.affects, conflict.culprit);
            conflict.id.to_string() == id
                && conflict.severity == Severity::Error
                && text.contains(&pid.to_string())
        };
        assert!(found.iter().any(|conflict| named(&conflict)), "{id}: {found:#?}");
    }
}
