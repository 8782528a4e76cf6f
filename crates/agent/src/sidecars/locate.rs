//! Where sidecar pods are: their network namespaces, which the agent finds by the pods' processes.

use std::sync::Arc;

use ::verification::UnverifiableReason;
use capture::decide::{CaptureMode, refuse};
use facts::Object;
use netns::Netns;
use netns::find::{MissingNetns, SearchRoots, WantedPod};

use super::Sidecars;
use super::pods::{NotLocated, SandboxPlace, SidecarPod};
use crate::finder::{FindFailure, is_still, wanted_netns};

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
    pub(super) fn wanted_netns(&self, pod: &Object) -> WantedPod {
        wanted_netns(pod, &self.parts.kernel_network_runtime_classes)
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
        let wanted = self.wanted_netns(pod);
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
        let index = self.parts.cluster.index();
        let pods = unknown.filter_map(|pod| index.pod(&pod.key.namespace, &pod.key.name));
        pods.map(|pod| self.wanted_netns(pod)).filter(|pod| !pod.ips.is_empty()).collect()
    }
}
