//! What plugin and agent have logged on this node, as far as it can be found: the files of the agent's container, where this program sees the node's
//! directory of them, else what the agent has in memory; and the plugin's own file, into which it writes in any case.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use podsource::AgentSource;
use rustix::fs::OFlags;

use crate::configuration::AGENT_PATIENCE;
use crate::node::NodePlaces;

/// Name of the agent's container, which kubelet gives to the directory of its log.
const CONTAINER: &str = "install-cni";
/// How much of the end of one file is read, and how many files.
const MAX_READ: u64 = 4 << 20;
const MAX_FILES: usize = 8;
/// Directories of pods that are looked through.
const MAX_PODS: usize = 5000;

/// What a file says of a line: runtimes write long ones in parts.
#[derive(Debug, PartialEq, Eq)]
enum LinePart {
    /// More of it follows.
    Begins(String),
    /// Its end, or all of it.
    Ends(String),
}

/// Lines with where they are from.
#[derive(Debug, Default)]
pub(crate) struct NodeLog {
    /// Without a line that two places have.
    pub(crate) lines: Vec<String>,
    /// The places, for people.
    pub(crate) from: Vec<String>,
    /// What could not be read, and why.
    pub(crate) gaps: Vec<String>,
}

impl NodeLog {
    /// Reads what is not older than `age`; `dir` is the node's directory of container logs.
    pub(crate) fn read(places: &NodePlaces, dir: &Path, age: Duration) -> Self {
        let since = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut log = Self::default();
        let mut lines: Vec<String> = Vec::new();
        let files = agent_files(dir, own_directories(&places.run_dir).as_deref(), since);
        for path in &files {
            log.take(path, container_line, &mut lines);
        }
        if files.is_empty() {
            let agent = AgentSource::new(&places.run_dir, env!("CARGO_PKG_VERSION"));
            match agent.recent(AGENT_PATIENCE) {
                Ok(recent) => {
                    log.from.push("what the agent has in memory".to_owned());
                    lines.extend(recent.log);
                }
                Err(error) => log.gaps.push(format!("the agent's log: {error}")),
            }
        }
        for path in plugin_files(&places.run_dir, since) {
            log.take(&path, |line| Some(LinePart::Ends(line.to_owned())), &mut lines);
        }
        let since = telemetry::time_text(since);
        lines.retain(|line| time_of(line).is_none_or(|time| time >= &*since));
        // The plugin's lines are in the agent's log, too, where it answers. Both begin with a time, or have one.
        let mut seen = BTreeSet::new();
        lines.retain(|line| seen.insert(line.clone()));
        lines.sort_by(|a, b| time_of(a).cmp(&time_of(b)));
        log.lines = lines;
        log
    }

    fn take(&mut self, path: &Path, read: impl Fn(&str) -> Option<LinePart>, lines: &mut Vec<String>) {
        match end_of(path) {
            Ok(text) => {
                self.from.push(path.display().to_string());
                let mut begun = String::new();
                for part in text.lines().filter(|line| !line.is_empty()).filter_map(read) {
                    match part {
                        LinePart::Begins(text) => begun += &text,
                        LinePart::Ends(text) => lines.push(std::mem::take(&mut begun) + &text),
                    }
                }
                lines.extend((!begun.is_empty()).then_some(begun));
            }
            Err(error) => self.gaps.push(format!("{}: {error}", path.display())),
        }
    }
}

/// When a line was written, as it says; of text, its beginning, and of JSON, a member.
fn time_of(line: &str) -> Option<&str> {
    let text = match line.starts_with('{') {
        true => line.split_once("\"time\":\"")?.1,
        false => line,
    };
    let is_time = text.get(..20).is_some_and(|head| {
        head.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            10 => byte == b'T',
            13 | 16 => byte == b':',
            19 => !byte.is_ascii_digit(),
            _ => byte.is_ascii_digit(),
        })
    });
    is_time.then(|| text.split(['"', '\t', ' ']).next()).flatten()
}

/// How kubelet names the directories of pods of the DaemonSet whose agent runs here: other pods may have a container of the same name.
fn own_directories(run_dir: &Path) -> Option<String> {
    let holder = rundir::holder(run_dir, rundir::LOCK_NAME).ok().flatten()?;
    let (daemonset, _) = holder.pod.rsplit_once('-')?;
    (!holder.namespace.is_empty()).then(|| format!("{}_{daemonset}-", holder.namespace))
}

/// The log files of the agent's container, the oldest first; of directories that are named so only.
fn agent_files(dir: &Path, named: Option<&str>, since: SystemTime) -> Vec<PathBuf> {
    let pods = std::fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_PODS);
    let is_own = |pod: &std::fs::DirEntry| {
        named.is_none_or(|named| pod.file_name().to_str().is_some_and(|name| name.starts_with(named)))
    };
    let pods = pods.filter(is_own);
    let of_pods = pods.flat_map(|pod| files_in(&pod.path().join(CONTAINER), |_| true));
    newest(of_pods.collect(), since)
}

fn plugin_files(run_dir: &Path, since: SystemTime) -> Vec<PathBuf> {
    newest(files_in(run_dir, telemetry::is_log_file), since)
}

fn files_in(dir: &Path, is_meant: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_PODS);
    let names = entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_meant));
    names.map(|entry| entry.path()).filter(|path| path.extension().is_none_or(|kind| kind != "gz")).collect()
}

fn newest(files: Vec<PathBuf>, since: SystemTime) -> Vec<PathBuf> {
    let changed = |path: PathBuf| {
        let metadata = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        Some((metadata.modified().ok()?, path))
    };
    let mut files: Vec<_> = files.into_iter().filter_map(changed).filter(|(at, _)| *at >= since).collect();
    files.sort();
    let skip = files.len().saturating_sub(MAX_FILES);
    files.into_iter().skip(skip).map(|(_, path)| path).collect()
}

/// The end of a file, from the beginning of a line.
fn end_of(path: &Path) -> std::io::Result<String> {
    // Whatever has come into its place is not waited for.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    let size = file.metadata()?.len();
    let from = size.saturating_sub(MAX_READ);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(MAX_READ).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(match from {
        0 => text,
        _ => text.split_once('\n').map(|(_, rest)| rest.to_owned()).unwrap_or_default(),
    })
}

/// What the agent wrote, of a line of a container's log: a runtime puts time, stream and a mark before it, Docker makes JSON of it.
fn container_line(line: &str) -> Option<LinePart> {
    if let Some(written) =
        serde_json::from_str::<serde_json::Value>(line).ok().as_ref().and_then(|line| line["log"].as_str())
    {
        return Some(LinePart::Ends(written.trim_end().to_owned()));
    }
    let mut parts = line.splitn(4, ' ');
    let (_, stream, mark, written) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if !matches!(stream, "stdout" | "stderr") {
        return None;
    }
    match mark {
        "F" => Some(LinePart::Ends(written.to_owned())),
        "P" => Some(LinePart::Begins(written.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_runtimes_are_read() {
        for (line, written) in [
            (
                "2026-08-01T09:30:00.1Z stdout F 2026-08-01T09:30:00Z\tinfo\tx\ty",
                Some(LinePart::Ends("2026-08-01T09:30:00Z\tinfo\tx\ty".to_owned())),
            ),
            ("2026-08-01T09:30:00.1Z stderr P a", Some(LinePart::Begins("a".to_owned()))),
            (
                r#"{"log":"{\"level\":\"info\"}\n","stream":"stdout","time":"t"}"#,
                Some(LinePart::Ends(r#"{"level":"info"}"#.to_owned())),
            ),
            ("no line of a runtime", None),
            ("", None),
        ] {
            assert_eq!(container_line(line), written, "{line}");
        }
    }

    #[test]
    fn the_time_of_a_line_is_found() {
        for (line, time) in [
            ("2026-08-01T09:30:00.000001Z\tinfo\tx\ty", Some("2026-08-01T09:30:00.000001Z")),
            (r#"{"level":"info","time":"2026-08-01T09:30:00Z","msg":""}"#, Some("2026-08-01T09:30:00Z")),
            ("panicked at", None),
            ("2026-08-01", None),
        ] {
            assert_eq!(time_of(line), time, "{line}");
        }
    }
}
