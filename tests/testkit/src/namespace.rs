//! Network namespaces for tests.

use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};
use netns::{Inside, Netns};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::process::Process;

/// A new, empty network namespace with `lo` up. It is gone when this is dropped and nothing runs inside any more.
///
/// Its path is `/proc/<this process>/fd/<n>`: no mount and no file that a killed test could leave behind. Any program
/// run as root can open the path while the value lives; afterwards it does not exist (or, as numbers of files are used
/// again, is something else: do not test with the path of a dropped namespace, use [`TestNetns::removed_path`]).
#[derive(Debug)]
pub struct TestNetns {
    // The file of `path`; `netns` has a file of its own.
    keep: Netns,
    netns: Netns,
    path: PathBuf,
}

impl TestNetns {
    /// Makes a namespace.
    ///
    /// # Errors
    /// When not root, or `ip` is missing.
    pub fn new() -> Result<Self> {
        let keep = std::thread::spawn(|| -> Result<Netns> {
            // SAFETY: unsharing the network namespace does not touch the table of open files.
            #[allow(unsafe_code)]
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .context("cannot make a network namespace (run as root)")?;
            Ok(Netns::current()?)
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that makes a namespace panicked"))??;
        let fd = std::os::fd::AsFd::as_fd(&keep).as_raw_fd();
        let path = PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()));
        let netns = Netns::open(&path)?;
        let made = Self { keep, netns, path };
        made.ip(&["link set lo up"])?;
        Ok(made)
    }

    /// Gives the namespace an address as a CNI plugin does, on an interface that is not `lo`: `net0`, which leads nowhere.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn address(&self, address: impl std::fmt::Display) -> Result<()> {
        if self.ip(&["link show net0"]).is_err() {
            let made =
                ["link add net0 type veth peer name net0-end", "link set net0-end up", "link set net0 up"];
            self.ip(&made)?;
        }
        let address = address.to_string();
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&[format!("address add {address} dev net0{nodad}")])
    }

    /// A path that no namespace has: what a runtime passes for a pod that is already gone.
    #[must_use]
    pub fn removed_path() -> PathBuf {
        PathBuf::from(format!("/run/netns/testkit-{}-removed", std::process::id()))
    }

    /// What a runtime would pass in `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The handle to enter it with.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        debug_assert_eq!(self.keep, self.netns);
        &self.netns
    }

    /// Runs a closure inside, on a thread of its own.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<R: Send>(&self, f: impl FnOnce(&Inside) -> R + Send) -> Result<R> {
        Ok(self.netns.enter(f)?)
    }

    /// Runs a program inside to its end and returns what it printed, however it ended.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let what = describe(command);
        self.enter(|_| command.stdin(Stdio::null()).output())?.with_context(|| format!("cannot run {what}"))
    }

    /// Runs a program inside to its end and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails; the message has the command and its standard error.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let output = self.output(command)?;
        successful(&describe(command), &output)
    }

    /// As [`TestNetns::run`], with `input` on the program's standard input.
    ///
    /// # Errors
    /// As [`TestNetns::run`].
    pub fn pipe(&self, command: &mut Command, input: &str) -> Result<String> {
        let what = describe(command);
        let output = self
            .enter(|_| -> std::io::Result<Output> {
                let mut child =
                    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
                if let Some(mut stdin) = child.stdin.take() {
                    // A program that stops early closes its end; what it says about that is in the output.
                    let _ = stdin.write_all(input.as_bytes());
                }
                child.wait_with_output()
            })?
            .with_context(|| format!("cannot run {what}"))?;
        successful(&what, &output)
    }

    /// Starts a program inside, to be killed when the result is dropped.
    ///
    /// The thread that starts it ends at once, so the program must not ask for a signal at its parent's death.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        let what = describe(command);
        let child = self.enter(|_| command.spawn())?.with_context(|| format!("cannot run {what}"))?;
        Ok(Process::new(child))
    }

    /// Bytes without headers of the link, and packets, that `eth0` has received and sent.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn link_counters(&self) -> Result<[(u64, u64); 2]> {
        /// Of Ethernet, in bytes.
        const LINK_HEADER: u64 = 14;
        let text = self.run(Command::new("ip").args(["-s", "-j", "link", "show", "dev", "eth0"]))?;
        let all: serde_json::Value = serde_json::from_str(&text)?;
        let of = |way: &str| {
            let number = |what: &str| all[0]["stats64"][way][what].as_u64().context("eth0 has no counters");
            anyhow::Ok((number("bytes")? - LINK_HEADER * number("packets")?, number("packets")?))
        };
        Ok([of("rx")?, of("tx")?])
    }

    /// Runs `ip` commands inside, in one process; each line without the word `ip`, as `link set lo up`.
    ///
    /// # Errors
    /// When one fails; those before it have been done.
    pub fn ip(&self, commands: &[impl AsRef<str>]) -> Result<()> {
        let text = commands.iter().fold(String::new(), |text, line| text + line.as_ref() + "\n");
        self.pipe(Command::new("ip").args(["-batch", "-"]), &text).with_context(|| format!("in:\n{text}"))?;
        Ok(())
    }

    /// Loads a file of `nft` commands.
    ///
    /// # Errors
    /// When `nft` refuses it; nothing is loaded then.
    pub fn nft(&self, text: &str) -> Result<()> {
        self.pipe(Command::new("nft").args(["-f", "-"]), text).with_context(|| format!("in:\n{text}"))?;
        Ok(())
    }

    /// Writes a kernel setting of this namespace: `net.ipv4.ip_forward`, with dots.
    ///
    /// # Errors
    /// When it does not exist or refuses the value.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|_| std::fs::write(&file, value))?.with_context(|| format!("cannot set {name} to {value}"))
    }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn successful(what: &str, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("{what} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
