//! A caller that is killed at any time leaves all of the rules or none, and the next setup succeeds.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "iptables/support.rs"]
mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kernel::iptables::{Iptables, Variant};
use kernel::{Change, RuleStore};
use support::{Ns, sidecar};

/// `cargo test` builds the examples of a package together with its tests (not with `--test NAME`), into a directory beside theirs.
fn example() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here.parent().and_then(|deps| deps.parent()).unwrap().join("examples/iptables_setup");
    assert!(path.exists(), "{} is missing: cargo build -p kernel --example iptables_setup", path.display());
    path
}

fn start(ns: &Ns, variant: Variant, rest: &[&str]) -> Child {
    let mut command = Command::new(example());
    command.arg(ns.path()).arg(variant.to_string()).args(rest);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Processes that have a descriptor of the namespace's sign, or are inside it.
fn busy(ns: &Ns) -> bool {
    !support::sh(&format!("ip netns pids {}", ns.path().file_name().unwrap().to_string_lossy())).is_empty()
}

#[test]
fn the_example_itself_works() {
    for variant in [Variant::Legacy, Variant::Nft] {
        let ns = Ns::new();
        let output = start(&ns, variant, &[]).wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "Fresh []\n", "{output:?}");
    }
}

#[test]
fn a_kill_at_any_time_leaves_all_or_nothing() {
    let (mut nothing, mut all) = (0, 0);
    for round in 0..40_u32 {
        let variant = if round % 2 == 0 { Variant::Nft } else { Variant::Legacy };
        let ipv6 = round % 4 < 2;
        let (ns, ruleset, iptables) = (Ns::new(), sidecar(ipv6), Iptables::forced(variant));
        let mut child = start(&ns, variant, if ipv6 { &[] } else { &["no-ipv6"] });
        // Steps of a prime number, so that the delays hit every part of the 15 ms or so.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 20_000));
        child.kill().unwrap();
        child.wait().unwrap();
        if round % 5 != 4 {
            let start = Instant::now();
            while busy(&ns) {
                assert!(start.elapsed() < Duration::from_secs(10), "something hangs in round {round}");
                std::thread::sleep(Duration::from_millis(2));
            }
            let differences = ns.enter(|inside| iptables.observe(inside, &ruleset)).unwrap();
            let none = ns.content(variant).is_empty();
            assert!(differences.is_empty() || none, "round {round}: {differences:?}");
            nothing += u32::from(none);
            all += u32::from(!none);
        }
        // Every fifth time at once, while the supervisor may still be at work.
        let change = ns.enter(|inside| iptables.setup(inside, &ruleset)).unwrap();
        assert_ne!(change, Change::Replaced, "round {round}: there was a part");
        assert_eq!(ns.enter(|inside| iptables.observe(inside, &ruleset)).unwrap(), []);
        assert_eq!(iptables.take_warnings(), Vec::<String>::new());
    }
    assert!(
        nothing > 0 && all > 0,
        "the kills came too early or too late: {nothing} times nothing, {all} times all"
    );
}

#[test]
fn a_killed_supervisor_is_repaired_by_the_next_setup() {
    let mut partial = 0;
    for round in 0..200_u32 {
        // Where the middle lies depends on the machine, so it goes on until some kills have hit it.
        if round >= 30 && partial > 2 {
            break;
        }
        let variant = if round % 2 == 0 { Variant::Nft } else { Variant::Legacy };
        let (ns, ruleset, iptables) = (Ns::new(), sidecar(true), Iptables::forced(variant));
        let mut child = start(&ns, variant, &[]);
        std::thread::sleep(Duration::from_micros(u64::from(round) * 7919 % 15_000));
        // Everything of it, the supervisor and iptables too.
        let name = ns.path().file_name().unwrap().to_string_lossy().into_owned();
        support::sh(&format!("kill -9 {} $(ip netns pids {name}) 2>&1; true", child.id()));
        child.wait().unwrap();
        let change = ns.enter(|inside| iptables.setup(inside, &ruleset)).unwrap();
        partial += u32::from(change == Change::Replaced);
        assert_eq!(ns.enter(|inside| iptables.observe(inside, &ruleset)).unwrap(), [], "round {round}");
    }
    println!("{partial} kills hit the middle");
    assert!(partial > 0, "no kill hit the middle");
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
            let output = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
                .args(["-e", &format!("inject={call}:signal=KILL:when={number}")])
                .arg(example())
                .arg(ns.path())
                .args(["legacy", "no-ipv6"])
                .output()
                .unwrap();
            killed += u32::from(!output.status.success());
            drop(ns);
            assert_eq!((files(), mounts()), (before.clone(), mounted.clone()), "{call} {number}");
        }
    }
    assert!(killed > 10, "{killed}");
}
