//! What a pod has open when capture comes to it: such connections go on past ztunnel or the sidecar, as they are.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::net::SocketAddr;

use kernel::conntrack;
use kernel::sockets::Sockets;
use netns::Inside;

/// How open connections are spared while rules come. Without it the next packet of one would be taken for the first of a connection, and
/// redirected. What connection tracking remembers of an earlier capture would lead one to the proxy, too, if it has the addresses and ports of
/// then.
pub(crate) struct Sparing {
    /// Writes down that the setting is about to change: whoever takes the rules away puts it back. What it gives is why it could not.
    pub(crate) note: Box<dyn FnOnce() -> Option<String> + Send>,
    /// Ports to which the rules redirect.
    pub(crate) ports: Vec<u16>,
    /// Traffic of guests passes through the namespace and has no socket there that would show.
    pub(crate) guests: bool,
}

/// What is left to do when the rules are there, or could not be had.
pub(crate) struct Begun {
    guests: bool,
}

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Spared {
    /// The namespace was told not to pick up connections that it has not seen begin, and is left so.
    pub(crate) strict: bool,
    /// What could not be done. The pod is taken in all the same: it loses what it has open, as with the original.
    pub(crate) warnings: Vec<String>,
}

// === impl Sparing ===

impl Sparing {
    /// Just before the rules come.
    pub(crate) fn begin(self, inside: &Inside) -> (Begun, Spared) {
        let mut spared = Spared::default();
        let Self { note, ports, guests } = self;
        spared.warnings.extend(forget_stale(inside, &ports).err());
        let strict = conntrack::is_strict(inside).and_then(|strict| {
            if strict != Some(false) {
                return Ok(false);
            }
            spared.warnings.extend(note());
            conntrack::set_strict(inside, true)
        });
        match strict {
            Ok(strict) => spared.strict = strict,
            Err(error) => spared.warnings.push(error.to_string()),
        }
        (Begun { guests }, spared)
    }
}

// === impl Begun ===

impl Begun {
    /// When they are there, or could not be had. Where nothing was open the setting goes back at once; who cannot tell leaves it as it is, until
    /// the pod leaves.
    pub(crate) fn end(&self, inside: &Inside, rules_loaded: bool, spared: &mut Spared) {
        if spared.strict && (!rules_loaded || !self.guests && nothing_is_open(inside)) {
            spared.strict = conntrack::set_strict(inside, false).is_err();
        }
    }
}

/// Whether a connection is open that goes on only while such as connection tracking does not know are not picked up.
///
/// # Errors
/// The kernel does not tell.
pub(crate) fn is_needed(inside: &Inside) -> Result<bool, String> {
    let open = Sockets::open(inside).and_then(|mut sockets| sockets.list(0..=u16::MAX));
    let open = open.map_err(|error| fault::chain(&error))?;
    let outside = open.iter().filter(|one| !one.peer.ip().is_loopback());
    let all = conntrack::are_tracked(inside, outside.map(|one| (one.local, one.peer)).collect());
    all.map(|all| !all).map_err(|error| fault::chain(&error))
}

/// Whether no connection has its one end here and its other elsewhere.
fn nothing_is_open(inside: &Inside) -> bool {
    let open = Sockets::open(inside).and_then(|mut sockets| sockets.list(0..=u16::MAX));
    open.is_ok_and(|open| open.iter().all(|one| one.peer.ip().is_loopback()))
}

/// Removes what connection tracking knows of connections through the proxy that have ended. Those that it has stay translated.
fn forget_stale(inside: &Inside, ports: &[u16]) -> Result<usize, String> {
    let open: OnceCell<Option<HashSet<(SocketAddr, u16)>>> = OnceCell::new();
    let stays = |entry: &conntrack::Redirected| {
        let open = open.get_or_init(|| {
            let found = Sockets::open(inside).and_then(|mut sockets| sockets.list(0..=u16::MAX)).ok()?;
            Some(found.iter().map(|one| (one.peer, one.local.port())).collect())
        });
        // Where that is not known, everything stays.
        open.as_ref().is_none_or(|open| open.contains(&(entry.seen_as, entry.port)))
    };
    conntrack::forget(inside, ports, stays).map_err(|error| fault::chain(&error))
}
