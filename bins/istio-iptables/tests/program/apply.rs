//! Applying: complete, once, repaired, moved, by either backend.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testkit::rules::{Comments, Family, Variant};
use testkit::{Families, Pod};

use crate::support::{BACKENDS, MODES, Program, Run, State, everything};

#[test]
fn a_second_run_changes_nothing() -> Result<()> {
    let program = Program::new()?;
    for backend in BACKENDS {
        for mode in MODES {
            for families in [Families::V4, Families::V6, Families::Dual] {
                let pod = Pod::new(families)?;
                let args = everything(mode, backend, families);
                let first = program.succeed(&pod, &args)?;
                let line = first.line("rules are in force")?;
                ensure!(line["rules"] == "added" && line["why"] == "no rules of ours were there", "{line}");
                let ipv6 = if families.v6() { "true" } else { "false" };
                ensure!(line["ipv6"] == ipv6, "{line}");
                let state = State::of(&pod)?;
                ensure!(!state.is_clean());

                let second = program.succeed(&pod, &args)?;
                second.line("rules and routing are in place already")?;
                ensure!(State::of(&pod)? == state, "{args:?} changed something");
                program.succeed(&pod, &[&args[..], &["--force-apply"]].concat())?;
                ensure!(State::of(&pod)? == state, "{args:?} --force-apply changed something");
            }
        }
    }
    Ok(())
}

#[test]
fn rules_that_differ_are_replaced_with_and_without_reconcile() -> Result<()> {
    let program = Program::new()?;
    for (backend, damage) in [
        (BACKENDS[0], &["iptables-nft", "-t", "nat", "-D", "ISTIO_INBOUND", "1"][..]),
        (BACKENDS[1], &["nft", "flush", "chain", "inet", "istio-proxy-nat", "istio-inbound"]),
    ] {
        for reconcile in ["--reconcile=false", "--reconcile=true"] {
            let pod = Pod::new(Families::V4)?;
            let mut args = everything("REDIRECT", backend, Families::V4);
            args.push(reconcile);
            program.succeed(&pod, &args)?;
            let state = State::of(&pod)?;
            pod.run(Command::new(damage[0]).args(&damage[1..]))?;
            ensure!(State::of(&pod)? != state);

            let repaired = program.succeed(&pod, &args)?;
            repaired.line("rules of ours are there and differ")?;
            let line = repaired.line("rules are in force")?;
            ensure!(line["rules"] == "replaced", "{line}");
            ensure!(State::of(&pod)? == state, "{args:?} did not repair");
        }
    }
    Ok(())
}

#[test]
fn rules_of_others_stay() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let foreign = "*nat\n-A OUTPUT -d 192.0.2.1/32 -p tcp -j ACCEPT\nCOMMIT\n";
    pod.iptables_restore(Variant::Nft, Family::V4, foreign)?;
    let args = everything("REDIRECT", BACKENDS[0], Families::V4);
    let line = program.succeed(&pod, &args)?.line("rules are in force")?;
    ensure!(line["why"] == "no rules of ours were there", "a foreign rule is no residue: {line}");
    program.succeed(&pod, &args)?.line("rules and routing are in place already")?;
    program.succeed(&pod, &["--cleanup-only"])?;
    let left = pod.iptables_save(Variant::Nft, Family::V4)?;
    ensure!(left.contains("-A OUTPUT -d 192.0.2.1/32 -p tcp -j ACCEPT") && !left.contains("ISTIO"), "{left}");
    Ok(())
}

#[test]
fn rules_move_between_the_backends() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::Dual)?;
    let [iptables, nftables] = BACKENDS.map(|backend| everything("TPROXY", backend, Families::Dual));
    program.succeed(&pod, &nftables)?;
    for (args, expected) in [(&iptables, "iptables"), (&nftables, "nftables"), (&iptables, "iptables")] {
        let line = program.succeed(&pod, args)?.line("rules are in force")?;
        ensure!(line["backend"] == expected && line["moved"] == "true", "{line}");
        let tables = pod.nft_json(Comments::Strip)?.iter().any(|o| o.to_string().contains("istio-proxy"));
        let chains = pod.iptables_save(Variant::Nft, Family::V6)?.contains("ISTIO_");
        ensure!((tables, chains) == (expected == "nftables", expected == "iptables"), "{tables} {chains}");
    }
    Ok(())
}

#[test]
fn the_capabilities_of_an_init_container_are_enough() -> Result<()> {
    let program = Program::new()?;
    for backend in BACKENDS {
        let pod = Pod::new(Families::Dual)?;
        let args = everything("TPROXY", backend, Families::Dual);
        let run = Run::of(&pod, &mut program.command_in_init_container(&args))?;
        ensure!(run.code == Some(0), "{run:?}");
        program.succeed(&pod, &args)?.line("rules and routing are in place already")?;
    }
    Ok(())
}

/// The namespace's own file, which everybody can open, and the lock of iptables, also where nothing can be mounted over it.
#[test]
fn locks_of_others_delay_nothing() -> Result<()> {
    let program = Program::new()?;
    let xtables = tempfile::NamedTempFile::new()?;
    rustix::fs::flock(xtables.as_file(), rustix::fs::FlockOperation::LockExclusive)?;
    let legacy = ["--native-nftables=false", "--force-iptables-binary=legacy"];
    for backend in [&legacy[..], &BACKENDS[..1], &BACKENDS[1..]] {
        for in_init_container in [false, true] {
            let pod = Pod::new(Families::V4)?;
            let mut unprivileged = Command::new("setpriv");
            unprivileged.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
            unprivileged.args(["flock", "/proc/self/ns/net", "sleep", "120"]);
            let _netns = pod.spawn(&mut unprivileged)?;
            let mut tries = 0..500;
            while pod.run(Command::new("flock").args(["-n", "/proc/self/ns/net", "true"])).is_ok() {
                ensure!(tries.next().is_some(), "the process holds no lock");
                std::thread::sleep(Duration::from_millis(10));
            }
            let args = [&everything("REDIRECT", "--dual-stack=false", Families::V4)[..], backend].concat();
            let plain = match in_init_container {
                true => program.command_in_init_container(&args),
                false => program.command(&args),
            };
            let began = Instant::now();
            let run = Run::of(&pod, &mut with_xtables_lock(xtables.path(), &plain))?;
            ensure!(run.code == Some(0), "{args:?}: {run:?}");
            // Each wait was 30 s.
            ensure!(began.elapsed() < Duration::from_secs(20), "{args:?}: {:?}", began.elapsed());
        }
    }
    Ok(())
}

/// The command where this file is the lock of iptables, so that no other test waits for it.
fn with_xtables_lock(file: &Path, command: &Command) -> Command {
    let mut around = Command::new("unshare");
    let mount = "touch /run/xtables.lock && mount --bind \"$0\" /run/xtables.lock && exec \"$@\"";
    around.args(["--mount", "sh", "-c", mount]).arg(file).arg(command.get_program()).args(command.get_args());
    around
}

#[test]
fn variables_do_what_flags_do() -> Result<()> {
    let program = Program::new()?;
    let (by_flag, by_variable) = (Pod::new(Families::V4)?, Pod::new(Families::V4)?);
    program.succeed(
        &by_flag,
        &[
            "-b",
            "80,8080",
            "-i",
            "10.0.0.0/8",
            "-x",
            "10.9.0.0/16",
            "-o",
            "5432",
            "-u",
            "1400",
            "--native-nftables",
            "-z",
            "16006",
        ],
    )?;
    let mut command = program.command(&[]);
    command.envs([
        ("ISTIO_INBOUND_PORTS", "80,8080"),
        ("ISTIO_SERVICE_CIDR", "10.0.0.0/8"),
        ("ISTIO_SERVICE_EXCLUDE_CIDR", "10.9.0.0/16"),
        ("ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", "5432"),
        ("PROXY_UID", "1400"),
        ("NATIVE_NFTABLES", "true"),
        ("INBOUND_CAPTURE_PORT", "16006"),
        ("ISTIO_META_DNS_CAPTURE", "yes"),
    ]);
    let run = Run::of(&by_variable, &mut command)?;
    ensure!(run.code == Some(0), "{run:?}");
    run.line("environment variable ISTIO_META_DNS_CAPTURE: \"yes\" is not true or false")?;
    ensure!(State::of(&by_flag)? == State::of(&by_variable)?);
    Ok(())
}

#[test]
fn the_namespace_can_be_another_one() -> Result<()> {
    let program = Program::new()?;
    let (here, there) = (Pod::new(Families::V4)?, Pod::new(Families::V4)?);
    for backend in BACKENDS {
        let path = there.own().path().to_string_lossy().into_owned();
        let before = State::of(&here)?;
        let mut args = everything("TPROXY", backend, Families::V4);
        args.extend(["--network-namespace", &path]);
        program.succeed(&here, &args)?.line("rules are in force")?;
        ensure!(State::of(&here)? == before, "the own namespace was changed");
        ensure!(!State::of(&there)?.is_clean());
        program.succeed(&here, &["--cleanup-only", "--network-namespace", &path])?;
        ensure!(State::of(&there)?.is_clean());
    }
    Ok(())
}

#[test]
fn a_dry_run_prints_what_would_be_loaded_and_changes_nothing() -> Result<()> {
    let program = Program::new()?;
    for mode in MODES {
        for backend in BACKENDS {
            let (dry, loaded, applied) =
                (Pod::new(Families::Dual)?, Pod::new(Families::Dual)?, Pod::new(Families::Dual)?);
            let args = everything(mode, backend, Families::Dual);
            let before = State::of(&dry)?;
            let text = program.succeed(&dry, &[&args[..], &["-n"]].concat())?.stdout;
            ensure!(State::of(&dry)? == before, "a dry run changed something");

            program.succeed(&applied, &args)?;
            load_by_hand(&loaded, &text)?;
            let (by_hand, by_program) = (State::of(&loaded)?, State::of(&applied)?);
            ensure!(
                by_hand == by_program,
                "{args:?} prints:\n{text}\nloaded: {by_hand:#?}\napplied: {by_program:#?}"
            );
        }
    }
    Ok(())
}

/// What a person would do with the printed text: each `#` line is a command, what follows is its input.
fn load_by_hand(pod: &Pod, text: &str) -> Result<()> {
    for part in text.split("# ").filter(|part| !part.is_empty()) {
        let (command, input) = part.split_once('\n').unwrap_or((part, ""));
        let mut words = command.split(' ');
        match words.next() {
            Some("ip") => drop(pod.run(Command::new("ip").args(words))?),
            Some("nft") => pod.nft(input)?,
            Some("iptables-restore") => pod.iptables_restore(Variant::Nft, Family::V4, input)?,
            Some("ip6tables-restore") => pod.iptables_restore(Variant::Nft, Family::V6, input)?,
            other => anyhow::bail!("unknown command {other:?}"),
        }
    }
    Ok(())
}

#[test]
fn the_variant_of_iptables_can_be_forced() -> Result<()> {
    let program = Program::new()?;
    for (name, here, elsewhere) in
        [("legacy", Variant::Legacy, Variant::Nft), ("nft", Variant::Nft, Variant::Legacy)]
    {
        let pod = Pod::new(Families::V4)?;
        let mut args = everything("REDIRECT", BACKENDS[0], Families::V4);
        args.extend(["--force-iptables-binary", name]);
        program.succeed(&pod, &args)?;
        ensure!(pod.iptables_save(here, Family::V4)?.contains("ISTIO_OUTPUT"), "{name}");
        ensure!(!pod.iptables_save(elsewhere, Family::V4)?.contains("ISTIO_OUTPUT"), "{name}");
    }
    Ok(())
}

#[test]
fn mode_none_applies_nothing() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let run = program.succeed(
        &pod,
        &[&everything("NONE", BACKENDS[1], Families::V4)[..], &["--run-validation"]].concat(),
    )?;
    run.line("rules are left as they are")?;
    ensure!(State::of(&pod)?.is_clean());
    Ok(())
}
