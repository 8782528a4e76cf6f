//! The setting by which connections that were open when rules came go on past ztunnel (`nf_conntrack_tcp_loose`): it goes back when the last of them has
//! ended. While one is open it stays: otherwise its next packet would count as a new connection's first one, and be redirected.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use intent::Want;

use super::members::{Member, MemberState};
use super::ports::Disk as _;
use super::{Ambient, failpoint};
use crate::slots::Task;
use crate::spare;

/// How often it is looked. The kernel walks through all entries of the machine for an answer.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

impl Ambient {
    /// Once in an hour, sets back what no open connection of a pod needs any more.
    pub(super) async fn restore_tracking_where_it_can_be(&self) {
        {
            let mut looked = self.life.tracking_looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.get_or_insert_with(Instant::now).elapsed() < failpoint::or_in_tests(LOOK_AGAIN) {
                return;
            }
            *looked = Some(Instant::now());
        }
        let is_strict = |member: &Member| {
            // Connections of guests have no socket in the pod that would show.
            let guests = !member.options.virtual_interfaces.is_empty();
            member.have.strict && member.state == MemberState::Enrolled && !guests
        };
        for Member { key, .. } in self.pods.members.all().into_iter().filter(is_strict) {
            let _turn = self.pods.members.turn(&key.uid).await;
            let Some(member) = self.pods.members.get(&key.uid).filter(is_strict) else { continue };
            let Some(netns) = member.netns.clone() else { continue };
            let asked = self.in_pod(&key, Task::Connections, move || netns.enter(spare::is_needed)).await;
            match asked {
                Ok(Ok(Ok(true))) => continue,
                Ok(Ok(Ok(false))) => {}
                // It stays as it is until the next look.
                Ok(Ok(Err(error))) => {
                    self.log.debug(error, &[("pod", &key)]);
                    continue;
                }
                Ok(Err(_)) | Err(_) => continue,
            }
            let mut work = self.work_on(member);
            match work.carry_out(&Want::Tracked, false).await {
                Ok(_) => {
                    self.keep(work.member()).await;
                    let text = "no connection of a pod is open any more that was before its rules; all are tracked again";
                    self.log.info(text, &[("pod", &key)]);
                }
                Err(stopped) => self.log.warn(stopped.failure, &[("pod", &key)]),
            }
        }
    }
}
