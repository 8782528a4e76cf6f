//! What the kernel lets this agent do in network namespaces.

use std::error::Error;
use std::io;
use std::path::Path;

use netns::OpenCause;
use rustix::thread::{CapabilitySet, capabilities};

/// What it takes, as text.
pub(crate) const CAPABILITIES: &str = "the capabilities NET_ADMIN, SYS_ADMIN and SYS_PTRACE";

/// Whether this process lacks some of [`CAPABILITIES`].
pub(crate) fn lacks_capabilities() -> bool {
    let needed = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
    !capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// What this process lacks for entering pods.
pub(crate) fn lack(proc_root: &Path) -> Option<&'static str> {
    if lacks_capabilities() {
        return Some(CAPABILITIES);
    }
    proc_root.join("1").symlink_metadata().is_err().then_some("/host/proc")
}

/// Whether the system said that we may not.
pub(crate) fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let of_the_system = error.downcast_ref::<io::Error>();
        if of_the_system.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
            || matches!(
                error.downcast_ref::<netns::Error>(),
                Some(netns::Error::Open { cause: OpenCause::Denied, .. })
            )
        {
            return true;
        }
        next = error.source();
    }
    false
}
