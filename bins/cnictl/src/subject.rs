//! The pod that `render`, `explain` and `check` are about: what is decided about it, by which configuration, and its plan.

mod ambient;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use capture::annotations::NodeSettings;
use capture::decide::{CaptureMode, refuse};
use capture::plan::detect_ipv6;
use capture::{Decision, Need, PlanTarget, Pod, Settings, Skip, decide};
use clap::ValueEnum;
use facts::PodRef;
use ruleset::{Backend, Plan};
use serde::Serialize;

use crate::configuration::{Configuration, ConfigurationArgs};
use crate::pod::{self, DescribedPod};
pub(crate) use ambient::{AmbientPod, NodeNetns, ProbeMember};

#[derive(Debug, clap::Args)]
pub(crate) struct SubjectArgs {
    /// Kubernetes manifest of the pod as it runs, after injection (YAML or JSON); - for standard input
    #[arg(value_name = "MANIFEST", required = true)]
    manifest: Option<PathBuf>,
    /// Which pod, where the manifest has several
    #[arg(long, visible_alias = "pod", value_name = "[NAMESPACE/]NAME")]
    pod_name: Option<String>,
    #[command(flatten)]
    pub(crate) decision: DecisionArgs,
}

/// What a decision depends on besides the pod.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct DecisionArgs {
    #[command(flatten)]
    pub(crate) configuration: ConfigurationArgs,
    /// Kernel interface; without it what the agent or the conflist says, else nftables
    #[arg(long, value_enum)]
    backend: Option<BackendName>,
    /// Address of the pod; decides as on the node whether IPv6 is captured (repeat, in the order of `ip addr`) [default: those of the
    /// manifest's status]
    #[arg(long = "pod-ip", value_name = "IP", value_delimiter = ',')]
    pod_ips: Vec<IpAddr>,
    /// IPv6 is captured, whatever the pod's addresses
    #[arg(long)]
    ipv6: bool,
    /// A namespace whose pods are never captured, besides those of the conflist (repeat)
    #[arg(long = "exclude-namespace", value_name = "NAMESPACE", value_delimiter = ',')]
    excluded_namespaces: Vec<String>,
    /// Labels of the pod's namespace, which decide in ambient mode; "" for none [default: those of a Namespace in the manifest]
    #[arg(long, value_name = "KEY=VALUE,...")]
    namespace_labels: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendName {
    Nftables,
    Iptables,
}

/// What a decision depends on, read once for any number of pods.
#[derive(Debug)]
pub(crate) struct Decider {
    args: DecisionArgs,
    pub(crate) configuration: Configuration,
}

/// A pod, and what is decided about it.
#[derive(Debug)]
pub(crate) struct PodSubject {
    pub(crate) name: PodRef,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) outcome: PodOutcome,
    /// What was not said and is taken for granted.
    pub(crate) assumed: Vec<String>,
}

/// The head of an answer about a pod: which it is, and whether it is captured.
#[derive(Debug, Serialize)]
pub(crate) struct AboutPod {
    pub(crate) pod: PodRef,
    pub(crate) captured: bool,
    /// The row of the decision table, of a pod that is not captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

/// What is decided about the pod.
#[derive(Debug)]
pub(crate) enum PodOutcome {
    /// It is left alone.
    Skipped(Skip),
    /// It is captured.
    Captured(Box<Captured>),
}

/// A captured pod.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) by: By,
    /// Whether the rules capture all that its owner expects of them; the warnings say what they do not.
    pub(crate) complete: bool,
    pub(crate) warnings: Vec<String>,
    pub(crate) facts: PlanTarget,
    pub(crate) plan: Plan,
}

/// Who takes its traffic.
#[derive(Debug)]
pub(crate) enum By {
    Sidecar { settings: Box<Settings>, native_sidecar: bool },
    Ztunnel(AmbientPod),
}

impl AboutPod {
    /// A pod that has a plan; `captured` is whether that counts as capture.
    pub(crate) fn planned(pod: &PodRef, captured: bool) -> Self {
        Self { pod: pod.clone(), captured, reason: None, detail: None }
    }

    /// A pod that is left alone.
    pub(crate) fn skipped(pod: &PodRef, skip: &Skip) -> Self {
        let (reason, detail) = (Some(skip.reason.name()), Some(skip.text()));
        Self { pod: pod.clone(), captured: false, reason, detail }
    }
}

impl SubjectArgs {
    /// Decides and plans. `ipv6` is what to assume of the pod's addresses where the command line says nothing.
    ///
    /// # Errors
    /// The manifest, the conflist or an annotation cannot be used.
    pub(crate) fn subject(&self, ipv6: bool) -> Result<PodSubject> {
        let manifest = self.manifest.as_deref().context("name a manifest")?;
        let described = pod::load(manifest, self.pod_name.as_deref())?;
        let decider = self.decision.load()?;
        decider.decide_with(described, ipv6, self.decision.backend_name())
    }
}

impl DecisionArgs {
    /// For pods of the node, which are as they are.
    pub(crate) fn of_the_node(configuration: ConfigurationArgs) -> Self {
        Self { configuration, ..Self::default() }
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn load(&self) -> Result<Decider> {
        Ok(Decider { args: self.clone(), configuration: self.configuration.load()? })
    }

    /// Whether a conflist was named.
    pub(crate) fn conf(&self) -> Option<&Path> {
        self.configuration.conf()
    }

    fn backend_name(&self) -> Option<Backend> {
        self.backend.map(|name| match name {
            BackendName::Iptables => Backend::Iptables,
            BackendName::Nftables => Backend::Nftables,
        })
    }

    fn captures_ipv6(&self, settings: &Settings, ips: &[IpAddr], assumed: bool) -> Result<bool> {
        if self.ipv6 {
            return Ok(true);
        }
        if ips.is_empty() {
            return Ok(assumed || settings.dual_stack);
        }
        detect_ipv6(ips, settings.dual_stack)
            .context("use the addresses of --pod-ip or of the manifest's status")
    }
}

impl Decider {
    /// The same for a pod that runs. `found` says in which backend its rules are, where nothing else names one and that is not nf_tables; `translates`,
    /// whether others in its namespace translate destinations of what comes in.
    pub(crate) fn decide_in(
        &self,
        described: DescribedPod,
        found: &dyn Fn(&Plan) -> Option<Backend>,
        translates: &dyn Fn() -> bool,
    ) -> Result<PodSubject> {
        let mut subject = self.decide_with(described.clone(), false, self.args.backend_name())?;
        let is_guess = subject.assumed.iter().any(|text| text == ambient::NFTABLES);
        if let PodOutcome::Captured(captured) = &subject.outcome
            && is_guess
            && let Some(backend) = found(&captured.plan)
        {
            subject = self.decide_with(described, false, Some(backend))?;
        }
        if let PodOutcome::Captured(captured) = &mut subject.outcome
            && let By::Ztunnel(pod) = &captured.by
            && translates()
        {
            captured.plan = pod.translating.clone();
        }
        Ok(subject)
    }

    fn decide_with(
        &self,
        described: DescribedPod,
        ipv6: bool,
        backend: Option<Backend>,
    ) -> Result<PodSubject> {
        let DescribedPod { mut pod, ips } = described;
        let Self { args, configuration } = self;
        let ips = if args.pod_ips.is_empty() { ips } else { args.pod_ips.clone() };
        let mut assumed: Vec<String> = configuration.assumed().into_iter().collect();
        if let Some(labels) = &args.namespace_labels {
            pod.namespace_labels = Some(parse_labels(labels)?);
        }
        let decision = self.decision(&mut pod, &mut assumed)?;
        let outcome = match decision {
            Decision::Skip(skip) => PodOutcome::Skipped(skip),
            Decision::Unknown(need) => bail!("what becomes of the pod depends on {need}"),
            Decision::Ambient => {
                let captured = ambient::captured(&pod, &ips, configuration, backend, args.ipv6, &mut assumed);
                PodOutcome::Captured(Box::new(captured))
            }
            Decision::Sidecar { settings, native_sidecar, warnings, gaps } => {
                let classes = &configuration.plugin.kernel_network_runtime_classes;
                let refusal = refuse(CaptureMode::Sidecar, pod.runtime_class.as_deref(), classes, &[]);
                let refusal = refusal.err().map(|refusal| format!("the plugin refuses the pod: {refusal}"));
                let gaps: Vec<String> = refusal.into_iter().chain(gaps).collect();
                let complete = gaps.is_empty();
                let warnings = gaps.into_iter().chain(warnings).collect();
                let backend = backend.unwrap_or_else(|| sidecar_backend(configuration, &mut assumed));
                let facts = PlanTarget { backend, ipv6: args.captures_ipv6(&settings, &ips, ipv6)? };
                let plan = capture::plan(&settings, facts);
                let by = By::Sidecar { settings, native_sidecar };
                PodOutcome::Captured(Box::new(Captured { by, complete, warnings, facts, plan }))
            }
        };
        // Reports name pods without their uid: a manifest of a pod that does not run yet has none.
        let name = PodRef::named(pod.namespace, pod.name);
        Ok(PodSubject { name, ips, outcome, assumed })
    }

    /// The decision, with no labels of a namespace whose labels are not known.
    fn decision(&self, pod: &mut Pod, assumed: &mut Vec<String>) -> Result<Decision> {
        let mut scope = self.configuration.scope();
        scope.excluded_namespaces.extend(self.args.excluded_namespaces.iter().cloned());
        let enrolment = self.configuration.enrolment()?;
        let node = NodeSettings::from_env(&|name| std::env::var(name).ok(), &|_| None)?;
        let decision = decide(pod, &scope, &enrolment, &node)?;
        let Decision::Unknown(need @ Need::NamespaceLabels(_)) = decision else { return Ok(decision) };
        assumed.push(format!("{need} are empty (--namespace-labels, or a Namespace in the manifest)"));
        pod.namespace_labels = Some(BTreeMap::new());
        Ok(decide(pod, &scope, &enrolment, &node)?)
    }
}

fn sidecar_backend(configuration: &Configuration, assumed: &mut Vec<String>) -> Backend {
    match configuration.plugin.native_nftables {
        Some(true) => Backend::Nftables,
        Some(false) => Backend::Iptables,
        None => {
            assumed.push(ambient::NFTABLES.to_owned());
            Backend::Nftables
        }
    }
}

fn parse_labels(text: &str) -> Result<BTreeMap<String, String>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value))
                if capture::select::is_label_key(key) && capture::select::is_label_value(value) =>
            {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => bail!(
                "--namespace-labels: {pair:?} is not a label; write KEY=VALUE, several with commas between"
            ),
        })
        .collect()
}

impl Captured {
    /// How inbound connections are captured: in the annotation's words, or by ambient mode.
    pub(crate) fn mode(&self) -> &'static str {
        match &self.by {
            By::Sidecar { settings, .. } => match settings.mode {
                capture::settings::Mode::Redirect => "REDIRECT",
                capture::settings::Mode::Tproxy => "TPROXY",
            },
            By::Ztunnel(_) => "AMBIENT",
        }
    }

    /// TCP ports of the proxy, or ztunnel, that connections are sent to.
    pub(crate) fn listeners(&self) -> Vec<u16> {
        use capture::ambient::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
        match &self.by {
            By::Sidecar { settings, .. } => vec![settings.proxy_port, settings.capture_port],
            By::Ztunnel(_) => vec![OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT],
        }
    }

    /// Whether the proxy is a native sidecar; `None` without a sidecar.
    pub(crate) fn native_sidecar(&self) -> Option<bool> {
        match self.by {
            By::Sidecar { native_sidecar, .. } => Some(native_sidecar),
            By::Ztunnel(_) => None,
        }
    }

    /// What is loaded in the node's own namespace, of a pod in ambient mode.
    pub(crate) fn node(&self) -> Option<&NodeNetns> {
        match &self.by {
            By::Sidecar { .. } => None,
            By::Ztunnel(pod) => Some(&pod.node),
        }
    }

    /// `captured through its sidecar (REDIRECT, nftables, IPv4)`.
    pub(crate) fn summary(&self) -> String {
        let families = if self.facts.ipv6 { "IPv4 and IPv6" } else { "IPv4" };
        let by = match self.by {
            By::Sidecar { native_sidecar: true, .. } => "its native sidecar",
            By::Sidecar { native_sidecar: false, .. } => "its sidecar",
            By::Ztunnel(_) => "the node's ztunnel",
        };
        let state = if self.complete { "captured" } else { "NOT ALL captured" };
        format!("{state} through {by} ({}, {}, {families})", self.mode(), self.facts.backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_or_named() {
        let read = |text: &str| parse_labels(text).map_err(|error| error.to_string());
        assert_eq!(read("").unwrap(), BTreeMap::new());
        let two = [("istio.io/dataplane-mode", "ambient"), ("a", "")];
        assert_eq!(
            read("istio.io/dataplane-mode=ambient, a=").unwrap(),
            two.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
        );
        for bad in ["a", "=x", "a b=c", "a=b c"] {
            assert!(read(bad).unwrap_err().contains("KEY=VALUE"), "{bad}");
        }
    }
}
