//! What the kernel, or a program of iptables, did not do in a pod's namespace, and why.

use std::fmt;

use fault::Retry;
use kernel::iptables;
use kernel::nft;
use rustix::io::Errno;

/// An error of the kernel in a pod's namespace.
#[derive(Debug)]
pub(crate) struct InKernel {
    error: Box<kernel::Error>,
    /// The process that is in the way, where one is found.
    process: Option<String>,
}

// === impl InKernel ===

impl InKernel {
    pub(crate) fn new(error: kernel::Error, process: Option<String>) -> Self {
        Self { error: Box::new(error), process }
    }

    /// Whether the same may succeed after a pause though nothing of the pod has changed.
    pub(crate) fn retry(&self) -> Retry {
        let passes = match &*self.error {
            kernel::Error::Nft(nft::Error::Contended { .. }) => true,
            kernel::Error::Nft(nft::Error::Failed { source, .. }) => source.errno().is_some_and(passes),
            kernel::Error::Iptables(iptables::Error::Supervisor { .. }) => true,
            _ => false,
        };
        if passes { Retry::Backoff } else { Retry::OnChange }
    }

    /// Why, without what was being done and without advice.
    pub(crate) fn cause(&self) -> String {
        let kernel::Error::Nft(error) = &*self.error else { return fault::chain(&*self.error) };
        match error {
            nft::Error::Held { table, port, .. } => {
                let process = self.process.clone().unwrap_or_else(|| format!("netlink port {port}"));
                format!("another program keeps table {table} for itself: {process}")
            }
            nft::Error::Unsupported { missing, .. } => format!("this kernel has no {missing}"),
            nft::Error::Denied { .. } => "CAP_NET_ADMIN is missing in the pod's user namespace".to_owned(),
            nft::Error::Failed { operation, hint, source } => {
                let mut root: &dyn std::error::Error = source;
                while let Some(source) = root.source() {
                    root = source;
                }
                format!("{root}{hint} at: {operation}")
            }
            _ => fault::chain(error),
        }
    }

    /// What helps.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        match &*self.error {
            kernel::Error::Nft(nft::Error::Held { .. }) => Some("end that program, or delete the pod"),
            kernel::Error::Nft(nft::Error::Denied { .. }) => Some("run the agent as root"),
            _ => None,
        }
    }
}

impl fmt::Display for InKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(process) = &self.process {
            write!(f, "{process} is in the way: ")?;
        }
        f.write_str(&fault::chain(&*self.error))
    }
}

impl std::error::Error for InKernel {}

/// Whether what is missing may be there after a while.
fn passes(errno: Errno) -> bool {
    let scarce = [Errno::NOMEM, Errno::NOBUFS, Errno::MFILE, Errno::NFILE];
    scarce.contains(&errno) || [Errno::AGAIN, Errno::INTR, Errno::BUSY].contains(&errno)
}
