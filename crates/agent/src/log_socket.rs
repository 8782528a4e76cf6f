//! The plugin's log lines, which it posts at its end. Any user may post some, so nothing of it may cost much: neither memory, nor the time of
//! the threads that serve others, nor the room of the log.

mod intake;
mod lines;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use telemetry::Scope;

use intake::Intake;
use lines::{Post, Printer};
use metrics::Metrics;
use serve::{Handler, ServedAnswer, UnixPeer, text};

/// Any user may log.
pub(crate) const MODE: u32 = 0o666;

/// What root and the agent's own user may post, in bytes: the lines of some thousand plugins at once, and of hundreds in a minute.
const OWN_BURST: u32 = 2 << 20;
const OWN_RATE: u32 = 64 << 10;
/// What all other users may post.
const OTHERS_BURST: u32 = 256 << 10;
const OTHERS_RATE: u32 = 16 << 10;
/// Posts that wait to be taken apart. Their bytes are bounded by what may be posted.
const MAX_POSTS: usize = 1024;

/// Takes what plugins post.
pub(crate) struct LogSocket {
    posts: SyncSender<Post>,
    own: Arc<Intake>,
    others: Arc<Intake>,
    agent: Scope,
    metrics: Arc<Metrics>,
}

impl Handler for LogSocket {
    const NAME: &'static str = rundir::LOG_SOCKET_NAME;
    const MAX_BODY: usize = telemetry::MAX_POST;
    /// With the bodies of the others 3 MiB in all.
    const MAX_CONNECTIONS: usize = 16;
    const MAX_OF_OTHERS: usize = 8;

    /// The plugin's side has nobody to tell, so it hears the same whatever becomes of it.
    async fn answer(&self, request: &Request<()>, body: Bytes) -> ServedAnswer {
        if request.uri().path() != rundir::LOG_PATH {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        self.take(request, body);
        text(StatusCode::OK, "")
    }

    /// As ever, and the loss is told here.
    fn unreadable(&self, request: &Request<()>, _: StatusCode, reason: String) -> ServedAnswer {
        let (uid, intake) = self.intake(request);
        self.metrics.plugin_lines_dropped("unreadable", 1);
        if intake.take(0, Instant::now()) {
            self.agent.error("log lines of a plugin are lost", &[("error", &reason), ("uid", &uid)]);
        }
        text(StatusCode::OK, "")
    }
}

impl LogSocket {
    /// Starts the thread that prints. `plugin` is the scope of the plugin's lines, `agent` that of the agent's own.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(plugin: Scope, agent: Scope, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (posts, receiver) = sync_channel(MAX_POSTS);
        let printer = Printer { plugin, agent: agent.clone(), metrics: metrics.clone() };
        let work = move || print(&printer, &receiver);
        std::thread::Builder::new().name("plugin lines".into()).spawn(work)?;
        let now = Instant::now();
        Ok(Self {
            posts,
            own: Arc::new(Intake::new(OWN_BURST, OWN_RATE, now)),
            others: Arc::new(Intake::new(OTHERS_BURST, OTHERS_RATE, now)),
            agent,
            metrics,
        })
    }

    fn take(&self, request: &Request<()>, body: Bytes) {
        let ((uid, intake), now) = (self.intake(request), Instant::now());
        let lines = count(&body);
        let post = Post { uid, body, intake: intake.clone() };
        if intake.take(post.body.len(), now) && self.posts.try_send(post).is_ok() {
            return;
        }
        self.metrics.plugin_lines_dropped("rate", lines);
        if let Some(lines) = intake.dropped(lines, now) {
            let labels: [telemetry::Label<'_>; 2] = [("lines", &lines), ("uid", &uid)];
            self.agent.sum_up("log lines of plugins are dropped: more come than this log takes", &labels);
        }
    }

    fn intake(&self, request: &Request<()>) -> (u32, &Arc<Intake>) {
        match request.extensions().get::<UnixPeer>() {
            Some(peer) if peer.is_trusted => (peer.uid, &self.own),
            Some(peer) => (peer.uid, &self.others),
            None => (u32::MAX, &self.others),
        }
    }
}

/// Prints posts until nobody posts any more.
fn print(printer: &Printer, posts: &Receiver<Post>) {
    posts.iter().for_each(|post| printer.print(&post));
}

/// How many texts a list has, as far as it is one; at least one.
fn count(body: &[u8]) -> u64 {
    let (mut quotes, mut is_escaped) = (0, false);
    for byte in body {
        quotes += u64::from(*byte == b'"' && !is_escaped);
        is_escaped = *byte == b'\\' && !is_escaped;
    }
    (quotes / 2).max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use telemetry::{Journal, Levels};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn post(path: &str, body: &str) -> (StatusCode, String) {
        let sink = Sink::default();
        let journal = Journal::new(Levels::parse("").unwrap(), false, sink.clone()).unwrap();
        let metrics = Arc::new(Metrics::new(false, journal.clone()).unwrap());
        let (plugin, agent) = (journal.scope("cni-plugin"), journal.scope("cni-agent"));
        let elsewhere = Journal::new(Levels::default(), false, std::io::sink()).unwrap().scope("thread");
        let socket = LogSocket::start(elsewhere.clone(), elsewhere, metrics.clone()).unwrap();
        let request = Request::builder().uri(path).body(()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = Bytes::from(body.to_owned());
        let status = runtime.block_on(socket.answer(&request, body.clone())).status();
        // The thread's work, where its end is seen.
        if status == StatusCode::OK {
            let intake = Arc::new(Intake::new(0, 0, Instant::now()));
            Printer { plugin, agent, metrics }.print(&Post { uid: 0, body, intake });
        }
        assert!(journal.finish(std::time::Duration::from_secs(20)));
        let written = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        (status, written)
    }

    /// The good entries of a batch are printed with their time and labels, whatever the others are.
    #[test]
    fn a_batch_is_printed_without_its_broken_lines() {
        let line = |level: &str, msg: &str| {
            format!(
                r#"{{"level":"{level}","time":"2026-08-01T09:30:00.000042Z","msg":"{msg}","pod":"a/b","n":1}}"#
            )
        };
        let texts = [
            line("info", " hello "),
            "not json".into(),
            "{}".into(),
            line("loud", "no"),
            line("info", "x").replace("2026-08", "yesterday"),
            line("info", "x").replace(r#""msg":"x""#, r#""msg":7"#),
            line("error", "bye"),
        ];
        let (status, written) = post("/log", &serde_json::to_string(&texts).unwrap());
        assert_eq!(status, StatusCode::OK);
        let lines: Vec<&str> = written.lines().collect();
        assert_eq!(
            lines,
            [
                "2026-08-01T09:30:00.000042Z\tinfo\tcni-plugin\thello\tn=1 pod=a/b",
                "2026-08-01T09:30:00.000042Z\terror\tcni-plugin\tbye\tn=1 pod=a/b",
            ]
        );
    }

    #[test]
    fn garbage_is_noted_and_answered_with_200() {
        for body in ["", "{}", "[1]", "notjson", "[\"a\"", &"[".repeat(100_000)] {
            let (status, written) = post("/log", body);
            assert_eq!(status, StatusCode::OK);
            assert!(written.contains("no list of texts"), "{written}");
        }
        assert_eq!(post("/log", "[]"), (StatusCode::OK, String::new()));
        assert_eq!(post("/other", "[]").0, StatusCode::NOT_FOUND);
    }

    #[test]
    fn texts_are_counted_without_taking_them_apart() {
        for (body, texts) in
            [("", 1), ("[]", 1), (r#"["a"]"#, 1), (r#"["a","","b\"c"]"#, 3), (r#"["\\","x"]"#, 2), ("\"", 1)]
        {
            assert_eq!(count(body.as_bytes()), texts, "{body}");
        }
    }
}
