//! One connection: HTTP/1.1 requests, each with a bounded head and body, within bounded times.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::places::{ConnectionProgress, Ending};
use super::{Descriptor, Handler, ServedAnswer, UnixPeer};

/// How long a client may take for its first byte, and again for its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests of one connection: somebody who sends them one behind the other must not keep a thread for himself.
const MAX_REQUESTS: u32 = 32;
/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// A socket, which the places look at while its connection is served.
pub(super) trait ServedStream: AsFd + Send + Sync + 'static {
    /// Waits until there is something to read.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Waits until something can be written.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Reads what is there.
    fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize>;
    /// Writes what can be written.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

macro_rules! stream {
    ($($kind:ty),*) => {$(
        impl ServedStream for $kind {
            fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Self::poll_read_ready(self, cx)
            }

            fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Self::poll_write_ready(self, cx)
            }

            fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
                Self::try_read(self, bytes)
            }

            fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
                Self::try_write(self, bytes)
            }
        }
    )*};
}

stream!(TcpStream, UnixStream);

/// The bytes of a socket, in both directions.
pub(super) struct SharedSocket<S: ServedStream>(pub(super) Arc<S>);

impl<S: ServedStream> AsyncRead for SharedSocket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<S: ServedStream> AsyncWrite for SharedSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write)?))
    }
}

impl<S: ServedStream> Drop for SharedSocket<S> {
    /// The connection ends with this, whoever still looks at the socket.
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Both);
    }
}

/// Who is at the other end, and what is known of the connection.
pub(super) struct Caller<B> {
    /// Absent on ports.
    pub(super) peer: Option<UnixPeer>,
    pub(super) progress: Arc<ConnectionProgress>,
    /// Gives the descriptor that came with a request.
    pub(super) brought: B,
}

/// Serves the requests of one connection. Its end, however it comes, is the client's affair. One that says nothing has no memory for what it might
/// say. `io` is `stream` as bytes.
pub(super) async fn converse<S, T, H, B>(stream: Arc<S>, io: T, handler: Arc<H>, caller: Caller<B>) -> Ending
where
    S: ServedStream,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
    B: Fn() -> Option<Descriptor> + Clone + Send + 'static,
{
    if timeout(HEADER_TIMEOUT, poll_fn(|cx| stream.poll_read_ready(cx))).await.is_err() {
        return Ending::Slow;
    }
    drop(stream);
    let Caller { peer, progress, brought } = caller;
    let watched = progress.clone();
    let requests = Arc::new(AtomicU32::new(0));
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, progress, brought) = (handler.clone(), watched.clone(), brought.clone());
        let peer = peer.clone();
        let is_last = requests.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_REQUESTS;
        async move {
            let (mut head, body) = request.into_parts();
            let body = timeout(BODY_TIMEOUT, read::<H>(body)).await;
            peer.map(|peer| head.extensions.insert(peer));
            brought().map(|descriptor| head.extensions.insert(descriptor));
            progress.begin();
            let mut answer = answer(&*handler, &Request::from_parts(head, ()), body.ok()).await;
            progress.end();
            if is_last {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut builder = http1::Builder::new();
    // A plugin may be gone before its report and its lines are read.
    builder.half_close(true);
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEAD);
    let mut served = pin!(builder.serve_connection(TokioIo::new(io), service));
    let served = poll_fn(|cx| {
        let polled = served.as_mut().poll(cx);
        // All that was there has been read by now, and answered if it was a request.
        progress.was_heard();
        polled
    });
    match served.await {
        Err(error) if error.is_timeout() && !progress.has_answered() => Ending::Slow,
        _ => Ending::Done,
    }
}

/// `body` is absent where it did not come in time.
async fn answer<H: Handler>(
    handler: &H,
    request: &Request<()>,
    body: Option<Result<Bytes, Unreadable>>,
) -> ServedAnswer {
    let (status, reason) = match body {
        Some(Ok(body)) => return handler.answer(request, body).await,
        Some(Err(Unreadable::TooLarge)) => {
            (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {} bytes", H::MAX_BODY))
        }
        Some(Err(Unreadable::Broken(error))) => (StatusCode::BAD_REQUEST, format!("read the body: {error}")),
        None => (StatusCode::REQUEST_TIMEOUT, "the body took too long".to_owned()),
    };
    handler.unreadable(request, status, reason)
}

/// Why there is no body.
enum Unreadable {
    TooLarge,
    Broken(hyper::Error),
}

/// The body. Its parts are copied as they come: a thousand small ones would each hold what they came in.
async fn read<H: Handler>(mut body: Incoming) -> Result<Bytes, Unreadable> {
    if body.size_hint().lower() > H::MAX_BODY as u64 {
        return Err(Unreadable::TooLarge);
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Unreadable::Broken)?.into_data() else { continue };
        if bytes.len() + data.len() > H::MAX_BODY {
            return Err(Unreadable::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.into())
}
