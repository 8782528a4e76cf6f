//! What an agent of before counted, where nothing is counted any more.

use std::time::Duration;

use policy::index::LocalName;

use super::records::UsageRecords;
use super::{UsageParts, seconds, told};

/// How long until it is tried again in pods that kept what counts.
const AGAIN: Duration = Duration::from_secs(10);
/// How often. What stays then goes with the pod, or with the next agent.
const MOST_TRIES: usize = 6;

/// Removes what counts from the pods of this node, and writes down what is known of the hour.
pub(in crate::policy) async fn leave(parts: UsageParts) {
    while !parts.cluster.state().synced {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut last = Vec::new();
    for tries in 0..MOST_TRIES {
        if tries > 0 {
            tokio::time::sleep(AGAIN).await;
        }
        last = left_in(&parts).await;
        if last.is_empty() {
            let mut records =
                UsageRecords::open(parts.dir.clone(), &parts.node, parts.log.clone(), seconds());
            records.finish(seconds()).await;
            return parts.log.info("the traffic of tenants' pods is not counted any more", &[]);
        }
    }
    for (name, error) in last {
        let text = "a pod keeps what counted its traffic, which is not read any more";
        parts.log.warn(text, &[("pod", &told(&name)), ("error", &error)]);
    }
}

/// The pods that may have something still, and why.
async fn left_in(parts: &UsageParts) -> Vec<(LocalName, String)> {
    let pods: Vec<_> = {
        let index = parts.cluster.index();
        index.pods().filter(|pod| !pod.host_network() && !pod.is_terminal()).cloned().collect()
    };
    let name = |pod: &facts::Object| LocalName { namespace: pod.namespace().into(), name: pod.name().into() };
    let names: Vec<LocalName> = pods.iter().map(|pod| name(pod)).collect();
    parts.keeper.look_for(names.iter().zip(pods.iter().map(|pod| &**pod)).collect()).await;
    let mut left = Vec::new();
    for (name, pod) in names.into_iter().zip(&pods) {
        if let Err(error) = parts.clear(&name, pod).await {
            left.push((name, fault::chain(&error)));
        }
    }
    left
}
