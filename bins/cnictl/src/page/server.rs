//! HTTP/1.1 as far as one browser on this machine needs it: GET and HEAD, a thread for each connection, everything bounded.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::gate::{BrowserSession, LiveGate, new_secret};
use super::html::{Html, decode, document, message};
use super::node::NodePage;
use super::{host, pod};

/// Connections at one time.
const MAX_CONNECTIONS: usize = 16;
/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 8 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// How long a request may take to come, and its answer to go.
const LIMIT: Duration = Duration::from_secs(5);
/// Nobody has asked for so long: the one who wanted the page has gone, and may have left this program behind in a container.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// Pause between two looks for a connection.
const LOOK: Duration = Duration::from_millis(20);

/// What is served, and to whom.
#[derive(Debug)]
pub(super) struct PageServer {
    pub(super) session: BrowserSession,
    /// Names that may be asked for besides those of loopback.
    pub(super) hosts: Vec<String>,
    pub(super) node: NodePage,
    pub(super) pods: LiveGate,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    host: String,
    cookies: String,
}

/// What goes back.
struct Answer {
    status: &'static str,
    headers: Vec<String>,
    title: String,
    main: Html,
}

/// Serves until nobody has asked for half an hour.
///
/// # Errors
/// The listener breaks.
pub(super) fn serve(listener: &TcpListener, server: &Arc<PageServer>) -> Result<()> {
    listener.set_nonblocking(true).context("listen without waiting")?;
    let open = Arc::new(AtomicUsize::new(0));
    let mut last = Instant::now();
    while last.elapsed() < IDLE {
        match listener.accept() {
            Ok((stream, _)) => {
                last = Instant::now();
                begin(stream, server, &open);
            }
            // Nobody comes, or has gone already, or there is no descriptor for it.
            Err(_) => std::thread::sleep(LOOK),
        }
    }
    Ok(())
}

fn begin(stream: TcpStream, server: &Arc<PageServer>, open: &Arc<AtomicUsize>) {
    if open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
        open.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let (server, places) = (server.clone(), open.clone());
    let work = move || {
        // The end of one connection is its client's affair.
        let _ = converse(stream, &server);
        places.fetch_sub(1, Ordering::SeqCst);
    };
    if std::thread::Builder::new().name("page".into()).spawn(work).is_err() {
        open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn converse(mut stream: TcpStream, server: &PageServer) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(LIMIT))?;
    let head = read_head(&mut stream)?;
    let nonce = new_secret()?;
    let (with_body, answer) = match parse(&head) {
        Ok(request) => (request.method != "HEAD", server.answer(&request)),
        Err(status) => (true, Answer::message(status, "Not understood", "This is no request of a browser.")),
    };
    let body = document(&answer.title, &nonce, &answer.main).into_text();
    let mut text = format!("HTTP/1.1 {}\r\n", answer.status);
    for line in headers(&nonce).iter().chain(&answer.headers) {
        text += line;
        text += "\r\n";
    }
    text += &format!("Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(text.as_bytes())?;
    if with_body {
        stream.write_all(body.as_bytes())?;
    }
    // The other side reads to the end before this one is gone.
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut rest = [0; 1024];
    for _ in 0..MAX_HEAD / rest.len() {
        if matches!(stream.read(&mut rest), Ok(0) | Err(_)) {
            break;
        }
    }
    Ok(())
}

fn headers(nonce: &str) -> Vec<String> {
    let policy = format!(
        "Content-Security-Policy: default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    );
    let plain = [
        "Content-Type: text/html; charset=utf-8",
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Cache-Control: no-store",
        "Cross-Origin-Resource-Policy: same-origin",
        "Connection: close",
    ];
    plain.into_iter().map(str::to_owned).chain([policy]).collect()
}

fn read_head(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let end = Instant::now() + LIMIT;
    let mut head = Vec::new();
    let mut bytes = [0; 2048];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let left = end.saturating_duration_since(Instant::now());
        anyhow::ensure!(!left.is_zero() && head.len() < MAX_HEAD, "the request is too slow or too large");
        stream.set_read_timeout(Some(left))?;
        let room = (MAX_HEAD - head.len()).min(bytes.len());
        let read = stream.read(&mut bytes[..room])?;
        anyhow::ensure!(read > 0, "the request ends early");
        head.extend_from_slice(&bytes[..read]);
    }
    Ok(head)
}

/// The request, or the status that answers one that is none.
fn parse(head: &[u8]) -> Result<Request, &'static str> {
    const BAD: &str = "400 Bad Request";
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    if !request.parse(head).is_ok_and(|status| status.is_complete()) {
        return Err(BAD);
    }
    let all = |name: &str| -> Result<Vec<String>, &'static str> {
        let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| Ok(str::from_utf8(header.value).map_err(|_| BAD)?.to_owned())).collect()
    };
    let [host] = <[String; 1]>::try_from(all("host")?).map_err(|_| BAD)?;
    let (method, path) = (request.method.ok_or(BAD)?.to_owned(), request.path.ok_or(BAD)?.to_owned());
    Ok(Request { method, path, host, cookies: all("cookie")?.join(";") })
}

/// Whether a `Host` header is of loopback or one of the names, with any port: a tunnel may have another. A page of others whose name leads to
/// loopback has its own name there.
fn is_own_host(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(name, _)| name).unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_loopback = name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_loopback
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

// === impl PageServer ===

impl PageServer {
    fn answer(&self, request: &Request) -> Answer {
        if !is_own_host(&request.host, &self.hosts) {
            let text =
                "The page is not asked for under a name of loopback. Give the name by --host if it is yours.";
            return Answer::message("421 Misdirected Request", "Another host", text);
        }
        if !matches!(&*request.method, "GET" | "HEAD") {
            let mut answer =
                Answer::message("405 Method Not Allowed", "Only to look at", "Nothing can be changed here.");
            answer.headers.push("Allow: GET, HEAD".to_owned());
            return answer;
        }
        let path = request.path.split('?').next().unwrap_or_default();
        let is_known = self.session.is_known(&request.cookies);
        if let Some(token) = path.strip_prefix("/open/") {
            // A look at the address alone uses nothing up.
            if is_known || (request.method == "GET" && self.session.take(token)) {
                let mut answer = Answer::message("303 See Other", "The node", "");
                answer.headers =
                    vec!["Location: /".to_owned(), format!("Set-Cookie: {}", self.session.cookie())];
                return answer;
            }
        }
        if !is_known {
            let text = "The address that cnictl page prints works once, in one browser. Start cnictl page again for another one.";
            return Answer::message("403 Forbidden", "Not for this browser", text);
        }
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        match segments.as_slice() {
            [""] => Answer { main: self.node.html(), ..Answer::ok(self.node.title()) },
            ["rules"] => self.host(),
            ["pod", namespace, name] => match (decode(namespace), decode(name)) {
                (Some(namespace), Some(name)) => self.pod(&namespace, &name),
                _ => Answer::not_found(),
            },
            _ => Answer::not_found(),
        }
    }

    fn host(&self) -> Answer {
        let Some(_read) = self.pods.enter() else { return Answer::too_many() };
        match host::html(&self.node.title()) {
            Ok(main) => Answer { main, ..Answer::ok(self.node.title()) },
            Err(error) => Answer::message("503 Service Unavailable", "Not known", &format!("{error:#}")),
        }
    }

    fn pod(&self, namespace: &str, name: &str) -> Answer {
        let Some(_read) = self.pods.enter() else { return Answer::too_many() };
        match pod::html(self.node.configuration(), namespace, name) {
            Ok(Some(main)) => Answer { main, ..Answer::ok(format!("{namespace}/{name}")) },
            Ok(None) => {
                Answer::message("404 Not Found", "No such pod", "No pod of this name is known on this node.")
            }
            Err(error) => Answer::message("503 Service Unavailable", "Not known", &format!("{error:#}")),
        }
    }
}

// === impl Answer ===

impl Answer {
    fn ok(title: String) -> Self {
        Self { status: "200 OK", headers: Vec::new(), title, main: Html::default() }
    }

    fn message(status: &'static str, title: &'static str, text: &str) -> Self {
        Self { status, headers: Vec::new(), title: title.to_owned(), main: message(title, text) }
    }

    fn too_many() -> Self {
        let text =
            "The kernel is read for two pages at once and five in a second at most. Ask again in a moment.";
        let mut answer = Self::message("429 Too Many Requests", "Too many at once", text);
        answer.headers.push("Retry-After: 1".to_owned());
        answer
    }

    fn not_found() -> Self {
        Self::message(
            "404 Not Found",
            "No such page",
            "There is the node's page, at /, that of its rules, at /rules, and one for each of its pods.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_loopback_or_named() {
        let names = ["tunnel.example".to_owned()];
        for host in
            ["127.0.0.1:8900", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8900", "tunnel.example:80"]
        {
            assert!(is_own_host(host, &names), "{host}");
        }
        for host in
            ["", "example.com", "127.0.0.1.example.com:8900", "10.0.0.1:8900", "[::1", "[fe80::1]:1", ":8900"]
        {
            assert!(!is_own_host(host, &names), "{host}");
        }
    }

    #[test]
    fn a_request_has_one_host() {
        let request =
            parse(b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: a=b\r\ncookie: c=d\r\n\r\n").unwrap();
        assert_eq!((&*request.method, &*request.path, &*request.cookies), ("GET", "/", "a=b;c=d"));
        for bad in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n",
            b"\x16\x03\x01\r\n\r\n",
            b"GET /",
        ] {
            assert_eq!(parse(bad), Err("400 Bad Request"));
        }
    }
}
