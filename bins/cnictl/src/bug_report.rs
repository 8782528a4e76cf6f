//! `bug-report`: what somebody else needs to find a fault on this node, in one file, and nothing that lets anybody in.

mod addresses;
mod allowed;
mod archive;
mod look;
mod secrets;

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::configuration::ConfigurationArgs;
use crate::log::{LOG_DIR, NodeLog};
use crate::node::{NodePlaces, directory, node_name};
use crate::output::{Usage, VerbAnswer};
use crate::pods::{LookedPod, Viewer, is_fine};
use addresses::AddressNames;
use archive::{Archive, ReportItem};

const EXAMPLES: &str = "\
Examples:
  # Everything about this node, into a file in this directory
  cnictl bug-report

  # For people outside of the company
  cnictl bug-report --redact ips

  # Of a node from elsewhere
  kubectl -n istio-system exec istio-cni-node-xxxxx -- cnictl bug-report --file - > report.tar.gz

Exit codes: 0 it is written
            1 it is not: something in it looks like a secret, or it cannot be written
            2 wrong command line";

/// Pods of which more is told, where none is named: those that are not as they should be, and some that are.
const UNHEALTHY: usize = 10;
const HEALTHY: usize = 2;
/// The largest file of a CNI configuration that is read, in bytes, and how many.
const MAX_CONF: usize = 1 << 20;
const MAX_CONFS: usize = 50;
/// How far logs go back.
const LOG_AGE: Duration = Duration::from_secs(24 * 3600);
const METRICS_PORT: u16 = 15014;

/// What is replaced in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Redaction {
    /// Each IP address by a name, the same everywhere
    Ips,
}

/// Collect what is needed to find a fault on this node: state, rules, logs, into one file
///
/// Secrets, tokens, certificates, kubeconfigs, environment variables, and labels and annotations of others are never collected; before the file is
/// written all of it is searched for what looks like a JSON web token, PEM, a bearer or basic credential or a password in a URL, and where there is one nothing is written. index.json in it
/// says of each item how it was made.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BugReportArgs {
    /// Where it is written, - for standard output [default: istio-cni-report-NODE-TIME.tar.gz in this directory]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Largest size of the file, in megabytes
    #[arg(long, value_name = "MB", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    max: u16,
    /// Pods of which rules and evidence are wanted, as NAMESPACE/NAME (repeat) [default: those that are not verified, and two that are]
    #[arg(long = "pods", value_name = "POD", value_delimiter = ',')]
    pods: Vec<String>,
    /// What else is replaced (repeat)
    #[arg(long, value_enum)]
    redact: Vec<Redaction>,
    /// Leave out this item, by its file in index.json (repeat)
    #[arg(long, value_name = "ITEM")]
    skip: Vec<String>,
    /// Address of the agent's /metrics
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT)))]
    metrics: SocketAddr,
    /// Directory of container logs
    #[arg(long, value_name = "DIR", default_value = LOG_DIR, value_parser = directory)]
    log_dir: PathBuf,
    /// Directory of the plugin's program (repeat) [default: /opt/cni/bin, in the agent's container where it is mounted]
    #[arg(long = "bin-dir", value_name = "DIR", value_parser = directory)]
    bin_dirs: Vec<PathBuf>,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

/// Programs of the node that list what is in the kernel.
const PROGRAMS: [(&str, &str); 13] = [
    ("node/nft.txt", "nft -a list ruleset"),
    ("node/iptables.txt", "iptables-save -c"),
    ("node/ip6tables.txt", "ip6tables-save -c"),
    ("node/iptables-legacy.txt", "iptables-legacy-save -c"),
    ("node/ip6tables-legacy.txt", "ip6tables-legacy-save -c"),
    ("node/ipset.txt", "ipset list -terse"),
    ("node/ipset-members.txt", "ipset save"),
    ("node/rules-ipv4.txt", "ip -4 rule show"),
    ("node/rules-ipv6.txt", "ip -6 rule show"),
    ("node/routes-ipv4.txt", "ip -4 route show table all"),
    ("node/routes-ipv6.txt", "ip -6 route show table all"),
    ("node/links.txt", "ip -d link show"),
    ("node/modules.txt", "lsmod"),
];

/// Verbs of this program that need the node's directories.
const VERBS: [(&str, &str); 4] = [
    ("pods.json", "pods -o json"),
    ("verify.txt", "verify -o wide"),
    ("conflicts.json", "conflicts -o json"),
    ("policy-status.json", "policy status -o json"),
];

impl BugReportArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let to_stdout = self.file.as_deref() == Some(Path::new("-"));
        if to_stdout && io::stdout().is_terminal() {
            return Err(Usage(
                "an archive is no text for a terminal: name a file with --file, or redirect".to_owned(),
            )
            .into());
        }
        if !rustix::process::geteuid().is_root() {
            anyhow::bail!("only root can look at everything that belongs into a report; run cnictl as root");
        }
        let redacts = self.redact.contains(&Redaction::Ips);
        let name = match redacts {
            // The node's name may be its address.
            true => AddressNames::default().replace(&report_name()),
            false => report_name(),
        };
        let root = if redacts { "istio-cni-report".to_owned() } else { name.clone() };
        let mut archive = Archive::new(root, redacts, usize::from(self.max) * 1_000_000);
        self.collect(&mut archive)?;
        let (there, all) = archive.counts();
        let bytes = archive.finish()?;
        if to_stdout {
            io::stdout().lock().write_all(&bytes).context("write to standard output")?;
            return Ok(VerbAnswer::text(String::new()));
        }
        let path = self.file.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
        write(&path, &bytes).with_context(|| format!("write {}", path.display()))?;
        let size = bytes.len().div_ceil(1000);
        Ok(VerbAnswer::text(format!(
            "{}: {size} kB, {there} of {all} items; index.json in it says why the others are missing\n",
            path.display()
        )))
    }

    fn collect(&self, archive: &mut Archive) -> Result<()> {
        let places = self.configuration.places();
        let mut add = |item: &str, look: &mut dyn FnMut() -> ReportItem| match self
            .skip
            .iter()
            .any(|skip| skip == item)
        {
            true => Ok(()),
            false => archive.add(look()),
        };
        let mut own_places = self.words(&places);
        for dir in &self.bin_dirs {
            own_places.extend(["--bin-dir".to_owned(), dir.display().to_string()]);
        }
        for (file, line) in [("doctor.json", "doctor -o json"), ("status.json", "status -o json")] {
            add(file, &mut || look::own(file, &words(line, &own_places)))?;
        }
        let on_node = self.configuration_words(&places);
        for (file, line) in VERBS {
            add(file, &mut || look::own(file, &words(line, &on_node)))?;
        }
        let run_dir = ["--run-dir".to_owned(), places.run_dir.display().to_string()];
        add("log-levels.txt", &mut || look::own("log-levels.txt", &words("log level", &run_dir)))?;
        add("audit-verify.txt", &mut || look::own("audit-verify.txt", &words("audit verify", &[])))?;
        add("metrics.txt", &mut || {
            let address = self.metrics;
            look::timed("metrics.txt", &format!("GET http://{address}/metrics"), move || {
                look::metrics(address)
            })
        })?;
        add("log.txt", &mut || self.log(&places))?;
        add("kernel-log.txt", &mut || {
            look::timed("kernel-log.txt", "lines of /dev/kmsg about packets", look::kernel_log)
        })?;
        add("settings.txt", &mut || {
            // Those of the network are each namespace's.
            look::timed("settings.txt", "files below /proc/sys", || {
                crate::node::in_host(|_| look::settings())
                    .unwrap_or_else(|error| look::failed(fault::chain(&error)))
            })
        })?;
        add("node/rules.txt", &mut || {
            look::timed("node/rules.txt", "the kernel, by this program", || {
                crate::node::in_host(|inside| look::rules(inside.inside()))
                    .unwrap_or_else(|error| look::failed(fault::chain(&error)))
            })
        })?;
        for (file, line) in PROGRAMS {
            add(file, &mut || look::in_node(file, line))?;
        }
        self.configurations(&places, &mut add)?;
        let said = self.pods(&on_node, &mut add)?;
        archive.output.extend(said);
        Ok(())
    }

    /// The files that runtimes read, without what nobody knows.
    fn configurations(&self, places: &NodePlaces, add: &mut AddItem<'_>) -> Result<()> {
        for (file, dir) in [("net.d/files.txt", &places.net_dir), ("run/files.txt", &places.run_dir)] {
            let dir = dir.clone();
            add(file, &mut || {
                let dir = dir.clone();
                look::timed(file, &format!("ls -l {}", dir.display()), move || look::listing(&dir))
            })?;
        }
        let entries = std::fs::read_dir(&places.net_dir).into_iter().flatten().flatten();
        let is_conf = |path: &PathBuf| {
            path.extension()
                .is_some_and(|kind| ["conf", "conflist", "json"].iter().any(|known| kind == *known))
        };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_conf).collect();
        files.sort();
        for path in files.into_iter().take(MAX_CONFS) {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .replace(|c: char| !c.is_ascii_graphic(), "_");
            let file = format!("net.d/{name}.txt");
            add(&file, &mut || {
                let path = path.clone();
                look::timed(&file, &format!("the known keys of {}", path.display()), move || {
                    match trusted::read(&path, trusted::Links::Followed, MAX_CONF)
                        .map(|text| allowed::configuration(&text))
                    {
                        Ok(Some(shown)) => look::text(shown),
                        Ok(None) => look::failed("it is no JSON object, so none of it is shown".to_owned()),
                        Err(error) => look::failed(error.to_string()),
                    }
                })
            })?;
        }
        Ok(())
    }

    fn log(&self, places: &NodePlaces) -> ReportItem {
        let (places, dir) = (places.clone(), self.log_dir.clone());
        look::timed("log.txt", "cnictl log, of the last day", move || {
            let NodeLog { lines, from, gaps } = NodeLog::read(&places, &dir, LOG_AGE);
            let from = from.into_iter().map(|place| format!("# {place}"));
            let mut item = look::text(from.chain(lines).map(|line| line + "\n").collect());
            item.problem = gaps.join("; ");
            item
        })
    }

    /// Rules and evidence of pods; what could not be looked at.
    fn pods(&self, places: &[String], add: &mut AddItem<'_>) -> Result<Vec<String>> {
        let configuration = self.configuration.clone();
        // Where the kernel does not answer the rest of the report is worth as much.
        let looked = look::answered_within(look::VERB_TIME, move || {
            let viewer = Viewer::new(&configuration, false, None)?;
            viewer.look_until(Instant::now() + look::VERB_TIME / 2)
        });
        let looked = match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err(error)) => return Ok(vec![format!("no pod is looked at: {error:#}")]),
            Err(why) => return Ok(vec![format!("no pod is looked at: {why}")]),
        };
        let chosen = self.choose(&looked);
        for pod in &chosen {
            let name = pod.report.pod();
            let file = format!("pods/{}_{}", name.namespace, name.name);
            let of_pod = words(&format!("verify {name} --evidence -o json"), places);
            let evidence = format!("{file}.json");
            add(&evidence, &mut || look::own(&evidence, &of_pod))?;
            let (Some(place), rules) = (&pod.place, format!("{file}.txt")) else { continue };
            add(&rules, &mut || {
                let netns = place.netns.clone();
                look::timed(&rules, &format!("the kernel, by this program, in {}", place.how), move || {
                    netns.enter(look::rules).unwrap_or_else(|error| look::failed(fault::chain(&error)))
                })
            })?;
        }
        let is_missing = |name: &&String| !chosen.iter().any(|pod| is_named(pod, name));
        Ok(self
            .pods
            .iter()
            .filter(is_missing)
            .map(|name| format!("no pod {name} is known on this node"))
            .collect())
    }

    fn choose<'a>(&self, looked: &'a [LookedPod]) -> Vec<&'a LookedPod> {
        if !self.pods.is_empty() {
            return looked.iter().filter(|pod| self.pods.iter().any(|name| is_named(pod, name))).collect();
        }
        let wanted = || looked.iter().filter(|pod| pod.report.is_wanted());
        let bad = wanted().filter(|pod| !is_fine(&pod.report)).take(UNHEALTHY);
        bad.chain(wanted().filter(|pod| is_fine(&pod.report)).take(HEALTHY)).collect()
    }

    /// The node's directories, for verbs that look at all of them.
    fn words(&self, places: &NodePlaces) -> Vec<String> {
        let mut words = vec!["--net-dir".to_owned(), places.net_dir.display().to_string()];
        words.extend(["--run-dir".to_owned(), places.run_dir.display().to_string()]);
        words
    }

    /// The same for verbs that go by the plugin's configuration.
    fn configuration_words(&self, places: &NodePlaces) -> Vec<String> {
        match self.configuration.conf() {
            Some(conf) => vec![
                "--conf".to_owned(),
                conf.display().to_string(),
                "--run-dir".to_owned(),
                places.run_dir.display().to_string(),
            ],
            None => self.words(places),
        }
    }
}

/// Takes an item by its file, unless it is not wanted.
type AddItem<'a> = dyn FnMut(&str, &mut dyn FnMut() -> ReportItem) -> Result<()> + 'a;

fn is_named(pod: &LookedPod, name: &str) -> bool {
    let of = &pod.report;
    name.split_once('/')
        .map_or(name == of.name, |(namespace, name)| namespace == of.namespace && name == of.name)
}

fn words(line: &str, more: &[String]) -> Vec<String> {
    line.split(' ').map(str::to_owned).chain(more.iter().cloned()).collect()
}

/// Of the node and the time.
fn report_name() -> String {
    let node = node_name().unwrap_or_default();
    let node: String =
        node.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).take(100).collect();
    let time: String =
        telemetry::time_text(SystemTime::now()).chars().take(19).filter(|c| !"-:".contains(*c)).collect();
    format!("istio-cni-report-{node}-{time}Z")
}

/// Nobody but its owner reads it, and there is no half of it.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".tmp");
    let unfinished = PathBuf::from(unfinished);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let done = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&unfinished, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    done
}
