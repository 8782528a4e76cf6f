//! `doctor`: what of this node is in order for the mesh, and what is not, each with what helps.

mod asked;
mod probe;
mod shown;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use checks::{CheckReport, CheckResult, CheckSection, CheckState};
use clap::ValueEnum;
use doctor::NodeFiles;

use crate::chain::seconds;
use crate::node::{NodePlaces, PlaceArgs};
use crate::output::{VerbAnswer, fitted};
use crate::pods::{OUT_OF_TIME, PARTLY_UNKNOWN};

const EXAMPLES: &str = "\
Examples:
  # Is everything on this node as the mesh needs it?
  cnictl doctor

  # Before anything is installed: can this node take part?
  cnictl doctor --pre

  # One line for a monitoring system
  cnictl doctor -o short

  # In the agent's container, after a rollout
  kubectl -n istio-system exec istio-cni-node-xxxxx -- cnictl doctor --wait 60

Exit codes: 0 nothing is wrong; there may be warnings
            1 something is; each line says what helps, and where more is said
            2 wrong command line
            4 nothing wrong was seen, and not everything could be looked at
            124 it was still wrong when the time of --wait was over";

/// Pause between two looks of --wait.
const PAUSE: Duration = Duration::from_secs(1);

/// How the result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DoctorFormat {
    /// For people
    Table,
    /// One line with the worst
    Short,
    /// For programs
    Json,
}

/// Look at this node: kernel, runtime, installation, cluster, pods; say what is wrong and what helps
///
/// Nothing is written on the node. What the kernel can do is tried in a network namespace that nobody else has, which is gone afterwards; no module is
/// loaded.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// Only what a node needs before anything is installed
    #[arg(long)]
    pre: bool,
    /// Only these sections (repeat)
    #[arg(long = "section", value_name = "SECTION", value_parser = section)]
    sections: Vec<CheckSection>,
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t = DoctorFormat::Table)]
    output: DoctorFormat,
    /// Say for each check what it looks at
    #[arg(long)]
    explain_checks: bool,
    /// Look again until nothing is wrong, for so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    wait: Option<Duration>,
    /// Send one connection from the node to a listening port of this pod, as NAMESPACE/NAME:PORT
    #[arg(long, value_name = "POD", value_parser = probe::parse)]
    probe: Option<probe::ProbeTarget>,
}

fn section(text: &str) -> Result<CheckSection, String> {
    let names: Vec<&str> = CheckSection::ALL.iter().map(|section| section.word()).collect();
    let found = CheckSection::ALL.into_iter().find(|section| section.word() == text);
    found.ok_or_else(|| format!("not one of {}", names.join(", ")))
}

impl DoctorArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let places = self.places.places();
        let begun = Instant::now();
        loop {
            let report = self.look(&places);
            let over = self.wait.is_none_or(|wait| begun.elapsed() + PAUSE > wait);
            if over || !report.has(CheckState::Failed) {
                return self.answer(&report);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn look(&self, places: &NodePlaces) -> CheckReport {
        let node = node(places);
        let is_wanted = |section: CheckSection| self.sections.is_empty() || self.sections.contains(&section);
        let asked = asked::AskedAgent::ask(&places.run_dir, self.pre);
        let mut results = Vec::new();
        if is_wanted(CheckSection::Kernel) || is_wanted(CheckSection::Modules) {
            let looked = doctor::kernel_parts::look(&node, asked.of_kernel(&node));
            // The agent knows its own process, also where that cannot be told from here.
            let of_agent = asked.own(&checks::catalogue::OPEN_FILES);
            let is_own = |result: &CheckResult| {
                result.id == checks::catalogue::OPEN_FILES.id && result.state == CheckState::Skipped
            };
            results.extend(looked.into_iter().map(|result| match &of_agent {
                Some(own) if is_own(&result) => own.clone(),
                _ => result,
            }));
        }
        if is_wanted(CheckSection::Runtime) {
            results.extend(doctor::runtime::look(&node));
        }
        if is_wanted(CheckSection::Meshes) {
            results.extend(doctor::meshes::look(&node));
        }
        if self.pre {
            results
                .push(doctor::timed(&checks::catalogue::CONF_DIR, || doctor::installation::conf_dir(&node)));
        } else {
            if is_wanted(CheckSection::Installation) {
                results.extend(doctor::installation::look(&node, None).results);
            }
            if is_wanted(CheckSection::Cluster) {
                results.extend(asked::cluster(&places.run_dir, &asked));
            }
            results.extend(asked.results(&places.run_dir));
        }
        results.extend(self.probe.as_ref().map(|target| probe::look(target, &asked)));
        results.retain(|result| is_wanted(result.section));
        CheckReport::new(results)
    }

    fn answer(&self, report: &CheckReport) -> Result<VerbAnswer> {
        let text = match self.output {
            DoctorFormat::Json => serde_json::to_string_pretty(report)? + "\n",
            DoctorFormat::Short => shown::short(report),
            DoctorFormat::Table => fitted(shown::table(report, self.explain_checks)),
        };
        let exit = match () {
            () if report.has(CheckState::Failed) && self.wait.is_some() => OUT_OF_TIME,
            () if report.has(CheckState::Failed) => 1,
            () if report.has(CheckState::Unknown) => PARTLY_UNKNOWN,
            () => 0,
        };
        Ok(VerbAnswer { text, problem: None, exit })
    }
}

/// In the agent's container the node's files are below another directory.
fn node(places: &NodePlaces) -> NodeFiles {
    let host = match std::env::var_os("HOST_ROOT").map(PathBuf::from) {
        Some(root) if root.is_dir() => root,
        _ => PathBuf::from("/"),
    };
    let of_host = |path: &str| {
        let there = host.join(path);
        if there.exists() { there } else { Path::new("/").join(path) }
    };
    NodeFiles {
        net_dir: places.net_dir.clone(),
        bin_dirs: places.bin_dirs().to_vec(),
        run_dir: places.run_dir.clone(),
        etc: of_host("etc"),
        proc: PathBuf::from("/proc"),
        sys: PathBuf::from("/sys"),
        modules: of_host("lib/modules"),
        run: of_host("run"),
    }
}
