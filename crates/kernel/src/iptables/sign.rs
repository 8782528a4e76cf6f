//! The sign that somebody is at work on a namespace's iptables rules.
//!
//! A caller that was killed may have left a supervisor or a program behind that still works. The next caller must not look at
//! the rules before that is done. The sign is an abstract unix socket address: those belong to the network namespace, one
//! process tree at a time can have it, and the kernel takes it back when the last process that holds it is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

const NAME: &[u8] = b"istio-cni/iptables";
/// The pause between two tries; a run of iptables takes about this long.
const PAUSE: Duration = Duration::from_millis(3);

/// Takes the sign of the calling thread's namespace. `Ok(None)` when it was not free within the time: a process in the pod can
/// hold it too, so it must never be more than a delay.
pub(super) fn take(timeout: Duration) -> io::Result<Option<OwnedFd>> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new_abstract_name(NAME)?;
    let start = Instant::now();
    loop {
        match bind(&socket, &address) {
            Ok(()) => return Ok(Some(socket)),
            Err(Errno::ADDRINUSE) if start.elapsed() < timeout => std::thread::sleep(PAUSE),
            Err(Errno::ADDRINUSE) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}
