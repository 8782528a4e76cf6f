//! Who has changed what.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;

use kernel::KeptSockets;
use kernel::nft::Nftables;
use kernel::sets::Sets;
use kernel::sockets::Sockets;
use kernel::watch::{EventSupport, Noticed, RulesetCommit, probe};
use kernel::{Choice, Kernel};
use netns::Netns;
use ruleset::{Backend, Family, KeyType, Plan, Ruleset, Set, SetDelta, Table, TableKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testkit::TestNetns;

use crate::way::Way;

/// How long an event may take that takes microseconds.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

pub(crate) fn keep(ns: &TestNetns) -> KeptSockets {
    KeptSockets::open(&Arc::new(Netns::open(ns.path()).unwrap())).unwrap()
}

pub(crate) fn sh(ns: &TestNetns, line: &str) -> String {
    ns.run(Command::new("sh").args(["-ec", line])).unwrap()
}

/// Waits until a socket is readable: which ones are.
fn woken(kept: &KeptSockets) -> [bool; 2] {
    let descriptors = kept.descriptors();
    let mut polled = [0, 1].map(|n| PollFd::from_borrowed_fd(descriptors[n].as_fd(), PollFlags::IN));
    poll(&mut polled, Some(&PATIENCE)).unwrap();
    [0, 1].map(|n| polled[n].revents().contains(PollFlags::IN))
}

fn nothing(noticed: &Noticed) -> bool {
    *noticed == Noticed::default()
}

/// Whether a number that the kernel tells is that of this thread. It tells those of the initial pid namespace, whose inode it has fixed
/// (`PROC_PID_INIT_INO`); in another one, as in a container, the number is only known to be one.
fn is_number_of(told: u32, own: u32) -> bool {
    let initial = std::fs::read_link("/proc/self/ns/pid").unwrap().ends_with("pid:[4026531836]");
    if initial { told == own } else { told != 0 }
}

/// A ruleset with one set that is filled apart from the rules.
fn with_set() -> Ruleset {
    let sets = vec![Set::kept("members", KeyType::Address(Family::V4))];
    let tables = vec![Table { kind: TableKind::Filter, sets, chains: Vec::new() }];
    Ruleset { owner: "istio-watched".into(), known_chains: Vec::new().into(), ipv6: true, tables }
}

/// Another one.
fn other() -> Ruleset {
    Ruleset { owner: "istio-other".into(), ..with_set() }
}

/// A plan that is this ruleset.
fn plan_of(ruleset: &Ruleset) -> Arc<Plan> {
    Arc::new(Plan::of_layer(Backend::Nftables, ruleset.clone()))
}

/// A namespace with [`with_set`], and the sockets that are kept there.
fn watched() -> (TestNetns, Ruleset, KeptSockets) {
    let (ns, ruleset) = (TestNetns::new().unwrap(), with_set());
    load(&ns, &ruleset);
    let kept = keep(&ns);
    (ns, ruleset, kept)
}

fn load(ns: &TestNetns, ruleset: &Ruleset) {
    let plan = plan_of(ruleset);
    let iptables = Way::Nft.iptables();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    ns.enter(|inside| kernel.apply(inside, Choice::Only(Backend::Nftables), |_| Plan::clone(&plan)))
        .unwrap()
        .unwrap();
}

#[test]
fn a_commit_of_another_program_wakes_with_its_pid_and_name() {
    let ns = TestNetns::new().unwrap();
    let mut kept = keep(&ns);
    for (line, name) in [
        ("exec nft add table inet foreign", "nft"),
        ("exec iptables-nft -t nat -A OUTPUT -j ACCEPT", "iptables-nft"),
    ] {
        assert!(nothing(&kept.take_events().unwrap()), "{line}");
        let before = kept.generation().unwrap();
        let mut program = ns.spawn(Command::new("sh").args(["-ec", line])).unwrap();
        assert_eq!(woken(&kept), [true, false], "{line}");
        assert!(program.child().wait().unwrap().success());
        let noticed = kept.take_events().unwrap();
        let [.., RulesetCommit { generation, pid, command, .. }] = &noticed.commits[..] else {
            panic!("{line}: {noticed:?}")
        };
        assert!(is_number_of(*pid, program.id()), "{noticed:?}");
        assert_eq!(command, name);
        assert_ne!(*generation, before);
        assert_eq!(*generation, kept.generation().unwrap());
        assert!(!noticed.commits.iter().any(RulesetCommit::is_own), "{noticed:?}");
        assert!(!noticed.lost && !noticed.routing, "{noticed:?}");
    }
}

#[test]
fn commits_of_this_process_are_known_as_its_own() {
    let ns = TestNetns::new().unwrap();
    let mut kept = keep(&ns);
    let ruleset = with_set();
    load(&ns, &ruleset);
    let noticed = kept.take_events().unwrap();
    assert!(!noticed.commits.is_empty() && noticed.commits.iter().all(RulesetCommit::is_own), "{noticed:?}");
    let (thread, noticed) = ns
        .enter(|inside| {
            kernel::nft::send(inside, &kernel::nft::encode(&[other()])).unwrap();
            (rustix::thread::gettid().as_raw_nonzero().get(), kept.take_events().unwrap())
        })
        .unwrap();
    let [RulesetCommit { pid, command, .. }] = &noticed.commits[..] else { panic!("{noticed:?}") };
    assert!(is_number_of(*pid, thread.unsigned_abs()), "the thread's, not the process's: {noticed:?}");
    assert_eq!(command, "netns", "the thread's name");

    let mut sets = ns.enter(|inside| Sets::open(inside, Backend::Nftables, &ruleset)).unwrap().unwrap();
    let mut own = 0;
    for n in 0..1000_u32 {
        add(&mut sets, n);
        let noticed = kept.take_events().unwrap();
        assert!(noticed.commits.iter().all(RulesetCommit::is_own), "{noticed:?}");
        assert!(!noticed.lost && !noticed.routing, "{noticed:?}");
        own += noticed.commits.len();
    }
    assert_eq!(own, 1000);
    ns.nft("add element inet istio-watched-filter members { 10.0.0.1 }").unwrap();
    let noticed = kept.take_events().unwrap();
    assert!(noticed.commits.iter().any(|commit| !commit.is_own()), "{noticed:?}");
}

#[test]
fn every_change_of_the_routing_wakes() {
    let ns = TestNetns::new().unwrap();
    let mut kept = keep(&ns);
    for line in [
        "ip link add one type veth peer name two",
        "ip address add 10.1.0.1/32 dev lo",
        "ip -6 address add fd00::1/128 dev lo",
        "ip route add local default dev lo table 100",
        "ip -6 route add local default dev lo table 100",
        "ip rule add fwmark 1 lookup 100",
        "ip -6 rule add fwmark 1 lookup 100",
        "ip rule del fwmark 1 lookup 100",
        "ip -6 route flush table 100",
        "ip link set lo down",
    ] {
        assert!(nothing(&kept.take_events().unwrap()), "{line}");
        sh(&ns, line);
        assert_eq!(woken(&kept), [false, true], "{line}");
        let noticed = kept.take_events().unwrap();
        assert!(noticed.routing && noticed.commits.is_empty(), "{line}: {noticed:?}");
        // IPv6 tells some a little later.
        while kept.take_events().unwrap().routing {}
    }
}

#[test]
fn questions_to_a_socket_leave_its_events() {
    let (ns, ruleset, mut kept) = watched();
    let iptables = Way::Nft.iptables();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let plan = plan_of(&ruleset);
    ns.nft("add table inet foreign").unwrap();
    sh(&ns, "ip rule add fwmark 1 lookup 100");
    let generation = kept.generation().unwrap();
    assert_eq!(kernel.check(&mut kept, &plan).unwrap(), kernel::Check::Equal);
    let noticed = kept.take_events().unwrap();
    assert_eq!(noticed.commits.last().map(|commit| commit.generation), Some(generation));
    assert!(noticed.routing && !noticed.lost, "{noticed:?}");
}

#[test]
fn what_listens_in_a_namespace_is_told() {
    let ns = TestNetns::new().unwrap();
    let ports = [15001, 15006, 15008];
    let listening =
        |ports: &[u16]| ns.enter(|inside| Sockets::open(inside).unwrap().listening(ports).unwrap()).unwrap();
    assert_eq!(listening(&ports), [0u16; 0]);
    let open = |at: (&str, u16)| ns.enter(|_| TcpListener::bind(at).unwrap()).unwrap();
    let _v4 = open(("127.0.0.1", 15006));
    let _v6 = open(("::", 15001));
    let _other = open(("127.0.0.1", 15007));
    assert_eq!(listening(&ports), [15001, 15006]);
    assert_eq!(listening(&[]), [0u16; 0]);
}

#[test]
fn this_kernel_tells_everything() {
    assert_eq!(probe().unwrap(), EventSupport { generation: true, events: true, culprits: true });
}

/// A change of the set by this process.
fn add(sets: &mut Sets, number: u32) {
    let mut delta = SetDelta::default();
    delta.add(ruleset::Element::from(ruleset::Key::from(std::net::IpAddr::from(number.to_be_bytes()))));
    sets.change(&[("members", &delta)]).unwrap();
}

/// Nobody reads while there are more commits than the kernel keeps events for.
#[test]
fn after_more_events_than_are_kept_it_is_known_that_some_are_lost() {
    let (ns, ruleset, mut kept) = watched();
    let iptables = Way::Nft.iptables();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let plan = plan_of(&ruleset);
    let mut sets = ns.enter(|inside| Sets::open(inside, Backend::Nftables, &ruleset)).unwrap().unwrap();
    for number in 0..10_000 {
        add(&mut sets, number);
    }
    sh(&ns, "for n in $(seq 200); do echo rule add fwmark $n lookup 100 priority $n; done | ip -batch -");
    // What the last of them did is found although its event is not there, also by a check that comes before the events are read.
    ns.nft("add chain inet istio-watched-filter extra").unwrap();
    let found = kernel.check(&mut kept, &plan).unwrap();
    assert!(matches!(&found, kernel::Check::Differs(differences) if differences.len() == 1), "{found:?}");
    let (mut lost, mut heard) = (false, 0);
    loop {
        let noticed = kept.take_events().unwrap();
        lost |= noticed.lost;
        heard += noticed.commits.len();
        if nothing(&noticed) {
            break;
        }
    }
    assert!(lost && heard < 10_000, "{heard} commits heard");
    // Afterwards all is heard again.
    ns.nft("delete chain inet istio-watched-filter extra").unwrap();
    let noticed = kept.take_events().unwrap();
    assert!(!noticed.lost && noticed.commits.len() == 1, "{noticed:?}");
    assert_eq!(kernel.check(&mut kept, &plan).unwrap(), kernel::Check::Equal);
}

/// A check goes on while others commit: the kernel says that a list is not consistent, or has no room for an answer.
#[test]
fn a_check_beside_a_storm_of_commits_ends() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (ns, ruleset, mut kept) = watched();
    let iptables = Way::Nft.iptables();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let plan = plan_of(&ruleset);
    let mut sets = ns.enter(|inside| Sets::open(inside, Backend::Nftables, &ruleset)).unwrap().unwrap();
    let done = AtomicBool::new(false);
    let (mut equal, mut disturbed) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..).take_while(|_| !done.load(Ordering::Relaxed)).for_each(|number| add(&mut sets, number));
        });
        let checks: Vec<_> = (0..200)
            .map(|_| {
                let check = kernel.check(&mut kept, &plan);
                if check.is_err() {
                    kept = keep(&ns);
                }
                check
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        for check in checks {
            match check {
                Ok(found) => {
                    assert_eq!(found, kernel::Check::Equal);
                    equal += 1;
                }
                Err(error) => {
                    let text = fault::chain(&error);
                    assert!(text.contains("disturbed by changes"), "{text}");
                    disturbed += 1;
                }
            }
        }
    });
    assert!(equal > 0, "all {disturbed} checks were disturbed");
}

#[test]
fn sockets_of_a_namespace_that_is_deleted_answer_until_they_are_closed() {
    let mut kept = {
        let (_ns, _, kept) = watched();
        kept
    };
    let generation = kept.generation().unwrap();
    assert!(nothing(&kept.take_events().unwrap()), "nothing happens where nobody is");
    assert_eq!(kept.generation().unwrap(), generation);
    assert!(!kept.unchanged().unwrap(), "nobody has compared anything");
}

#[test]
fn a_namespace_costs_two_netlink_sockets_also_with_tables_of_iptables_legacy() {
    let ns = TestNetns::new().unwrap();
    let netns = Arc::new(Netns::open(ns.path()).unwrap());
    let iptables = Way::Nft.iptables();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let plan = Arc::new(Plan { backend: Backend::Nftables, routing: Vec::new(), layers: Vec::new() });
    // Sockets of this namespace, as no other test has any there.
    let open = |line: &str| -> usize {
        let numbers = sh(&ns, line);
        let inodes: std::collections::BTreeSet<&str> = numbers.lines().collect();
        let mine = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = mine.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.filter(|link| inodes.iter().any(|inode| link.ends_with(format!("socket:[{inode}]")))).count()
    };
    let netlink = "awk 'NR > 1 { print $10 }' /proc/net/netlink";
    let mut kept = (0..3).map(|_| KeptSockets::open(&netns).unwrap()).collect::<Vec<_>>();
    assert_eq!(open(netlink), 6);
    for kept in &mut kept {
        assert_eq!(kernel.check(kept, &plan).unwrap(), kernel::Check::Equal);
    }
    assert_eq!(open(netlink), 6, "a check opens none that stays");
    sh(&ns, "iptables-legacy -t nat -A OUTPUT -j ACCEPT");
    for _ in 0..2 {
        assert_eq!(kernel.check(&mut kept[0], &plan).unwrap(), kernel::Check::Enter);
    }
    assert_eq!(open(netlink), 6);
    kept.clear();
    assert_eq!(open(netlink), 0);
}
