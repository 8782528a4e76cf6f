//! What the watches tell.

use std::collections::BTreeMap;
use std::time::Duration;

use facts::PodRef;

use super::{ManifestError, WatchName};
use crate::daemonset::Outlook;
use crate::error::Error;

/// Something that the agent logs, counts or acts upon.
#[derive(Debug, Clone)]
pub enum Event {
    /// Pods and namespaces have been listed once. Comes once.
    Synced,
    /// All objects of a watch have been listed for the first time.
    Listed {
        /// Which.
        what: WatchName,
    },
    /// Facts of these pods changed, or they are gone.
    Changed(Vec<PodRef>),
    /// Labels of these namespaces changed, or they are gone.
    NamespacesChanged(Vec<Box<str>>),
    /// The API server told of a pod or of a namespace, whether or not that changes a fact. The index goes by it already.
    Told(Told),
    /// Something else was seen of the agent's DaemonSet or of the node, and this follows from it.
    Outlook(Outlook),
    /// A list or watch failed. The index keeps what it has, and it is tried again.
    WatchFailed {
        /// Which.
        what: WatchName,
        /// Why.
        error: WatchError,
        /// Since the first failure in a row.
        failing_for: Duration,
        /// The pause before the next try, if the API server answers by then.
        retry_in: Duration,
    },
    /// It works again.
    WatchRestored {
        /// Which.
        what: WatchName,
        /// Since the first failure.
        failed_for: Duration,
    },
    /// Everything is listed anew, because the server does not keep what the watch would go on from.
    Relisted {
        /// Which.
        what: WatchName,
    },
    /// The API server answers no watch and no question whether it is ready. Comes again when the reason is another one.
    ServerAway {
        /// Why.
        error: Error,
    },
    /// It answers again.
    ServerBack {
        /// Since it was found away.
        away_for: Duration,
    },
    /// The API server does not have the kind, which it need not have. It is asked again from time to time.
    KindAbsent {
        /// Which.
        what: WatchName,
    },
    /// An object or file cannot be read. What was known of it stays, and everything else goes on.
    Unreadable {
        /// Where it comes from.
        what: WatchName,
        /// Which, and why.
        error: WatchError,
    },
}

/// What the API server told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What has become of the object.
    pub change: ObjectChange,
    /// The namespace, if it is one, with its labels from before where it was known.
    pub namespace: Option<(String, Option<BTreeMap<String, String>>)>,
}

/// What has become of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectChange {
    /// A list or a watch has it for the first time.
    Added,
    /// It is another one than before.
    Updated,
    /// It is gone.
    Deleted,
}

/// Why a watch fails.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// The API server's side.
    #[error(transparent)]
    Api(#[from] Error),
    /// The directory's side.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
}
