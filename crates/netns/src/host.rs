//! The node's own network namespace, which is never to be taken for a pod's.

use std::path::Path;
use std::sync::Arc;

use crate::{Error, Inside, Netns, NetnsId};

/// The node's network namespace. What is done in it asks for [`InsideHost`] and what is done in a pod's for [`Inside`], so neither ends in
/// the other's.
#[derive(Debug)]
pub struct Host(Arc<Netns>);

/// Proof that the calling thread is in the node's namespace.
///
/// It is no proof of being in a pod's, so that what asks for [`Inside`] is not called by mistake:
///
/// ```compile_fail,E0308
/// fn for_pods(_: &netns::Inside) {}
/// netns::Host::current().unwrap().enter(|inside| for_pods(inside)).unwrap();
/// ```
///
/// Nor is a pod's one of being here:
///
/// ```compile_fail,E0308
/// fn for_the_node(_: &netns::InsideHost<'_>) {}
/// netns::Netns::current().unwrap().enter(|inside| for_the_node(inside)).unwrap();
/// ```
#[derive(Debug)]
pub struct InsideHost<'a>(&'a Inside);

// === impl Host ===

impl Host {
    /// Opens it by a path such as `/host/proc/1/ns/net`, from a process that is elsewhere.
    ///
    /// # Errors
    /// As [`Netns::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Netns::open(path).map(|netns| Self(Arc::new(netns)))
    }

    /// The calling thread's, in a process that shares the node's network.
    ///
    /// # Errors
    /// As [`Netns::current`].
    pub fn current() -> Result<Self, Error> {
        Netns::current().map(|netns| Self(Arc::new(netns)))
    }

    /// Which namespace it is.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.0.id()
    }

    /// For what only listens in a namespace, whichever it is.
    #[must_use]
    pub fn netns(&self) -> &Arc<Netns> {
        &self.0
    }

    /// Runs `f` inside, as [`Netns::enter`] does.
    ///
    /// # Errors
    /// As there.
    pub fn enter<R: Send>(&self, f: impl FnOnce(&InsideHost<'_>) -> R + Send) -> Result<R, Error> {
        self.0.enter(|inside| f(&InsideHost(inside)))
    }
}

// === impl InsideHost ===

impl InsideHost<'_> {
    /// For what is the same in every namespace.
    #[must_use]
    pub fn inside(&self) -> &Inside {
        self.0
    }
}
