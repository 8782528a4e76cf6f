//! The agent's ports and unix sockets: who answers there, from their beginning to their end.

use std::path::Path;
use std::sync::Arc;

use serve::{Gone, Handler, UnixSocket};
use tokio::task::JoinSet;

use super::{Agent, Error, LAST_ANSWERS, RETRY};
use crate::ambient::{self, EventSocket};
use crate::backend::NodeBackend;
use crate::health::HealthPart;
use crate::log_socket::{self, LogSocket};
use crate::node_lock::OTHER_AGENT;
use crate::plugin_socket::{self, PluginSocket};
use crate::pods_report::PodsReporter;
use crate::policy_socket::PolicySocket;
use crate::samples::PodsSamples;
use crate::{policy_file, ports};

impl Agent {
    pub(super) fn serve_ports(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        if let Some(address) = self.config.health {
            tasks.spawn(ports::serve(self.clone(), "health-port", address, self.health.clone()));
        }
        if let Some(address) = self.config.monitoring {
            tasks.spawn(ports::serve(self.clone(), "monitoring-port", address, self.metrics.clone()));
        }
    }

    pub(super) fn serve_sockets(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        sockets: &mut JoinSet<()>,
    ) -> Result<(), Error> {
        let lines = self.journal.scope("cni-plugin");
        let lines =
            LogSocket::start(lines, self.log.clone(), self.metrics.clone()).map_err(Error::Runtime)?;
        let host_root = &self.config.host_root;
        let backend = Arc::new(NodeBackend::new(
            self.health.clone(),
            self.log.clone(),
            host_root,
            self.config.install.entry.native_nftables,
        ));
        tasks.spawn(backend.clone().live());
        let policies = self.policy_answers();
        if let Some(policies) = &policies {
            let log = self.journal.scope("policies");
            tasks.spawn(policy_file::live(self.config.state_dir.clone(), policies.clone(), log));
        }
        let samples = Arc::new(PodsSamples::default());
        tasks.spawn(samples.clone().live(self.verifier.clone()));
        let plugins = PluginSocket {
            cluster: self.cluster.clone(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            sidecars: self.sidecars.clone(),
            backend,
            ambient: self.ambient.clone(),
            verifier: self.verifier.clone(),
            pods: PodsReporter {
                cluster: self.cluster.clone(),
                sidecars: self.sidecars.clone(),
                verifier: self.verifier.clone(),
            },
            policies: PolicySocket(policies, self.denials.as_ref().map(|denials| denials.book().clone())),
            samples,
            journal: self.journal.clone(),
            log: self.log.clone(),
        };
        sockets.spawn(self.clone().socket(plugin_socket::MODE, HealthPart::PluginSocket, plugins));
        sockets.spawn(self.clone().socket(log_socket::MODE, HealthPart::LogSocket, lines));
        if !self.config.ambient.is_off {
            let events = EventSocket { ambient: self.ambient.clone() };
            sockets.spawn(self.clone().socket(ambient::MODE, HealthPart::EventSocket, events));
        }
        Ok(())
    }

    /// Serves a unix socket, as soon as it can be had, and again when somebody has removed it, until the agent ends.
    async fn socket<H: Handler>(self: Arc<Self>, mode: u32, part: HealthPart, handler: H) {
        tokio::select! {
            biased;
            () = self.clone().serve_socket(mode, part, handler) => {}
            // Where it is not served there is nobody to answer.
            () = async {
                self.is_ending().await;
                tokio::time::sleep(LAST_ANSWERS).await;
            } => {}
        }
    }

    async fn is_ending(&self) {
        // The sender lives as long as the agent.
        let _ = self.ends.subscribe().wait_for(|ends| *ends).await;
    }

    async fn serve_socket<H: Handler>(self: Arc<Self>, mode: u32, part: HealthPart, handler: H) {
        let path = self.config.run_dir.join(H::NAME);
        let handler = Arc::new(handler);
        loop {
            match UnixSocket::bind(&path, mode) {
                Ok(socket) => {
                    self.health.ready(part);
                    self.log.settled(&[("path", &path.display())]);
                    match socket.serve(handler.clone(), self.metrics.clone(), self.is_ending()).await {
                        Gone::Ended => return,
                        Gone::Removed => self.log.warn(
                            "another process removed a socket; it is made again",
                            &[("path", &path.display())],
                        ),
                        Gone::Replaced => self.wait_for_path(&path, part).await,
                    }
                }
                Err(error) => {
                    self.log.error(&error, &[("path", &path.display())]);
                    self.health.pending(part, &error);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Somebody else listens where plugins look for this agent: an agent of the original, which holds no lock. Taking the path back would be
    /// a fight, so this waits until nobody listens there.
    async fn wait_for_path(self: &Arc<Self>, path: &Path, part: HealthPart) {
        let text = format!(
            "another agent has put its own socket at {}; it holds no lock, so it is not one of this version. Remove one of the two DaemonSets; \
             this agent listens again when the other one has ended",
            path.display()
        );
        self.log.error(&text, &[("path", &path.display())]);
        self.health.pending(part, &text);
        let (agent, message) = (self.clone(), text);
        tokio::spawn(async move { agent.events.warn_own(OTHER_AGENT, &message).await });
        while UnixSocket::is_served(path) {
            tokio::time::sleep(RETRY).await;
        }
        self.log.info("the other agent's socket is not served any more", &[("path", &path.display())]);
    }
}
