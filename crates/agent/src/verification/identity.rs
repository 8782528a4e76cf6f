//! Whether a namespace is the pod's still.

use netns::{Error, Netns, OpenCause};
use rustix::io::Errno;

use super::FoundBy;

/// What a look at the path of a namespace shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetnsIdentity {
    /// The path leads to the namespace, or nobody can tell otherwise.
    Holds,
    /// The path is gone.
    Gone,
    /// The path leads to another namespace.
    Another,
}

/// Looks at the path of a namespace. One that cannot be looked at, for want of descriptors say, is there: rules that nobody removes are worse than a
/// sandbox that is forgotten late.
pub(crate) fn identity(netns: &Netns, found: FoundBy) -> NetnsIdentity {
    if found == FoundBy::Descriptor {
        return NetnsIdentity::Holds;
    }
    if netns.is_at_its_path() {
        return NetnsIdentity::Holds;
    }
    match Netns::open(netns.path()) {
        Ok(there) if &there == netns => NetnsIdentity::Holds,
        Ok(_) => NetnsIdentity::Another,
        Err(Error::Open { cause: OpenCause::Denied, .. }) => NetnsIdentity::Holds,
        Err(Error::Open { cause: OpenCause::Io(cause), .. }) => match Errno::from_io_error(&cause) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => NetnsIdentity::Holds,
            _ => NetnsIdentity::Gone,
        },
        Err(_) => NetnsIdentity::Gone,
    }
}
