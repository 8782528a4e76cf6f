//! The executor's ports that need few lines: connections, ztunnels, the node's sets, annotations, records on disk.

use std::net::IpAddr;

use capture::ambient::CAPTURE_PORTS;
use facts::PodRef;
use intent::{RedirectionMark, Rules};
use kernel::conntrack;
use netns::{Inside, Netns};

use super::Ambient;
use super::desired::{REDIRECTION, value_of};
use super::drain::through_ztunnel;

use super::failure::AmbientFailure;
use super::members::Member;
use super::ports::{AnnotationPort, Connections, Disk, Next, NodeSets, NodeZtunnels};
use super::record::{PodRecord, RecordError};
use crate::drains::{Wait, end_connections};
use crate::slots::{Task, UnfinishedAct};

/// Why what goes through ztunnel could not be looked at or ended.
type NotEnded = Result<Result<Result<usize, String>, netns::Error>, UnfinishedAct>;

impl Connections for Ambient {
    fn wait(&self, member: &Member) -> Next {
        let drains = matches!(member.have.rules, Rules::Drain { .. });
        if !drains || self.drain_left(member).is_zero() {
            return Next::Now;
        }
        match self.pods.drains.of(&member.key.uid) {
            Wait::Over => return Next::Now,
            Wait::Open => {}
            Wait::None => self.start_drain(member),
        }
        Next::Later
    }

    async fn end(&self, member: &Member) {
        let end = |inside: &Inside| end_connections(inside, &through_ztunnel()).map_err(|e| fault::chain(&e));
        match self.with_connections(member, end).await {
            Ok(0) => {}
            Ok(ended) => {
                self.metrics.connections_ended(ended);
                let text = "connections through ztunnel were ended: the pod's time to drain is over";
                let labels: [telemetry::Label<'_>; 2] = [("pod", &member.key), ("connections", &ended)];
                self.log.warn(text, &labels);
            }
            Err(error) => self.log.warn(
                "connections through ztunnel could not be ended; those that ztunnel leaves open hang",
                &[("pod", &member.key), ("error", &error)],
            ),
        }
    }

    async fn forget_entries(&self, member: &Member) {
        let forget = |inside: &Inside| {
            conntrack::forget(inside, &CAPTURE_PORTS, |_| false).map_err(|e| fault::chain(&e))
        };
        if let Err(error) = self.with_connections(member, forget).await {
            // The way back in looks for them, too.
            self.log.warn(&error, &[("pod", &member.key)]);
        }
    }
}

impl NodeZtunnels for Ambient {
    async fn tell(&self, member: &Member) -> Result<(), AmbientFailure> {
        let Some(netns) = member.netns.clone() else { return Ok(()) };
        Ok(self.pods.ztunnels.add(member.workload(), netns).await?)
    }

    async fn release(&self, uid: &str) -> Result<(), AmbientFailure> {
        Ok(self.pods.ztunnels.remove(uid).await?)
    }
}

impl NodeSets for Ambient {
    fn add_probes(&self, ips: &[IpAddr], uid: &str) -> Result<(), AmbientFailure> {
        self.host()?.add(ips, uid)
    }

    fn remove_probes(&self, ips: &[IpAddr], uid: &str) -> Result<(), AmbientFailure> {
        self.host()?.remove(ips, uid)
    }
}

impl AnnotationPort for Ambient {
    async fn annotate(&self, pod: &PodRef, mark: Option<RedirectionMark>) -> Result<(), AmbientFailure> {
        let Some(writer) = &self.writer else { return Ok(()) };
        match writer.annotate_pod(pod, REDIRECTION, mark.map(value_of)).await {
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
            result => Ok(result?),
        }
    }
}

impl Disk for Ambient {
    async fn keep(&self, member: &Member) {
        let (records, record) = (self.kept.records.clone(), self.record_of(member));
        self.on_disk(member, move || records.write(record)).await;
    }

    async fn forget(&self, member: &Member) {
        self.pods.drains.stop(&member.key.uid);
        let (records, uid) = (self.kept.records.clone(), member.key.uid.clone());
        self.on_disk(member, move || records.remove(&uid)).await;
    }
}

impl Ambient {
    /// What the next agent is to know of a pod.
    pub(super) fn record_of(&self, member: &Member) -> PodRecord {
        let mut record = member.record();
        let branches = self.node.host.get().map(|host| host.branches(member.ips())).unwrap_or_default();
        record.branches = branches.into_iter().map(Into::into).collect();
        record
    }

    async fn with_connections(
        &self,
        member: &Member,
        work: impl FnOnce(&Inside) -> Result<usize, String> + Send + 'static,
    ) -> Result<usize, String> {
        let Some(netns) = member.netns.clone() else { return Ok(0) };
        let done: NotEnded =
            self.in_pod(&member.key, Task::Connections, move || Netns::enter(&netns, work)).await;
        match done {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn on_disk(
        &self,
        member: &Member,
        work: impl FnOnce() -> Result<(), RecordError> + Send + 'static,
    ) {
        let error: String = match tokio::task::spawn_blocking(work).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.log.warn(&error, &[("pod", &member.key)]);
    }
}
