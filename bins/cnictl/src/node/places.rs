//! Where things are on a node.

use std::path::{Component, Path, PathBuf};

/// The node's directories; the defaults are those of the host.
#[derive(Debug, clap::Args)]
pub(super) struct Places {
    /// Directory of CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", value_parser = directory)]
    pub(super) net_dir: PathBuf,
    /// Directory of the plugin's program (repeat)
    #[arg(long = "bin-dir", value_name = "DIR", default_value = "/opt/cni/bin", value_parser = directory)]
    pub(super) bin_dirs: Vec<PathBuf>,
    /// Directory of the node agent's sockets, kubeconfig and facts
    #[arg(long, value_name = "DIR", default_value = "/var/run/istio-cni", value_parser = directory)]
    pub(super) run_dir: PathBuf,
}

/// Files with given names are deleted below it, so it has to be named outright.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(is_plain) || path.components().count() < 2 {
        return Err("give an absolute path, other than / and without ..".to_owned());
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_named_outright() {
        for text in ["/etc/cni/net.d", "/a", "/a/", "/a/./b"] {
            assert_eq!(directory(text), Ok(PathBuf::from(text)));
        }
        for text in ["", "/", "//", "etc", "./a", "/a/../b", ".."] {
            assert!(directory(text).is_err(), "{text:?}");
        }
    }
}
