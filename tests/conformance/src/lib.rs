//! The reference cases: read from the reference data beside the checkout, turned into our types.
//!
//! Nothing of them is copied into the project. `SHARED_DIR` names another place.

pub mod ambient;
pub mod libcni;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use capture::annotations::NodeSettings;
use capture::flags::{IptablesFlags, parse_flags};
use capture::{Container, Decision, Enrolment, Exclusions, Pod, Settings, decide};
use serde::Deserialize;

/// Groups that the reference data names; loading it needs a group database that has them.
pub const GROUPS: [(&str, u32); 2] = [("java", 5001), ("ftp", 5002)];

/// One reference case.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// `cni-plugin`, `iptables-capture` or `nftables-capture`.
    pub suite: String,
    /// Name, unique in the suite.
    pub name: String,
    golden_file: String,
    settings: RawSettings,
    pod: Option<RawPod>,
}

/// The reference file of a case.
#[derive(Debug, PartialEq, Eq)]
pub enum Golden {
    /// Commands for `nft -f -`.
    Nft(String),
    /// Inputs for `iptables-restore` and `ip6tables-restore`.
    Iptables {
        /// IPv4.
        v4: String,
        /// IPv6, empty where the case has none.
        v6: String,
    },
}

#[derive(Debug, Deserialize)]
struct RawSettings {
    proxy_port: String,
    inbound_capture_port: String,
    inbound_tunnel_port: String,
    proxy_uid: String,
    proxy_gid: String,
    inbound_interception_mode: String,
    inbound_tproxy_mark: String,
    inbound_tproxy_route_table: String,
    inbound_ports_include: String,
    inbound_ports_exclude: String,
    owner_groups_include: String,
    owner_groups_exclude: String,
    outbound_ports_include: String,
    outbound_ports_exclude: String,
    outbound_ip_ranges_include: String,
    outbound_ip_ranges_exclude: String,
    reroute_virtual_interfaces: String,
    exclude_interfaces: String,
    host_ipv4_loopback_cidr: String,
    redirect_dns: bool,
    capture_all_dns: bool,
    drop_invalid: bool,
    dual_stack: bool,
    enable_ipv6: bool,
    dns_servers_v4: Vec<IpAddr>,
    dns_servers_v6: Vec<IpAddr>,
}

#[derive(Debug, Deserialize)]
struct RawPod {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    init_containers: Vec<String>,
    containers: Vec<String>,
    proxy_container: RawProxy,
}

#[derive(Debug, Deserialize)]
struct RawProxy {
    name: String,
    args: Vec<String>,
    env: Vec<RawEnv>,
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct RawEnv {
    name: String,
    value: String,
}

/// Where the reference data is: `SHARED_DIR`, else `shared` beside the checkout.
///
/// # Errors
/// It is in neither place.
pub fn golden_dir() -> Result<PathBuf> {
    let shared = std::env::var_os("SHARED_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let dir = shared.join("golden");
    if !dir.join("cases.json").is_file() {
        bail!(
            "no reference data at {}; set SHARED_DIR to the folder that holds golden/cases.json",
            dir.display()
        );
    }
    Ok(dir)
}

/// All reference cases.
///
/// # Errors
/// The data is missing or has another form.
pub fn cases() -> Result<Vec<Case>> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let path = golden_dir()?.join("cases.json");
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let file: File = serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(file.cases)
}

impl Case {
    /// Whether IPv6 is captured.
    pub fn ipv6(&self) -> bool {
        self.settings.enable_ipv6
    }

    /// The settings that our own parsers make of the case: of its pod by the plugin's whole decision, of its flags otherwise.
    ///
    /// # Errors
    /// The case is refused, or its pod is not captured.
    pub fn settings(&self) -> Result<Settings> {
        let resolve = |name: &str| GROUPS.iter().find(|(known, _)| *known == name).map(|(_, gid)| *gid);
        match &self.pod {
            None => Ok(parse_flags(&self.settings.flags(), &resolve)?.0),
            Some(pod) => {
                let (scope, enrolment) = (Exclusions::default(), Enrolment::default());
                let pod = Pod { namespace: "default".into(), name: "case".into(), ..pod.to_pod() };
                match decide(&pod, &scope, &enrolment, &NodeSettings::default())? {
                    Decision::Sidecar { settings, .. } => Ok(*settings),
                    other => bail!("the pod is not captured: {other:?}"),
                }
            }
        }
    }

    /// The reference rules.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn golden(&self) -> Result<Golden> {
        let path = golden_dir()?.join(&self.golden_file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if self.suite == "nftables-capture" {
            return Ok(Golden::Nft(text));
        }
        let (v4, v6) = split_families(&text);
        if v6.is_empty() == self.ipv6() {
            bail!("{}: IPv6 rules {}", path.display(), if self.ipv6() { "expected" } else { "not expected" });
        }
        Ok(Golden::Iptables { v4, v6 })
    }
}

/// The restore inputs within a recorded run. Each family's tables are in alphabetical order, so that the second family begins where
/// the order goes back.
fn split_families(text: &str) -> (String, String) {
    let (mut families, mut previous, mut inside) = ([String::new(), String::new()], "", false);
    let mut family = 0;
    for line in text.lines() {
        if let Some(table) = line.strip_prefix("* ") {
            if !previous.is_empty() && table <= previous {
                family = 1;
            }
            previous = table;
            inside = true;
        }
        if inside {
            families[family].push_str(line);
            families[family].push('\n');
        }
        inside &= line != "COMMIT";
    }
    families.into()
}

impl RawSettings {
    fn flags(&self) -> IptablesFlags {
        let s = self;
        IptablesFlags {
            proxy_port: s.proxy_port.clone(),
            inbound_capture_port: s.inbound_capture_port.clone(),
            inbound_tunnel_port: s.inbound_tunnel_port.clone(),
            proxy_uid: s.proxy_uid.clone(),
            proxy_gid: s.proxy_gid.clone(),
            inbound_interception_mode: s.inbound_interception_mode.clone(),
            inbound_tproxy_mark: s.inbound_tproxy_mark.clone(),
            inbound_tproxy_route_table: s.inbound_tproxy_route_table.clone(),
            inbound_ports_include: s.inbound_ports_include.clone(),
            inbound_ports_exclude: s.inbound_ports_exclude.clone(),
            owner_groups_include: s.owner_groups_include.clone(),
            owner_groups_exclude: s.owner_groups_exclude.clone(),
            outbound_ports_include: s.outbound_ports_include.clone(),
            outbound_ports_exclude: s.outbound_ports_exclude.clone(),
            outbound_ip_ranges_include: s.outbound_ip_ranges_include.clone(),
            outbound_ip_ranges_exclude: s.outbound_ip_ranges_exclude.clone(),
            reroute_virtual_interfaces: s.reroute_virtual_interfaces.clone(),
            exclude_interfaces: s.exclude_interfaces.clone(),
            host_ipv4_loopback_cidr: s.host_ipv4_loopback_cidr.clone(),
            redirect_dns: s.redirect_dns,
            capture_all_dns: s.capture_all_dns,
            drop_invalid: s.drop_invalid,
            dual_stack: s.dual_stack,
            dns_servers: s.dns_servers_v4.iter().chain(&s.dns_servers_v6).copied().collect(),
        }
    }
}

impl RawPod {
    fn to_pod(&self) -> Pod {
        let container = |name: &String| {
            if *name == self.proxy_container.name {
                let proxy = &self.proxy_container;
                return Container {
                    name: name.clone(),
                    args: proxy.args.clone(),
                    env: proxy.env.iter().map(|e| (e.name.clone(), e.value.clone())).collect(),
                    run_as_user: proxy.run_as_user,
                    run_as_group: proxy.run_as_group,
                    restarts_always: false,
                };
            }
            Container { name: name.clone(), ..Container::default() }
        };
        Pod {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            init_containers: self.init_containers.iter().map(container).collect(),
            containers: self.containers.iter().map(container).collect(),
            ..Pod::default()
        }
    }
}
