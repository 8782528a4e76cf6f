//! What makes a cycle fail.

use crate::binaries::BinaryError;
use crate::config::ConfigError;
use crate::file::FileError;
use crate::kubeconfig::KubeconfigError;

/// A phase that failed. The text is one line and complete.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plugin is not (all) in its directories.
    #[error("copy binaries: {0}")]
    Binaries(BinaryError),
    /// The kubeconfig could not be made.
    #[error("write kubeconfig: {0}")]
    Kubeconfig(KubeconfigError),
    /// The plugin is not in the configuration.
    #[error("create CNI config file: {0}")]
    Config(ConfigError),
    /// The kernel gives no watches; changes are found by looking every few seconds.
    #[error(
        "watch the node's files: {0}; raise fs.inotify.max_user_instances or fs.inotify.max_user_watches"
    )]
    Watch(std::io::Error),
    /// A file of the agent's own stays after the uninstallation.
    #[error("clean up: {0}")]
    Leftover(FileError),
}

impl Error {
    /// The value of the label `result` of `istio_cni_installs_total`; `None` for what upstream does
    /// not count.
    pub fn result(&self) -> Option<&'static str> {
        match self {
            Self::Binaries(_) => Some("COPY_BINARIES_FAILURE"),
            Self::Kubeconfig(_) => Some("CREATE_KUBECONFIG_FAILURE"),
            Self::Config(_) => Some("CREATE_CNI_CONFIG_FAILURE"),
            Self::Watch(_) | Self::Leftover(_) => None,
        }
    }
}
