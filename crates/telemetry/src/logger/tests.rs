use std::io::Read as _;
use std::os::unix::net::UnixListener;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::FILE_NAME;

/// Stands for stderr and remembers what was written.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn logger() -> (Captured, Logger) {
    let stderr = Captured::default();
    (stderr.clone(), Logger::to_writer(stderr))
}

fn file_text(dir: &TempDir) -> String {
    std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap_or_default()
}

fn messages(lines: &str) -> Vec<String> {
    lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["msg"].as_str().unwrap().to_owned())
        .collect()
}

/// The lines of the one request that comes to `listener`.
fn receive(listener: &UnixListener) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut got = String::new();
    // The client has given up waiting for an answer or is gone: all is there.
    stream.read_to_string(&mut got).unwrap();
    let (_, body) = got.split_once("\r\n\r\n").unwrap();
    serde_json::from_str::<Vec<String>>(body).unwrap().concat()
}

#[test]
fn before_the_configuration_info_lines_are_on_stderr_only() {
    let (stderr, log) = logger();
    log.debug("hidden", &[]);
    log.info("shown", &[("pod", &"ns/name")]);
    drop(log);
    assert_eq!(messages(&stderr.text()), ["shown"]);
    assert!(stderr.text().contains("\"msg\":\"shown\",\"pod\":\"ns/name\"}"), "{}", stderr.text());
}

#[test]
fn early_lines_reach_every_sink_once() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join(rundir::LOG_SOCKET_NAME)).unwrap();
    let (stderr, log) = logger();
    log.debug("early debug", &[]);
    log.info("early", &[]);
    log.attach(dir.path(), Level::Debug);
    log.debug("late debug", &[]);
    log.finish();
    assert_eq!(messages(&stderr.text())[..3], ["early", "early debug", "late debug"]);
    assert_eq!(messages(&file_text(&dir))[..3], ["early debug", "early", "late debug"]);
    assert_eq!(messages(&receive(&listener)), ["early debug", "early", "late debug"]);
}

#[test]
fn the_level_is_one_filter_for_all_sinks() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join(rundir::LOG_SOCKET_NAME)).unwrap();
    let (stderr, log) = logger();
    log.info("early", &[]);
    log.attach(dir.path(), Level::Error);
    log.warn("filtered", &[]);
    log.error("kept", &[]);
    assert!(!log.enabled(Level::Warn));
    drop(log);
    assert_eq!(messages(&stderr.text()), ["early", "kept"]);
    assert_eq!(messages(&file_text(&dir)), ["kept"]);
    assert_eq!(messages(&receive(&listener)), ["kept"]);
}

#[test]
fn level_none_silences_everything_and_sends_an_empty_request() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join(rundir::LOG_SOCKET_NAME)).unwrap();
    let (stderr, log) = logger();
    log.attach(dir.path(), Level::None);
    log.fatal("lost", &[]);
    drop(log);
    assert_eq!(stderr.text(), "");
    assert!(!dir.path().join(FILE_NAME).exists());
    assert_eq!(receive(&listener), "");
}

#[test]
fn a_socket_that_appears_later_is_not_used() {
    let dir = TempDir::new().unwrap();
    let (_, log) = logger();
    log.attach(dir.path(), Level::Info);
    let listener = UnixListener::bind(dir.path().join(rundir::LOG_SOCKET_NAME)).unwrap();
    listener.set_nonblocking(true).unwrap();
    log.info("a", &[]);
    drop(log);
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn the_file_is_written_at_an_error_and_at_the_end() {
    let dir = TempDir::new().unwrap();
    let (_, log) = logger();
    log.attach(dir.path(), Level::Info);
    log.info("a", &[]);
    assert_eq!(file_text(&dir), "");
    log.error("b", &[]);
    assert_eq!(messages(&file_text(&dir)), ["a", "b"]);
    log.info("c", &[]);
    let child = log.with(&[("pod", &"ns/name")]);
    drop(log);
    child.info("d", &[("if", &"eth0")]);
    assert_eq!(messages(&file_text(&dir)), ["a", "b"]);
    drop(child);
    assert_eq!(messages(&file_text(&dir)), ["a", "b", "c", "d"]);
    assert!(file_text(&dir).ends_with("\"msg\":\"d\",\"pod\":\"ns/name\",\"if\":\"eth0\"}\n"));
}

#[test]
fn much_output_does_not_gather_in_memory() {
    let dir = TempDir::new().unwrap();
    let (_, log) = logger();
    log.attach(dir.path(), Level::Info);
    for _ in 0..100 {
        log.info(&"x".repeat(1000), &[]);
    }
    assert!(file_text(&dir).len() > BUFFER_MAX_BYTES);
}

#[test]
fn too_many_early_lines_are_counted() {
    let dir = TempDir::new().unwrap();
    let (stderr, log) = logger();
    for n in 0..100 {
        log.info(&format!("{n} {}", "x".repeat(1000)), &[]);
    }
    log.attach(dir.path(), Level::Info);
    drop(log);
    assert_eq!(messages(&stderr.text()).len(), 101);
    let file = file_text(&dir);
    let kept = messages(&file).len() - 1;
    assert!((50..70).contains(&kept), "{kept}");
    assert!(file.ends_with(&format!("\"lines\":\"{}\"}}\n", 100 - kept)), "{}", &file[file.len() - 200..]);
}

#[test]
fn a_file_that_cannot_be_written_is_told_once_and_nothing_fails() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join(FILE_NAME)).unwrap();
    let (stderr, log) = logger();
    log.attach(dir.path(), Level::Info);
    log.error("a", &[]);
    log.error("b", &[]);
    drop(log);
    assert_eq!(messages(&stderr.text()), ["a", "cannot write the log file, going on", "b"]);
    assert!(stderr.text().contains(FILE_NAME), "{}", stderr.text());
}

#[test]
fn a_relative_run_directory_gives_no_sinks() {
    let (stderr, log) = logger();
    log.attach(Path::new("relative-run-dir"), Level::Info);
    log.error("a", &[]);
    drop(log);
    assert_eq!(messages(&stderr.text()), ["a"]);
    assert!(!Path::new("relative-run-dir").exists());
}

#[test]
fn a_second_attach_changes_the_level_only() {
    let (first, second) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (_, log) = logger();
    log.attach(first.path(), Level::Info);
    log.attach(second.path(), Level::Error);
    log.info("a", &[]);
    log.error("b", &[]);
    assert_eq!(messages(&file_text(&first)), ["b"]);
    assert_eq!(file_text(&second), "");
}

#[test]
fn a_closed_stderr_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let dir = TempDir::new().unwrap();
    let log = Logger::to_writer(writer);
    log.attach(dir.path(), Level::Info);
    log.info("a", &[]);
    drop(log);
    assert_eq!(messages(&file_text(&dir)), ["a"]);
}

#[test]
fn threads_share_one_logger() {
    let dir = TempDir::new().unwrap();
    let (stderr, log) = logger();
    log.attach(dir.path(), Level::Info);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let log = &log;
            scope.spawn(move || (0..50).for_each(|i| log.info("m", &[("thread", &n), ("i", &i)])));
        }
    });
    drop(log);
    assert_eq!(messages(&stderr.text()).len(), 200);
    assert_eq!(messages(&file_text(&dir)).len(), 200);
}
