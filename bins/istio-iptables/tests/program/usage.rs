//! Wrong usage: exit code 1, a message that names what is wrong, and nothing changed.

use std::process::Command;

use anyhow::{Result, ensure};
use testkit::{Families, Pod, TestNetns};

use crate::support::{BACKENDS, PROXY, Program, Run, State, everything};

#[test]
fn help_and_version_go_to_stdout() -> Result<()> {
    let program = Program::new()?;
    for (flag, part) in
        [("--help", "--run-validation"), ("-h", "--envoy-port"), ("--version", "istio-iptables ")]
    {
        let run = Run::from_output(&program.command(&[flag]).output()?)?;
        ensure!(run.code == Some(0) && run.stdout.contains(part) && run.log.is_empty(), "{run:?}");
    }
    Ok(())
}

#[test]
fn wrong_values_are_named_and_change_nothing() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let before = State::of(&pod)?;
    let long = "1,".repeat(40_000);
    for (args, part) in [
        (&["-p", "http"][..], "--envoy-port: "),
        (&["-b", "99999"], "--istio-inbound-ports: "),
        (&["-i", "10.0.0.0/99"], "--istio-service-cidr: "),
        (&["-c", "eth0; reboot"], "--istio-exclude-interfaces: "),
        (&["-b", &long], "--istio-inbound-ports: "),
        (&["--force-iptables-binary=nftables"], "--force-iptables-binary: "),
        (&["--dry-run=maybe"], "--dry-run: "),
        (&["--dual-stack", "false"], "--dual-stack=false"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["-p"], "--envoy-port"),
        (&["--network-namespace", "/run/netns/no-such"], "failed to open netns \\\"/run/netns/no-such\\\""),
        (&["--network-namespace", "/etc/passwd"], "/etc/passwd"),
    ] {
        let run = program.run(&pod, args)?;
        run.is_failure(1, &[part])?;
        // A wrong configuration of a validation is no failed validation.
        program
            .run(&pod, &[args, &["--run-validation", "--skip-rule-apply"]].concat())?
            .is_failure(1, &[part])?;
    }
    ensure!(State::of(&pod)? == before);
    Ok(())
}

/// Nobody knows which family will come, so none may pass without rules.
#[test]
fn a_namespace_that_waits_for_an_address_gets_rules_of_every_family_that_works() -> Result<()> {
    let program = Program::new()?;
    for backend in BACKENDS {
        for ipv6 in [true, false] {
            let netns = TestNetns::new()?;
            if !ipv6 {
                netns.run(Command::new("sysctl").args(["-qw", "net.ipv6.conf.all.disable_ipv6=1"]))?;
            }
            let run = program.run(&netns, &everything("REDIRECT", backend, Families::V4))?;
            ensure!(run.code == Some(0), "{run:?}");
            ensure!(run.log.contains("no address but loopback's"), "{run:?}");
            let tables = match backend {
                "--native-nftables" => netns.run(Command::new("nft").args(["list", "ruleset"]))?,
                _ => netns.run(&mut Command::new(if ipv6 { "ip6tables-save" } else { "iptables-save" }))?,
            };
            ensure!(tables.contains("15001"), "IPv6 {ipv6}: {tables}");
        }
    }
    Ok(())
}

#[test]
fn a_namespace_without_any_address_gets_no_rules() -> Result<()> {
    let program = Program::new()?;
    let netns = TestNetns::new()?;
    netns.ip(&["address flush dev lo"])?;
    let run = program.run(&netns, &everything("REDIRECT", BACKENDS[1], Families::V4))?;
    run.is_failure(1, &["no valid local IP address found"])?;
    ensure!(State::of(&netns)?.is_clean());
    Ok(())
}

#[test]
fn without_privileges_nothing_is_applied() -> Result<()> {
    let program = Program::new()?;
    for backend in BACKENDS {
        let pod = Pod::new(Families::V4)?;
        let args = everything("TPROXY", backend, Families::V4);
        let run = Run::of(&pod, &mut program.command_as(PROXY, &args))?;
        run.is_failure(1, &["CAP_NET_ADMIN", "run as root"])?;
        ensure!(State::of(&pod)?.is_clean());
    }
    Ok(())
}

#[test]
fn the_level_of_the_log_is_that_of_the_flag() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let args = everything("REDIRECT", BACKENDS[1], Families::V4);
    let log = |level| program.run(&pod, &[&args[..], &["-n", level]].concat()).map(|run| run.log);
    ensure!(log("--log_output_level=default:debug")?.contains("\"level\":\"debug\""));
    ensure!(!log("--log_output_level=default:info")?.contains("\"level\":\"debug\""));
    ensure!(log("--log_output_level=default:none")?.is_empty());
    Ok(())
}
