//! What a pod has open when capture comes to it: such connections go on past ztunnel, as they are.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::net::SocketAddr;

use capture::ambient::CAPTURE_PORTS;
use kernel::sockets::Sockets;
use kernel::{Applied, conntrack};
use netns::Inside;

use super::Ambient;
use super::enrol::pod_text;
use super::failure::Failure;
use super::members::Member;

impl Ambient {
    /// What a running pod has open goes on as it is; without this its next packet would be taken for the first of a connection, and
    /// redirected. What connection tracking remembers of an earlier time in the mesh would lead it to ztunnel, too, if it has the addresses
    /// and ports of then.
    pub(super) async fn spare_open_connections(&self, member: &mut Member) {
        let Some(netns) = member.netns.clone() else { return };
        let mut changed = member.clone();
        changed.strict = true;
        let changed = changed.record();
        let (records, mut texts) = (self.records.clone(), Vec::new());
        let spare = move || {
            netns.enter(|inside| {
                let stale = forget_stale(inside).err();
                let strict = conntrack::is_strict(inside).and_then(|strict| match strict {
                    Some(false) => {
                        // What it was is on disk before it changes: whoever takes the rules away puts it back.
                        let unrecorded = records.write(changed).err().map(|error| error.to_string());
                        Ok((conntrack::set_strict(inside, true)?, unrecorded))
                    }
                    _ => Ok((false, None)),
                });
                (strict, stale)
            })
        };
        match tokio::task::spawn_blocking(spare).await {
            Ok(Ok((strict, stale))) => {
                match strict {
                    Ok((changed, unrecorded)) => {
                        member.strict |= changed;
                        texts.extend(unrecorded);
                    }
                    Err(error) => texts.push(error.to_string()),
                }
                texts.extend(stale);
            }
            Ok(Err(error)) => texts.push(error.to_string()),
            Err(error) => texts.push(error.to_string()),
        }
        for text in texts {
            // The pod is taken in all the same: it loses what it has open, as with the original.
            self.log.warn(&text, &[("pod", &pod_text(&member.key))]);
        }
    }

    /// Puts right what differs from the plan in the pod's namespace, which spares what was opened while capture was lost. Nothing if
    /// nothing differs.
    pub(super) async fn repair(&self, member: &mut Member) -> Result<Option<Applied>, Failure> {
        if self.differences(member).await?.is_empty() {
            return Ok(None);
        }
        self.spare_open_connections(member).await;
        self.program(member).await
    }

    /// Lets the namespace pick up connections that are met half-way again, if this agent or one before it has changed that.
    pub(super) async fn pick_up_again(&self, member: &mut Member) -> Result<(), Failure> {
        let Some(netns) = member.netns.clone().filter(|_| member.strict) else { return Ok(()) };
        let set = move || netns.enter(|inside| conntrack::set_strict(inside, false));
        let set = tokio::task::spawn_blocking(set).await??;
        set.map_err(|error| Failure::Cleanup(error.to_string()))?;
        member.strict = false;
        Ok(())
    }
}

/// Removes what connection tracking knows of connections through ztunnel that have ended. Those that ztunnel has stay translated.
fn forget_stale(inside: &Inside) -> Result<usize, String> {
    let open: OnceCell<Option<HashSet<(SocketAddr, u16)>>> = OnceCell::new();
    let stays = |entry: &conntrack::Redirected| {
        let open = open.get_or_init(|| {
            let found = Sockets::open(inside).and_then(|mut sockets| sockets.list(0..=u16::MAX)).ok()?;
            Some(found.iter().map(|one| (one.peer, one.local.port())).collect())
        });
        // Where that is not known, everything stays.
        open.as_ref().is_none_or(|open| open.contains(&(entry.client, entry.port)))
    };
    conntrack::forget(inside, &CAPTURE_PORTS, stays).map_err(|error| kernel::chain_text(&error))
}
