//! Finds the networks of pods of which it is to be tested whether the node sees their packets.

use std::sync::Arc;
use std::time::Duration;

use cluster::Cluster;
use enforcement::{AttachedPod, Policies};
use kernel::pair::PodInterface;
use policy::index::LocalName;

use super::pod_point::PodPointKeeper;

/// How soon it is looked again for a pod whose network was not found: its processes may come.
const AGAIN: Duration = Duration::from_secs(5);

/// Looks until policies are not enforced any more.
pub(crate) async fn live(policies: Policies, keeper: Arc<PodPointKeeper>, cluster: Cluster) {
    let mut untested = policies.untested();
    loop {
        let pods = untested.borrow_and_update().clone();
        for pod in &pods {
            // A pod that cannot be found is asked for again, and its plugin tells of one that starts.
            if let Some(at) = find(pod, &keeper, &cluster).await {
                policies.look(at).await;
            }
        }
        let wait = untested.changed();
        match tokio::time::timeout(AGAIN, wait).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(_)) => return,
        }
    }
}

async fn find(name: &LocalName, keeper: &PodPointKeeper, cluster: &Cluster) -> Option<AttachedPod> {
    let object = cluster.index().pod(&name.namespace, &name.name).cloned();
    let object = object.filter(|pod| !pod.is_terminal() && !pod.host_network())?;
    let (netns, _) = keeper.locate(name, Some(&object)).await.ok()?;
    let addresses = object.ips();
    let interface = PodInterface::With(addresses.clone());
    Some(AttachedPod { pod: name.clone(), netns, interface, addresses, is_starting: false })
}
