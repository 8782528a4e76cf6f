//! Rules of others before and after ours: what is said to shadow ours does so to real packets, and nothing else does.

use std::cell::Cell;
use std::net::IpAddr;
use std::process::Command;

use agreement::lab::{Lab, Loader};
use agreement::run::{SEED, runner};
use agreement::strategy::{packet, settings};
use agreement::way::Attempt;
use agreement::world::{CAPTURE_PORTS, FAR, PEER, POD, PROXY_PORTS, TCP_PORTS};
use anyhow::Result;
use capture::settings::{OwnerGroups, Ranges};
use capture::{PlanTarget, Settings, plan};
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::{Kernel, Shadows};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use ruleset::eval::{State, Verdict, evaluate};
use ruleset::listed::walk::{self, PacketEnd, stations};
use ruleset::listed::{number_of, number_of_name};
use ruleset::{Backend, Family, Hook, NoMembers, Plan, Protocol};
use testkit::probe::Outcome;

const CASES: u32 = 40;
const SHRINK: u32 = 60;
/// What the analysis takes for an application that nobody knows, and one that rules name.
const UIDS: [u32; 2] = [65_533, 4242];

/// A rule of somebody else.
#[derive(Debug, Clone)]
struct Foreign {
    carrier: Carrier,
    /// Before ours.
    first: bool,
    v6: bool,
    sent: bool,
    port: Option<u16>,
    uid: Option<u32>,
    net: bool,
    act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    /// A table of its own, with a base chain of this priority.
    Nft(i32),
    IptablesNft,
    IptablesLegacy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Redirect,
    Dnat,
    Notrack,
    Accept,
    Drop,
}

fn foreign() -> impl Strategy<Value = Foreign> {
    let carrier = prop_oneof![
        4 => select(vec![-310, -160, -110, -101, -99, 0]).prop_map(Carrier::Nft),
        1 => Just(Carrier::Nft(-100)),
        2 => Just(Carrier::IptablesNft),
        2 => Just(Carrier::IptablesLegacy),
    ];
    let act = prop_oneof![
        3 => Just(Act::Redirect),
        3 => Just(Act::Dnat),
        3 => Just(Act::Notrack),
        3 => Just(Act::Accept),
        1 => Just(Act::Drop),
    ];
    let port = prop_oneof![1 => Just(None), 2 => select(vec![80_u16, 8080, 443]).prop_map(Some)];
    let uid = prop_oneof![2 => Just(None), 1 => Just(Some(UIDS[1]))];
    (carrier, any::<[bool; 4]>(), port, uid, act).prop_map(
        |(carrier, [first, v6, sent, net], port, uid, act)| Foreign {
            carrier,
            first,
            v6,
            sent,
            port,
            uid: uid.filter(|_| sent),
            net: net && sent,
            act,
        },
    )
}

impl Foreign {
    /// Shell lines that plant the rule and remove it.
    fn lines(&self) -> (String, String) {
        match self.carrier {
            Carrier::Nft(priority) => (self.nft(priority), "nft delete table inet foreign".to_owned()),
            Carrier::IptablesNft => self.iptables("nft"),
            Carrier::IptablesLegacy => self.iptables("legacy"),
        }
    }

    fn target(&self) -> &'static str {
        match (self.sent, self.v6) {
            // A listener of the peer's, or of the pod's.
            (true, false) => "10.77.0.1",
            (true, true) => "fd77::1",
            (false, false) => "10.77.0.2",
            (false, true) => "fd77::2",
        }
    }

    fn nft(&self, priority: i32) -> String {
        let family = if self.v6 { "ip6" } else { "ip" };
        let hook = if self.sent { "output" } else { "prerouting" };
        let nat = matches!(self.act, Act::Redirect | Act::Dnat);
        // Translation comes after connections are looked up.
        let (kind, priority) = if nat { ("nat", priority.max(-160)) } else { ("filter", priority) };
        let mut rule = format!("meta nfproto {} meta l4proto tcp", if self.v6 { "ipv6" } else { "ipv4" });
        if self.net {
            rule += &format!(" {family} daddr {}", if self.v6 { "2001:db8::/32" } else { "198.51.100.0/24" });
        }
        rule += &self.port.map_or_else(String::new, |port| format!(" tcp dport {port}"));
        rule += &self.uid.map_or_else(String::new, |uid| format!(" meta skuid {uid}"));
        rule += &match self.act {
            Act::Redirect => " redirect to :9999".to_owned(),
            Act::Dnat if self.v6 => format!(" dnat ip6 to [{}]:9999", self.target()),
            Act::Dnat => format!(" dnat ip to {}:9999", self.target()),
            Act::Notrack => " notrack".to_owned(),
            Act::Accept => " accept".to_owned(),
            Act::Drop => " drop".to_owned(),
        };
        format!(
            "nft 'table inet foreign {{ chain c {{ type {kind} hook {hook} priority {priority}; {rule}; }}; }}'"
        )
    }

    fn iptables(&self, variant: &str) -> (String, String) {
        let program = if self.v6 { "ip6tables" } else { "iptables" };
        let chain = if self.sent { "OUTPUT" } else { "PREROUTING" };
        let table = if self.act == Act::Notrack { "raw" } else { "nat" };
        let mut rule = format!("{chain} -p tcp");
        if self.net {
            rule += &format!(" -d {}", if self.v6 { "2001:db8::/32" } else { "198.51.100.0/24" });
        }
        rule += &self.port.map_or_else(String::new, |port| format!(" --dport {port}"));
        rule += &self.uid.map_or_else(String::new, |uid| format!(" -m owner --uid-owner {uid}"));
        rule += &match self.act {
            Act::Redirect => " -j REDIRECT --to-ports 9999".to_owned(),
            Act::Dnat if self.v6 => format!(" -j DNAT --to-destination [{}]:9999", self.target()),
            Act::Dnat => format!(" -j DNAT --to-destination {}:9999", self.target()),
            Act::Notrack => " -j CT --notrack".to_owned(),
            // Nat tables take no DROP.
            Act::Accept | Act::Drop => " -j ACCEPT".to_owned(),
        };
        let line = |how: &str| format!("{program}-{variant} -w -t {table} {how} {rule}");
        (line("-I"), line("-D"))
    }
}

/// Settings whose captured packets are those that are tried: other owners, interfaces and ranges are not this test's.
fn simple(settings: Settings) -> Settings {
    let default = Settings::default();
    Settings {
        proxy_uids: default.proxy_uids,
        proxy_gids: default.proxy_gids,
        owner_groups: OwnerGroups::AllBut(Vec::new()),
        outbound_ranges: Ranges::All,
        outbound_ranges_excluded: default.outbound_ranges_excluded,
        reroute_interfaces: Vec::new(),
        excluded_interfaces: Vec::new(),
        loopback_v4: default.loopback_v4,
        // The answer to a packet that escaped untracked would be dropped, so that the escape could not be seen.
        drop_invalid: false,
        ..settings
    }
}

/// Every packet that rules of [`Foreign`] can name, in the family and direction of one of them; and those that none does.
fn attempts(foreign: &Foreign) -> Vec<Attempt> {
    let at = usize::from(foreign.v6);
    let to: Vec<IpAddr> = if foreign.sent { vec![PEER[at], FAR[at]] } else { vec![POD[at]] };
    let uids: &[u32] = if foreign.sent { &UIDS } else { &UIDS[..1] };
    let ports = TCP_PORTS.iter().filter(|port| ![&PROXY_PORTS[..], &CAPTURE_PORTS].concat().contains(port));
    let ports: Vec<u16> = ports.copied().collect();
    let mut all = Vec::new();
    for to in to {
        for port in &ports {
            for uid in uids {
                all.push(Attempt {
                    from_peer: !foreign.sent,
                    protocol: Protocol::Tcp,
                    owner: if foreign.sent { (*uid, *uid) } else { (0, 0) },
                    source: None,
                    mark: 0,
                    proxy_up: true,
                    to: (to, *port).into(),
                });
            }
        }
    }
    all
}

/// Who took it.
fn taker(outcome: &Outcome) -> Option<u16> {
    match outcome {
        Outcome::Reached(arrival) => Some(arrival.listener_port),
        _ => None,
    }
}

fn sh(lab: &Lab, line: &str) -> Result<()> {
    lab.pod().run(Command::new("sh").args(["-ec", line])).map(drop)
}

fn look(lab: &Lab, plan: &Plan) -> Result<Shadows> {
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let record = kernel.record(plan).ok_or_else(|| anyhow::anyhow!("no record"))?;
    let owners = agreement::lab::owners(&plan.layers);
    Ok(lab.pod().enter(|inside| kernel.shadows(inside, &record, &owners, &POD[..2], "eth0", &|_| ()))??)
}

/// Tries every packet with and without the foreign rule; says what does not agree.
fn disagreement(
    lab: &Lab,
    loader: Loader,
    plan: &Plan,
    foreign: &Foreign,
    seen: &Seen,
) -> Result<Option<String>> {
    let (put, remove) = foreign.lines();
    let all = attempts(foreign);
    let run = || -> Result<Option<String>> {
        let mut escaped = Vec::new();
        let mut captured = Vec::new();
        let mut lost = false;
        if foreign.first {
            sh(lab, &put)?;
            lab.load(loader, plan)?;
        } else {
            lab.load(loader, plan)?;
            for attempt in &all {
                captured.push(taker(&lab.attempt(attempt)?));
            }
            sh(lab, &put)?;
        }
        let shadows = look(lab, plan)?;
        let mut after = Vec::new();
        for attempt in &all {
            after.push(taker(&lab.attempt(attempt)?));
        }
        sh(lab, &remove)?;
        if foreign.first {
            for attempt in &all {
                captured.push(taker(&lab.attempt(attempt)?));
            }
        }
        for ((attempt, before), after) in all.iter().zip(captured).zip(after) {
            let is_captured = before.is_some_and(|port| port != attempt.to.port());
            if is_captured && after.is_some() && after != before {
                escaped.push((attempt, before, after));
            }
            lost |= is_captured && after != before;
        }
        seen.count(&shadows, foreign);
        Ok(match (escaped.first(), shadows.proven.is_empty(), shadows.possible.is_empty()) {
            (Some(escaped), true, true) => Some(format!("{escaped:?} escapes and nothing is said")),
            // The answer to a packet that escaped untracked may be lost, so that the escape itself is not seen.
            (None, false, _) if !lost => Some(format!("nothing escapes, but {:?}", shadows.proven)),
            _ => None,
        })
    };
    let result = run();
    if result.is_err() {
        let _ = sh(lab, &remove);
    }
    lab.unload(loader, plan)?;
    result
}

/// How often each kind of answer was given: a test that only ever sees one shows little.
#[derive(Debug, Default)]
struct Seen {
    proven: Cell<u32>,
    possible: Cell<u32>,
    nothing: Cell<u32>,
}

impl Seen {
    fn count(&self, shadows: &Shadows, _: &Foreign) {
        let cell = match (shadows.proven.is_empty(), shadows.possible.is_empty()) {
            (false, _) => &self.proven,
            (true, false) => &self.possible,
            (true, true) => &self.nothing,
        };
        cell.set(cell.get() + 1);
    }
}

#[test]
fn what_shadows_ours_lets_real_packets_escape() {
    let lab = Lab::new().unwrap();
    let (mut runner, seed) = runner("shadow", CASES, SHRINK);
    let seen = Seen::default();
    let result =
        runner.run(&(settings(), foreign(), select(Loader::ALL.to_vec())), |(settings, foreign, loader)| {
            let settings = simple(settings);
            let plan = plan(&settings, PlanTarget { backend: loader.backend(), ipv6: true });
            match disagreement(&lab, loader, &plan, &foreign, &seen) {
                Ok(None) => Ok(()),
                Ok(Some(found)) => Err(TestCaseError::fail(format!(
                    "{loader:?}: {found}\n{}\n{settings:#?}",
                    foreign.lines().0
                ))),
                Err(error) => panic!("{loader:?}: {error:#}\n{foreign:?}"),
            }
        });
    println!("{seen:?}");
    if let Err(failure) = result {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
    let counts = [seen.proven.get(), seen.nothing.get()];
    assert!(counts.iter().sum::<u32>() < 30 || counts.iter().all(|count| *count > 0), "{seen:?}");
}

/// Without a kernel: a plan that was written and read back as anybody's rules says what the plan itself says.
#[test]
fn plans_read_back_say_what_they_say() {
    let (mut runner, seed) = runner("listed", 300, 5_000);
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let strategy = (settings(), any::<bool>(), vec(packet(), 40));
    let result = runner.run(&strategy, |(settings, ipv6, packets)| {
        for backend in [Backend::Nftables, Backend::Iptables] {
            let plan = plan(&settings, PlanTarget { backend, ipv6 });
            let record = kernel.record(&plan).expect("every plan has a record");
            let tables =
                kernel.tables(&record, &agreement::lab::owners(&plan.layers)).expect("a record can be read");
            for (mut packet, hook, _) in packets.iter().cloned() {
                (packet.state, packet.ct_mark, packet.listening) = (State::New, 0, true);
                if packet.family() == Family::V6 && !ipv6 {
                    continue;
                }
                let said = evaluate(&plan.layers, backend, &packet, hook, true, &NoMembers).verdict;
                let fate = walk::walk(&stations(&tables, hook, packet.family()), &of(&packet));
                prop_assert!(fate.unread.is_none(), "{:?}", fate.unread.map(|place| place.rule.to_string()));
                let same = match (said, fate.end) {
                    (Verdict::Pass | Verdict::Snat { .. }, PacketEnd::Pass)
                    | (Verdict::Drop, PacketEnd::Dropped) => true,
                    (Verdict::Redirect { port }, PacketEnd::Redirect(other)) => port == other,
                    (Verdict::Tproxy { port }, PacketEnd::Tproxy(other)) => port == other,
                    _ => false,
                };
                prop_assert!(same, "{backend}, {hook:?}: {said:?}, but {:?}\n{packet:?}", fate.end);
            }
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
}

fn of(packet: &ruleset::eval::Packet) -> walk::FirstPacket {
    let name = |name: &str| if name.is_empty() { 0 } else { number_of_name(name) };
    walk::FirstPacket {
        family: packet.family(),
        source: number_of(packet.source),
        destination: number_of(packet.destination),
        protocol: packet.protocol.number(),
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        in_interface: name(&packet.in_interface),
        out_interface: name(&packet.out_interface),
        own_destination: packet.own_destination,
        socket_given: false,
        owner: packet.owner.map(|owner| (owner.uid, owner.gid)),
        mark: packet.mark,
    }
}

/// The hooks that plans have rules at.
#[test]
fn only_two_hooks_are_looked_at() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        let plan = plan(&Settings::default(), PlanTarget { backend, ipv6: true });
        let tables = plan.layers.iter().flat_map(|layer| &layer.tables);
        let chains = tables.flat_map(|table| &table.chains);
        for base in chains.filter_map(|chain| chain.base) {
            assert!(matches!(base.hook, Hook::Output | Hook::Prerouting), "{base:?}");
        }
    }
}
