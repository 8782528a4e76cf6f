//! What the task of policies is asked, and how it answers.

use std::net::IpAddr;
use std::sync::Arc;

use facts::PodRef;
use policy::PolicyFlow;
use policy::snapshot::PolicySnapshot;
use rundir::denials::DenialRecord;
use tokio::sync::oneshot;

use super::denials::DenialBatch;
use super::point::{PointError, PointLook};
use super::sight::AttachedPod;
use super::state::{KnownPolicies, NotPrepared, PodToPrepare, PolicyState, PreparedPod};
use super::tenants::TenantOverview;
use super::tunnels::TunnelEntry;
use super::usage::UsageOverview;

/// What is to be done beside following what changed.
#[derive(Default)]
pub(super) struct PolicyTurn {
    pub(super) request: Option<PolicyRequest>,
    pub(super) sweeps: bool,
    pub(super) look: Option<PointLook>,
    pub(super) remembers: bool,
}

/// What plugins ask.
pub(super) enum PolicyRequest {
    Prepare(PodToPrepare, oneshot::Sender<Result<PreparedPod, NotPrepared>>),
    Release(PodRef, oneshot::Sender<()>),
    Look(AttachedPod, oneshot::Sender<()>),
    Snapshot(oneshot::Sender<Option<PolicySnapshot>>),
    /// And gives the batch back.
    Denied(DenialBatch, oneshot::Sender<(DenialBatch, Vec<DenialRecord>)>),
    /// Connections, and the own node's addresses.
    Judge(Vec<PolicyFlow>, Arc<[IpAddr]>, oneshot::Sender<Vec<bool>>),
    /// With so many pods at most.
    Known(usize, oneshot::Sender<Option<KnownPolicies>>),
    Tenants(oneshot::Sender<Option<TenantOverview>>),
    Usage(oneshot::Sender<Option<UsageOverview>>),
    Tunnel(TunnelRequest),
}

/// What ambient mode tells and asks of pods' tunnels.
pub(super) enum TunnelRequest {
    Enter(PodRef, TunnelEntry),
    Leave(PodRef, oneshot::Sender<()>),
    Await(PodRef, oneshot::Sender<()>),
}

impl PolicyTurn {
    /// Whether it changes nothing.
    pub(super) fn is_question(&self) -> bool {
        matches!(
            self.request,
            Some(
                PolicyRequest::Snapshot(_)
                    | PolicyRequest::Denied(..)
                    | PolicyRequest::Known(..)
                    | PolicyRequest::Tenants(_)
                    | PolicyRequest::Usage(_)
            )
        )
    }
}

impl PolicyState {
    /// Follows what changed, and answers.
    ///
    /// # Errors
    /// A kernel did not take all of it.
    pub(super) fn act(&mut self, turn: PolicyTurn) -> Result<(), PointError> {
        let PolicyTurn { request, sweeps, look, remembers } = turn;
        if sweeps {
            self.sweep();
        }
        if remembers {
            self.remember_late();
        }
        let look = if self.looks_again() { Some(PointLook::Everything) } else { look };
        let mut done = self.turn().and_then(|()| look.map_or(Ok(()), |look| self.verify(look)));
        match request {
            None => {}
            Some(PolicyRequest::Prepare(starting, answer)) => {
                let prepared = self.prepare(&starting);
                let is_prepared = prepared.is_ok();
                // Who asked may have gone meanwhile.
                let is_heard = answer.send(prepared).is_ok();
                match is_prepared && is_heard {
                    true => self.is_told(&starting.pod),
                    false => self.stays_guarded(&starting.pod),
                }
            }
            Some(PolicyRequest::Release(pod, answer)) => {
                self.release(&pod);
                let _ = answer.send(());
            }
            Some(PolicyRequest::Snapshot(answer)) => drop(answer.send(self.snapshot())),
            Some(PolicyRequest::Judge(flows, node, answer)) => drop(answer.send(self.judge(&flows, &node))),
            Some(PolicyRequest::Denied(batch, answer)) => {
                let records = self.denied(&batch);
                drop(answer.send((batch, records)));
            }
            Some(PolicyRequest::Tunnel(request)) => self.act_on_tunnel(request),
            Some(PolicyRequest::Tenants(answer)) => drop(answer.send(self.tenant_overview())),
            Some(PolicyRequest::Usage(answer)) => drop(answer.send(self.usage_overview())),
            Some(PolicyRequest::Known(most, answer)) => drop(answer.send(self.known(most))),
            Some(PolicyRequest::Look(at, answer)) => {
                done = done.and(self.look(&at));
                let _ = answer.send(());
            }
        }
        self.end_guards();
        done
    }

    fn act_on_tunnel(&mut self, request: TunnelRequest) {
        match request {
            TunnelRequest::Enter(pod, entry) => self.enter_tunnel(&pod, entry),
            TunnelRequest::Leave(pod, answer) => {
                self.leave_tunnel(&pod);
                let _ = answer.send(());
            }
            TunnelRequest::Await(pod, answer) => self.await_tunnel(&pod, answer),
        }
    }
}
