//! Which pods are meant.

use std::collections::BTreeMap;

use clap::builder::NonEmptyStringValueParser;
use facts::labels::parse_selector;
use facts::{PodRef, Selector};
use netns::Netns;
use rundir::pods::PodReport;

/// Names of pods, their namespace, labels and uid. Without any of them: all pods of the node.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct SelectArgs {
    /// Names of pods, or NAMESPACE/NAME
    #[arg(value_name = "POD", value_parser = NonEmptyStringValueParser::new())]
    pods: Vec<String>,
    /// Pods of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Pods of all namespaces (the default)
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Pods with these labels, such as app=web,tier!=db,env in (a,b),!old
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = parse_selector)]
    selector: Option<Selector>,
    /// The pod of this uid
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
    /// The pod in this network namespace, such as /var/run/netns/cni-1234 or /proc/4711/ns/net
    #[arg(long, value_name = "PATH", value_parser = netns)]
    netns: Option<ChosenNetns>,
}

/// A network namespace that was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChosenNetns {
    path: String,
    inode: u64,
}

fn netns(path: &str) -> Result<ChosenNetns, String> {
    let netns = Netns::open(path).map_err(|error| fault::chain(&error))?;
    Ok(ChosenNetns { path: path.to_owned(), inode: netns.id().ino })
}

impl SelectArgs {
    /// The pod of one name.
    pub(crate) fn named(pod: &str, namespace: Option<String>) -> Self {
        Self { pods: vec![pod.to_owned()], namespace, ..Self::default() }
    }

    /// Whether the pod is meant.
    pub(crate) fn selects(&self, pod: &PodRef, labels: &BTreeMap<String, String>) -> bool {
        let named = |name: &String| match name.split_once('/') {
            Some((namespace, name)) => pod.namespace == namespace && pod.name == name,
            None => pod.name == *name,
        };
        let in_namespace = self.namespace.as_ref().is_none_or(|namespace| pod.namespace == *namespace);
        let has_uid = self.uid.as_ref().is_none_or(|uid| pod.uid == *uid);
        let has_labels = self
            .selector
            .as_ref()
            .is_none_or(|selector| selector.selects(|key| labels.get(key).map(String::as_str)));
        in_namespace && has_uid && has_labels && (self.pods.is_empty() || self.pods.iter().any(named))
    }

    /// Whether a pod that is selected otherwise is meant, by the number of its network namespace, where that is known.
    pub(crate) fn selects_netns(&self, inode: Option<u64>) -> bool {
        self.netns.as_ref().is_none_or(|netns| inode == Some(netns.inode))
    }

    /// Both, of a pod that somebody has looked at.
    pub(crate) fn selects_report(&self, pod: &PodReport) -> bool {
        self.selects(&pod.pod(), &pod.labels) && self.selects_netns(pod.inode)
    }

    /// Whether all pods are meant.
    pub(crate) fn is_everything(&self) -> bool {
        let Self { pods, namespace, selector, uid, netns, .. } = self;
        let by_name = !pods.is_empty() || namespace.is_some() || uid.is_some();
        !by_name && selector.is_none() && netns.is_none()
    }

    /// What was asked for, for a message that there is no such pod.
    pub(crate) fn text(&self) -> String {
        let mut parts: Vec<String> = self.pods.clone();
        parts.extend(self.namespace.as_ref().map(|namespace| format!("namespace {namespace}")));
        parts.extend(self.uid.as_ref().map(|uid| format!("uid {uid}")));
        parts.extend(self.netns.as_ref().map(|netns| format!("network namespace {}", netns.path)));
        parts.extend(self.selector.as_ref().map(|_| "these labels".to_owned()));
        if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_said_has_to_hold() {
        let pod = PodRef { uid: "u1".to_owned(), ..PodRef::named("shop", "web") };
        let args = |pods: &[&str], namespace: Option<&str>, uid: Option<&str>| SelectArgs {
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
            namespace: namespace.map(str::to_owned),
            uid: uid.map(str::to_owned),
            ..SelectArgs::default()
        };
        let selects = |args: SelectArgs| args.selects(&pod, &BTreeMap::new());
        assert!(selects(SelectArgs::default()));
        assert!(selects(args(&["db", "web"], Some("shop"), Some("u1"))));
        assert!(selects(args(&["shop/web"], None, None)));
        assert!(!selects(args(&["other/web"], None, None)));
        assert!(!selects(args(&["web"], Some("other"), None)));
        assert!(!selects(args(&[], None, Some("u2"))));
        assert_eq!(args(&["web"], Some("shop"), None).text(), ": web, namespace shop");
    }
}
