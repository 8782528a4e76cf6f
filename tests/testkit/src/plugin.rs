//! Calls of the `istio-cni` executable as a container runtime makes them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Runs its arguments on a kernel that seems to have no nf_tables: a seccomp filter refuses netlink sockets of the netfilter kind
/// (`socket(AF_NETLINK, …, NETLINK_NETFILTER)`) as a kernel without `CONFIG_NETFILTER_NETLINK` does, for the plugin and everything
/// that it starts.
pub const WITHOUT_NFTABLES: &str = r#"
import ctypes, os, platform, struct, sys
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
load, jump, answer = 0x20, 0x15, 0x06
program = [(load, 0, 0, 0), (jump, 0, 5, number), (load, 0, 0, 16), (jump, 0, 3, 16), (load, 0, 0, 32), (jump, 0, 1, 12),
           (answer, 0, 0, 0x00050000 | 93), (answer, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
libc = ctypes.CDLL(None, use_errno=True)
header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
assert libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"#;

/// One call, with everything that a runtime sets.
#[derive(Debug, Clone)]
pub struct Call {
    /// CNI_* and other variables; an absent value removes one.
    pub env: Vec<(String, Option<String>)>,
    /// Standard input.
    pub stdin: Vec<u8>,
}

/// What came of a call.
#[derive(Debug)]
pub struct Answer {
    /// Exit code; absent when a signal ended the process.
    pub exit: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Time from start to end.
    pub took: Duration,
}

impl Call {
    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), Some(value.to_owned())));
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.env.push((name.to_owned(), None));
        self
    }

    /// Replaces standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// The command that [`Call::run`] runs, for tests that start it in another way.
    pub fn command(&self) -> Command {
        self.command_with(&[])
    }

    /// The same behind a wrapper such as `strace -f`.
    pub fn command_with(&self, wrapper: &[&str]) -> Command {
        self.command_of(&crate::programs().join("istio-cni"), wrapper)
    }

    /// The same for another plugin.
    pub fn command_of(&self, plugin: &Path, wrapper: &[&str]) -> Command {
        let mut command = match wrapper {
            [program, args @ ..] => {
                let mut command = Command::new(program);
                command.args(args).arg(plugin);
                command
            }
            [] => Command::new(plugin),
        };
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Runs the plugin to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self) -> Result<Answer> {
        self.run_as(self.command())
    }

    /// Runs a command with this call's standard input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_as(&self, mut command: Command) -> Result<Answer> {
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        // A plugin that does not read it is no failure of the test.
        let _ = stdin.write_all(&self.stdin);
        drop(stdin);
        let output = child.wait_with_output()?;
        Ok(Answer {
            exit: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: start.elapsed(),
        })
    }
}

impl Answer {
    /// Standard output as the one JSON object that it must be.
    ///
    /// # Errors
    /// It is something else.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not one JSON object: {self:#?}"))
    }

    /// The error object: code, and message with details.
    ///
    /// # Errors
    /// The call succeeded, or its output is no error.
    pub fn error(&self) -> Result<(u64, String)> {
        ensure!(self.exit == Some(1), "exit code is not 1: {self:#?}");
        let json = self.json()?;
        let code = json["code"].as_u64().with_context(|| format!("no code: {json}"))?;
        ensure!(json["cniVersion"].is_string(), "no cniVersion: {json}");
        let text = [&json["msg"], &json["details"]].map(text).join("; ");
        Ok((code, text.trim_end_matches("; ").to_owned()))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
