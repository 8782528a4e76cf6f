//! What is installed where.

use std::path::{Component, Path, PathBuf};

use cni::conflist::PluginEntry;

/// Name of the file of [`InstallMode::Owned`] when none is given.
pub const OWNED_NAME: &str = "02-istio-cni.conflist";
/// Name of the file of [`InstallMode::Standalone`] when none is given.
pub const STANDALONE_NAME: &str = "YYY-istio-cni.conf";
/// How names of such files end, the one that platforms with Multus configure too (chart preset `openshift`).
pub(crate) const STANDALONE_END: &str = "istio-cni.conf";

/// What is installed where. Paths are as this process sees them.
#[derive(Debug, Clone)]
pub struct InstallOptions {
    /// The directory of CNI configurations.
    pub net_dir: PathBuf,
    /// Name of the primary configuration, or of the standalone file; `None` to find the one that runtimes use.
    pub conf_name: Option<String>,
    /// How the plugin gets into the configuration.
    pub mode: InstallMode,
    /// Whether a configuration that is ours alone has mode 0640 instead of 0600.
    pub group_read: bool,
    /// Every regular file of this directory is copied.
    pub bin_source: PathBuf,
    /// Where to; directories that exist.
    pub bin_targets: Vec<PathBuf>,
    /// The directory of the kubeconfig; made when it is not there.
    pub run_dir: PathBuf,
    /// `None` for no kubeconfig at all: the plugin then asks no API server.
    pub kubeconfig: Option<KubeconfigOptions>,
    /// The plugin's options; [`crate::Handle::update`] changes them.
    pub entry: PluginEntry,
    /// What becomes of the plugin's program at an uninstallation.
    pub program_at_end: ProgramAtEnd,
}

/// What becomes of the plugin's program at an uninstallation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramAtEnd {
    /// It is removed at once, even if it is still needed.
    Goes,
    /// It stays while a result that libcni keeps names it: runtimes that delete a pod by the configuration of its ADD need it then.
    StaysWhileNamed {
        /// libcni's cache directory as this process sees it.
        cache: PathBuf,
        /// The same as programs of the node see it.
        on_node: PathBuf,
        /// Whether this process sees the node's own files, so that results that are not there are nowhere else.
        sees_node: bool,
    },
}

/// How the plugin gets into the configuration. The one predicate for writing and for removing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallMode {
    /// An entry in another component's list.
    Chained,
    /// A file with nothing but the plugin, which another plugin such as Multus refers to.
    Standalone,
    /// A copy of the primary list with the entry, in a file of its own.
    Owned {
        /// Its name, see [`OWNED_NAME`].
        file_name: String,
    },
}

/// From what the kubeconfig is made.
#[derive(Debug, Clone)]
pub struct KubeconfigOptions {
    /// `http` or `https`.
    pub protocol: String,
    /// Host name or address; an IPv6 address without brackets. Empty is an error of each cycle.
    pub host: String,
    /// Port; empty is an error of each cycle.
    pub port: String,
    /// The API server's authority in PEM, `None` for the service account's.
    pub ca_file: Option<PathBuf>,
    /// Whether the API server's certificate is not looked at.
    pub skip_tls_verify: bool,
    /// The directory with `token` and `ca.crt`.
    pub service_account_dir: PathBuf,
    /// Mode of the kubeconfig, such as 0o600.
    pub mode: u32,
}

/// Options that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// A name that would lead to another directory.
    #[error("{0:?} is not the name of a file; give a name without slashes")]
    NotAName(String),
    /// Nowhere to copy to.
    #[error("no directory for the plugin's binaries is given")]
    NoTarget,
    /// The file of ours has a name that no runtime loads.
    #[error(
        "{0:?} is not loaded by any container runtime; give the Istio-owned configuration a name that ends in .conflist"
    )]
    NotLoaded(String),
    /// The process is out of file descriptors.
    #[error("the installer cannot be woken: {0}; raise the limit of open files")]
    NoDescriptor(std::io::Error),
}

impl InstallOptions {
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        let owned = match &self.mode {
            InstallMode::Owned { file_name } => Some(file_name),
            InstallMode::Chained | InstallMode::Standalone => None,
        };
        for name in self.conf_name.iter().chain(owned) {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name.as_str())
            {
                return Err(OptionsError::NotAName(name.clone()));
            }
        }
        if let Some(name) = owned.filter(|name| !name.ends_with(".conflist")) {
            return Err(OptionsError::NotLoaded(name.clone()));
        }
        if self.bin_targets.is_empty() { Err(OptionsError::NoTarget) } else { Ok(()) }
    }

    /// Mode of a configuration that is ours alone.
    pub(crate) fn own_mode(&self) -> u32 {
        if self.group_read { 0o640 } else { 0o600 }
    }
}
