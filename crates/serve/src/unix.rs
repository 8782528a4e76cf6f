//! Unix sockets of the agent. Who connects is known at once: a user that may not ask gets no place, and, unless that is too much, a word.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::connection::{Caller, SharedSocket, converse};
use super::descriptor::Receiving;
use super::places::{ConnectionPlaces, ConnectionProgress, Ending};
use super::{ACCEPT_PAUSE, BACKLOG, CountClosed, Error, Handler, ServedAnswer, text};

/// How often a unix socket looks whether its file is still there.
const LOOK: Duration = Duration::from_secs(1);
/// How long a process that ends answers: a plugin waits a second.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Longest path of a unix socket in bytes, the final zero left out (unix(7), `sun_path`).
pub(super) const MAX_SOCKET_PATH: usize = 107;
/// Users that may not ask and are told so at once; more are hung up on.
const MAX_REFUSALS: usize = 8;
/// How long such a user may take to ask.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// A unix socket of ours. Dropping it removes its file, unless another process has put its own there meanwhile.
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Who asks over a unix socket. It does not keep the connection open.
#[derive(Debug, Clone)]
pub struct UnixPeer {
    /// The user of its process.
    pub uid: u32,
    /// Whether that is root or the agent's own user.
    pub is_trusted: bool,
    socket: Arc<UnixStream>,
}

/// Why a unix socket serves no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Its file is not there any more.
    Removed,
    /// The file is another process's.
    Replaced,
    /// The process ends.
    Ended,
}

/// Answer to an unauthorised peer.
struct Refusal;

// === impl UnixPeer ===

impl UnixPeer {
    /// Whether nobody is there any more to take an answer. HTTP tells that of no connection that ends with its answer.
    pub fn has_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&*self.socket, PollFlags::empty())];
        let over = PollFlags::HUP | PollFlags::ERR;
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && polled[0].revents().intersects(over)
    }
}

// === impl Refusal ===

impl Refusal {
    const TEXT: &'static str = "only root may ask here, as container runtimes do\n";
}

impl Handler for Refusal {
    const NAME: &'static str = "";
    const MAX_BODY: usize = 0;

    async fn answer(&self, _: &Request<()>, _: Bytes) -> ServedAnswer {
        text(StatusCode::FORBIDDEN, Self::TEXT)
    }

    /// The body is not even looked at.
    fn unreadable(&self, _: &Request<()>, _: StatusCode, _: String) -> ServedAnswer {
        text(StatusCode::FORBIDDEN, Self::TEXT)
    }
}

/// Tells a peer that it may not ask, if few others are told so now.
fn refuse(stream: Arc<UnixStream>, refusals: &Arc<Semaphore>) {
    let Ok(permit) = refusals.clone().try_acquire_owned() else { return };
    tokio::spawn(async move {
        let caller =
            Caller { peer: None, progress: Arc::new(ConnectionProgress::default()), brought: || None };
        let talk = converse(stream.clone(), SharedSocket(stream), Arc::new(Refusal), caller);
        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, talk).await;
        drop(permit);
    });
}

// === impl UnixSocket ===

impl UnixSocket {
    /// Listens on a path, whether or not a socket of an earlier process is there: the new one takes its place in one step, so that no client
    /// finds nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn bind(path: &Path, mode: u32) -> Result<Self, Error> {
        use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
        let refused = |operation, cause: io::Error| Error::Socket { path: path.to_owned(), operation, cause };
        // Some bytes are for the temporary name.
        let temporary = path.with_extension("new");
        if temporary.as_os_str().len().max(path.as_os_str().len()) > MAX_SOCKET_PATH {
            return Err(Error::TooLong { path: path.to_owned() });
        }
        if let Ok(there) = std::fs::symlink_metadata(path).map(|metadata| metadata.file_type())
            && !there.is_socket()
        {
            let what = if there.is_dir() { "directory" } else { "file that is no socket" };
            return Err(Error::Taken { path: path.to_owned(), what });
        }
        if let Some(parent) = path.parent() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(parent);
            made.map_err(|cause| refused("make its directory", cause))?;
        }
        let _ = std::fs::remove_file(&temporary);
        let bound = || -> io::Result<std::os::unix::net::UnixListener> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::bind(socket.as_fd(), &SocketAddrUnix::new(&temporary)?)?;
            std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
            rustix::net::listen(socket.as_fd(), BACKLOG.cast_signed())?;
            Ok(socket.into())
        };
        let listener = bound().map_err(|cause| refused("bind", cause))?;
        let listener = UnixListener::from_std(listener).map_err(|cause| refused("watch", cause))?;
        let inode =
            std::fs::symlink_metadata(&temporary).map_err(|cause| refused("look at it", cause))?.ino();
        std::fs::rename(&temporary, path).map_err(|cause| refused("put it in place", cause))?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Serves until the task is aborted, or until the file is gone or another process's, so that nobody can come any more; or until `end`: then the file
    /// goes, and whoever has asked until then is answered, for [`LAST_ANSWERS`] at most.
    pub async fn serve<H: Handler, C: CountClosed>(
        self,
        handler: Arc<H>,
        counted: Arc<C>,
        end: impl Future<Output = ()>,
    ) -> Gone {
        let mut end = std::pin::pin!(end);
        let own = rustix::process::geteuid().as_raw();
        let (trusted, others) =
            (ConnectionPlaces::new(H::MAX_CONNECTIONS), ConnectionPlaces::new(H::MAX_OF_OTHERS));
        let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
        let mut look = tokio::time::interval(LOOK);
        loop {
            let accepted = tokio::select! {
                // Who has connected before the end is heard.
                biased;
                accepted = self.listener.accept() => accepted,
                () = &mut end => {
                    drop(self);
                    tokio::join!(trusted.emptied(LAST_ANSWERS), others.emptied(LAST_ANSWERS));
                    return Gone::Ended;
                }
                _ = look.tick() => match self.gone() {
                    Some(gone) => return gone,
                    None => continue,
                }
            };
            // Who it is was kept when it connected, so it cannot be asked in vain.
            let accepted = accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream)));
            let Ok((uid, stream)) = accepted else {
                others.evict();
                trusted.evict();
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let stream = Arc::new(stream);
            let peer = UnixPeer { uid, is_trusted: uid == 0 || uid == own, socket: stream.clone() };
            if !peer.is_trusted && H::MAX_OF_OTHERS == 0 {
                Ending::Forbidden.count(&*counted, H::NAME);
                refuse(stream, &refusals);
                continue;
            }
            let places = if peer.is_trusted { &trusted } else { &others };
            let place = places.take(uid, stream.clone()).await;
            let (handler, counted) = (handler.clone(), counted.clone());
            tokio::spawn(async move {
                let ending = if H::TAKES_DESCRIPTORS {
                    let (io, taken) = Receiving::new(stream.clone());
                    let caller = Caller {
                        peer: Some(peer),
                        progress: place.progress(),
                        brought: move || taken.take(),
                    };
                    place.hold(converse(stream, io, handler, caller)).await
                } else {
                    let io = SharedSocket(stream.clone());
                    let caller = Caller { peer: Some(peer), progress: place.progress(), brought: || None };
                    place.hold(converse(stream, io, handler, caller)).await
                };
                ending.count(&*counted, H::NAME);
            });
        }
    }

    fn gone(&self) -> Option<Gone> {
        use std::os::unix::fs::MetadataExt;
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) => (there.ino() != self.inode).then_some(Gone::Replaced),
            Err(cause) => (cause.kind() == io::ErrorKind::NotFound).then_some(Gone::Removed),
        }
    }

    /// Whether a process listens at a path.
    pub fn is_served(path: &Path) -> bool {
        let connect = || -> io::Result<()> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            Ok(rustix::net::connect(socket.as_fd(), &SocketAddrUnix::new(path)?)?)
        };
        match connect() {
            Ok(()) => true,
            // A full queue is somebody's, too.
            Err(cause) => cause.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt;
        if std::fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
