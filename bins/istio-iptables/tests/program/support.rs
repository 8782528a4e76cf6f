//! Runs the program and looks at what is left behind.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use testkit::rules::{Comments, Family, Variant};
use testkit::{Families, TestNetns};

pub(crate) const PROXY: u32 = 1337;
pub(crate) const BACKENDS: [&str; 2] = ["--native-nftables=false", "--native-nftables"];
pub(crate) const MODES: [&str; 2] = ["REDIRECT", "TPROXY"];

/// A copy of the program that every user may run; the build folder may be root's alone.
pub(crate) struct Program {
    folder: TempDir,
}

/// A finished run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    /// stderr.
    pub(crate) log: String,
}

impl Program {
    pub(crate) fn new() -> Result<Self> {
        let folder =
            tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir()?;
        let program = folder.path().join("istio-iptables");
        testkit::copy_program(env!("CARGO_BIN_EXE_istio-iptables").as_ref(), &program)?;
        Ok(Self { folder })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("istio-iptables")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path());
        command.args(args);
        bare(command)
    }

    /// As the container runtime starts an unprivileged container: another user, and with that no capabilities.
    pub(crate) fn command_as(&self, user: u32, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.uid(user).gid(user);
        command
    }

    /// As the container runtime starts `istio-init`: root with two capabilities.
    pub(crate) fn command_in_init_container(&self, args: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all", "--no-new-privs", "--"])
            .arg(self.path())
            .args(args);
        bare(command)
    }

    /// Runs it as root inside.
    pub(crate) fn run(&self, netns: &TestNetns, args: &[&str]) -> Result<Run> {
        Run::of(netns, &mut self.command(args))
    }

    /// Runs it as root inside, to success.
    pub(crate) fn succeed(&self, netns: &TestNetns, args: &[&str]) -> Result<Run> {
        let run = self.run(netns, args)?;
        ensure!(run.code == Some(0), "{args:?}: {run:?}");
        Ok(run)
    }
}

impl Run {
    pub(crate) fn of(netns: &TestNetns, command: &mut Command) -> Result<Self> {
        Self::from_output(&netns.output(command)?)
    }

    pub(crate) fn from_output(output: &std::process::Output) -> Result<Self> {
        Ok(Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout.clone())?,
            log: String::from_utf8(output.stderr.clone())?,
        })
    }

    /// The log line with this text at the beginning of its message.
    pub(crate) fn line(&self, message: &str) -> Result<Value> {
        let lines = self.log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut found = lines.filter(|line| line["msg"].as_str().is_some_and(|msg| msg.starts_with(message)));
        found.next().with_context(|| format!("no line {message:?}: {self:?}"))
    }

    pub(crate) fn is_failure(&self, code: i32, parts: &[&str]) -> Result<()> {
        ensure!(self.code == Some(code), "expected {code}: {self:?}");
        for part in parts {
            ensure!(self.log.contains(part), "no {part:?}: {self:?}");
        }
        Ok(())
    }
}

/// Everything that the program may change in a namespace.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub(crate) nft: Vec<Value>,
    pub(crate) iptables: Vec<String>,
    pub(crate) routing: Vec<String>,
}

impl State {
    pub(crate) fn of(netns: &TestNetns) -> Result<Self> {
        let mut iptables = Vec::new();
        for variant in [Variant::Nft, Variant::Legacy] {
            for family in [Family::V4, Family::V6] {
                iptables.push(netns.iptables_save(variant, family)?);
            }
        }
        let mut routing = Vec::new();
        for args in [
            &["-4", "rule"][..],
            &["-6", "rule"],
            &["-4", "route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
            &["address", "show", "dev", "lo"],
        ] {
            let listed = netns.run(Command::new("ip").args(args))?;
            // Routes that the kernel adds by itself come at their own time.
            let lines = listed.lines().filter(|line| !line.contains("proto kernel"));
            routing.push(lines.collect::<Vec<_>>().join("\n"));
        }
        Ok(Self { nft: netns.nft_json(Comments::Keep)?, iptables, routing })
    }

    /// Whether there is anything of ours. iptables leaves empty built-in chains behind, which do nothing.
    pub(crate) fn is_clean(&self) -> bool {
        let rules = self.iptables.iter().any(|text| text.contains("ISTIO") || text.contains("-A "));
        let tables = self.nft.iter().any(|object| object.to_string().contains("istio"));
        let routing = self.routing.iter().any(|text| {
            text.contains("table 133") || text.contains("lookup 133") || text.contains("::6/128")
        });
        !rules && !tables && !routing
    }
}

/// The arguments of the injector for a pod that captures everything.
pub(crate) fn everything<'a>(mode: &'a str, backend: &'a str, families: Families) -> Vec<&'a str> {
    let dual = if families == Families::Dual { "--dual-stack=true" } else { "--dual-stack=false" };
    vec![
        "-p",
        "15001",
        "-z",
        "15006",
        "-u",
        "1337",
        "-m",
        mode,
        "-i",
        "*",
        "-x",
        "",
        "-b",
        "*",
        "-d",
        "15090,15021",
        dual,
        backend,
    ]
}

/// Without the variables of whoever runs the tests.
fn bare(mut command: Command) -> Command {
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}
