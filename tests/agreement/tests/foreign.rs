//! Random rules of others beside ours: where a packet is followed to is where a real one comes.

use std::cell::Cell;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agreement::lab::{Lab, Loader};
use agreement::nflog::Listener;
use agreement::run::{SEED, runner};
use agreement::strategy::{ambient_attempt, ambient_options, attempt, settings};
use agreement::way::Attempt;
use agreement::world::{CAPTURE_PORTS, PEER, POD, PROXY_PORTS, TCP_PORTS};
use anyhow::Result;
use capture::ambient::{plan_pod, plan_translating_pod};
use capture::settings::DNS_PORT;
use capture::{PlanTarget, plan};
use conflicts::{Arrival, LiveEnd, NetnsScope, ObservedNetns, arrival, follow};
use kernel::Kernel;
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::observed::{ObservedSubject, PodProcesses};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use ruleset::eval::Packet;
use ruleset::{ChainKind, Hook, Plan};
use testkit::TestNetns;
use testkit::probe::Outcome;

/// Plans, each with some rules of others in turn.
const CASES: u32 = 25;
const SHRINK: u32 = 40;
/// Of all packets, at most so many may be told to be unknown.
const MAX_UNKNOWN: f64 = 0.1;
/// How long an attempt waits: whoever gets the first packet gets it at once.
const PATIENCE: Duration = Duration::from_millis(40);
/// Where packets are logged that come to a socket, or to the peer.
const GROUP: u16 = 7;
/// Where rules of others lead.
const TARGETS: [u16; 2] = [9999, 8080];

/// A chain of somebody else.
#[derive(Debug, Clone)]
struct Foreign {
    carrier: Carrier,
    v6: bool,
    hook: Hook,
    rules: Vec<(Vec<Condition>, Act)>,
    drops: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    /// A table of its own, with a base chain of this kind and priority.
    Nft(ChainKind, i32),
    Iptables(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Tcp,
    Port(u16),
    Net,
    Uid(u32),
    Mark(u32),
    New,
    Loopback,
    /// Nobody can tell from here whether it holds; it does.
    Limit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Accept,
    Drop,
    Return,
    Redirect(u16),
    Dnat(u16),
    Masquerade,
    Notrack,
    Mark(u32),
    CtMark(u32),
    Restore,
    Save,
    Count,
}

fn conditions() -> impl Strategy<Value = Vec<Condition>> {
    let one = prop_oneof![
        6 => Just(Condition::Tcp),
        4 => select(vec![80, 443, 8080, 15001, 15006, 53]).prop_map(Condition::Port),
        3 => Just(Condition::Net),
        2 => select(vec![1000, 1337, 0]).prop_map(Condition::Uid),
        2 => select(vec![0x539, 0x111, 1337]).prop_map(Condition::Mark),
        1 => Just(Condition::New),
        2 => Just(Condition::Loopback),
        1 => Just(Condition::Limit),
    ];
    // iptables takes one of a kind.
    vec(one, 0..=2).prop_map(|mut all| {
        all.dedup_by_key(|condition| std::mem::discriminant(condition));
        all
    })
}

fn acts(kind: ChainKind, hook: Hook) -> impl Strategy<Value = Act> {
    let early = matches!(hook, Hook::Prerouting | Hook::Output);
    let marks = vec![0x539_u32, 0x4539, 0x111, 1337, 7];
    let mark = select(marks.clone()).prop_map(Act::Mark).boxed();
    let mut choices =
        vec![(3, Just(Act::Accept).boxed()), (1, Just(Act::Return).boxed()), (1, Just(Act::Count).boxed())];
    match kind {
        ChainKind::Nat if early => {
            choices.push((4, select(&TARGETS[..]).prop_map(Act::Redirect).boxed()));
            choices.push((4, select(&TARGETS[..]).prop_map(Act::Dnat).boxed()));
        }
        ChainKind::Nat => choices.push((2, Just(Act::Masquerade).boxed())),
        _ => {
            choices.push((2, Just(Act::Drop).boxed()));
            choices.push((3, mark));
            choices.push((1, select(marks).prop_map(Act::CtMark).boxed()));
            choices.push((1, Just(Act::Restore).boxed()));
            choices.push((1, Just(Act::Save).boxed()));
            if early && kind == ChainKind::Filter {
                choices.push((3, Just(Act::Notrack).boxed()));
            }
        }
    }
    proptest::strategy::Union::new_weighted(choices)
}

fn foreign() -> impl Strategy<Value = Foreign> {
    let hooks =
        vec![Hook::Output, Hook::Output, Hook::Prerouting, Hook::Prerouting, Hook::Input, Hook::Postrouting];
    let carrier = (select(hooks), 0..10_u8, 0..6_u8, priority()).prop_map(|(hook, of, kind, priority)| {
        let kind = match (kind, hook) {
            (0..=2, _) => ChainKind::Nat,
            (3, Hook::Output) => ChainKind::Route,
            _ => ChainKind::Filter,
        };
        // Translation comes after connections are looked up.
        let priority = if kind == ChainKind::Nat { priority.max(-199) } else { priority };
        let carrier = match of {
            0 => Carrier::Iptables("nft"),
            1 => Carrier::Iptables("legacy"),
            _ => Carrier::Nft(kind, priority),
        };
        (carrier, kind, hook)
    });
    carrier.prop_flat_map(|(carrier, kind, hook)| {
        let rules = vec((conditions(), acts(kind, hook)), 1..=3);
        let drops = prop_oneof![9 => Just(false), 1 => Just(true)];
        (any::<bool>(), rules, drops).prop_map(move |(v6, rules, drops)| Foreign {
            carrier,
            v6,
            hook,
            rules,
            drops: drops && kind != ChainKind::Nat && matches!(carrier, Carrier::Nft(..)),
        })
    })
}

fn priority() -> impl Strategy<Value = i32> {
    let known = select(vec![-300, -200, -150, -101, -100, -99, 0, 99, 100]);
    prop_oneof![3 => known, 4 => -301..=101_i32]
}

impl Foreign {
    /// Shell lines that plant the rules and remove them.
    fn lines(&self) -> (String, String) {
        match self.carrier {
            Carrier::Nft(kind, priority) => {
                (self.nft(kind, priority), "nft delete table inet foreign".to_owned())
            }
            Carrier::Iptables(variant) => self.iptables(variant),
        }
    }

    /// A listener of the peer's for what is sent, and of the pod's for what comes in.
    fn target(&self) -> IpAddr {
        let pool = if self.hook == Hook::Output { PEER } else { POD };
        pool[usize::from(self.v6)]
    }

    fn nft(&self, kind: ChainKind, priority: i32) -> String {
        let kind = match kind {
            ChainKind::Nat => "nat",
            ChainKind::Filter => "filter",
            ChainKind::Route => "route",
        };
        let policy = if self.drops { " policy drop;" } else { "" };
        let mut text = format!(
            "nft 'table inet foreign {{ chain c {{ type {kind} hook {} priority {priority};{policy}",
            self.hook.name()
        );
        for (conditions, act) in &self.rules {
            let _ = write!(text, " meta nfproto {}", if self.v6 { "ipv6" } else { "ipv4" });
            for condition in conditions {
                let _ = write!(text, " {}", self.nft_condition(condition));
            }
            let _ = write!(text, " {};", self.nft_act(act));
        }
        text + " }; }'"
    }

    fn nft_condition(&self, condition: &Condition) -> String {
        match condition {
            Condition::Tcp => "meta l4proto tcp".to_owned(),
            Condition::Port(port) => format!("meta l4proto tcp th dport {port}"),
            Condition::Net if self.v6 => "ip6 daddr 2001:db8::/32".to_owned(),
            Condition::Net => "ip daddr 198.51.100.0/24".to_owned(),
            Condition::Uid(uid) => format!("meta skuid {uid}"),
            Condition::Mark(mark) => format!("meta mark & 0xfff == {mark}"),
            Condition::New => "ct state new".to_owned(),
            Condition::Loopback if self.hook == Hook::Output || self.hook == Hook::Postrouting => {
                "oifname lo".to_owned()
            }
            Condition::Loopback => "iifname lo".to_owned(),
            Condition::Limit => "limit rate 100000/second".to_owned(),
        }
    }

    fn nft_act(&self, act: &Act) -> String {
        match act {
            Act::Accept => "accept".to_owned(),
            Act::Drop => "drop".to_owned(),
            Act::Return => "return".to_owned(),
            Act::Redirect(port) => format!("meta l4proto tcp redirect to :{port}"),
            Act::Dnat(port) if self.v6 => format!("meta l4proto tcp dnat ip6 to [{}]:{port}", self.target()),
            Act::Dnat(port) => format!("meta l4proto tcp dnat ip to {}:{port}", self.target()),
            Act::Masquerade if self.hook == Hook::Postrouting => "masquerade".to_owned(),
            Act::Masquerade => "accept".to_owned(),
            Act::Notrack => "notrack".to_owned(),
            Act::Mark(mark) => format!("meta mark set {mark}"),
            Act::CtMark(mark) => format!("ct mark set {mark}"),
            Act::Restore => "meta mark set ct mark".to_owned(),
            Act::Save => "ct mark set meta mark".to_owned(),
            Act::Count => "counter".to_owned(),
        }
    }

    /// One rule in the table for its act.
    fn iptables(&self, variant: &str) -> (String, String) {
        let program = if self.v6 { "ip6tables" } else { "iptables" };
        let (mut put, mut remove) = (String::new(), String::new());
        for (conditions, act) in &self.rules {
            let Some((table, target)) = self.iptables_act(act) else { continue };
            let mut rule =
                format!("{program}-{variant} -w -t {table} VERB {}", self.hook.name().to_uppercase());
            if matches!(act, Act::Redirect(_) | Act::Dnat(_)) || conditions.iter().any(Condition::is_tcp) {
                rule += " -p tcp";
            }
            for condition in conditions {
                rule += &self.iptables_condition(condition);
            }
            let _ = writeln!(put, "{} -j {target}", rule.replace("VERB", "-I"));
            let _ = writeln!(remove, "{} -j {target}", rule.replace("VERB", "-D"));
        }
        (put, remove)
    }

    fn iptables_condition(&self, condition: &Condition) -> String {
        let sent = matches!(self.hook, Hook::Output | Hook::Postrouting);
        match condition {
            Condition::Tcp => String::new(),
            Condition::Port(port) => format!(" -m multiport --dports {port}"),
            Condition::Net if self.v6 => " -d 2001:db8::/32".to_owned(),
            Condition::Net => " -d 198.51.100.0/24".to_owned(),
            Condition::Uid(uid) if sent => format!(" -m owner --uid-owner {uid}"),
            Condition::Uid(_) => String::new(),
            Condition::Mark(mark) => format!(" -m mark --mark {mark}/0xfff"),
            Condition::New => " -m conntrack --ctstate NEW".to_owned(),
            Condition::Loopback if sent => " -o lo".to_owned(),
            Condition::Loopback => " -i lo".to_owned(),
            Condition::Limit => " -m limit --limit 10000/second --limit-burst 10000".to_owned(),
        }
    }

    fn iptables_act(&self, act: &Act) -> Option<(&'static str, String)> {
        let early = matches!(self.hook, Hook::Prerouting | Hook::Output);
        // The filter table has neither of these hooks.
        let filter =
            if matches!(self.hook, Hook::Prerouting | Hook::Postrouting) { "mangle" } else { "filter" };
        Some(match act {
            Act::Accept => ("nat", "ACCEPT".to_owned()),
            Act::Drop => (filter, "DROP".to_owned()),
            Act::Return => ("mangle", "RETURN".to_owned()),
            Act::Redirect(port) if early => ("nat", format!("REDIRECT --to-ports {port}")),
            Act::Dnat(port) if early && self.v6 => {
                ("nat", format!("DNAT --to-destination [{}]:{port}", self.target()))
            }
            Act::Dnat(port) if early => ("nat", format!("DNAT --to-destination {}:{port}", self.target())),
            Act::Masquerade if self.hook == Hook::Postrouting => ("nat", "MASQUERADE".to_owned()),
            Act::Notrack if early => ("raw", "CT --notrack".to_owned()),
            Act::Mark(mark) => ("mangle", format!("MARK --set-xmark {mark}/0xffffffff")),
            Act::CtMark(mark) => ("mangle", format!("CONNMARK --set-xmark {mark}/0xffffffff")),
            Act::Restore => ("mangle", "CONNMARK --restore-mark".to_owned()),
            Act::Save => ("mangle", "CONNMARK --save-mark".to_owned()),
            _ => return None,
        })
    }
}

impl Condition {
    fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp | Self::Port(_))
    }
}

/// The laboratory, with ears where packets end.
struct Range {
    lab: Lab,
    here: Listener,
    there: Listener,
    seen: Seen,
}

/// How often each kind of answer was given: a test that only ever sees one shows little.
#[derive(Debug, Default)]
struct Seen {
    pairs: Cell<u32>,
    captured: Cell<u32>,
    socket: Cell<u32>,
    left: Cell<u32>,
    gone: Cell<u32>,
    unknown: Cell<u32>,
}

fn count(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

impl Range {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        log_what_comes(lab.pod().own(), "input")?;
        log_what_comes(lab.pod().peer(), "prerouting")?;
        let ears = |namespace: &TestNetns| Listener::new(namespace, &[GROUP]);
        let (here, there) = (ears(lab.pod().own())?, ears(lab.pod().peer())?);
        Ok(Self { lab, here, there, seen: Seen::default() })
    }

    /// What is not as it was followed, in words.
    fn disagreement(&self, plan: &Plan, attempts: &[Attempt]) -> Result<Option<String>> {
        let observed = observe(&self.lab, plan)?;
        count(&self.seen.pairs);
        for attempt in attempts {
            let packet = attempt.packet();
            let (wanted, last) = arrival(&observed, &packet);
            let end = follow(&observed, &packet).end;
            self.count(&wanted, &end);
            let (_, _) = (self.here.drain(), self.there.drain());
            let outcome = self.lab.attempt_within(attempt, PATIENCE)?;
            let (here, there) = (self.here.drain(), self.there.drain());
            let port = last.destination_port.to_string();
            let right = match wanted {
                Arrival::Unknown => true,
                Arrival::Gone => here.is_empty() && there.is_empty(),
                // The peer does not take it (`ipv6_rcv` in net/ipv6/ip6_input.c).
                Arrival::Left if last.source.is_loopback() => here.is_empty(),
                Arrival::Left => here.is_empty() && there.first() == Some(&port),
                Arrival::Socket { port: socket } => {
                    let taken = match &outcome {
                        Outcome::Reached(arrival) => arrival.listener_port == socket,
                        _ => true,
                    };
                    there.is_empty() && here.first() == Some(&port) && taken
                }
            };
            if !right {
                return Ok(Some(format!(
                    "{attempt:?}\nfollowed to {wanted:?} {end:?}\nas {last:?}\nbut it came here {here:?}, there {there:?}, and {outcome}\n{}",
                    told(&observed, &packet)
                )));
            }
        }
        Ok(None)
    }

    fn count(&self, wanted: &Arrival, end: &LiveEnd) {
        let seen = &self.seen;
        count(match (wanted, end) {
            (Arrival::Unknown, _) => &seen.unknown,
            (_, LiveEnd::Captured { .. }) => &seen.captured,
            (Arrival::Socket { .. }, _) => &seen.socket,
            (Arrival::Left, _) => &seen.left,
            (Arrival::Gone, _) => &seen.gone,
        });
    }
}

/// The rules on the way of a packet.
fn told(observed: &ObservedNetns, packet: &Packet) -> String {
    let mut text = String::new();
    for stop in follow(observed, packet).stops {
        let _ = writeln!(text, "{}: {:?}", stop.hook.name(), stop.packet);
        for rule in stop.rules {
            let _ = writeln!(
                text,
                "  {} {} {:?}: {}",
                rule.place.table, rule.place.chain, rule.place.priority, rule.text
            );
        }
    }
    text
}

/// Logs first packets by their port, after everything else at the hook.
fn log_what_comes(namespace: &TestNetns, hook: &str) -> Result<()> {
    let mut ports: Vec<u16> = TCP_PORTS.to_vec();
    ports.extend(PROXY_PORTS.into_iter().chain(CAPTURE_PORTS).chain([DNS_PORT]));
    ports.sort_unstable();
    ports.dedup();
    let mut text = format!("table inet seen {{ chain c {{ type filter hook {hook} priority 10000; ");
    for port in ports {
        let _ = write!(
            text,
            "tcp flags & (syn | ack) == syn tcp dport {port} log group {GROUP} prefix \"{port}\"; udp dport {port} log group {GROUP} prefix \"{port}\"; "
        );
    }
    namespace.nft(&(text + "}; }"))?;
    Ok(())
}

/// The namespace as it is read.
fn observe(lab: &Lab, plan: &Plan) -> Result<ObservedNetns> {
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let subject = ObservedSubject {
        scope: NetnsScope::Pod,
        plan,
        beside: &[],
        processes: &PodProcesses::default(),
        proc_root: Path::new("/proc"),
        proxy_mark: None,
        older: None,
        rules: None,
    };
    Ok(lab.pod().enter(|inside| kernel.observed(inside, &subject))??)
}

fn sh(lab: &Lab, line: &str) -> Result<()> {
    lab.pod().run(Command::new("sh").args(["-ec", line])).map(drop)
}

/// Rules of others come before ours, or after them.
fn tries(
    range: &Range,
    loader: Loader,
    plan: &Plan,
    first: bool,
    all: &[Foreign],
    attempts: &[Attempt],
) -> Result<Option<String>> {
    let mut found = None;
    if !first {
        range.lab.load(loader, plan)?;
    }
    for foreign in all.iter().take(if first { 1 } else { all.len() }) {
        let (put, remove) = foreign.lines();
        sh(&range.lab, &put)?;
        if first {
            range.lab.load(loader, plan)?;
        }
        let differs = range.disagreement(plan, attempts);
        sh(&range.lab, &remove)?;
        if let Some(differs) = differs? {
            found = Some(format!("{put}\n{differs}"));
            break;
        }
    }
    range.lab.unload(loader, plan)?;
    Ok(found)
}

#[test]
fn real_packets_go_where_they_are_followed_to() {
    let range = Range::new().expect("a pod, as root");
    let (mut runner, seed) = runner("foreign", CASES, SHRINK);
    let loader = prop_oneof![4 => Just(Loader::Nft), 1 => Just(Loader::IptablesNft), 1 => Just(Loader::IptablesLegacy)];
    let plans = (settings(), ambient_options(), any::<[bool; 2]>(), loader);
    let first = prop_oneof![3 => Just(false), 1 => Just(true)];
    let attempts = (vec(attempt(), 3), vec(ambient_attempt(), 3));
    let result = runner.run(&(plans, first, vec(foreign(), 5), attempts), |(plans, first, all, attempts)| {
        let (settings, (node, pod), [ambient, translates], loader) = plans;
        let plan = match ambient {
            true if translates => plan_translating_pod(&node, &pod, loader.backend()),
            true => plan_pod(&node, &pod, loader.backend()),
            false => plan(&settings, PlanTarget { backend: loader.backend(), ipv6: true }),
        };
        let attempts = if ambient { attempts.1 } else { attempts.0 };
        match tries(&range, loader, &plan, first, &all, &attempts) {
            Ok(None) => Ok(()),
            Ok(Some(found)) => {
                Err(TestCaseError::fail(format!("{loader:?}, others first: {first}: {found}")))
            }
            Err(error) => panic!("{loader:?}: {error:#}\n{all:?}"),
        }
    });
    let seen = &range.seen;
    println!("{seen:?}");
    if let Err(failure) = result {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
    let known = [&seen.captured, &seen.socket, &seen.left, &seen.gone].map(Cell::get);
    let all = known.iter().sum::<u32>() + seen.unknown.get();
    assert!(known.iter().all(|count| *count > 0) || all < 100, "{seen:?}");
    assert!(f64::from(seen.unknown.get()) <= f64::from(all) * MAX_UNKNOWN, "{seen:?}");
}
