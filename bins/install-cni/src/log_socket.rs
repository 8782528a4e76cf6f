//! The plugin's log lines, which it posts at its end (I-56).

use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use serde_json::Value;
use telemetry::{Level, Relayed, Scope};

use crate::serve::{Answer, Handler, text};

/// Any user may log.
pub(crate) const MODE: u32 = 0o666;

/// Prints what plugins post.
pub(crate) struct LogSocket {
    /// Scope of the plugin's lines.
    pub(crate) plugin: Scope,
    /// Scope of the agent's own.
    pub(crate) agent: Scope,
}

/// A plugin's line, taken apart.
struct Line {
    level: Level,
    time: String,
    msg: String,
    labels: Vec<(String, String)>,
}

impl Handler for LogSocket {
    /// The plugin stops at one MiB, before the last line's quotes are escaped.
    const MAX_BODY: usize = 2 << 20;
    /// Any user of the node may connect, and must not take its memory: 64 MiB for all bodies together.
    const MAX_CONNECTIONS: usize = 32;

    async fn answer(&self, request: &Request<()>, body: Bytes) -> Answer {
        if request.uri().path() != "/log" {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        match serde_json::from_slice::<Vec<String>>(&body) {
            Ok(texts) => self.relay(&texts),
            Err(error) => {
                self.agent.error("a plugin posted log lines that are no list of texts", &[("error", &error)]);
            }
        }
        text(StatusCode::OK, "")
    }

    /// The plugin's side has nobody to tell, so it hears the same as ever (AA-122), and the loss is told here.
    fn unreadable(&self, _: &Request<()>, _: StatusCode, reason: String) -> Answer {
        self.agent.error("log lines of a plugin are lost", &[("error", &reason)]);
        text(StatusCode::OK, "")
    }
}

impl LogSocket {
    fn relay(&self, texts: &[String]) {
        let mut lines = Vec::with_capacity(texts.len());
        for one in texts {
            match Line::parse(one) {
                Some(line) => lines.push(line),
                None => self
                    .agent
                    .debug("a plugin's log line is broken and was dropped", &[("bytes", &one.len())]),
            }
        }
        let labels: Vec<Vec<telemetry::Label<'_>>> = lines.iter().map(Line::labels).collect();
        let relayed: Vec<Relayed<'_>> = lines
            .iter()
            .zip(&labels)
            .map(|(line, labels)| Relayed { level: line.level, time: &line.time, msg: &line.msg, labels })
            .collect();
        self.plugin.relay(&relayed);
    }
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let Value::Object(mut members) = serde_json::from_str(text).ok()? else { return None };
        let mut take = |key: &str| match members.remove(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let (level, time, msg) = (take("level")?, take("time")?, take("msg")?);
        let level = match level.as_str() {
            "debug" => Level::Debug,
            "info" => Level::Info,
            "warn" => Level::Warn,
            "error" | "fatal" => Level::Error,
            _ => return None,
        };
        let plain = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        // The scope is ours to say.
        members.remove("scope");
        let labels = members.into_iter().map(|(key, value)| (one_word(&key), plain(value))).collect();
        is_rfc3339(&time).then_some(Self { level, time, msg, labels })
    }

    fn labels(&self) -> Vec<telemetry::Label<'_>> {
        self.labels.iter().map(|(key, value)| (key.as_str(), value as &dyn std::fmt::Display)).collect()
    }
}

/// A label's key that can make neither a line nor a column of its own.
fn one_word(key: &str) -> String {
    key.chars().take(64).map(|c| if c.is_ascii_graphic() && c != '=' && c != '"' { c } else { '_' }).collect()
}

/// Whether a text has the form of a moment in RFC 3339. What it says is the writer's affair.
fn is_rfc3339(text: &str) -> bool {
    let digits = |range: std::ops::Range<usize>| {
        text.get(range).is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let at = |index: usize, byte: u8| text.as_bytes().get(index) == Some(&byte);
    let date = digits(0..4) && at(4, b'-') && digits(5..7) && at(7, b'-') && digits(8..10) && at(10, b'T');
    let time = digits(11..13) && at(13, b':') && digits(14..16) && at(16, b':') && digits(17..19);
    let rest = text.get(19..).unwrap_or_default();
    let rest = rest
        .strip_prefix('.')
        .map_or(rest, |fraction| fraction.trim_start_matches(|c: char| c.is_ascii_digit()));
    let zone = match rest.as_bytes() {
        [b'Z'] => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    text.len() <= 64 && date && time && zone
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
        let socket = LogSocket { plugin: journal.scope("cni-plugin"), agent: journal.scope("cni-agent") };
        let request = Request::builder().uri(path).body(()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let status = runtime.block_on(socket.answer(&request, Bytes::from(body.to_owned()))).status();
        assert!(journal.finish(std::time::Duration::from_secs(20)));
        let written = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        (status, written)
    }

    /// N-13 and C20: the good entries of a batch are printed with their time and labels, whatever the others are.
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
    fn times_have_the_form_of_rfc_3339() {
        for good in ["2026-08-01T09:30:00Z", "2026-08-01T09:30:00.123456Z", "2026-08-01T09:30:00+02:00"] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "2026-08-01",
            "2026-08-01 09:30:00Z",
            "2026-08-01T09:30:00",
            "2026-08-01T09:30:00.Zx",
            "é026-08-01T09:30:00Z",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
