//! A full comparison of one pod's namespace with its plan.

use std::error::Error;
use std::sync::{Arc, Mutex};

use ::verification::UnverifiableReason;
use kernel::watch::{Check, KeptSockets};
use kernel::{Difference, Kernel};
use netns::Inside;

use super::identity::{NetnsIdentity, identity};
use super::{Comparison, VerificationTarget};
use crate::rights::is_denied;

/// The sockets that are kept in a namespace. Whoever compares has them; a thread that hangs keeps them.
pub(super) type SharedSockets = Arc<Mutex<Option<KeptSockets>>>;

/// What a comparison found.
#[derive(Debug)]
pub(super) struct LookResult {
    pub(super) comparison: Comparison,
    /// Ports on which nobody listens; nothing where that was not asked.
    pub(super) missing_listeners: Option<Vec<u16>>,
    /// The sockets were opened just now.
    pub(super) opened: bool,
}

/// What the mode looks at inside of a namespace that is as planned.
type Inspect<'a> = dyn Fn(&Inside) -> Result<(), kernel::Error> + Sync + 'a;

/// Why there is no comparison.
type Failure = Box<dyn Error + Send + Sync>;

/// Compares, on a thread that may wait. `watched`: sockets are kept there.
pub(super) fn compare(
    kernel: Kernel<'_>,
    target: &VerificationTarget,
    kept: &SharedSockets,
    watched: bool,
    inspect: &Inspect<'_>,
) -> LookResult {
    let mut found = LookResult { comparison: Comparison::Equal, missing_listeners: None, opened: false };
    if identity(&target.netns, target.found) != NetnsIdentity::Holds {
        found.comparison = Comparison::Moved;
        return found;
    }
    let mut kept = kept.lock().unwrap_or_else(|panicked| {
        // Answers to the questions of whoever panicked may be left in them.
        kept.clear_poison();
        let mut sockets = panicked.into_inner();
        *sockets = None;
        sockets
    });
    if watched && kept.is_none() {
        // Without them it is compared all the same.
        *kept = KeptSockets::open(&target.netns).ok();
        found.opened = kept.is_some();
    }
    let differences = match differences(kernel, target, &mut kept) {
        // The answers of sockets that failed once may be those to older questions.
        Err(_) if kept.is_some() => {
            *kept = KeptSockets::open(&target.netns).ok();
            found.opened = kept.is_some();
            differences_inside(kernel, target)
        }
        differences => differences,
    };
    found.comparison = match differences {
        Ok(differences) if differences.is_empty() => match inside(target, inspect) {
            Ok(missing) => {
                found.missing_listeners = missing;
                Comparison::Equal
            }
            Err(comparison) => comparison,
        },
        Ok(differences) => Comparison::Differs(differences),
        Err(error) => failed(&*error),
    };
    found
}

fn differences(
    kernel: Kernel<'_>,
    target: &VerificationTarget,
    kept: &mut Option<KeptSockets>,
) -> Result<Vec<Difference>, Failure> {
    let Some(sockets) = kept else { return differences_inside(kernel, target) };
    match kernel.check(sockets, &target.plan)? {
        Check::Equal => Ok(Vec::new()),
        Check::Differs(differences) => Ok(differences),
        Check::Enter => {
            let differences = differences_inside(kernel, target)?;
            if differences.is_empty() {
                sockets.equal();
            }
            Ok(differences)
        }
    }
}

fn differences_inside(kernel: Kernel<'_>, target: &VerificationTarget) -> Result<Vec<Difference>, Failure> {
    Ok(target.netns.enter(|inside| kernel.observe(inside, &target.plan))??)
}

/// What only a look inside shows: whose namespace it is, and who listens there.
fn inside(target: &VerificationTarget, inspect: &Inspect<'_>) -> Result<Option<Vec<u16>>, Comparison> {
    let look = |inside: &Inside| -> Result<Option<Vec<u16>>, Comparison> {
        let there = kernel::route::link_addresses(inside).map_err(|error| failed(&error))?;
        let is_there =
            |ip: &std::net::IpAddr| there.iter().any(|there| there.to_canonical() == ip.to_canonical());
        if !target.addresses.is_empty() && !target.addresses.iter().any(is_there) {
            let text =
                "none of the pod's addresses is in the network namespace that was found for it".to_owned();
            return Err(Comparison::Failed { reason: UnverifiableReason::WrongNamespace, text });
        }
        inspect(inside).map_err(|error| failed(&error))?;
        if !target.proxy_started || target.listeners.is_empty() {
            return Ok(None);
        }
        let listening = kernel::sockets::Sockets::open(inside)
            .and_then(|mut sockets| sockets.listening(&target.listeners))
            .map_err(|error| failed(&error))?;
        Ok(Some(target.listeners.iter().copied().filter(|port| !listening.contains(port)).collect()))
    };
    target.netns.enter(look).map_err(|error| failed(&error))?
}

fn failed(error: &(dyn Error + 'static)) -> Comparison {
    let reason = if is_denied(error) { UnverifiableReason::Permission } else { UnverifiableReason::Kernel };
    Comparison::Failed { reason, text: fault::chain(error) }
}
