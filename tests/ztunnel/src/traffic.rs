//! An application that answers each line with the client's address and the line.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::TestNetns;

/// How long a connection, a line and an answer may each take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(20);

/// The application; it ends when dropped.
pub struct Echo {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A connection to one.
pub struct Talk {
    stream: BufReader<TcpStream>,
}

// === impl Echo ===

impl Echo {
    /// Listens in a pod.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(pod: &TestNetns, port: u16) -> Result<Self> {
        let listener = pod.enter(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        listener.set_nonblocking(true)?;
        let ending = Arc::new(AtomicBool::new(false));
        let end = ending.clone();
        let thread = std::thread::spawn(move || {
            let mut workers = Vec::new();
            while !end.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        let end = end.clone();
                        workers.push(std::thread::spawn(move || drop(answer(stream, peer, &end))));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
            for worker in workers {
                let _ = worker.join();
            }
        });
        Ok(Self { ending, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(stream: TcpStream, peer: SocketAddr, end: &AtomicBool) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LOOK))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let (mut stream, mut line) = (stream, String::new());
    while !end.load(Ordering::SeqCst) {
        match lines.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) => {
                stream.write_all(format!("{} {line}", peer.ip()).as_bytes())?;
                line.clear();
            }
            // What has been read of the line stays in it.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

// === impl Talk ===

impl Talk {
    /// Connects from a pod, or from anywhere.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn start(from: &TestNetns, to: SocketAddr) -> Result<Self> {
        Self::within(from, to, PATIENCE)
    }

    /// The same, where nothing may take longer than this.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn within(from: &TestNetns, to: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = from.enter(|_| TcpStream::connect_timeout(&to, patience))?;
        let stream = stream.with_context(|| format!("connect {to}"))?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Says a line; gives the address from which the application sees it come.
    ///
    /// # Errors
    /// The connection has ended, or the answer is another one.
    pub fn say(&mut self, text: &str) -> Result<IpAddr> {
        self.stream.get_mut().write_all(format!("{text}\n").as_bytes()).context("send")?;
        let mut line = String::new();
        self.stream.read_line(&mut line).context("receive")?;
        ensure!(line.ends_with('\n'), "the connection ended instead of an answer: {line:?}");
        let (address, echo) =
            line.trim_end().split_once(' ').with_context(|| format!("no answer: {line}"))?;
        ensure!(echo == text, "said {text:?}, heard {echo:?}");
        Ok(address.parse()?)
    }
}

/// One line on a connection of its own; gives the address from which the application sees it come.
///
/// # Errors
/// As [`Talk::start`] and [`Talk::say`].
pub fn say(from: &TestNetns, to: SocketAddr, text: &str) -> Result<IpAddr> {
    Talk::start(from, to)?.say(text)
}
