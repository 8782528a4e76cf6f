//! Programs or validates the redirection of the pod that it runs in, by the flags, variables and exit codes of Istio's program of
//! the same name: what the init containers `istio-init` and `istio-validation` run.
//!
//! Flags and variables ([`options`]) become typed settings ([`config`]); those become a plan, which is applied ([`apply`]), removed
//! or printed ([`render`]); at the end the redirection may be tried with a real connection ([`validate`]).
//!
//! # What differs from the original
//!
//! | situation | original | here |
//! |---|---|---|
//! | rules of ours are there and differ, without `--reconcile` | applies, mostly fails with "Chain already exists" | replaced, exit code 0 |
//! | the same with `--reconcile` | drops all packets, removes, applies | replaced in one piece, so no packet is dropped |
//! | `--force-apply` | applies over what is there | hands the rules over without comparing first; equal rules stay |
//! | rules of ours in the other backend | stay | removed once the new ones are in force |
//! | `--cleanup-only` | one backend; sets routing up | both backends and the routing; works in a pod without addresses |
//! | no address but loopback's | an error | rules for each family that works, with a warning |
//! | `--native-nftables` | runs `nft` | needs no program |
//! | `--dry-run` | logs a sequence of commands | prints the text that would be loaded, on stdout |
//! | `--cni-mode` | asks for a private lock and no name look-ups | always so, where the kernel permits it |
//! | `--istio-inbound-interception-mode NONE` | acts as REDIRECT | no rules, nothing to validate, exit code 0 |
//! | a switch's or number's variable cannot be read | ignored | ignored with a warning |
//! | arguments that are no flags | ignored | refused, except the name `istio-iptables`, which the injector puts first |
//!
//! Known limit: a pod that is changed from TPROXY to REDIRECT keeps the policy rule and, with iptables, the rules about marks in the
//! built-in chains of the mangle table, which no packet meets any more. Run `--cleanup-only` before to have none.
//!
//! Exit codes: 0 done; 1 wrong usage, or the rules could not be applied; 126 the redirection does not work.

mod accounts;
mod apply;
mod config;
mod options;
mod render;
mod run;
mod validate;

use std::process::ExitCode;

fn main() -> ExitCode {
    let supervisor = kernel::iptables::run_supervisor_if_asked();
    let env = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    run::run(std::env::args_os(), &env, supervisor)
}
