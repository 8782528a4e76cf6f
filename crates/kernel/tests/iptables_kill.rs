//! A caller that is killed at any time leaves all of the rules or none, and the next setup succeeds.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "iptables/support.rs"]
mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kernel::iptables::{Iptables, Variant};
use kernel::nft::Nftables;
use kernel::{Change, RuleStore};
use support::{Ns, layers};

/// `cargo test` builds the examples of a package together with its tests (not with `--test NAME`), into a directory beside theirs.
fn example() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here.parent().and_then(|deps| deps.parent()).unwrap().join("examples/iptables_setup");
    assert!(path.exists(), "{} is missing: cargo build -p kernel --example iptables_setup", path.display());
    path
}

fn start(ns: &Ns, variant: Variant, rest: &[&str]) -> Child {
    let mut command = Command::new(example());
    command.arg(ns.path()).arg(variant.to_string()).args(rest).env("RUN_DIR", ns.run_dir());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Processes inside the namespace.
fn busy(ns: &Ns) -> bool {
    !support::sh(&format!("ip netns pids {}", ns.path().file_name().unwrap().to_string_lossy())).is_empty()
}

/// Waits until something is so, which a step of the other side brings and no clock.
fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    testkit::until(what, Duration::from_secs(60), holds, || "it is not so").unwrap();
}

/// Programs that come before the real ones in PATH and wait at a gate.
struct Gate(tempfile::TempDir);

impl Gate {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().display();
        // A shell writes them: what this process has open for writing, the kernel starts no program from.
        support::sh(&format!(
            r#"for name in iptables ip6tables; do for kind in nft legacy; do
                program=$name-$kind-restore
                printf '%s\n' '#!/bin/sh' 'while [ ! -e {folder}/open ]; do sleep 0.01; done' \
                    "exec $(command -v $program) \"\$@\"" >{folder}/$program
                chmod +x {folder}/$program
            done; done"#
        ));
        Self(dir)
    }

    fn start(&self, ns: &Ns, variant: Variant, rest: &[&str]) -> Child {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(example());
        command.arg(ns.path()).arg(variant.to_string()).args(rest);
        command.env("PATH", path).env("RUN_DIR", ns.run_dir());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn open(&self) {
        std::fs::write(self.0.path().join("open"), "").unwrap();
    }
}

/// Whether the process has started another one, whichever of its threads did.
fn has_child(parent: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).unwrap();
    tasks.flatten().any(|task| {
        std::fs::read_to_string(task.path().join("children")).is_ok_and(|children| !children.is_empty())
    })
}

/// The example under strace, which kills whatever enters one of these system calls for the given time.
fn killed_at(ns: &Ns, follow: &str, calls: &str, number: u32, rest: &[&str]) -> bool {
    let mut strace = Command::new("strace");
    if !follow.is_empty() {
        strace.arg(follow);
    }
    strace.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:signal=KILL:when={number}")]);
    let output =
        strace.arg(example()).arg(ns.path()).args(rest).env("RUN_DIR", ns.run_dir()).output().unwrap();
    !output.status.success()
}

#[test]
fn the_example_itself_works() {
    for variant in [Variant::Legacy, Variant::Nft] {
        let ns = Ns::new();
        let output = start(&ns, variant, &[]).wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "Fresh []\n", "{output:?}");
    }
}

/// All or nothing, and which of both; then a setup that goes through.
fn all_after_a_kill(ns: &Ns, variant: Variant, ipv6: bool, at: &str) -> bool {
    let (layers, iptables) = (layers(ipv6), Iptables::forced(variant));
    wait_until(&format!("{at}: the supervisor has ended"), || !busy(ns));
    let differences = ns.enter(|inside| iptables.observe(inside, &layers)).unwrap();
    let none = ns.content(variant).is_empty();
    assert!(differences.is_empty() || none, "{at}: {differences:?}");
    complete(ns, variant, ipv6, at);
    !none
}

fn complete(ns: &Ns, variant: Variant, ipv6: bool, at: &str) {
    let (layers, iptables) = (layers(ipv6), Iptables::forced(variant).locking(ns.run_dir()));
    let change = ns.enter(|inside| iptables.setup(inside, &layers)).unwrap();
    assert_ne!(change, Change::Replaced, "{at}: there was a part");
    assert_eq!(ns.enter(|inside| iptables.observe(inside, &layers)).unwrap(), [], "{at}");
    assert_eq!(iptables.take_warnings(), Vec::<String>::new(), "{at}");
}

#[test]
fn a_kill_before_the_supervisor_leaves_nothing_and_one_after_it_all() {
    for (variant, ipv6) in
        [(Variant::Nft, true), (Variant::Legacy, true), (Variant::Nft, false), (Variant::Legacy, false)]
    {
        let rest = if ipv6 { &[][..] } else { &["no-ipv6"] };
        let ns = Ns::new();
        let text = variant.to_string();
        let arguments: Vec<&str> = [text.as_str()].into_iter().chain(rest.iter().copied()).collect();
        assert!(killed_at(&ns, "", "openat,open", 1, &arguments));
        assert!(!all_after_a_kill(&ns, variant, ipv6, "at the first file"), "{variant}");

        let ns = Ns::new();
        let gate = Gate::new();
        let mut child = gate.start(&ns, variant, rest);
        wait_until("the supervisor has been started", || has_child(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        gate.open();
        assert!(all_after_a_kill(&ns, variant, ipv6, "beside the supervisor"), "{variant}");
    }
}

#[test]
fn a_kill_at_any_time_leaves_all_or_nothing() {
    for round in 0..40_u32 {
        let variant = if round % 2 == 0 { Variant::Nft } else { Variant::Legacy };
        let ipv6 = round % 4 < 2;
        let ns = Ns::new();
        let mut child = start(&ns, variant, if ipv6 { &[] } else { &["no-ipv6"] });
        // Steps of a prime number, so that the delays hit every part of the 15 ms or so.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 20_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let at = format!("round {round}");
        if round % 5 == 4 {
            // At once, while the supervisor may still be at work.
            complete(&ns, variant, ipv6, &at);
        } else {
            all_after_a_kill(&ns, variant, ipv6, &at);
        }
    }
}

#[test]
fn a_killed_supervisor_is_repaired_by_the_next_setup() {
    for variant in [Variant::Legacy, Variant::Nft] {
        let mut partial = 0;
        // The supervisor starts a program for each family: its end at the second leaves one family only.
        for number in 1..=4 {
            let (ns, layers, iptables) = (Ns::new(), layers(true), Iptables::forced(variant));
            killed_at(&ns, "-f", "clone,clone3,fork,vfork", number, &[&variant.to_string()]);
            wait_until("everything of it has ended", || !busy(&ns));
            let change = ns.enter(|inside| iptables.setup(inside, &layers)).unwrap();
            partial += u32::from(change == Change::Replaced);
            assert_eq!(ns.enter(|inside| iptables.observe(inside, &layers)).unwrap(), [], "{number}");
        }
        println!("{variant}: {partial} kills hit the middle");
        assert!(partial > 0, "{variant}: no kill hit the middle");
    }
}

#[test]
fn a_kill_at_any_system_call_leaves_no_file_on_the_host() {
    let files = || support::sh("ls -A /run | grep ^xtables");
    // That file is there on every host with iptables.
    drop(std::fs::OpenOptions::new().create(true).append(true).open("/run/xtables.lock").unwrap());
    let before = files();
    let mounts =
        || support::sh("grep -E \" (/proc|/run/xtables.lock|/etc/nsswitch.conf) \" /proc/mounts | sort");
    let mounted = mounts();
    let mut killed = 0;
    // Whatever opens, mounts or unmounts: the kill comes on entry, so that everything before is done.
    for call in ["mount", "umount2", "openat", "open", "unlink", "unlinkat"] {
        for number in 1..12 {
            let ns = Ns::new();
            killed += u32::from(killed_at(&ns, "-f", call, number, &["legacy", "no-ipv6"]));
            drop(ns);
            assert_eq!((files(), mounts()), (before.clone(), mounted.clone()), "{call} {number}");
        }
    }
    assert!(killed > 10, "{killed}");
}

/// Over netlink, at every system call by which the example speaks to the kernel.
#[test]
fn a_kill_leaves_all_old_layers_of_nf_tables_or_all_new_ones() {
    let new = layers(true);
    let mut old = [support::sidecar(true), support::classes(&["three"])];
    old[0].tables.truncate(1);
    let differs = |ns: &Ns, layers: &[ruleset::Ruleset]| {
        !ns.enter(|inside| Nftables.observe(inside, layers)).unwrap().is_empty()
    };
    let (mut before, mut after) = (0, 0);
    for (call, number) in
        ["sendto", "recvfrom"].into_iter().flat_map(|call| (1..60).map(move |number| (call, number)))
    {
        let ns = Ns::new();
        ns.enter(|inside| Nftables.setup(inside, &old)).unwrap();
        let killed = killed_at(&ns, "-f", call, number, &["netlink"]);
        match (differs(&ns, &old), differs(&ns, &new)) {
            (false, true) => before += u32::from(killed),
            (true, false) => after += u32::from(killed),
            both => panic!("at {call} {number}: {both:?}"),
        }
        ns.enter(|inside| Nftables.setup(inside, &new)).unwrap();
        assert!(!differs(&ns, &new), "{number}");
    }
    assert!(before > 10 && after > 0, "{before} kills left the old layers, {after} the new ones");
}
