//! Where sidecar pods are: their network namespaces, which the agent finds by the pods' processes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ::verification::UnverifiableReason;
use capture::decide::{CaptureMode, refuse};
use facts::Object;
use netns::Netns;
use netns::find::{MissingNetns, SearchRoots, WantedPod};

use super::Sidecars;
use super::pods::{NotLocated, SandboxPlace, SidecarPod};
use crate::finder::{FindFailure, is_still, wanted_netns};

/// Addresses of pods by their names.
type NotedAddresses = HashMap<String, Vec<IpAddr>>;

impl Sidecars {
    /// Where namespaces are looked for.
    pub(super) fn roots(&self) -> Result<SearchRoots, NotLocated> {
        let proc_root = self.parts.proc_root.clone();
        let host = Netns::open(proc_root.join("1/ns/net")).map_err(|error| {
            let text = format!(
                "{}; verification in sidecar mode needs the node's /proc and the capabilities of the chart's value verification.enabled",
                fault::chain(&error)
            );
            NotLocated::new(UnverifiableReason::Permission, &text)
        })?;
        Ok(SearchRoots { proc_root, host: host.id() })
    }

    /// How a pod's namespace is found.
    pub(super) fn wanted_netns(&self, pod: &Object, noted: &NotedAddresses) -> WantedPod {
        let mut wanted = wanted_netns(pod, &self.parts.kernel_network_runtime_classes);
        if wanted.ips.is_empty()
            && let Some(ips) = noted.get(&pod.pod_ref().to_string())
        {
            wanted.ips.clone_from(ips);
        }
        wanted
    }

    /// The addresses of the pods of manifests, of which no API server says any: those with which the plugin was called, by `namespace/name`. That one of
    /// them is in the namespace is looked at all the same.
    pub(super) fn noted_addresses(&self) -> NotedAddresses {
        if self.parts.writer.is_some() {
            return NotedAddresses::new();
        }
        let mut records = applied::attachments(&self.parts.run_dir).unwrap_or_default();
        // Of several the last one counts.
        records.sort_by_key(|record| record.written);
        records.into_iter().map(|record| (record.origin.pod, record.origin.addresses)).collect()
    }

    /// The namespace of a pod: the one that is known, where it is still the pod's, or else the one of its processes.
    pub(super) async fn locate_pod(
        &self,
        known: &SidecarPod,
        pod: &Object,
    ) -> Result<(Arc<Netns>, SearchRoots), NotLocated> {
        let classes = &self.parts.kernel_network_runtime_classes;
        refuse(CaptureMode::Sidecar, pod.runtime_class(), classes, &[])
            .map_err(|refusal| NotLocated::new(UnverifiableReason::Sandbox, &refusal))?;
        let roots = self.roots()?;
        if let SandboxPlace::At(sandbox) = &known.place
            && is_still(&sandbox.netns)
        {
            return Ok((sandbox.netns.clone(), roots));
        }
        let wanted = self.wanted_netns(pod, &self.noted_addresses());
        if wanted.ips.is_empty() {
            return Err(NotLocated::missing(&MissingNetns::NoAddress, pod));
        }
        let found = self.finder.find(&roots, wanted, || self.without_netns()).await;
        let found = match found {
            Ok(netns) => netns,
            Err(FindFailure::Missing(missing)) => return Err(NotLocated::missing(&missing, pod)),
            Err(error @ FindFailure::Panicked(_)) => {
                return Err(NotLocated::new(UnverifiableReason::Kernel, &error));
            }
        };
        Ok((Arc::new(found), roots))
    }

    /// Pods that should be captured and whose namespaces are not known.
    fn without_netns(&self) -> Vec<WantedPod> {
        let all = self.pods.all();
        let unknown = all.iter().filter(|pod| !matches!(pod.place, SandboxPlace::At(_)));
        let (noted, index) = (self.noted_addresses(), self.parts.cluster.index());
        let pods = unknown.filter_map(|pod| index.pod(&pod.key.namespace, &pod.key.name));
        pods.map(|pod| self.wanted_netns(pod, &noted)).filter(|pod| !pod.ips.is_empty()).collect()
    }
}
