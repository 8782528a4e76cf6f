//! Where the facts about a pod come from.
//!
//! A plugin process lives for milliseconds, asks for one pod and ends, so everything here is synchronous and bounded: in bytes read,
//! in time and in tries. Conversion from Kubernetes objects into [`capture::Pod`] happens in this crate and nowhere else.
//!
//! - [`AgentSource`]: the node agent over its socket. [`LastKnown`]: what it left on disk.
//! - [`Annotations`]: what the runtime hands over itself, the last resort.
//! - [`Manifests`]: a directory of Kubernetes manifests. No TLS code runs for it.
//! - [`Kubernetes`]: the API server of a kubeconfig, with retries within a total time. What it does not support, and how host names
//!   are resolved in a static executable, is said there.

mod agent;
mod annotations;
mod error;
mod json;
mod kubeconfig;
mod kubernetes;
mod manifests;
pub mod yaml;

use capture::Pod;
use facts::PodRef;

pub use agent::{AgentSource, LOG_LEVELS_PATH, LastKnown};
pub use annotations::Annotations;
pub use error::{Cause, Error};
pub use kubernetes::{DEFAULT_TIMEOUT, Kubernetes};
pub use manifests::{
    ManifestFile, ManifestFileError, Manifests, Written, is_manifest, written_in_file, written_in_named_file,
};

/// Largest object, file or answer that is read, in bytes. The API server itself stores no object above 1.5 MiB; a manifest
/// directory may hold lists.
pub const MAX_BYTES: usize = 8 << 20;

/// Something that knows pods.
pub trait PodSource {
    /// The facts of one pod.
    ///
    /// # Errors
    /// When the pod is unknown, is another incarnation than `id.uid` names ([`Cause::Stale`]), or the source does not answer
    /// within its own limits.
    fn pod(&self, id: &PodRef) -> Result<Pod, Error>;

    /// Whether [`PodSource::pod`] could be served, as far as it can be told without asking anything outside this machine.
    ///
    /// A source must not report an unreachable remote here: a strict STATUS decides over the readiness of the whole node, and a
    /// control plane that is away for a minute must not take every node with it.
    ///
    /// # Errors
    /// When something local is missing or broken.
    fn ready(&self) -> Result<(), Error>;
}

/// Percent-encodes all but the unreserved characters (RFC 3986, 2.3): the text comes from the runtime's arguments.
fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}
