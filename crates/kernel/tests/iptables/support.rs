//! Namespaces, rulesets and fake programs for the tests.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use kernel::iptables::{Iptables, Variant};
use netns::{Inside, Netns};
use ruleset::{
    ALL_BITS, Action, Base, Chain, ChainKind, CtState, Families, Hook, KnownChain, Match, Ports, Protocol,
    Rule, Ruleset, Table, TableKind,
};

/// What rules of sidecars may have (`capture::plan::CHAINS`, which is above this crate).
const KNOWN_CHAINS: [KnownChain; 11] = [
    KnownChain::named(TableKind::Nat, "istio-inbound"),
    KnownChain::named(TableKind::Nat, "istio-redirect"),
    KnownChain::named(TableKind::Nat, "istio-in-redirect"),
    KnownChain::named(TableKind::Nat, "istio-output"),
    KnownChain::named(TableKind::Nat, "istio-output-dns"),
    KnownChain::named(TableKind::Mangle, "istio-inbound"),
    KnownChain::named(TableKind::Mangle, "istio-divert"),
    KnownChain::named(TableKind::Mangle, "istio-tproxy"),
    KnownChain::named(TableKind::Mangle, "istio-drop"),
    KnownChain::named(TableKind::Raw, "istio-inbound"),
    KnownChain::named(TableKind::Raw, "istio-output-dns"),
];

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A namespace that is gone when this is.
pub(crate) struct Ns {
    name: String,
    run_dir: tempfile::TempDir,
}

impl Ns {
    pub(crate) fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kernel-iptables-{}-{number}", std::process::id());
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        Self { name, run_dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Where it is locked.
    pub(crate) fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }

    pub(crate) fn enter<R: Send>(&self, f: impl FnOnce(&Inside) -> R + Send) -> R {
        Netns::open(self.path()).unwrap().enter(f).unwrap()
    }

    /// Runs a shell line inside.
    pub(crate) fn sh(&self, line: &str) -> String {
        sh(&format!("exec nsenter --net={} sh -ec '{line}'", self.path().display()))
    }

    /// What the variant holds in both families, without what changes by itself.
    pub(crate) fn save(&self, variant: Variant) -> String {
        let text = self.sh(&format!("iptables-{variant}-save; ip6tables-{variant}-save"));
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| format!("{}\n", without_counters(line)))
            .collect()
    }

    /// Only rules, and chains that somebody made.
    pub(crate) fn content(&self, variant: Variant) -> Vec<String> {
        let save = self.save(variant);
        let made = |line: &&str| line.starts_with('-') || (line.starts_with(':') && line.ends_with(" -"));
        save.lines().filter(made).map(str::to_owned).collect()
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn without_counters(line: &str) -> &str {
    line.split(" [").next().unwrap_or(line)
}

/// Runs a shell line that must succeed.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A directory for fake programs.
pub(crate) struct Programs {
    pub(crate) directory: PathBuf,
}

impl Programs {
    pub(crate) fn none() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("kernel-iptables-{}-{number}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    /// A link to the real program of another name.
    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        symlink(Path::new("/usr/sbin").join(target), self.directory.join(name)).unwrap();
        self
    }

    /// Links to the real programs `<stem>-restore` and `<stem>-save`.
    pub(crate) fn real(self, stem: &str) -> Self {
        ["restore", "save"]
            .into_iter()
            .fold(self, |programs, kind| programs.link(&format!("{stem}-{kind}"), &format!("{stem}-{kind}")))
    }

    /// A shell script.
    pub(crate) fn script(self, name: &str, text: &str) -> Self {
        let path = self.directory.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    pub(crate) fn search(&self) -> Vec<PathBuf> {
        vec![self.directory.clone()]
    }

    pub(crate) fn iptables(&self) -> Iptables {
        Iptables::new().searching(self.search())
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn chain(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: None, rules, leading: 0 }
}

fn base(kind: TableKind, hook: Hook, rules: Vec<Rule>) -> Chain {
    let name = hook.name();
    let of = if kind == TableKind::Nat { ChainKind::Nat } else { ChainKind::Filter };
    let base = Base { kind: of, hook, priority: kind.priority(hook) };
    Chain { name: name.into(), base: Some(base), rules, leading: 0 }
}

fn table(kind: TableKind, chains: Vec<Chain>) -> Table {
    Table { kind, sets: Vec::new(), chains }
}

fn rule(matches: Vec<Match>, action: Action) -> Rule {
    Rule::new(matches, action, "test")
}

fn jump(to: &'static str) -> Action {
    Action::Jump(to.into())
}

fn tcp() -> Match {
    Match::Protocol(Protocol::Tcp)
}

fn udp() -> Match {
    Match::Protocol(Protocol::Udp)
}

fn dport(port: u16) -> Match {
    Match::DestinationPort { ports: Ports::One(port), not: false }
}

fn source(net: &str, not: bool) -> Match {
    Match::Source { net: net.parse().unwrap(), not }
}

fn destination(net: &str, not: bool) -> Match {
    Match::Destination { net: net.parse().unwrap(), not }
}

fn out_lo() -> Match {
    Match::OutInterface { name: "lo".into(), not: false }
}

/// A sidecar's usual rules, with DNS capture, so that there are two tables.
pub(crate) fn sidecar(ipv6: bool) -> Ruleset {
    let owner = |not| Match::Uid { uid: 1337, not };
    let group = |not| Match::Gid { gid: 1337, not };
    let mut inbound = vec![rule(vec![tcp(), dport(15008)], Action::Return)];
    inbound.extend([15020, 15021, 15090].map(|port| rule(vec![tcp(), dport(port)], Action::Return)));
    inbound.push(rule(vec![tcp()], jump("istio-in-redirect")));
    let not_dns = Match::DestinationPort { ports: Ports::AnyOf(vec![53, 15008]), not: true };
    let mut output = vec![
        rule(vec![out_lo(), source("127.0.0.6/32", false)], Action::Return),
        rule(vec![out_lo(), source("::6/128", false)], Action::Return),
        rule(
            vec![out_lo(), destination("127.0.0.1/32", true), tcp(), not_dns.clone(), owner(false)],
            jump("istio-in-redirect"),
        ),
        rule(
            vec![out_lo(), destination("::1/128", true), tcp(), not_dns, owner(false)],
            jump("istio-in-redirect"),
        ),
        rule(vec![owner(false)], Action::Return),
        rule(vec![group(false)], Action::Return),
        rule(vec![out_lo(), group(true)], Action::Return),
    ];
    output.push(rule(vec![], jump("istio-output-dns")));
    output.push(rule(vec![destination("127.0.0.1/32", false)], Action::Return));
    output.push(rule(vec![destination("::1/128", false)], Action::Return));
    output.push(rule(vec![], jump("istio-redirect")));
    let nat = table(
        TableKind::Nat,
        vec![
            base(TableKind::Nat, Hook::Prerouting, vec![rule(vec![tcp()], jump("istio-inbound"))]),
            base(TableKind::Nat, Hook::Output, vec![rule(vec![], jump("istio-output"))]),
            chain("istio-inbound", inbound),
            chain("istio-redirect", vec![rule(vec![tcp()], Action::Redirect { port: 15001 })]),
            chain("istio-in-redirect", vec![rule(vec![tcp()], Action::Redirect { port: 15006 })]),
            chain("istio-output", output),
            chain(
                "istio-output-dns",
                vec![
                    rule(vec![tcp(), dport(53)], Action::Redirect { port: 15053 }),
                    rule(vec![udp(), dport(53)], Action::Redirect { port: 15053 }),
                ],
            ),
        ],
    );
    let raw = table(
        TableKind::Raw,
        vec![
            base(TableKind::Raw, Hook::Prerouting, vec![rule(vec![], jump("istio-inbound"))]),
            base(TableKind::Raw, Hook::Output, vec![rule(vec![], jump("istio-output-dns"))]),
            chain("istio-output-dns", vec![rule(vec![udp(), dport(53), owner(false)], Action::SetZone(1))]),
            chain(
                "istio-inbound",
                vec![rule(
                    vec![udp(), Match::SourcePort { ports: Ports::One(53), not: false }],
                    Action::SetZone(1),
                )],
            ),
        ],
    );
    Ruleset {
        owner: "istio-proxy".into(),
        known_chains: KNOWN_CHAINS.to_vec().into(),
        ipv6,
        tables: vec![nat, raw],
    }
}

/// A chain for each class, named by it.
pub(crate) fn classes(names: &[&str]) -> Ruleset {
    let kind = TableKind::Mangle;
    let jump = |name: &&str| rule(vec![tcp()], Action::Jump(format!("istio-np-{name}").into()));
    let class = |name: &&str| Chain {
        name: format!("istio-np-{name}").into(),
        ..chain("", vec![rule(vec![], Action::Drop)])
    };
    let post = base(kind, Hook::Postrouting, names.iter().map(jump).collect());
    let chains = std::iter::once(post).chain(names.iter().map(class)).collect();
    let known_chains = vec![KnownChain::beginning(kind, "istio-np-")].into();
    let all = Ruleset {
        owner: "istio-policy".into(),
        known_chains,
        ipv6: false,
        tables: vec![table(kind, chains)],
    };
    ruleset::check(&all).unwrap();
    all
}

/// Two layers, in three tables.
pub(crate) fn layers(ipv6: bool) -> [Ruleset; 2] {
    [sidecar(ipv6), Ruleset { ipv6, ..classes(&["one", "two"]) }]
}

/// Every match and every action, inverted where that is possible, in three tables.
pub(crate) fn rich(ipv6: bool) -> Ruleset {
    let mut every = Vec::new();
    for not in [false, true] {
        let ports = |list: &[u16]| Ports::AnyOf(list.to_vec());
        every.extend([
            rule(vec![Match::InInterface { name: "eth0".into(), not }], Action::Return),
            rule(vec![source("10.1.2.3/24", not)], Action::Return),
            rule(vec![source("fd00::1/64", not)], Action::Return),
            rule(vec![destination("192.0.2.7/32", not), udp()], Action::Accept),
            rule(vec![destination("2001:db8::/32", not), tcp()], Action::Accept),
            rule(vec![tcp(), Match::SourcePort { ports: Ports::One(7), not }], Action::Return),
            rule(vec![udp(), Match::DestinationPort { ports: Ports::One(7), not }], Action::Return),
            rule(vec![udp(), Match::SourcePort { ports: ports(&[1, 2, 65535]), not }], Action::Return),
            rule(vec![tcp(), Match::DestinationPort { ports: ports(&[8080]), not }], Action::Return),
            rule(vec![tcp(), Match::Mark { mark: 1338, mask: ALL_BITS, not }], Action::SaveMark),
            rule(vec![Match::CtMark { mark: 0xffff_0001, mask: ALL_BITS, not }], Action::RestoreMark),
        ]);
    }
    // The inverted form is one that the nft variant refuses.
    every.push(rule(vec![destination("0.0.0.0/0", false)], Action::Return));
    every.push(rule(vec![Match::CtState(CtState::Invalid)], Action::Drop));
    every.push(rule(
        vec![tcp(), dport(80), Match::CtState(CtState::RelatedOrEstablished)],
        jump("istio-divert"),
    ));
    every.push(rule(vec![], Action::SetMark(0x539)));
    for (net, port) in [("127.0.0.1/32", 15006), ("::1/128", 15007)] {
        every.push(rule(vec![destination(net, true), tcp()], Action::Tproxy { port, mark: 1337 }));
    }
    let mut out = Vec::new();
    for not in [false, true] {
        out.push(rule(vec![Match::OutInterface { name: "veth+".into(), not }], Action::Return));
        out.push(rule(vec![out_lo(), Match::Uid { uid: u32::MAX - 1, not }], Action::Return));
        out.push(rule(vec![Match::Gid { gid: 1, not }, Match::Gid { gid: 2, not }, tcp()], Action::Return));
    }
    let mangle = table(
        TableKind::Mangle,
        vec![
            base(
                TableKind::Mangle,
                Hook::Prerouting,
                vec![
                    rule(vec![tcp()], jump("istio-inbound")),
                    rule(
                        vec![tcp(), Match::Mark { mark: 1337, mask: ALL_BITS, not: false }],
                        Action::SaveMark,
                    ),
                ],
            ),
            base(TableKind::Mangle, Hook::Output, out),
            chain("istio-divert", vec![rule(vec![], Action::SetMark(1337)), rule(vec![], Action::Accept)]),
            chain("istio-inbound", every),
        ],
    );
    let mut all = sidecar(ipv6);
    let leading = vec![
        rule(vec![Match::InInterface { name: "net1".into(), not: false }], jump("istio-redirect")),
        rule(vec![Match::InInterface { name: "net1".into(), not: false }], Action::Return),
    ];
    let prerouting = &mut all.tables[0].chains[0];
    prerouting.leading = leading.len();
    prerouting.rules.splice(0..0, leading);
    all.tables.push(mangle);
    assert!(
        all.tables
            .iter()
            .flat_map(|t| &t.chains)
            .flat_map(|c| &c.rules)
            .any(|r| r.families == Families::Both)
    );
    ruleset::check(&all).unwrap();
    all
}

/// From here on the calling thread, and what it starts, is on a kernel without netfilter's netlink: such a socket is refused as a kernel
/// without `CONFIG_NETFILTER_NETLINK` does (EPROTONOSUPPORT), by a seccomp filter.
#[allow(unsafe_code)]
pub(crate) fn refuse_netfilter_sockets() {
    use std::ffi::{c_int, c_ulong, c_void};
    #[repr(C)]
    struct Step(u16, u8, u8, u32);
    #[repr(C)]
    struct Program(u16, *const Step);
    unsafe extern "C" {
        fn prctl(option: c_int, argument: c_ulong, program: *const c_void, a: c_ulong, b: c_ulong) -> c_int;
    }
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const ANSWER: u16 = 0x06;
    let socket = if cfg!(target_arch = "aarch64") { 198 } else { 41 };
    let (netlink, netfilter) = (16, 12);
    // Number of the call, first and third argument.
    let steps = [
        Step(LOAD, 0, 0, 0),
        Step(JUMP_IF_EQUAL, 0, 5, socket),
        Step(LOAD, 0, 0, 16),
        Step(JUMP_IF_EQUAL, 0, 3, netlink),
        Step(LOAD, 0, 0, 32),
        Step(JUMP_IF_EQUAL, 0, 1, netfilter),
        Step(ANSWER, 0, 0, 0x0005_0000 | 93),
        Step(ANSWER, 0, 0, 0x7fff_0000),
    ];
    let program = Program(8, steps.as_ptr());
    // SAFETY: PR_SET_SECCOMP with SECCOMP_MODE_FILTER copies the program, which lives through the call, and concerns this thread only.
    let result = unsafe { prctl(22, 2, (&raw const program).cast(), 0, 0) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
