//! Whether a namespace is the pod's still.

use netns::{Error, Netns, OpenCause};
use rustix::io::Errno;

use super::FoundBy;

/// What a look at the path of a namespace shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The path leads to the namespace, or nobody can tell otherwise.
    Holds,
    /// The path is gone.
    Gone,
    /// The path leads to another namespace.
    Another,
}

/// Looks at the path of a namespace. One that cannot be looked at, for want of descriptors say, is there: rules that nobody removes are worse than a
/// sandbox that is forgotten late.
pub(crate) fn identity(netns: &Netns, found: FoundBy) -> Identity {
    if found == FoundBy::Descriptor {
        return Identity::Holds;
    }
    match Netns::open(netns.path()) {
        Ok(there) if &there == netns => Identity::Holds,
        Ok(_) => Identity::Another,
        Err(Error::Open { cause: OpenCause::Denied, .. }) => Identity::Holds,
        Err(Error::Open { cause: OpenCause::Io(cause), .. }) => match Errno::from_io_error(&cause) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Identity::Holds,
            _ => Identity::Gone,
        },
        Err(_) => Identity::Gone,
    }
}
