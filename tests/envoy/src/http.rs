//! Requests, and what their answers tell.

use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use testkit::probe::{Arrival, Flow};

use crate::bootstrap::LISTENER_HEADER;

/// More headers than Envoy and the test's listeners send together.
const MOST_HEADERS: usize = 32;

/// One GET on a connection of its own.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    flow: Flow<'a>,
    host: &'a str,
}

/// The answer of a listener of [`testkit::probe::Listener::http`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Names of the Envoy listeners on the way, the one nearest to the application first.
    pub through: Vec<String>,
    /// Value of header `server`, which Envoy sets to `envoy`.
    pub server: Option<String>,
    /// What the application saw.
    pub arrival: Arrival,
}

impl<'a> Request<'a> {
    /// A request that no virtual host of Envoy's knows.
    #[must_use]
    pub fn new(flow: Flow<'a>) -> Self {
        Self { flow, host: "other.test" }
    }

    /// Sets header `host`.
    #[must_use]
    pub fn host(mut self, host: &'a str) -> Self {
        self.host = host;
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// When there is no answer, or none of a test's listener: also when Envoy itself says that it cannot forward.
    pub fn send(&self, to: SocketAddr) -> Result<Answer> {
        let request = format!("GET / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.host);
        Answer::parse(&self.flow.exchange(to, request.as_bytes())?)
    }
}

impl Answer {
    fn parse(text: &[u8]) -> Result<Self> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(text).with_context(|| format!("no HTTP: {}", text.escape_ascii()))?;
        let httparse::Status::Complete(head) = parsed else {
            anyhow::bail!("the answer ends within its head: \"{}\"", text.escape_ascii());
        };
        let body = &text[head..];
        ensure!(response.code == Some(200), "status {:?}: {}", response.code, body.escape_ascii());
        let values = |name: &str| -> Vec<String> {
            let of_name = response.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
            of_name
                .flat_map(|h| h.value.split(|byte| *byte == b','))
                .map(|value| String::from_utf8_lossy(value).trim().to_owned())
                .collect()
        };
        let arrival = Arrival::from_text(body)
            .with_context(|| format!("no answer of a test's listener: {}", body.escape_ascii()))?;
        Ok(Self { through: values(LISTENER_HEADER), server: values("server").pop(), arrival })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.through.as_slice() {
            [] => write!(f, "direct")?,
            through => write!(f, "through {}", through.join(", "))?,
        }
        write!(f, ", reached {}", self.arrival)
    }
}
