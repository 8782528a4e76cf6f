//! `selftest`: the node's real chain, once, on a network namespace of its own.
//!
//! Nothing of it has a name: the namespace and the directory with the pod's manifest live as long as this program, and plugins reach both through
//! its descriptors. What outlives a program that is killed is what a plugin keeps elsewhere, such as an address. So a guard, a process of its own,
//! runs DEL when this program ends before it has, and each run begins with a DEL, for one that was killed together with its guard.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cni::SpecVersion;
use netns::Netns;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use serde_json::json;

use super::args::RunArgs;
use super::attachment::{PodAttachment, raise_loopback};
use super::report::ChainReport;
use super::run::{ChainJournal, PluginChain};
use crate::configuration::ConfigurationArgs;
use crate::look::Looked;
use crate::output::VerbAnswer;
use crate::pod;
use crate::subject::DecisionArgs;

const EXAMPLES: &str = "\
Examples:
  # Does the chain of this node attach and capture a pod, and which plugin takes how long?
  cnictl selftest

  # Another chain, with plugins from elsewhere
  cnictl selftest --conf 10-net.conflist --cni-path /usr/lib/cni:/opt/cni/bin -o json

Exit codes: 0 attached, captured and taken down; 1 not, or failed; 2 wrong command line";

/// Always the same, so that the next run finds what one left that was killed.
const CONTAINER: &str = "cnictl-selftest";
const NAMESPACE: &str = "istio-cni-selftest";
const POD: &str = "selftest";
const IFNAME: &str = "eth0";
/// Held by each run, and by the plugins that it has started: an abstract socket, so that it ends with them.
const LOCK: &[u8] = b"istio-cni-selftest";
/// How often it is looked whether another run has ended.
const POLL: Duration = Duration::from_millis(20);
/// Of the documentation (RFC 5737): nobody has it.
const ANYWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 80);
/// How long a connection within one namespace may take.
const CONNECT: Duration = Duration::from_secs(2);

/// Run the node's chain once on a network namespace of its own: ADD, compare, one connection, DEL; with the time of each plugin
///
/// The pod is one with a sidecar that no cluster knows: our plugin has its facts from a manifest, every other plugin does what it does for any pod.
/// It takes an address of the network for that long. It runs on the node itself, not in the agent's container. Neither namespace, address nor file stays, also not of a run that is killed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SelftestArgs {
    #[command(flatten)]
    configuration: ConfigurationArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Run DEL when standard input ends before a byte has come
    #[arg(long, hide = true)]
    guard: bool,
}

impl SelftestArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let conf = self.configuration.chain_conf()?;
        ensure!(
            !conf.starts_with("/host"),
            "{} is of the node, and this is a container, where other plugins do not find what they keep: run cnictl selftest on the node itself",
            conf.display()
        );
        let chain = self.run.load(&conf)?;
        ensure!(
            chain.conflist.plugins.iter().any(|plugin| plugin.kind == install::PLUGIN),
            "the chain of {} has no {}: no pod is captured by it; see cnictl status",
            conf.display(),
            install::PLUGIN
        );
        let patience = self.run.timeout();
        if self.guard {
            return guard(&chain, patience);
        }
        let guard = Guard::start(&conf, &self.run)?;
        // Plugins of a run that was killed may be at work still.
        let _lock = lock(patience)?;
        let answer = self.once(chain, &conf);
        guard.dismiss();
        answer
    }

    fn once(&self, mut chain: PluginChain, conf: &Path) -> Result<VerbAnswer> {
        let netns = Netns::unnamed().context("make a network namespace")?;
        let manifests = Manifests::new()?;
        chain.read_manifests(&manifests.dir());
        let described = pod::load(&manifests.dir().join(MANIFEST), Some(POD))?;
        let mut attachment = attachment(&described.pod)?;
        let before = chain.del(&attachment, None);
        if let Some(problem) = before.problem() {
            bail!("what an earlier run may have left cannot be taken down: {problem}");
        }
        attachment.netns = path_of(netns.as_fd()).display().to_string();
        raise_loopback(Path::new(&attachment.netns))?;

        let mut journal = chain.add(&attachment);
        let result = journal.result.clone();
        let mut looked = None;
        let mut connection = None;
        if let Some(result) = &result {
            if chain.conflist.version >= SpecVersion::V0_4_0 && !chain.conflist.disable_check {
                journal.runs.extend(chain.check(&attachment, result).runs);
            }
            let mut decision = DecisionArgs::default();
            decision.configuration = self.configuration.with_conf(conf);
            looked = Some(decision.load().and_then(|decider| Looked::look(&decider, described, &netns)));
            connection = Some(netns.enter(|_| connect())?);
        }
        let ChainJournal { runs, .. } = chain.del(&attachment, result.as_ref());
        journal.runs.extend(runs);
        let report = ChainReport::new(&chain.conflist.name, Some(&attachment), journal);
        let report = match looked.transpose()? {
            Some(looked) => report.with_look(looked),
            None => report,
        };
        let report = match connection {
            Some(Ok(text)) => report.with_note(text),
            Some(Err(problem)) => report.with_problem(problem),
            None => report,
        };
        self.run.answer_timed(&report)
    }
}

fn attachment(pod: &capture::Pod) -> Result<PodAttachment> {
    PodAttachment::new(pod, Some(CONTAINER), IFNAME)
}

/// One connection to nobody's address, which the rules lead to the proxy's port: what came of it, or what is wrong.
fn connect() -> Result<String, String> {
    let port = capture::settings::PROXY_PORT;
    let listen = || -> io::Result<TcpListener> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listener = listen().map_err(|error| format!("listen at port {port} of the pod: {error}"))?;
    let stream = match TcpStream::connect_timeout(&SocketAddr::V4(ANYWHERE), CONNECT) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::NetworkUnreachable => {
            return Ok(
                "no connection was tried: the network gives the pod no IPv4 route to elsewhere".to_owned()
            );
        }
        Err(error) => return Err(format!("a connection of the pod to {ANYWHERE} was not captured: {error}")),
    };
    let own = stream.local_addr().map_err(|error| error.to_string())?;
    match listener.accept() {
        Ok((_, peer)) if peer.port() == own.port() => {
            Ok(format!("a connection to {ANYWHERE} was captured at port {port}"))
        }
        Ok((_, peer)) => {
            Err(format!("port {port} of the pod got a connection of {peer}, not the one of {own}"))
        }
        Err(_) => {
            Err(format!("a connection of the pod to {ANYWHERE} was not captured: somebody else took it"))
        }
    }
}

/// Until `end` of a pipe: a byte, or nothing because whoever had the other end is gone.
fn guard(chain: &PluginChain, patience: Duration) -> Result<VerbAnswer> {
    if io::stdin().lock().read(&mut [0]).context("wait for the run")? == 0 {
        let _lock = lock(patience * 2)?;
        let pod =
            capture::Pod { namespace: NAMESPACE.to_owned(), name: POD.to_owned(), ..Default::default() };
        if let Some(problem) = chain.del(&attachment(&pod)?, None).problem() {
            bail!("{problem}");
        }
    }
    Ok(VerbAnswer::text(String::new()))
}

/// The process that takes down what a run has left that was killed.
struct Guard(Child);

impl Guard {
    fn start(conf: &Path, run: &RunArgs) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["selftest", "--guard", "--conf"]).arg(conf).args(run.same());
        // A group of its own: what ends this program by the terminal does not end it.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("start the guard that takes down what is left")?))
    }

    /// Nothing is left.
    fn dismiss(mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            // If it is gone, so is what it was for.
            let _ = stdin.write_all(b".");
        }
        let _ = self.0.wait();
    }
}

/// Waits until no other run is there, nor a plugin of one.
fn lock(patience: Duration) -> Result<OwnedFd> {
    let end = Instant::now() + patience;
    let name = SocketAddrUnix::new_abstract_name(LOCK).context("name the lock")?;
    loop {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        match bind(&fd, &name) {
            Ok(()) => {
                // Plugins inherit it.
                fcntl_setfd(&fd, FdFlags::empty())?;
                return Ok(fd);
            }
            Err(rustix::io::Errno::ADDRINUSE) if Instant::now() < end => thread::sleep(POLL),
            Err(rustix::io::Errno::ADDRINUSE) => bail!("another selftest is under way on this node"),
            Err(error) => return Err(error).context("take the lock of selftest"),
        }
    }
}

/// Where other programs find what this one has open.
fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
}

const MANIFEST: &str = "istio-cni-selftest_selftest.json";

/// A directory in memory that is mounted nowhere.
struct Manifests(OwnedFd);

impl Manifests {
    fn new() -> Result<Self> {
        let make = || -> rustix::io::Result<OwnedFd> {
            let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(tmpfs.as_fd(), "mode", "0700")?;
            fsconfig_create(tmpfs.as_fd())?;
            fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        };
        let made = Self(make().context("make a directory in memory")?);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": NAMESPACE, "name": POD, "annotations": {"sidecar.istio.io/status": "{}"}},
            "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy", "args": ["proxy", "sidecar"]}]},
        });
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {}}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [pod, namespace]});
        std::fs::write(made.dir().join(MANIFEST), list.to_string()).context("write the pod's manifest")?;
        Ok(made)
    }

    fn dir(&self) -> PathBuf {
        path_of(self.0.as_fd())
    }
}
