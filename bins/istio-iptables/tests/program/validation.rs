//! Validation: what the container `istio-validation` does, as the proxy's user and without capabilities.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use testkit::{Families, Pod, TestNetns};

use crate::support::{BACKENDS, MODES, PROXY, Program, Run, everything};

/// What the injector adds to the arguments.
const CHECK: [&str; 2] = ["--run-validation", "--skip-rule-apply"];
/// Long enough for a second attempt.
const SHORT: &str = "--probe-timeout=1200ms";

fn check<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [args, &CHECK, &[SHORT]].concat()
}

#[test]
fn it_succeeds_where_the_rules_are() -> Result<()> {
    let program = Program::new()?;
    for backend in BACKENDS {
        for mode in MODES {
            for families in [Families::V4, Families::V6, Families::Dual] {
                let pod = Pod::new(families)?;
                let args = everything(mode, backend, families);
                program.succeed(&pod, &args)?;
                let run = Run::of(&pod, &mut program.command_as(PROXY, &check(&args)))?;
                ensure!(run.code == Some(0), "{args:?}: {run:?}");
                let line = run.line("validated")?;
                let (to, at) = match families {
                    Families::V6 => ("[::6]:15002", "[::1]:15006"),
                    _ => ("127.0.0.6:15002", "127.0.0.1:15006"),
                };
                ensure!(line["connected to"] == to && line["came out at"] == at, "{line}");
                run.line("rules are left as they are")?;
            }
        }
    }
    Ok(())
}

#[test]
fn it_fails_with_126_where_they_are_not() -> Result<()> {
    let program = Program::new()?;
    // Without the rules, nobody has given the pod ::6, so those packets leave it and are lost.
    let cases = [
        (Families::V4, " attempts, the last error was: Connection refused"),
        (Families::V6, " attempts, no connection was answered"),
    ];
    for (families, expected) in cases {
        let pod = Pod::new(families)?;
        for mode in MODES {
            let args = check(&everything(mode, BACKENDS[0], families));
            let start = Instant::now();
            let run = Run::of(&pod, &mut program.command_as(PROXY, &args))?;
            run.is_failure(126, &["validation failed", ":15002", "within 1200 ms (", expected, "delete it"])?;
            ensure!(start.elapsed() >= Duration::from_millis(1200), "it must not give up early");
        }
    }
    Ok(())
}

#[test]
fn a_connection_that_was_not_redirected_proves_nothing() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let args = check(&everything("REDIRECT", BACKENDS[0], Families::V4));
    let mut command = program.command_as(PROXY, &args);
    let mut validation = pod.spawn(command.stderr(Stdio::piped()))?;
    // The port that it answers with is that of the connection, not the probe's.
    let connected = pod.enter(|_| {
        (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            TcpStream::connect(("127.0.0.1", 15006)).ok()
        })
    })?;
    ensure!(connected.is_some(), "nothing listens on 127.0.0.1:15006");
    let mut log = String::new();
    validation.child().stderr.take().context("no stderr")?.read_to_string(&mut log)?;
    let code = validation.child().wait()?.code();
    ensure!(code == Some(126) && log.contains("127.0.0.1:15006 got a connection that was"), "{code:?} {log}");
    Ok(())
}

#[test]
fn it_waits_for_rules_that_come_later() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let args = everything("REDIRECT", BACKENDS[1], Families::V4);
    let mut validation =
        pod.spawn(program.command_as(PROXY, &[&args[..], &CHECK].concat()).stderr(Stdio::null()))?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(validation.ended()?.is_none(), "it must still be trying");
    program.succeed(&pod, &args)?;
    ensure!(validation.child().wait()?.success());
    Ok(())
}

#[test]
fn another_user_s_connection_proves_nothing_and_the_log_says_so() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let args = everything("REDIRECT", BACKENDS[1], Families::V4);
    program.succeed(&pod, &args)?;
    let run = Run::of(&pod, &mut program.command_as(1000, &check(&args)))?;
    run.is_failure(126, &["user 1000 and group 1000, and neither is the proxy's"])
}

#[test]
fn a_loopback_range_over_the_target_is_named() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let args = everything("REDIRECT", BACKENDS[1], Families::V4);
    let run = |command: &mut std::process::Command| {
        Run::of(&pod, command.env("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/8"))
    };
    ensure!(run(&mut program.command(&args))?.code == Some(0));
    run(&mut program.command_as(PROXY, &check(&args)))?.is_failure(126, &["127.0.0.0/8 has 127.0.0.6 in it"])
}

#[test]
fn one_listener_is_enough_and_none_is_126_at_once() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let args = everything("REDIRECT", BACKENDS[1], Families::V4);
    program.succeed(&pod, &args)?;
    let occupy = |netns: &TestNetns, port| netns.enter(|_| TcpListener::bind(("127.0.0.1", port)));
    let _first = occupy(&pod, 15001)??;
    let run = Run::of(&pod, &mut program.command_as(PROXY, &check(&args)))?;
    ensure!(run.code == Some(0), "{run:?}");

    let _second = occupy(&pod, 15006)??;
    let start = Instant::now();
    let run = Run::of(&pod, &mut program.command_as(PROXY, &check(&args)))?;
    run.is_failure(126, &["cannot listen on 127.0.0.1:15001 or 127.0.0.1:15006"])?;
    ensure!(start.elapsed() < Duration::from_secs(1), "there is nothing to wait for");
    Ok(())
}

#[test]
fn ports_are_those_of_the_flags() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    let mut args = everything("REDIRECT", BACKENDS[1], Families::V4);
    args.extend(["-z", "16006", "--iptables-probe-port", "4711"]);
    program.succeed(&pod, &args)?;
    let run = Run::of(&pod, &mut program.command_as(PROXY, &check(&args)))?;
    ensure!(run.code == Some(0), "{run:?}");
    let line = run.line("validated")?;
    ensure!(line["connected to"] == "127.0.0.6:4711" && line["came out at"] == "127.0.0.1:16006", "{line}");
    Ok(())
}

#[test]
fn applying_and_validating_in_one_run() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    for backend in BACKENDS {
        let args = ["-u", "0", "-b", "*", "-i", "*", "--run-validation", SHORT, backend];
        let run = program.succeed(&pod, &args)?;
        run.line("rules are in force")?;
        run.line("validated")?;
    }
    Ok(())
}

#[test]
fn a_pod_without_addresses_is_no_validation_failure() -> Result<()> {
    let program = Program::new()?;
    let netns = TestNetns::new()?;
    // Only loopback and link-local addresses: nothing says which family to try.
    netns.ip(&["address add 169.254.1.1/32 dev lo"])?;
    netns.enter(|_| UdpSocket::bind("169.254.1.1:0"))??;
    let run = Run::of(&netns, &mut program.command_as(PROXY, &check(&[])))?;
    run.is_failure(1, &["no valid local IP address found"])
}
