//! The end: DEL of every pod, then proof that nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use testkit::TestNetns;

use crate::agent::{Agent, AgentReport, Original};
use crate::node::{self, CONFLIST, NETWORK, Node};
use crate::pods::Pod;

/// How long a program that was told to end may take.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Interfaces that are the node's and not a pod's.
const NODE_LINKS: &[&str] = &["lo", "uplink", "cni0"];

/// How `cnictl` names containers.
const CONTAINERS: &str = "cnictl-";

/// What was observed.
#[derive(Debug, Serialize)]
pub(crate) struct RemovalReport {
    /// Pods whose DEL succeeded.
    pub(crate) deleted: usize,
    /// Interfaces in the node's namespace after that.
    pub(crate) node_links: Vec<String>,
    /// Namespaces that were made, and are gone.
    pub(crate) namespaces: usize,
    pub(crate) folder: PathBuf,
    /// All that was made and could be found on the host: names of interfaces, the kernel's numbers of namespaces.
    #[serde(skip)]
    pub(crate) made: Made,
    pub(crate) problems: Vec<String>,
}

/// What the demo made. Other programs may make similar things on this machine at the same time.
#[derive(Debug, Default)]
pub(crate) struct Made {
    links: Vec<String>,
    namespaces: Vec<u64>,
}

/// What a careless demo leaves on a machine.
#[derive(Debug)]
pub(crate) struct Host {
    links: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
}

impl Host {
    /// Interfaces of this namespace, named namespaces, state of network plugins, and temporary files of ours.
    ///
    /// # Errors
    /// `ip` fails.
    pub(crate) fn observe() -> Result<Self> {
        let run = |command: &mut Command| -> Result<String> {
            let output = command.output().context("run ip")?;
            if !output.status.success() {
                bail!("ip failed: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let mut files = BTreeSet::new();
        for folder in ["/run/netns", "/var/lib/cni", "/var/run/istio-cni"] {
            collect(Path::new(folder), &mut files);
        }
        Ok(Self { links: node::links(run)?.into_iter().collect(), files })
    }

    /// What of the things made is there now and was not before.
    pub(crate) fn left_since(&self, before: &Self, made: &Made) -> Vec<String> {
        let links = self.links.difference(&before.links).filter(|name| made.links.contains(name));
        let files = self.files.difference(&before.files).filter(|file| made.is_file(file));
        let links = links.map(|name| format!("interface {name}"));
        links.chain(files.map(|file| format!("file {}", file.display()))).collect()
    }
}

impl Made {
    /// A name for one of the namespaces, or state of a plugin about our network or our pods.
    fn is_file(&self, file: &Path) -> bool {
        let number = fs::metadata(file).map(|metadata| metadata.ino()).unwrap_or_default();
        let path = file.to_string_lossy();
        self.namespaces.contains(&number) || [NETWORK, CONTAINERS].iter().any(|name| path.contains(name))
    }
}

/// All files below a folder that may not exist.
fn collect(folder: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), files);
        }
        files.insert(entry.path());
    }
}

/// DEL of every pod, then the end of the agent and of every namespace.
///
/// # Errors
/// What is left could not be looked at.
pub(crate) fn run(
    node: Node,
    pods: Vec<Pod>,
    original: &Original,
    agent: &mut AgentReport,
) -> Result<RemovalReport> {
    let mut problems = Vec::new();
    let mut deleted = 0;
    let links = node.links()?.into_iter().filter(|name| name != "lo").collect();
    for pod in &pods {
        let manifest = node.manifest(pod.case.namespace, pod.case.name);
        match node.cnictl(&node.chain("del", CONFLIST, &manifest, "results"))?.problem {
            None => deleted += 1,
            Some(problem) => problems.push(format!("DEL of {}: {problem}", pod.case.full_name())),
        }
        let left = node::links(|command| pod.netns.run(command))?;
        if left.iter().any(|name| name == "eth0") {
            problems.push(format!("{} still has eth0 after DEL", pod.case.full_name()));
        }
    }
    let node_links = node.links()?;
    let left = node_links.iter().filter(|name| !NODE_LINKS.contains(&name.as_str()));
    problems.extend(left.map(|name| format!("interface {name} of the node is left after DEL")));
    problems.extend(node.kept_files()?.iter().map(|file| format!("file {file} is left after DEL")));

    Agent::start(&node)?.end(&node, original, agent)?;
    let folder = node.folder().to_owned();
    let mut namespaces = vec![inode(&node.host)?, inode(&node.world)?];
    for pod in &pods {
        namespaces.push(inode(&pod.netns)?);
    }
    drop(pods);
    drop(node);
    if folder.exists() {
        problems.push(format!("folder {} is left", folder.display()));
    }
    problems.extend(holders(&namespaces)?);
    let count = namespaces.len();
    let made = Made { links, namespaces };
    Ok(RemovalReport { deleted, node_links, namespaces: count, folder, made, problems })
}

/// The kernel's number of a namespace.
///
/// # Errors
/// It cannot be looked at.
pub(crate) fn inode(namespace: &TestNetns) -> Result<u64> {
    let path = namespace.path();
    Ok(fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.ino())
}

/// What still keeps one of the namespaces: an open file of ours, a mount, a program that we started.
///
/// Other people's programs are not looked at: they never had a namespace of ours, and the kernel gives numbers away again.
pub(crate) fn holders(namespaces: &[u64]) -> Result<Vec<String>> {
    let names: Vec<String> = namespaces.iter().map(|number| format!("net:[{number}]")).collect();
    let mut found = Vec::new();
    for file in fs::read_dir("/proc/self/fd").context("list our open files")?.flatten() {
        let target = fs::read_link(file.path()).unwrap_or_default();
        found.extend(
            names.iter().filter(|n| target == Path::new(n)).map(|n| format!("we still have {n} open")),
        );
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("list mounts")?;
    let mounted = names.iter().filter(|name| mounts.contains(name.as_str()));
    found.extend(mounted.map(|name| format!("{name} is still mounted")));
    let none = || children().is_ok_and(|children| children.is_empty());
    if testkit::until("our programs have ended", LONGEST_WAIT, none, || "some have not").is_err() {
        found.extend(children()?.iter().map(|child| format!("{child} is still running")));
    }
    Ok(found)
}

/// Running programs whose parent we are. `main` asks the kernel to make us the parent of those whose own parent has ended, too.
fn children() -> Result<Vec<String>> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        // It may have ended meanwhile, or be no process.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // pid (name) state parent …; the name may have blanks and parentheses (proc_pid_stat(5))
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next(), fields.next());
        if parent == Some(&own) && state != Some("Z") {
            found.push(format!("process {name})"));
        }
    }
    Ok(found)
}
