//! Where the pods of manifests are, as the plugin noted it: a manifest says nothing of the pod that runs by it.

use applied::sandbox::{self, Sandbox};
use facts::PodRef;
use netns::Netns;

use super::Ambient;

impl Ambient {
    /// The pod's last sandbox that is not seen to be gone; none where an API server tells of pods.
    pub(super) async fn sandbox_of(&self, key: &PodRef) -> Option<Sandbox> {
        if !self.manifests {
            return None;
        }
        let (run_dir, pod) = (self.kept.run_dir.clone(), key.to_string());
        let noted = tokio::task::spawn_blocking(move || sandbox::of_pod(&run_dir, &pod)).await;
        let noted: String = match noted {
            Ok(Ok(noted)) => return noted.into_iter().find(|sandbox| !self.is_over(sandbox)),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.log.warn(&noted, &[("pod", key)]);
        None
    }

    /// Whether this agent sees where the sandbox's file was, and not the file.
    fn is_over(&self, sandbox: &Sandbox) -> bool {
        let path = self.config.on_node(&sandbox.path.to_string_lossy());
        match Netns::open(&path) {
            Ok(netns) => netns.id() != sandbox.origin.netns,
            Err(error) => error.is_missing() && path.parent().is_some_and(std::path::Path::is_dir),
        }
    }
}
