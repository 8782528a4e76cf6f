//! HTTP/1.1 on the agent's ports and unix sockets.

mod descriptor;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use descriptor::Receiving;
pub(crate) use descriptor::{Descriptor, Peer};

/// What goes back.
pub(crate) type Answer = Response<Full<Bytes>>;

/// How long a client may take for its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, with all of its requests: a client that does not read its answers would keep its place for good.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a unix socket looks whether its file is still there.
const LOOK: Duration = Duration::from_secs(1);
/// Longest path of a unix socket in bytes, the final zero left out (unix(7), `sun_path`).
const MAX_SOCKET_PATH: usize = 107;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A socket or port that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The port.
    #[error("listen on {address}: {cause}; another process may hold the port, see `ss -ltnp`")]
    Port {
        /// Where.
        address: SocketAddr,
        /// The system's words.
        cause: io::Error,
    },
    /// The path is longer than the kernel takes.
    #[error(
        "listen on {}: the path has {} bytes and the kernel takes {MAX_SOCKET_PATH}; choose a shorter cni-agent-run-dir",
        path.display(), path.as_os_str().len()
    )]
    TooLong {
        /// Where.
        path: PathBuf,
    },
    /// Something that is no socket stands there.
    #[error("listen on {}: a {what} is there; remove it", path.display())]
    Taken {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The system refused.
    #[error("listen on {}: {operation}: {cause}; check that the directory exists and can be written", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What was attempted.
        operation: &'static str,
        /// The system's words.
        cause: io::Error,
    },
}

impl Error {
    /// What the system said.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Port { cause, .. } | Self::Socket { cause, .. } => cause.kind(),
            Self::TooLong { .. } => io::ErrorKind::InvalidFilename,
            Self::Taken { .. } => io::ErrorKind::AlreadyExists,
        }
    }
}

/// Answers requests. The body is read already.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Largest body that is read, in bytes.
    const MAX_BODY: usize;
    /// Connections that are served at once. A node starts some dozens of pods at once at most; a flood waits in the kernel's queue. Each may hold
    /// a whole body in memory.
    const MAX_CONNECTIONS: usize = 256;
    /// Whether a request on a unix socket may bring a descriptor, which the handler finds as [`Descriptor`] among its extensions, and who sent it as
    /// [`Peer`].
    const TAKES_DESCRIPTORS: bool = false;

    /// The answer. A client that hangs up drops the future: what has to be done all the same is spawned.
    fn answer(&self, request: &Request<()>, body: Bytes) -> impl Future<Output = Answer> + Send;

    /// The answer to a request whose body could not be had.
    fn unreadable(&self, _: &Request<()>, status: StatusCode, reason: String) -> Answer {
        text(status, reason + "\n")
    }
}

/// A unix socket of ours. Dropping it removes its file, unless another process has put its own there meanwhile.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    /// Who else than root may connect; nobody is asked where this is absent.
    only: Option<u32>,
}

/// Why a unix socket serves no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// Its file is not there any more.
    Removed,
    /// The file is another process's.
    Replaced,
}

/// What a peer hears that may not ask.
struct Refusal;

/// An answer of text.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// Listens on a port.
///
/// # Errors
/// [`Error::Port`].
pub(crate) async fn bind_port(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|cause| Error::Port { address, cause })
}

impl Handler for Refusal {
    const MAX_BODY: usize = 0;

    async fn answer(&self, _: &Request<()>, _: Bytes) -> Answer {
        text(StatusCode::FORBIDDEN, Self::TEXT)
    }

    /// The body is not even looked at.
    fn unreadable(&self, _: &Request<()>, _: StatusCode, _: String) -> Answer {
        text(StatusCode::FORBIDDEN, Self::TEXT)
    }
}

impl Refusal {
    const TEXT: &'static str = "only root may ask here, as container runtimes do\n";
}

/// Serves a port until the task is aborted.
pub(crate) async fn port<H: Handler>(listener: TcpListener, handler: Arc<H>) {
    let slots = Arc::new(Semaphore::new(H::MAX_CONNECTIONS));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    connection(stream, handler).await;
                    drop(slot);
                });
            }
            // Out of descriptors, most often; the connection stays in the queue.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

impl Socket {
    /// Listens on a path, whether or not a socket of an earlier process is there: the new one takes its place in one step, so that no client
    /// finds nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) fn bind(path: &Path, mode: u32, only: Option<u32>) -> Result<Self, Error> {
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
            rustix::net::listen(socket.as_fd(), BACKLOG)?;
            Ok(socket.into())
        };
        let listener = bound().map_err(|cause| refused("bind", cause))?;
        let listener = UnixListener::from_std(listener).map_err(|cause| refused("watch", cause))?;
        let inode =
            std::fs::symlink_metadata(&temporary).map_err(|cause| refused("look at it", cause))?.ino();
        std::fs::rename(&temporary, path).map_err(|cause| refused("put it in place", cause))?;
        Ok(Self { listener, path: path.to_owned(), inode, only })
    }

    /// Serves until the task is aborted, or until the file is gone or another process's, so that nobody can come any more. A peer that is neither
    /// root nor the user named is refused.
    pub(crate) async fn serve<H: Handler>(self, handler: Arc<H>) -> Gone {
        let slots = Arc::new(Semaphore::new(H::MAX_CONNECTIONS));
        let mut look = tokio::time::interval(LOOK);
        loop {
            // The semaphore is never closed.
            let Ok(slot) = slots.clone().acquire_owned().await else { return Gone::Removed };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = look.tick() => {
                    if let Some(gone) = self.gone() {
                        return gone;
                    }
                    continue;
                }
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let trusted = self.only.is_none_or(|only| {
                stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == only)
            });
            let handler = handler.clone();
            tokio::spawn(async move {
                if trusted && H::TAKES_DESCRIPTORS {
                    let (stream, taken, peer) = Receiving::new(stream);
                    connection_with(stream, handler, move || Some((taken.take(), peer.clone()))).await;
                } else if trusted {
                    connection(stream, handler).await;
                } else {
                    connection(stream, Arc::new(Refusal)).await;
                }
                drop(slot);
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
    pub(crate) fn is_served(path: &Path) -> bool {
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

impl Drop for Socket {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt;
        if std::fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn connection<S, H>(stream: S, handler: Arc<H>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    connection_with(stream, handler, || None).await;
}

/// Serves the requests of one connection. Its end, however it comes, is the client's affair. `brought` gives the descriptor that came with a
/// request, and who sent it.
async fn connection_with<S, H>(
    stream: S,
    handler: Arc<H>,
    brought: impl Fn() -> Option<(Option<Descriptor>, Peer)> + Clone + Send + 'static,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, brought) = (handler.clone(), brought.clone());
        async move {
            let (mut head, body) = request.into_parts();
            let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, H::MAX_BODY).collect()).await;
            if let Some((descriptor, peer)) = brought() {
                head.extensions.insert(peer);
                descriptor.map(|descriptor| head.extensions.insert(descriptor));
            }
            let head = Request::from_parts(head, ());
            let (status, reason) = match body {
                Ok(Ok(body)) => return Ok(handler.answer(&head, body.to_bytes()).await),
                Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                    (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {} bytes", H::MAX_BODY))
                }
                Ok(Err(error)) => (StatusCode::BAD_REQUEST, format!("read the body: {error}")),
                Err(_) => (StatusCode::REQUEST_TIMEOUT, "the body took too long".to_owned()),
            };
            Ok::<_, Infallible>(handler.unreadable(&head, status, reason))
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(64 << 10);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
}
