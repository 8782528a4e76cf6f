//! The deletion of the DaemonSet before everything else of a release.

use kube::core::Request;
use kube::core::params::DeleteParams;

use super::DaemonSet;
use super::look::{DAEMONSET, LIMIT, get, path};
use crate::error::Error;
use crate::write::{MAX_ANSWER, Writer, segment};

impl Writer {
    /// Deletes a DaemonSet in the foreground: it is there until its pods have ended. Whether there was one.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn delete_daemonset(&self, namespace: &str, name: &str) -> Result<bool, Error> {
        let operation = format!("delete DaemonSet {namespace}/{name}");
        let foreground = DeleteParams::foreground();
        let request = Request::new(path(namespace)).delete(&segment(name), &foreground);
        match self.connection().ask(&operation, request, LIMIT, MAX_ANSWER).await {
            Err(error) if error.says_absent_or_no_more("daemonsets", name) => Ok(false),
            result => result.map(|_| true),
        }
    }

    /// Whether there is such a DaemonSet.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn has_daemonset(&self, namespace: &str, name: &str) -> Result<bool, Error> {
        match get::<DaemonSet>(self.connection(), DAEMONSET, &path(namespace), name, LIMIT).await {
            Err(error) if error.says_absent_or_no_more("daemonsets", name) => Ok(false),
            result => result.map(|_| true),
        }
    }
}
