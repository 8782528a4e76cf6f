//! Where the cluster is from that a verdict is asked of: the agent, its snapshot, or manifests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use podsource::{Written, is_manifest, written_in_named_file};
use policy::snapshot::{MAX_SNAPSHOT, PolicySnapshot};
use policy::{PlainKind, PlainWorld};
use rundir::POLICIES_NAME;
use rundir::policy::{PolicyPointReport, PolicyStateReport, StandingWord, TenantStateReport};
use serde_json::value::RawValue;
use trusted::Links;

use crate::configuration::ConfigurationArgs;
use crate::node::{NodePlaces, directory};
use crate::pods::{EvidenceSource, ago, refuse_if_denied};

/// How long the agent may take for all that it knows: some megabytes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the cluster is from. Without any of these the agent is asked, and its snapshot read where it does not answer.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct PolicySourceArgs {
    /// Take the cluster from these manifests, a file or a directory (repeat); - reads standard input
    #[arg(long, value_name = "PATH")]
    manifests: Vec<PathBuf>,
    /// Take the cluster from this snapshot of an agent
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    snapshot: Option<PathBuf>,
    /// Directory of the agent's snapshot [default: /var/lib/istio-cni]
    #[arg(long, value_name = "DIR", value_parser = directory)]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

/// A cluster as far as it is known, and by what evidence.
#[derive(Debug)]
pub(crate) struct KnownCluster {
    pub(crate) world: PlainWorld,
    /// The own node; without a name where that is not known.
    pub(crate) node: Option<String>,
    pub(crate) evidence: EvidenceSource,
    /// Where policies are enforced, of the pods of the own node; empty where it is not known.
    pub(crate) points: BTreeMap<String, PolicyPointReport>,
    /// Packets that were denied since the agent was started, by the number of a class; nothing where it is not known.
    pub(crate) denied: Option<BTreeMap<String, u64>>,
    pub(crate) standing: Option<StandingWord>,
    /// Why not all is in force.
    pub(crate) problem: String,
    /// Whether every pod of the cluster is known.
    pub(crate) knows_all: bool,
    /// Whether Services are known, those that there are.
    pub(crate) knows_services: bool,
    /// Tenants, as the agent tells of their objects.
    pub(crate) tenants: Option<Vec<TenantStateReport>>,
    /// What may be missing.
    pub(crate) remarks: Vec<String>,
}

impl PolicySourceArgs {
    /// The agent of this node, or its snapshot.
    pub(crate) fn of_node(configuration: ConfigurationArgs) -> Self {
        Self { configuration, ..Self::default() }
    }

    /// Reads the cluster.
    ///
    /// # Errors
    /// Nothing tells of it.
    pub(crate) fn load(&self) -> Result<KnownCluster> {
        if !self.manifests.is_empty() {
            let mut world = PlainWorld::default();
            add_manifests(&mut world, &self.manifests)?;
            return Ok(KnownCluster::of_manifests(world));
        }
        if let Some(path) = &self.snapshot {
            return KnownCluster::of_snapshot(path, String::new());
        }
        let configuration = self.configuration.load()?;
        match configuration.agent().policies(PATIENCE) {
            Ok(report) => match report.standing {
                StandingWord::Off => bail!(
                    "the agent of this node enforces no policies (POLICY_ENFORCEMENT=off); give --manifests to ask about objects"
                ),
                StandingWord::NotListed if report.known.is_empty() => {
                    self.kept("the agent has not listed everything yet that policies go by".to_owned())
                }
                _ => KnownCluster::of_agent(report),
            },
            Err(error) => {
                refuse_if_denied(&error)?;
                self.kept(error.to_string())
            }
        }
    }

    /// Where policies stand by the agent, without what they say.
    ///
    /// # Errors
    /// The agent does not answer.
    pub(crate) fn ask(&self) -> Result<PolicyStateReport> {
        Ok(self.configuration.load()?.agent().policies(PATIENCE)?)
    }

    /// Whether files were named.
    pub(crate) fn names_files(&self) -> bool {
        !self.manifests.is_empty() || self.snapshot.is_some()
    }

    /// The agent's snapshot of this node.
    pub(crate) fn snapshot_path(&self) -> PathBuf {
        let dir = self.state_dir.clone();
        dir.unwrap_or_else(|| NodePlaces::of_this_machine(None, None).state_dir).join(POLICIES_NAME)
    }

    fn kept(&self, why: String) -> Result<KnownCluster> {
        let path = self.snapshot_path();
        if !path.exists() {
            bail!(
                "{why}, and there is no snapshot {}; run cnictl where the agent runs, or give --manifests",
                path.display()
            );
        }
        KnownCluster::of_snapshot(&path, why)
    }
}

impl KnownCluster {
    fn new(world: PlainWorld, evidence: EvidenceSource) -> Self {
        Self {
            world,
            node: None,
            evidence,
            points: BTreeMap::new(),
            denied: None,
            standing: None,
            problem: String::new(),
            knows_all: true,
            knows_services: true,
            tenants: None,
            remarks: Vec::new(),
        }
    }

    fn of_manifests(world: PlainWorld) -> Self {
        Self::new(world, EvidenceSource::of_files("manifests", crate::pods::now(), String::new()))
    }

    fn of_snapshot(path: &Path, why: String) -> Result<Self> {
        let name = || format!("read the snapshot of policies {}", path.display());
        let written = std::fs::metadata(path).and_then(|file| file.modified()).with_context(name)?;
        let bytes = trusted::read(path, Links::Refused, MAX_SNAPSHOT).with_context(name)?;
        let snapshot = PolicySnapshot::from_bytes(&bytes).with_context(name)?;
        let at = written.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let node = snapshot.pods.first().map(|pod| pod.facts.node.to_string());
        let evidence = EvidenceSource::of_files("snapshot", at, why);
        let known = Self::new(snapshot.world(None), evidence);
        Ok(Self { node, knows_all: false, knows_services: snapshot.services.is_some(), ..known })
    }

    fn of_agent(report: PolicyStateReport) -> Result<Self> {
        let PolicyStateReport {
            version,
            at,
            node,
            standing,
            problem,
            known_at,
            points,
            denied,
            pods_left_out,
            known,
            tenants,
        } = report;
        let snapshot = PolicySnapshot::from_bytes(known.as_bytes())
            .context("read what the agent knows of policies; cnictl and agent are of different versions")?;
        let points = points.into_iter();
        let points = points.map(|one| (format!("{}/{}", one.namespace, one.name), one)).collect();
        let mut remarks = Vec::new();
        if let Some(known_at) = known_at {
            remarks.push(format!(
                "the API server has not listed what policies go by: they are those that an earlier agent knew {}, with the pods that have started since",
                ago(known_at)
            ));
        }
        if pods_left_out > 0 {
            remarks
                .push(format!("{pods_left_out} pods of other nodes are left out, because they are too many"));
        }
        let world = snapshot.world(Some(&node));
        let found = Self::new(world, EvidenceSource::of_agent(version, at));
        let knows_services = snapshot.services.is_some();
        let (standing, knows_all) = (Some(standing), pods_left_out == 0 && known_at.is_none());
        Ok(Self {
            node: Some(node),
            points,
            denied: Some(denied),
            standing,
            problem,
            knows_all,
            knows_services,
            tenants,
            remarks,
            ..found
        })
    }
}

/// Adds the objects of files, and of the files of directories, as far as policies go by them.
///
/// # Errors
/// One cannot be read.
pub(crate) fn add_manifests(world: &mut PlainWorld, paths: &[PathBuf]) -> Result<()> {
    let has_sections_only = world.has_sections_only();
    paths.iter().try_for_each(|path| add_path(world, path))?;
    if has_sections_only && (world.tenants().next().is_some() || world.grants().next().is_some()) {
        bail!(
            "the agent tells what tenants come to, and not their objects, beside which others could be put; give all objects of the cluster with --manifests"
        );
    }
    world.settle_tenants();
    Ok(())
}

fn add_path(world: &mut PlainWorld, path: &Path) -> Result<()> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| is_manifest(file));
        files.sort_unstable();
        return files.iter().try_for_each(|file| add_file(world, file));
    }
    add_file(world, path)
}

fn add_file(world: &mut PlainWorld, path: &Path) -> Result<()> {
    let is_wanted = |kind: &str| PlainKind::parse(kind).is_some();
    let written = written_in_named_file(path, &is_wanted)?;
    written.iter().try_for_each(|one| add_object(world, one))
}

fn add_object(world: &mut PlainWorld, written: &Written) -> Result<()> {
    let Some(kind) = PlainKind::parse(written.kind()) else { return Ok(()) };
    let object: Box<RawValue> = written.read()?;
    kind.put(world, &object).map_err(|cause| written.refuse(format!("a {}: {cause}", kind.name())).into())
}
