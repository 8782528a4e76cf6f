//! What this kernel tells of changes. Found out by a change, never by the kernel's version.

use std::sync::Arc;

use netns::{Inside, Netns};

use super::{Error, KeptSockets};

/// What this kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventSupport {
    /// The number of the last transaction, when it is asked: [`KeptSockets::generation`], [`KeptSockets::unchanged`].
    pub generation: bool,
    /// That there was a transaction, by itself: [`KeptSockets::take_events`].
    pub events: bool,
    /// With it, who has made it: [`super::RulesetCommit::pid`], [`super::RulesetCommit::command`].
    pub culprits: bool,
}

/// Makes a namespace that nobody else has, and a change there. A kernel without nf_tables tells nothing.
///
/// # Errors
/// The namespace cannot be made or entered, or the change was refused.
pub fn probe() -> Result<EventSupport, crate::Error> {
    let netns = Arc::new(Netns::unnamed().map_err(Error::from)?);
    let mut kept = KeptSockets::open(&netns)?;
    let before = kept.generation();
    let changed = netns.enter(|inside: &Inside| crate::nft::touch(inside)).map_err(Error::from)?;
    match changed {
        Err(error) if error.is_unsupported() => return Ok(EventSupport::default()),
        changed => changed?,
    }
    let generation = match (before, kept.generation()) {
        (Ok(before), Ok(after)) => before != after,
        _ => false,
    };
    let noticed = kept.take_events()?;
    let told = noticed.commits.iter().filter(|commit| commit.is_own());
    let named = told.clone().any(|commit| commit.pid != 0 && !commit.command.is_empty());
    Ok(EventSupport { generation, events: told.count() > 0, culprits: named })
}
