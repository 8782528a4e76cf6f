//! Connections that were there before anybody tracked any.
//!
//! A namespace without rules tracks nothing. When rules for address translation come, the kernel takes the next packet of a connection that
//! it never saw for the first one of a new connection, and a redirect tears it apart. Told not to pick up what it has not seen begin, it lets
//! such packets pass as they are.

mod entries;
mod flows;

use std::io;

use netns::Inside;

use crate::sysctl;

#[cfg(test)]
pub(crate) use entries::tests::read as read_entries;
pub use entries::{EntriesError, Redirected, are_tracked, forget};
pub use flows::{TrackedFlow, flows, forget_flows};

/// `net.netfilter.nf_conntrack_tcp_loose` (Documentation/networking/nf_conntrack-sysctl.rst). Each namespace has its own.
const LOOSE: &str = "net/netfilter/nf_conntrack_tcp_loose";

/// The setting could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error(
    "leave the open connections of the namespace as they are (net.netfilter.nf_conntrack_tcp_loose): {0}"
)]
pub struct Error(#[from] io::Error);

/// Whether TCP connections are tracked only if their beginning is seen; nothing where the kernel tracks nothing yet and has no such setting.
///
/// # Errors
/// See [`Error`].
pub fn is_strict(inside: &Inside) -> Result<Option<bool>, Error> {
    Ok(sysctl::read(inside, LOOSE)?.map(|value| value == "0"))
}

/// Lets TCP connections be tracked only if their beginning is seen (`strict`), or also when they are met half-way, which is the kernel's
/// default. `true` when that was otherwise before; `false` also where the kernel tracks nothing yet and has no such setting.
///
/// # Errors
/// See [`Error`].
pub fn set_strict(inside: &Inside, strict: bool) -> Result<bool, Error> {
    Ok(sysctl::write(inside, LOOSE, if strict { "0" } else { "1" })?)
}
