//! Pods that can get past rules in their own network namespaces: who has CAP_NET_ADMIN can remove them, and what is sent with CAP_NET_RAW meets none. At
//! the node's rules neither is of use. It is seen by the pods' processes, whatever their specification says.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use facts::PodRef;
use netns::NetnsId;
use policy::index::LocalName;

use super::PodPointKeeper;
use crate::finder::wanted_netns;

/// How often it is looked, and how soon after rules have come into a pod: its processes come later than these.
const LOOK: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(1);
/// `reason` of an Event about a pod.
const WEAK: &str = "NetworkPolicyWeakPod";
/// `CAP_NET_ADMIN` and `CAP_NET_RAW` of linux/capability.h.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;

/// A pod with rules inside.
struct InsidePod {
    key: PodRef,
    /// In the names of its control groups.
    group: String,
    /// The capabilities that get past its rules.
    counts: u64,
}

impl PodPointKeeper {
    /// Looks until it is aborted.
    pub(super) async fn watch_weak(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.more_inside.notified() => tokio::time::sleep(SOON).await,
            }
            let pods = self.inside_pods();
            let keys: BTreeSet<PodRef> = pods.values().map(|pod| pod.key.clone()).collect();
            let found = if pods.is_empty() {
                BTreeMap::new()
            } else {
                let proc_root = self.parts.proc_root.clone();
                let scan = tokio::task::spawn_blocking(move || scan(&proc_root, &pods));
                // Without procfs no pod is found, either.
                let Ok(Ok(found)) = scan.await else { continue };
                found
            };
            self.tell_weak(found, &keys);
        }
    }

    /// By the namespaces that they are in.
    fn inside_pods(&self) -> BTreeMap<NetnsId, InsidePod> {
        let names: Vec<(LocalName, bool)> =
            self.book().inside().map(|(name, sends)| (name.clone(), sends)).collect();
        let index = self.parts.cluster.index();
        let pods = names.into_iter().filter_map(|(name, sends)| {
            let pod = index.pod(&name.namespace, &name.name)?;
            let netns = self.tunnelled(&name).or_else(|| self.places().get(&name).cloned())?;
            let wanted = wanted_netns(pod, &self.parts.kernel_network_runtime_classes);
            let group = wanted.cgroup.unwrap_or(wanted.uid);
            let counts = if sends { NET_ADMIN | NET_RAW } else { NET_ADMIN };
            (!group.is_empty()).then(|| (netns.id(), InsidePod { key: pod.pod_ref(), group, counts }))
        });
        pods.collect()
    }

    /// Counts them, and tells of each once.
    fn tell_weak(&self, found: BTreeMap<PodRef, u64>, inside: &BTreeSet<PodRef>) {
        let having = |one: u64| found.values().filter(|held| **held & one != 0).count();
        self.parts.metrics.policy_weak([("net_admin", having(NET_ADMIN)), ("net_raw", having(NET_RAW))]);
        let mut told = self.weak();
        for (pod, held) in &found {
            if told.get(pod).is_some_and(|before| before & held == *held) {
                continue;
            }
            let text = format!(
                "policies of this pod are enforced in its own network namespace, and it has {}; drop the capability, or let the node's rules see the pod's packets",
                what_for(*held)
            );
            self.parts.log.warn(&text, &[("pod", pod)]);
            let (events, pod) = (self.parts.events.clone(), pod.clone());
            tokio::spawn(async move { events.warn(&pod, WEAK, &text).await });
        }
        // A process that has it may go and come again.
        told.retain(|pod, _| inside.contains(pod));
        for (pod, held) in found {
            *told.entry(pod).or_default() |= held;
        }
    }
}

fn what_for(held: u64) -> &'static str {
    match (held & NET_ADMIN != 0, held & NET_RAW != 0) {
        (true, true) => {
            "NET_ADMIN, by which it can remove their rules until these are put right, and NET_RAW, by which it can send past them"
        }
        (true, false) => "NET_ADMIN, by which it can remove their rules until these are put right",
        (false, _) => "NET_RAW, by which it can send past their rules",
    }
}

/// What processes of these pods can do that gets past rules, of those that can.
fn scan(proc_root: &Path, pods: &BTreeMap<NetnsId, InsidePod>) -> std::io::Result<BTreeMap<PodRef, u64>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(proc_root)? {
        let Ok(entry) = entry else { continue };
        if !entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let dir = entry.path();
        // A process may end at any time.
        let Ok(netns) = std::fs::metadata(dir.join("ns/net")) else { continue };
        let Some(pod) = pods.get(&NetnsId { dev: netns.dev(), ino: netns.ino() }) else { continue };
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        // Somebody of the node may have entered the namespace.
        if !is_of(&read("cgroup"), &pod.group) {
            continue;
        }
        let held = reachable(&read("status")) & pod.counts;
        if held != 0 {
            *found.entry(pod.key.clone()).or_default() |= held;
        }
    }
    Ok(found)
}

fn is_of(cgroup: &str, group: &str) -> bool {
    // With systemd's names there is no hyphen.
    cgroup.contains(group) || cgroup.contains(&group.replace('-', "_"))
}

/// The capabilities that a process has, or comes to by a program that has some, such as `ping`, where it may gain any.
fn reachable(status: &str) -> u64 {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let number = |name| field(name).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    let gains = field("NoNewPrivs:") != Some("1");
    number("CapPrm:") | if gains { number("CapBnd:") } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// By what the kernel says of processes.
    #[test]
    fn it_is_seen_what_a_process_can_come_to() {
        let status = |words: &str| {
            let mut words = words.split(' ');
            let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        for (how, held) in [
            ("cat /proc/self/status", NET_ADMIN | NET_RAW),
            ("setpriv --bounding-set -net_admin --inh-caps -all cat /proc/self/status", NET_RAW),
            ("setpriv --bounding-set -all --inh-caps -all cat /proc/self/status", 0),
            // Without rights, and with a program that has some; and where no program gives any.
            ("setpriv --reuid 1000 --clear-groups --bounding-set -net_admin cat /proc/self/status", NET_RAW),
            ("setpriv --reuid 1000 --clear-groups --no-new-privs cat /proc/self/status", 0),
        ] {
            let status = status(how);
            assert!(status.contains("CapBnd:"), "{how}: {status}");
            assert_eq!(reachable(&status) & (NET_ADMIN | NET_RAW), held, "{how}: {status}");
        }
        assert_eq!(reachable(""), 0);
    }
}
