//! Applies and removes.

use std::net::IpAddr;

use capture::plan::{NoAddress, PlanTarget, detect_ipv6};
use kernel::iptables::{Iptables, Supervisor};
use kernel::nft::Nftables;
use kernel::{Applied, Change, Choice, Difference, Kernel};
use netns::Inside;
use ruleset::iptables::Unsupported;
use ruleset::{Backend, Plan};
use telemetry::{Level, Logger};

use crate::config::{Config, RulesJob, widest};
use crate::render;

/// Why the rules are not as asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No family to plan for.
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    /// From the kernel or a program.
    #[error("cannot apply the rules with {backend}")]
    Apply {
        /// Backend.
        backend: Backend,
        /// Why.
        source: kernel::Error,
    },
    /// The rules that are there could not be read.
    #[error("cannot compare the rules that are there with the planned ones")]
    Observe(#[source] kernel::Error),
    /// Something is left.
    #[error("cannot clean up")]
    Cleanup(#[source] kernel::Incomplete),
    /// Only in a dry run: applying says it in its own words.
    #[error("cannot print the rules for {backend}")]
    Render {
        /// Backend.
        backend: Backend,
        /// Why.
        source: Unsupported,
    },
}

/// What to do about rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing of ours is there.
    First,
    /// What is there is not what is planned.
    Repair,
    /// What is there is what is planned.
    None,
    /// Nobody looked.
    Unknown,
}

/// Does what the configuration says about rules; gives what is for stdout.
///
/// # Errors
/// The rules are not as asked for. Unless it says that something is left, they are as before.
pub(crate) fn run(
    config: &Config,
    inside: &Inside,
    addresses: &[IpAddr],
    supervisor: Supervisor,
    log: &Logger,
) -> Result<String, Error> {
    if let RulesJob::Skip { why } = config.job {
        log.info("rules are left as they are", &[("why", &why)]);
        return Ok(String::new());
    }
    let iptables = config.variant.map_or_else(Iptables::new, Iptables::forced).supervised(supervisor);
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let result = match config.job {
        RulesJob::Apply { force } => apply(config, force, &kernel, inside, addresses, log),
        _ => cleanup(config, &kernel, inside, log),
    };
    for warning in iptables.take_warnings() {
        log.warn(&warning, &[]);
    }
    result
}

fn apply(
    config: &Config,
    force: bool,
    kernel: &Kernel<'_>,
    inside: &Inside,
    addresses: &[IpAddr],
    log: &Logger,
) -> Result<String, Error> {
    let ipv6 = families(config, addresses, log)?;
    let backend = config.backend;
    let plan = |backend| capture::plan(&config.settings, PlanTarget { backend, ipv6 });
    if config.dry_run {
        log.info("dry run: the rules are printed and not applied", &[("backend", &backend), ("ipv6", &ipv6)]);
        return render::plan(&plan(backend)).map_err(|source| Error::Render { backend, source });
    }
    if log.enabled(Level::Debug)
        && let Ok(text) = render::plan(&plan(backend))
    {
        log.debug("planned", &[("backend", &backend), ("text", &text)]);
    }
    let need = if force { Need::Unknown } else { look(kernel, inside, &plan(backend), log)? };
    if need == Need::None {
        log.info(
            "rules and routing are in place already, nothing is changed",
            &[("backend", &backend), ("ipv6", &ipv6)],
        );
        return Ok(String::new());
    }
    let applied = kernel
        .apply(inside, Choice::Only(backend), plan)
        .map_err(|source| Error::Apply { backend, source })?;
    tell(&applied, need, ipv6, log);
    Ok(String::new())
}

/// Whether IPv6 is captured. Where an address is still to come nobody knows its family, so every family that works is captured: those of the
/// loopback interface. What comes then meets rules.
fn families(config: &Config, addresses: &[IpAddr], log: &Logger) -> Result<bool, Error> {
    match detect_ipv6(addresses, config.settings.dual_stack) {
        Err(_) if addresses.iter().any(IpAddr::is_loopback) => {
            let ipv6 = addresses.iter().any(IpAddr::is_ipv6);
            log.warn(
                "the network namespace has no address but loopback's and link-local ones; each family that works gets rules",
                &[("ipv6", &ipv6)],
            );
            Ok(ipv6)
        }
        found => Ok(found?),
    }
}

/// Whether there is anything to do, and in the log what.
fn look(kernel: &Kernel<'_>, inside: &Inside, plan: &Plan, log: &Logger) -> Result<Need, Error> {
    let stores = [kernel.nftables, kernel.iptables];
    // A lazy "any": the question about iptables may cost a run of a program.
    for store in stores {
        if store.exists(inside, &plan.layers).map_err(Error::Observe)? {
            let differences = kernel.observe(inside, plan).map_err(Error::Observe)?;
            tell_differences(&differences, log);
            return Ok(if differences.is_empty() { Need::None } else { Need::Repair });
        }
    }
    Ok(Need::First)
}

fn tell_differences(differences: &[Difference], log: &Logger) {
    if let Some(first) = differences.first() {
        let text = "rules of ours are there and differ from the planned ones; they are replaced";
        log.info(text, &[("differences", &differences.len()), ("first", first)]);
    }
    for difference in differences {
        log.debug("rules differ", &[("difference", difference)]);
    }
}

fn tell(applied: &Applied, need: Need, ipv6: bool, log: &Logger) {
    let why = match need {
        Need::First => "no rules of ours were there",
        Need::Repair => "the rules of ours that were there differed",
        Need::None => "",
        Need::Unknown => "--force-apply",
    };
    let done = match applied.rules {
        Change::None => "equal rules were there",
        Change::Fresh => "added",
        Change::Replaced => "replaced",
    };
    if let Some(warning) = &applied.warning {
        log.warn("the other backend may still hold rules of ours", &[("cause", warning)]);
    }
    log.info(
        "rules are in force",
        &[
            ("backend", &applied.backend),
            ("ipv6", &ipv6),
            ("why", &why),
            ("rules", &done),
            ("routing_steps", &applied.routing),
            ("moved", &applied.moved),
        ],
    );
}

/// Everything that any plan could have put here, whatever the pod's addresses are now.
fn cleanup(config: &Config, kernel: &Kernel<'_>, inside: &Inside, log: &Logger) -> Result<String, Error> {
    let facts = PlanTarget { backend: config.backend, ipv6: true };
    let plan = capture::plan(&widest(&config.settings), facts);
    if config.dry_run {
        log.info("dry run: what would be removed is printed and stays", &[]);
        return Ok(render::cleanup(&plan));
    }
    match kernel.cleanup(inside, &plan).map_err(Error::Cleanup)? {
        Change::None => log.info("there is nothing of ours to remove", &[("why", &"--cleanup-only")]),
        _ => log.info("rules and routing of ours are removed", &[("why", &"--cleanup-only")]),
    }
    Ok(String::new())
}
