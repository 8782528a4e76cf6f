//! One call of one plugin.

use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use testkit::TestNetns;

use super::{Attachment, Verb};

/// Where a real runtime would wait for ever, the test fails.
const LONGEST: Duration = Duration::from_secs(60);

/// What was sent, and what came of it.
#[derive(Debug, Clone)]
pub struct Call {
    /// `CNI_COMMAND`.
    pub verb: &'static str,
    /// The plugin's type.
    pub plugin: String,
    /// What the environment has of the attachment.
    pub attachment: Attachment,
    /// Standard input.
    pub config: Value,
    /// Exit code; absent when a signal ended the process.
    pub exit: Option<i32>,
    /// What it answered.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Call {
    pub(super) fn run(
        program: &Path,
        verb: Verb,
        path: &[PathBuf],
        attachment: &Attachment,
        config: &Value,
        host: &TestNetns,
    ) -> Result<Self> {
        let args = attachment.cni_args.iter().map(|(name, value)| format!("{name}={value}"));
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs([
            ("CNI_COMMAND", verb.name),
            ("CNI_CONTAINERID", &attachment.container_id),
            ("CNI_NETNS", &attachment.netns),
            ("CNI_IFNAME", &attachment.if_name),
            ("CNI_ARGS", &args.collect::<Vec<_>>().join(";")),
            ("CNI_PATH", &path.iter().map(|dir| dir.to_string_lossy()).collect::<Vec<_>>().join(":")),
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut process = host.spawn(&mut command)?;
        let child = process.child();
        let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let text = config.to_string();
        // A runtime waits until both streams are closed, also by children of the plugin.
        let (stdout, stderr, status) = std::thread::scope(|scope| -> Result<_> {
            let (out, err) = (scope.spawn(|| read(stdout)), scope.spawn(|| read(stderr)));
            if let Some(stdin) = &mut stdin {
                // A plugin need not read it.
                let _ = stdin.write_all(text.as_bytes());
            }
            drop(stdin);
            let limit = verb.limit.unwrap_or(LONGEST).min(LONGEST);
            let status = loop {
                if let Some(status) = process.ended()? {
                    break status;
                }
                if start.elapsed() > limit {
                    process.child().kill()?;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            Ok((out.join().unwrap_or_default(), err.join().unwrap_or_default(), status))
        })?;
        let took = start.elapsed();
        if verb.limit.is_none_or(|limit| limit > LONGEST) && took > LONGEST {
            bail!("{} of {} goes on after {LONGEST:?}: {stderr}", verb.name, program.display());
        }
        let plugin = program.file_name().context("a plugin without a name")?.to_string_lossy().into_owned();
        let (attachment, config, exit) = (attachment.clone(), config.clone(), status.code());
        Ok(Self { verb: verb.name, plugin, attachment, config, exit, stdout, stderr, took })
    }

    /// Standard output, or what a runtime makes of a failure.
    pub(super) fn outcome(&self) -> Result<String, String> {
        if self.exit == Some(0) {
            return Ok(self.stdout.clone());
        }
        let answer: Value = serde_json::from_str(&self.stdout).unwrap_or_default();
        match (answer["msg"].as_str(), answer["details"].as_str().unwrap_or_default()) {
            (Some(message), "") => Err(message.to_owned()),
            (Some(message), details) => Err(format!("{message}; {details}")),
            (None, _) => Err(format!("exit {:?}: {}{}", self.exit, self.stdout, self.stderr)),
        }
    }
}

fn read(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = stream.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
