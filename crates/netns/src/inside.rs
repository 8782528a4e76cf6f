//! The proof of being inside.

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Netns, NetnsId, sys};

/// Proof that the calling thread is inside a certain network namespace.
///
/// It is made by [`Netns::enter`] after the kernel has confirmed it. It cannot leave its thread (it is neither `Send`
/// nor `Sync`), cannot be copied, and cannot be made elsewhere, except by [`Inside::of_calling_thread`].
#[derive(Debug)]
pub struct Inside {
    id: NetnsId,
    thread_ends: bool,
    not_send: PhantomData<*const ()>,
}

impl Inside {
    /// Moves the calling thread, which must be one to throw away, into `netns`.
    pub(crate) fn join(netns: &Netns) -> Result<Self, Error> {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| Error::Join { path: netns.path().to_owned(), source: io::Error::from(e) })?;
        let inside = Self { thread_ends: true, ..Self::of_calling_thread()? };
        if inside.id != netns.id() {
            return Err(Error::Elsewhere {
                path: netns.path().to_owned(),
                expected: netns.id(),
                found: inside.id,
            });
        }
        Ok(inside)
    }

    /// Declares that whatever namespace the calling thread is in is the one to change.
    ///
    /// **Danger:** in a process on the node this is the host's namespace. It is meant for a program that runs inside
    /// the pod from its start, as `istio-iptables` in an init container; everything else uses [`Netns::enter`].
    ///
    /// # Errors
    /// [`Error::WhereAmI`] when `/proc` is not mounted.
    pub fn of_calling_thread() -> Result<Self, Error> {
        let id = sys::id_of_this_thread()
            .map_err(|source| Error::WhereAmI { proc: crate::OF_THIS_THREAD, source })?;
        Ok(Self { id, thread_ends: false, not_send: PhantomData })
    }

    /// Whether the thread ends with what it does inside, so that what else it changes about itself stays with it.
    #[must_use]
    pub fn thread_ends(&self) -> bool {
        self.thread_ends
    }

    /// Which namespace the thread is in.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }
}
