//! HTTP/1.1 on the agent's ports and unix sockets.

mod connection;
mod descriptor;
mod places;
mod unix;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpSocket};

use connection::{Caller, SharedSocket, converse};
pub use descriptor::Descriptor;
use places::ConnectionPlaces;
use unix::MAX_SOCKET_PATH;
pub use unix::{Gone, UnixPeer, UnixSocket};

/// What goes back.
pub type ServedAnswer = Response<Full<Bytes>>;

/// Connections that wait to be accepted, if the kernel allows so many (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// Pause before another try where no connection can be accepted, most often for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A socket or port that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Port { cause, .. } | Self::Socket { cause, .. } => cause.kind(),
            Self::TooLong { .. } => io::ErrorKind::InvalidFilename,
            Self::Taken { .. } => io::ErrorKind::AlreadyExists,
        }
    }
}

/// Answers requests. The body is read already.
pub trait Handler: Send + Sync + 'static {
    /// The listener's name in metrics.
    const NAME: &'static str;
    /// Largest body that is read, in bytes.
    const MAX_BODY: usize;
    /// Connections at once, each of which may hold a whole body in memory. A node starts some dozens of pods at once at most. With one more the
    /// oldest one that asks nothing loses its place.
    const MAX_CONNECTIONS: usize = 256;
    /// Connections at once, beside those, to a unix socket from users that are neither root nor the agent's own. Without any such users are refused.
    const MAX_OF_OTHERS: usize = 0;
    /// Whether a request on a unix socket may bring a descriptor, which the handler finds as [`Descriptor`] among its extensions, where
    /// [`UnixPeer`] is too.
    const TAKES_DESCRIPTORS: bool = false;

    /// The answer. A client that hangs up drops the future: what has to be done all the same is spawned.
    fn answer(&self, request: &Request<()>, body: Bytes) -> impl Future<Output = ServedAnswer> + Send;

    /// The answer to a request whose body could not be had.
    fn unreadable(&self, _: &Request<()>, status: StatusCode, reason: String) -> ServedAnswer {
        text(status, reason + "\n")
    }
}

/// Counts connections that were closed without an answer, or refused.
pub trait CountClosed: Send + Sync + 'static {
    /// One of this listener, for this reason: `slow`, `place` (it made room for another) or `forbidden`.
    fn connection_closed(&self, listener: &str, reason: &str);
}

/// An answer of text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> ServedAnswer {
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
pub fn bind_port(address: SocketAddr) -> Result<TcpListener, Error> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|cause| Error::Port { address, cause })
}

/// Serves a port until the task is aborted. Places are shared among networks, so that a pod that connects without end takes none of kubelet's.
pub async fn port<H: Handler, C: CountClosed>(listener: TcpListener, handler: Arc<H>, counted: Arc<C>) {
    let places = ConnectionPlaces::new(H::MAX_CONNECTIONS);
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            places.evict();
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let stream = Arc::new(stream);
        let place = places.take(network(address.ip()), stream.clone()).await;
        let (handler, counted) = (handler.clone(), counted.clone());
        tokio::spawn(async move {
            let caller = Caller { peer: None, progress: place.progress(), brought: || None };
            let io = SharedSocket(stream.clone());
            place.hold(converse(stream, io, handler, caller)).await.count(&*counted, H::NAME);
        });
    }
}

/// Whose share of the places a connection takes. A host has 2^64 addresses of IPv6.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}
