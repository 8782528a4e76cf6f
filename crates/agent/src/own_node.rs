//! The node's own object. An agent with a name that no node has sees no pod, and seems to be well.

use std::sync::Arc;
use std::time::Duration;

use crate::health::HealthPart;
use crate::run::Agent;

/// Pause before the next look; each one is twice as long.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Looks for the node until it is there. An API server that may not or cannot be asked says nothing about the name.
pub(crate) async fn look(agent: Arc<Agent>) {
    let (node, Some(writer)) = (&agent.config.node, &agent.writer) else {
        return agent.health.ready(HealthPart::Node);
    };
    let (mut pause, mut missing) = (PAUSE, false);
    loop {
        match writer.has_node().await {
            Ok(true) => {
                agent.health.ready(HealthPart::Node);
                if missing {
                    agent.log.info("the API server knows this node now", &[("node", node)]);
                }
                return;
            }
            Ok(false) => {
                let text = format!(
                    "the API server has no node {node:?}, so that no pod of this node is seen; correct NODE_NAME of the DaemonSet (spec.nodeName)"
                );
                if !missing {
                    agent.log.error(&text, &[("node", node)]);
                }
                missing = true;
                agent.health.pending(HealthPart::Node, &text);
            }
            Err(error) => {
                if !missing {
                    agent.health.ready(HealthPart::Node);
                }
                // Also a 403: roles may come late.
                agent.log.debug(&error, &[]);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
