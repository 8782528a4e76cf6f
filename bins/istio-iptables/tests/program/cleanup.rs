//! Cleaning up: nothing of ours is left.

use anyhow::{Result, ensure};
use testkit::{Families, Pod, TestNetns};

use crate::support::{BACKENDS, MODES, Program, State, everything};

#[test]
fn nothing_is_left() -> Result<()> {
    let program = Program::new()?;
    for backend in BACKENDS {
        for mode in MODES {
            let pod = Pod::new(Families::Dual)?;
            let mut args = everything(mode, backend, Families::Dual);
            args.extend(["--drop-invalid", "--redirect-dns", "--capture-all-dns"]);
            program.succeed(&pod, &args)?;
            ensure!(!State::of(&pod)?.is_clean());
            args.push("--cleanup-only");
            program.succeed(&pod, &args)?.line("rules and routing of ours are removed")?;
            let state = State::of(&pod)?;
            ensure!(state.is_clean(), "{args:?}: {state:#?}");
            program.succeed(&pod, &args)?.line("there is nothing of ours to remove")?;
        }
    }
    Ok(())
}

#[test]
fn it_does_not_need_the_flags_of_the_mode_and_backend() -> Result<()> {
    let program = Program::new()?;
    for backend in BACKENDS {
        let pod = Pod::new(Families::Dual)?;
        program.succeed(&pod, &everything("TPROXY", backend, Families::Dual))?;
        program.succeed(&pod, &["--cleanup-only"])?;
        let state = State::of(&pod)?;
        ensure!(state.is_clean(), "{backend}: {state:#?}");
    }
    Ok(())
}

#[test]
fn a_dry_run_removes_nothing() -> Result<()> {
    let program = Program::new()?;
    let pod = Pod::new(Families::V4)?;
    program.succeed(&pod, &everything("TPROXY", BACKENDS[1], Families::V4))?;
    let before = State::of(&pod)?;
    let text = program.succeed(&pod, &["--cleanup-only", "--dry-run"])?.stdout;
    ensure!(State::of(&pod)? == before);
    ensure!(text.contains("delete table inet istio-proxy-nat"), "{text}");
    // Only the text for nft is loadable; the rest are comments for it.
    pod.nft(&text)?;
    ensure!(pod.nft_json(testkit::rules::Comments::Keep)?.is_empty());
    Ok(())
}

#[test]
fn a_namespace_without_addresses_can_be_cleaned() -> Result<()> {
    let program = Program::new()?;
    program.succeed(&TestNetns::new()?, &["--cleanup-only"])?.line("there is nothing of ours to remove")?;
    Ok(())
}
