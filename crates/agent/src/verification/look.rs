//! A full comparison of one pod's namespace with its plan.

use std::error::Error;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use ::verification::UnverifiableReason;
use kernel::watch::{Check, Fingerprint, KeptSockets, fingerprint};
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
}

/// What is looked at inside of a namespace that is as planned, given what its rules were then, where the kernel tells.
type Inspect<'a> = dyn Fn(&Inside, Option<&Fingerprint>) -> Result<(), kernel::Error> + Sync + 'a;

/// What is done inside as soon as sockets are open that tell what changes.
type Opened<'a> = dyn Fn(&Inside, &KeptSockets) + Sync + 'a;

/// What is asked of the pod's mode, inside.
pub(super) struct ModeLook<'a> {
    /// What is done before anything is compared: that takes long where programs are started.
    pub(super) opened: &'a Opened<'a>,
    /// Whether it is of no use to compare; nothing where that cannot be new.
    pub(super) is_superseded: Option<&'a (dyn Fn(&Inside) -> bool + Sync)>,
    pub(super) inspect: &'a Inspect<'a>,
}

/// Why there is no comparison.
type Failure = Box<dyn Error + Send + Sync>;

/// Who compares, inside of the namespace: to go there takes longer than most of what is asked.
struct Looker<'a> {
    kernel: Kernel<'a>,
    target: &'a VerificationTarget,
    kept: &'a mut Option<KeptSockets>,
    opened: &'a Opened<'a>,
}

/// Compares, on a thread that may wait. `watched`: sockets are kept there.
pub(super) fn compare(
    kernel: Kernel<'_>,
    target: &VerificationTarget,
    kept: &SharedSockets,
    watched: bool,
    mode: &ModeLook<'_>,
) -> LookResult {
    let mut found = LookResult { comparison: Comparison::Moved, missing_listeners: None };
    if identity(&target.netns, target.found) != NetnsIdentity::Holds {
        return found;
    }
    let mut kept = kept.lock().unwrap_or_else(|panicked| {
        // Answers to the questions of whoever panicked may be left in them.
        kept.clear_poison();
        let mut sockets = panicked.into_inner();
        *sockets = None;
        sockets
    });
    let mut looker = Looker { kernel, target, kept: &mut kept, opened: mode.opened };
    let compared = target.netns.enter(|inside| looker.compare(inside, watched, mode));
    (found.comparison, found.missing_listeners) = match compared {
        Ok(Ok(missing)) => (Comparison::Equal, missing),
        Ok(Err(comparison)) => (comparison, None),
        Err(error) => (failed(&error), None),
    };
    found
}

impl Looker<'_> {
    /// Where all is as planned, the ports on which nobody listens.
    fn compare(
        &mut self,
        inside: &Inside,
        watched: bool,
        mode: &ModeLook<'_>,
    ) -> Result<Option<Vec<u16>>, Comparison> {
        if watched && self.kept.is_none() {
            // Without them it is compared all the same.
            self.open(inside);
        }
        if mode.is_superseded.is_some_and(|is_superseded| is_superseded(inside)) {
            return Err(Comparison::Superseded);
        }
        // Before anything is read: what changes meanwhile is looked at again.
        let rules = if self.kept.is_none() { fingerprint(inside).ok() } else { None };
        let differences = match self.differences(inside) {
            // The answers of sockets that failed once may be those to older questions.
            Err(_) if self.kept.is_some() => {
                self.open(inside);
                self.differences_inside(inside)
            }
            differences => differences,
        };
        let differences = differences.map_err(|error| failed(&*error))?;
        if !differences.is_empty() {
            return Err(Comparison::Differs(differences));
        }
        self.is_the_pods(inside)?;
        let rules = self.kept.as_ref().map_or(rules.as_ref(), KeptSockets::as_planned);
        (mode.inspect)(inside, rules).map_err(|error| failed(&error))?;
        self.missing_listeners(inside)
    }

    fn open(&mut self, inside: &Inside) {
        *self.kept = KeptSockets::open_inside(inside, &self.target.netns).ok();
        if let Some(kept) = self.kept {
            (self.opened)(inside, kept);
        }
    }

    fn differences(&mut self, inside: &Inside) -> Result<Vec<Difference>, Failure> {
        let Some(sockets) = &mut self.kept else { return self.differences_inside(inside) };
        match self.kernel.check_inside(inside, sockets, &self.target.plan)? {
            Check::Equal => Ok(Vec::new()),
            Check::Differs(differences) => Ok(differences),
            Check::Enter => {
                let differences = self.kernel.observe(inside, &self.target.plan)?;
                if differences.is_empty() {
                    sockets.equal();
                }
                Ok(differences)
            }
        }
    }

    fn differences_inside(&self, inside: &Inside) -> Result<Vec<Difference>, Failure> {
        Ok(self.kernel.observe(inside, &self.target.plan)?)
    }

    /// Whether one of the pod's addresses is there.
    fn is_the_pods(&mut self, inside: &Inside) -> Result<(), Comparison> {
        let there = match &mut self.kept {
            Some(sockets) => sockets.link_addresses(),
            None => kernel::route::link_addresses(inside),
        };
        let there = there.map_err(|error| failed(&error))?;
        let is_there = |ip: &IpAddr| there.iter().any(|there| there.to_canonical() == ip.to_canonical());
        let addresses = &self.target.addresses;
        if addresses.is_empty() || addresses.iter().any(is_there) {
            return Ok(());
        }
        let text = "none of the pod's addresses is in the network namespace that was found for it".to_owned();
        Err(Comparison::Failed { reason: UnverifiableReason::WrongNamespace, text })
    }

    /// Nothing where it is not looked who listens.
    fn missing_listeners(&self, inside: &Inside) -> Result<Option<Vec<u16>>, Comparison> {
        let wanted = &self.target.listeners;
        if !self.target.proxy_started || wanted.is_empty() {
            return Ok(None);
        }
        let listening = kernel::sockets::Sockets::open(inside)
            .and_then(|mut sockets| sockets.listening(wanted))
            .map_err(|error| failed(&error))?;
        Ok(Some(wanted.iter().copied().filter(|port| !listening.contains(port)).collect()))
    }
}

fn failed(error: &(dyn Error + 'static)) -> Comparison {
    let reason = if is_denied(error) { UnverifiableReason::Permission } else { UnverifiableReason::Kernel };
    Comparison::Failed { reason, text: fault::chain(error) }
}
