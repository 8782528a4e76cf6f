//! The program from outside: what it prints, how it ends, what it does to a namespace. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent_pods;
mod ambient;
mod bug_report;
mod chain;
mod conflicts;
mod doctor;
mod documents;
mod explain;
mod fake;
mod fleet;
mod help;
mod hostile;
mod input;
mod kubectl;
mod live;
mod machine;
mod page;
mod pods;
mod policy;
mod policy_ask;
mod render;
mod schema;
mod selftest;
mod status;
mod tenants;
mod terminal;
mod trace;
mod uninstall;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A pod with a sidecar as the injector leaves it.
const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 11d5e3c2-0001
  annotations:
    sidecar.istio.io/status: '{}'
    traffic.sidecar.istio.io/excludeOutboundPorts: "3306"
spec:
  containers:
  - name: app
  - name: istio-proxy
    args: [proxy, sidecar]
    env:
    - {name: ISTIO_META_DNS_CAPTURE, value: "true"}
"#;

/// A pod without.
const PLAIN: &str = "
kind: Pod
metadata: {name: plain, namespace: shop}
spec: {containers: [{name: app}]}
";

/// A folder with the files of a test.
struct Files {
    root: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Self::below(dir.path());
        Self { _dir: Some(dir), ..files }
    }

    /// In a folder that is there already.
    fn below(root: &Path) -> Self {
        let files = Self { root: root.to_owned(), _dir: None };
        files.write("web.yaml", WEB);
        files.write("plain.yaml", PLAIN);
        files.write("both.yaml", &format!("{WEB}---{PLAIN}"));
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// `cnictl` with the words of `line`; a word `@name` is a file of the folder.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cnictl"));
        for word in line.split_whitespace() {
            match word.strip_prefix('@') {
                Some(name) => command.arg(self.path(name)),
                None => command.arg(word),
            };
        }
        command.env_remove("CNI_PATH").env("XDG_STATE_HOME", self.path("state"));
        // This machine may be a node itself.
        command.env("MOUNTED_CNI_NET_DIR", self.path("no-net.d"));
        command.env("CNI_AGENT_RUN_DIR", self.path("no-run"));
        command.env("STATE_DIR", self.path("no-state"));
        command
    }

    fn run(&self, line: &str) -> Run {
        Run::of(&self.command(line).output().unwrap())
    }
}

/// What came of a call.
#[derive(Debug)]
struct Run {
    exit: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(output: &Output) -> Self {
        Self {
            exit: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// Standard output of a call that has to succeed.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!((self.exit, self.stderr.as_str()), (0, ""), "{}", self.stdout);
        self.stdout
    }

    /// Asserts the exit code and that standard error has all the parts.
    #[track_caller]
    fn fails(self, exit: i32, parts: &[&str]) -> Self {
        assert_eq!(self.exit, exit, "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {}", self.stderr);
        }
        self
    }
}

/// The rest of a row of a table.
fn row<'a>(table: &'a str, name: &str) -> &'a str {
    let line = table.lines().find(|line| line.starts_with(name));
    line.map_or_else(|| panic!("no {name} in {table}"), |line| line[name.len()..].trim())
}

/// Directories of plugins for `--cni-path`.
fn cni_path(own: &Path) -> String {
    format!("{}:/usr/lib/cni", own.display())
}
