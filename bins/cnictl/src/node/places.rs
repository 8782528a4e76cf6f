//! Where things are on a node.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The node's directories as the command line names them. In the agent's container the node's are mounted below /host, or where the agent's own
/// variables say.
#[derive(Debug, clap::Args)]
pub(crate) struct PlaceArgs {
    /// Directory of CNI configurations [default: /etc/cni/net.d, in the agent's container where it is mounted]
    #[arg(long, value_name = "DIR", value_parser = directory)]
    net_dir: Option<PathBuf>,
    /// Directory of the plugin's program (repeat) [default: /opt/cni/bin, in the agent's container where it is mounted]
    #[arg(long = "bin-dir", value_name = "DIR", value_parser = directory)]
    bin_dirs: Vec<PathBuf>,
    /// Directory of the node agent's sockets, kubeconfig and facts [default: /var/run/istio-cni]
    #[arg(long, value_name = "DIR", value_parser = directory)]
    run_dir: Option<PathBuf>,
    /// Directory of what the node agent keeps over a restart of the machine [default: /var/lib/istio-cni]
    #[arg(long, value_name = "DIR", value_parser = directory)]
    state_dir: Option<PathBuf>,
}

/// The node's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodePlaces {
    pub(crate) net_dir: PathBuf,
    pub(super) bin_dirs: Vec<PathBuf>,
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
}

/// Where the agent's container has the node's directories, its variables aside.
const MOUNTED_NET_DIR: &str = "/host/etc/cni/net.d";
const MOUNTED_BIN_DIR: &str = "/host/opt/cni/bin";

impl NodePlaces {
    /// The directories that are given, and the defaults of this machine for the others.
    pub(crate) fn of_this_machine(net_dir: Option<PathBuf>, run_dir: Option<PathBuf>) -> Self {
        PlaceArgs { net_dir, bin_dirs: Vec::new(), run_dir, state_dir: None }.places()
    }

    /// Directories of the plugin's program.
    pub(crate) fn bin_dirs(&self) -> &[PathBuf] {
        &self.bin_dirs
    }

    /// Those that are the agent's own.
    pub(super) fn own_dirs(&self) -> [&Path; 2] {
        [&self.run_dir, &self.state_dir]
    }
}

impl PlaceArgs {
    /// The directories, with the defaults of this machine.
    pub(crate) fn places(&self) -> NodePlaces {
        self.choose(|name| std::env::var_os(name), |path| Path::new(path).is_dir())
    }

    fn choose(
        &self,
        variable: impl Fn(&str) -> Option<OsString>,
        is_dir: impl Fn(&str) -> bool,
    ) -> NodePlaces {
        // What the agent would refuse names nothing here.
        let named = |name: &str| variable(name)?.into_string().ok().filter(|text| !text.is_empty());
        let in_container = named("MOUNTED_CNI_NET_DIR").is_some() || is_dir(MOUNTED_NET_DIR);
        let mounted = |name: &str, there: &str, else_at: &str| {
            named(name).unwrap_or_else(|| if in_container { there } else { else_at }.to_owned())
        };
        let net_dir = mounted("MOUNTED_CNI_NET_DIR", MOUNTED_NET_DIR, "/etc/cni/net.d");
        let bin_dirs = mounted("MOUNTED_CNI_BIN_DIRS", MOUNTED_BIN_DIR, "/opt/cni/bin");
        let bin_dirs = match self.bin_dirs.as_slice() {
            [] => bin_dirs.split(',').map(str::trim).filter_map(|dir| directory(dir).ok()).collect(),
            named => named.to_vec(),
        };
        let run_dir = named("CNI_AGENT_RUN_DIR").unwrap_or_else(|| cni::config::RUN_DIR.to_owned());
        let state_dir = named("STATE_DIR").unwrap_or_else(|| cni::config::STATE_DIR.to_owned());
        NodePlaces {
            net_dir: self.net_dir.clone().unwrap_or_else(|| net_dir.into()),
            bin_dirs,
            run_dir: self.run_dir.clone().unwrap_or_else(|| run_dir.into()),
            state_dir: self.state_dir.clone().unwrap_or_else(|| state_dir.into()),
        }
    }
}

/// Files with given names are deleted below it, so it has to be named outright.
pub(crate) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(is_plain) || path.components().count() < 2 {
        return Err("give an absolute path, other than / and without ..".to_owned());
    }
    Ok(path.to_owned())
}

/// The node's name: the agent's container is told it, else it is the machine's.
pub(crate) fn node_name() -> Option<String> {
    let variable = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    variable.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(args: &PlaceArgs, variables: &[(&str, &str)], mounted: bool) -> [String; 4] {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        let places = args.choose(variable, |path| mounted && path.starts_with("/host/"));
        let bins: Vec<_> = places.bin_dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        [text(&places.net_dir), bins.join(" "), text(&places.run_dir), text(&places.state_dir)]
    }

    #[test]
    fn directories_are_the_hosts_or_where_they_are_mounted() {
        let none = PlaceArgs { net_dir: None, bin_dirs: Vec::new(), run_dir: None, state_dir: None };
        let host = ["/etc/cni/net.d", "/opt/cni/bin", "/var/run/istio-cni", "/var/lib/istio-cni"];
        assert_eq!(chosen(&none, &[], false), host);
        assert_eq!(chosen(&none, &[("MOUNTED_CNI_NET_DIR", "")], false), host);
        let container =
            ["/host/etc/cni/net.d", "/host/opt/cni/bin", "/var/run/istio-cni", "/var/lib/istio-cni"];
        assert_eq!(chosen(&none, &[], true), container);
        let variables = [
            ("MOUNTED_CNI_NET_DIR", "/n"),
            ("MOUNTED_CNI_BIN_DIRS", "/a, /b,,relative"),
            ("CNI_AGENT_RUN_DIR", "/r"),
            ("STATE_DIR", "/s"),
        ];
        assert_eq!(chosen(&none, &variables, false), ["/n", "/a /b", "/r", "/s"]);
        let said = PlaceArgs {
            net_dir: Some("/x".into()),
            bin_dirs: vec!["/y".into(), "/z".into()],
            run_dir: Some("/w".into()),
            state_dir: Some("/v".into()),
        };
        assert_eq!(chosen(&said, &variables, true), ["/x", "/y /z", "/w", "/v"]);
    }

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
