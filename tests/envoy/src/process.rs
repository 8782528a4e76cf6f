//! Envoy as a program.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use testkit::{Pod, Process, eventually, http};

use crate::bootstrap::{Bootstrap, Mode};
use crate::user::User;

/// How long Envoy may take until it serves; half a second on an idle machine.
const LONGEST_START: Duration = Duration::from_secs(20);

/// A running sidecar, as [`User::proxy`]; killed when dropped.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    dir: TempDir,
}

impl Envoy {
    /// Starts it in the pod and waits until both listeners serve. `own_service` is where the pod's application listens.
    ///
    /// # Errors
    /// When it is not installed, or does not start in time; the message has the end of its log.
    pub fn start(pod: &Pod, mode: Mode, own_service: SocketAddr) -> Result<Self> {
        let program = installed()?;
        let dir = tempfile::Builder::new().prefix("envoy-").tempdir().context("cannot make a directory")?;
        let User { uid, gid } = User::proxy(mode);
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to user {uid} (run as root)", dir.path().display()))?;
        let bootstrap = Bootstrap {
            mode,
            families: pod.families(),
            own_service,
            admin: &dir.path().join("admin"),
            access_log: &dir.path().join("access.log"),
        };
        let log = File::create(dir.path().join("envoy.log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
        if mode == Mode::Tproxy {
            // For IP_TRANSPARENT and SO_MARK; Istio's injector drops everything else.
            command.args(["--bounding-set", "-all,+net_admin", "--inh-caps", "-all"]);
        }
        // By this name because the checkout may be in a folder that the user cannot enter.
        command.arg("/proc/self/fd/0").arg("--config-yaml").arg(bootstrap.to_json().to_string());
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        command.args(["--file-flush-interval-msec", "50"]);
        command.current_dir("/").stdin(program).stdout(Stdio::null()).stderr(log);
        let mut envoy = Self { process: pod.spawn(&mut command)?, dir };
        envoy.wait_until_ready()?;
        Ok(envoy)
    }

    /// The requests that went through it. They come up to 50 ms late.
    #[must_use]
    pub fn access_log(&self) -> String {
        self.file("access.log")
    }

    /// Its own log.
    #[must_use]
    pub fn log(&self) -> String {
        self.file("envoy.log")
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_else(|e| format!("({name}: {e})"))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let admin = self.dir.path().join("admin");
        // One that has ended is not waited for.
        let ended = eventually("envoy serves", LONGEST_START, || {
            if let Some(status) = self.process.ended()? {
                return Ok(Some(status));
            }
            let reply = http::ask(&admin, "GET", "/ready", "").with_context(|| self.end_of_log())?;
            ensure!(reply.body.contains("LIVE"), "{reply:?}\n{}", self.end_of_log());
            Ok(None)
        })?;
        match ended {
            Some(status) => bail!("envoy ended ({status}):\n{}", self.end_of_log()),
            None => Ok(()),
        }
    }

    fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

fn installed() -> Result<File> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/bin/envoy");
    File::open(&path).with_context(|| format!("no envoy at {}: run scripts/setup", path.display()))
}
