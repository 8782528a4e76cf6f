//! An agent whose log nobody reads, or cannot be written: it serves, installs and ends as ever.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::json;
use testkit::{Agent, Families, Launch, Node, PATIENCE, Pod, PodCall, eventually, http};

const LOST: &str = "istio_cni_log_lines_lost_total";

/// A pipe that is held open and not read.
struct Pipe {
    path: PathBuf,
    reader: File,
}

impl Pipe {
    fn new(node: &Node) -> Self {
        let path = node.dir().join("log.pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let reader = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&path)
            .unwrap();
        Self { path, reader }
    }

    /// The agent's standard output and standard error are this pipe.
    fn of<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        let exec = format!("exec \"$@\" >'{0}' 2>'{0}'", self.path.display());
        launch.behind(&["sh", "-c", &exec, "sh"])
    }

    fn fill(&self) {
        let mut writer = &self.reader;
        while std::io::Write::write(&mut writer, &[b'\n'; 4096]).is_ok() {}
    }

    fn read(&self) -> String {
        let mut bytes = Vec::new();
        let _ = (&self.reader).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Posts more than a pipe and the agent's queue hold, as plugins do.
fn flood(socket: &Path) {
    let line = json!({"level": "info", "time": "2026-08-01T09:30:00Z", "msg": "x".repeat(1000)}).to_string();
    let body = json!(vec![line; 100]).to_string();
    for _ in 0..12 {
        assert_eq!(http::ask(socket, "POST", "/log", &body).unwrap().status, 200);
    }
}

fn works(node: &Node, agent: &Agent) {
    assert_eq!(agent.health("/healthz").unwrap().status, 200);
    assert_eq!(agent.readyz().unwrap().status, 200);
    assert_eq!(http::ask(&node.agent_socket(), "GET", "/v1/status", "").unwrap().status, 200);
    std::fs::write(node.conflist(), Node::foreign_conflist()).unwrap();
    eventually("the configuration is healed", PATIENCE, || node.entry()).unwrap();
    node.sidecar("web", "uid-1");
    let pod = Pod::new(Families::V4).unwrap();
    PodCall::new(node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
}

fn loses(agent: &Agent) -> f64 {
    eventually("lost lines are counted", PATIENCE, || {
        let lost = agent.metric(LOST)?;
        ensure!(lost > 0.0);
        Ok(lost)
    })
    .unwrap()
}

#[test]
fn a_log_that_nobody_reads_stops_nothing_and_is_told_of_when_it_is_read() {
    let node = Node::new().unwrap();
    let pipe = Pipe::new(&node);
    let agent = pipe.of(node.agent()).ready().unwrap();
    assert_eq!(agent.metric(LOST).unwrap(), 0.0);
    flood(&node.log_socket());
    loses(&agent);
    works(&node, &agent);
    let mut text = String::new();
    eventually("the loss is told", PATIENCE, || {
        text += &pipe.read();
        let told = text.lines().filter_map(|line| line.split_once("\twarn\tlog\tlog lines are lost"));
        let told = told.filter_map(|(_, rest)| rest.rsplit_once("lines=")?.1.parse::<f64>().ok());
        let (told, lost) = (told.sum::<f64>(), agent.metric(LOST)?);
        ensure!(told > 0.0 && told == lost, "{told} lines of {lost} in {} bytes", text.len());
        Ok(())
    })
    .unwrap();
    assert!(text.contains("install-cni starts"), "the first lines are kept");
    // The end, with the pipe full again.
    flood(&node.log_socket());
    pipe.fill();
    let ended = agent.stop().unwrap();
    assert!(ended.status.success(), "{:?}", ended.status);
    assert!(!node.log_socket().exists(), "the end was a whole one");
}

#[test]
fn the_last_lines_are_in_the_log() {
    let node = Node::new().unwrap();
    let file = node.dir().join("agent.log");
    let agent = node.agent().arg(&format!("--log_target={}", file.display())).ready().unwrap();
    agent.stop().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let last = text.lines().last().unwrap();
    assert!(text.contains("\tending\tsignal=SIGTERM") && text.ends_with('\n'), "{last}");
}

#[test]
fn a_disk_that_is_full_stops_nothing() {
    let node = Node::new().unwrap();
    let agent = node.agent().arg("--log_target=/dev/full").ready().unwrap();
    loses(&agent);
    works(&node, &agent);
    assert!(agent.stop().unwrap().status.success());
}

/// An agent that cannot even say why must end all the same, so that it is started again.
#[test]
fn an_agent_that_cannot_start_ends_although_nobody_reads_why() {
    let node = Node::new().unwrap();
    let pipe = Pipe::new(&node);
    pipe.fill();
    let agent = pipe.of(node.agent().env("FAILURE_POLICY", "perhaps")).start().unwrap();
    let ended = agent.ended_by_itself().unwrap();
    assert!(!ended.status.success() && ended.took < PATIENCE + Duration::from_secs(1), "{:?}", ended.status);
}
