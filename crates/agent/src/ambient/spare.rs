//! What a pod has open when capture comes to it: such connections go on past ztunnel, as they are.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use capture::ambient::CAPTURE_PORTS;
use intent::Observation;
use kernel::conntrack;
use kernel::sockets::Sockets;
use netns::Inside;

use super::Ambient;
use super::members::Member;
use super::record::{PodRecord, Records};

/// How open connections are spared while rules come. Without it the next packet of one would be taken for the first of a connection, and
/// redirected. What connection tracking remembers of an earlier time in the mesh would lead one to ztunnel, too, if it has the addresses and
/// ports of then.
pub(super) struct Sparing {
    records: Arc<Records>,
    /// What is on disk before the setting changes: whoever takes the rules away puts it back.
    changed: PodRecord,
    /// Traffic of guests passes through the namespace and has no socket there that would show.
    guests: bool,
}

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Spared {
    /// The namespace was told not to pick up connections that it has not seen begin, and is left so.
    pub(super) strict: bool,
    /// What could not be done. The pod is taken in all the same: it loses what it has open, as with the original.
    pub(super) warnings: Vec<String>,
}

// === impl Sparing ===

impl Sparing {
    pub(super) fn of(ambient: &Ambient, member: &Member) -> Self {
        let mut changed = member.clone();
        changed.have.see(Observation::Strict);
        let guests = !member.options.virtual_interfaces.is_empty();
        Self { records: ambient.kept.records.clone(), changed: changed.record(), guests }
    }

    /// Just before the rules come.
    pub(super) fn begin(self, inside: &Inside) -> (Self, Spared) {
        let mut spared = Spared::default();
        spared.warnings.extend(forget_stale(inside).err());
        let strict = conntrack::is_strict(inside).and_then(|strict| {
            if strict != Some(false) {
                return Ok(false);
            }
            spared.warnings.extend(self.records.write(self.changed.clone()).err().map(|e| e.to_string()));
            conntrack::set_strict(inside, true)
        });
        match strict {
            Ok(strict) => spared.strict = strict,
            Err(error) => spared.warnings.push(error.to_string()),
        }
        (self, spared)
    }

    /// When they are there, or could not be had. Where nothing was open the setting goes back at once; who cannot tell leaves it as it is, until
    /// the pod leaves.
    pub(super) fn end(&self, inside: &Inside, rules_loaded: bool, spared: &mut Spared) {
        if spared.strict && (!rules_loaded || !self.guests && nothing_is_open(inside)) {
            spared.strict = conntrack::set_strict(inside, false).is_err();
        }
    }
}

/// Whether no connection has its one end here and its other elsewhere.
fn nothing_is_open(inside: &Inside) -> bool {
    let open = Sockets::open(inside).and_then(|mut sockets| sockets.list(0..=u16::MAX));
    open.is_ok_and(|open| open.iter().all(|one| one.peer.ip().is_loopback()))
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
        open.as_ref().is_none_or(|open| open.contains(&(entry.seen_as, entry.port)))
    };
    conntrack::forget(inside, &CAPTURE_PORTS, stays).map_err(|error| fault::chain(&error))
}
