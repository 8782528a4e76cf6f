//! What a runtime tells a plugin about the pod.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use capture::Pod;
use netns::Netns;

use super::conflist::is_identifier;

/// Where `ip netns` keeps namespaces by name.
const NAMED_NAMESPACES: &str = "/run/netns";

/// The longest interface name in bytes: IFNAMSIZ of linux/if.h less the closing zero.
const IFNAME_MAX: usize = 15;

/// One interface of one pod in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodAttachment {
    pub(super) container_id: String,
    pub(super) ifname: String,
    /// Empty when the runtime knows none (any more).
    pub(super) netns: String,
    /// `CNI_ARGS`.
    pub(super) args: String,
    /// For the capability `io.kubernetes.cri.pod-annotations`.
    pub(super) annotations: BTreeMap<String, String>,
}

impl PodAttachment {
    /// # Errors
    /// A name cannot be what it is for.
    pub(super) fn new(pod: &Pod, container_id: Option<&str>, ifname: &str) -> Result<Self> {
        // Always the same for the same pod, so that DEL and CHECK find what ADD made.
        let container_id =
            container_id.map_or_else(|| format!("cnictl-{}-{}", pod.namespace, pod.name), str::to_owned);
        for (what, text) in
            [("container id", &container_id), ("pod name", &pod.name), ("pod namespace", &pod.namespace)]
        {
            ensure!(
                is_identifier(text),
                "{what} {text:?} has characters other than letters, digits, '.', '_' and '-', or is empty"
            );
        }
        let valid = !ifname.is_empty()
            && ifname.len() <= IFNAME_MAX
            && !matches!(ifname, "." | "..")
            && !ifname.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        ensure!(
            valid,
            "interface name {ifname:?} is not one: 1 to {IFNAME_MAX} bytes without '/', ':' and blanks"
        );
        let uid = pod.uid.as_deref().unwrap_or_default();
        ensure!(!uid.contains([';', '=']), "pod uid {uid:?} has characters that CNI_ARGS cannot hold");
        let mut args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={container_id}",
            pod.namespace, pod.name
        );
        // A manifest that was never submitted has none, and a plugin must not compare with an invented one.
        if !uid.is_empty() {
            args = format!("{args};K8S_POD_UID={uid}");
        }
        Ok(Self {
            container_id,
            ifname: ifname.to_owned(),
            netns: String::new(),
            args,
            annotations: pod.annotations.clone(),
        })
    }
}

/// Runtimes bring lo up before they call the chain; without it the pod could not talk to itself.
pub(super) fn raise_loopback(path: &std::path::Path) -> Result<()> {
    let namespace = Netns::open(path).context("use the namespace of --netns")?;
    namespace.enter(kernel::route::raise_loopback)?.context("prepare the namespace of --netns")
}

/// The path of a namespace that is given as a path or by the name that `ip netns` shows.
pub(super) fn netns_path(text: &str) -> PathBuf {
    if text.contains('/') { PathBuf::from(text) } else { PathBuf::from(NAMED_NAMESPACES).join(text) }
}

/// Makes sure that it is a namespace, and not that of this machine: most plugins would not notice.
///
/// # Errors
/// It is not.
pub(super) fn check_netns(path: &std::path::Path) -> Result<()> {
    let namespace = Netns::open(path).context("use the namespace of --netns")?;
    if namespace == Netns::current()? {
        bail!(
            "network namespace {} is the one that this program runs in, the host's; give a pod's",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, uid: Option<&str>) -> Pod {
        let uid = uid.map(str::to_owned);
        Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid, ..Pod::default() }
    }

    #[test]
    fn arguments_are_those_of_a_runtime() {
        let attachment = PodAttachment::new(&pod("shop", "web-0", Some("u-1")), Some("abc"), "eth0").unwrap();
        assert_eq!(
            attachment.args,
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
        );
        let attachment = PodAttachment::new(&pod("shop", "web-0", None), None, "eth0").unwrap();
        assert_eq!(attachment.container_id, "cnictl-shop-web-0");
        assert!(!attachment.args.contains("UID"), "{}", attachment.args);
    }

    #[test]
    fn names_that_could_be_something_else_are_refused() {
        let refused = |pod: Pod, id: Option<&str>, ifname: &str, part: &str| {
            let error = PodAttachment::new(&pod, id, ifname).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(pod("a;K8S_POD_NAME=x", "p", None), Some("id"), "eth0", "pod namespace");
        refused(pod("a", "", None), Some("id"), "eth0", "pod name \"\"");
        refused(pod("a", "p", None), Some("../id"), "eth0", "container id \"../id\"");
        refused(pod("a", "p", None), None, "sixteen-bytes-xx", "interface name");
        refused(pod("a", "p", Some("u;x=1")), None, "eth0", "pod uid");
    }

    #[test]
    fn a_bare_name_is_one_of_ip_netns() {
        assert_eq!(netns_path("web"), PathBuf::from("/run/netns/web"));
        assert_eq!(netns_path("./web"), PathBuf::from("./web"));
    }
}
