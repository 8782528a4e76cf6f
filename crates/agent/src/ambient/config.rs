//! The options of ambient mode as types.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use capture::ambient::{NodeOptions, PROBES_V4, PROBES_V6, ProbeSender};
use capture::decide::{self, CaptureMode, Enrolment, Refusal, refuse};
use capture::select::Selectors;
use intent::live::LiveUpdates;
use kernel::iptables::{Iptables, Variant};
use kernel::sets;
use netns::InsideHost;
use ruleset::Backend;
use telemetry::Scope;

use super::desired::DesiredRules;
use super::followed::Followed;
use crate::backend;
use crate::config::{BadOption, duration, namespace};
use crate::verification::VerifyConfig;
use options::agent::{Options, Setting};

/// Everything that ambient mode does by.
#[derive(Debug, Clone)]
pub(crate) struct AmbientConfig {
    /// Ambient mode is off: pods that have something of it lose it, and nothing else is done.
    pub(crate) is_off: bool,
    /// What is the same for all pods that get their rules from now on.
    pub(crate) node: Followed<NodeOptions>,
    /// Which pods are to be in the mesh.
    pub(crate) rules: Followed<DesiredRules>,
    pub(crate) ztunnel_address: String,
    /// `NATIVE_NFTABLES`; `None`: what the node has.
    native_nftables: Option<bool>,
    forced: Option<Variant>,
    kubelet_only: bool,
    host_root: PathBuf,
    pub(crate) switch_to_host: bool,
    /// `AMBIENT_RECONCILE_POD_RULES_ON_STARTUP`.
    pub(crate) reconcile: bool,
    pub(crate) branch_eni: bool,
    /// `VERIFY_INTERVAL`.
    pub(crate) verify_every: Duration,
    /// `VERIFY_REPAIR`.
    pub(crate) repairs: bool,
    /// The longest that a pod drains; zero: not at all.
    pub(crate) drain_timeout: Duration,
    pub(crate) live_updates: LiveUpdates,
    /// `KERNEL_NETWORK_RUNTIME_CLASSES`.
    kernel_network_runtime_classes: Vec<String>,
}

impl AmbientConfig {
    /// Where ambient mode is off no pod is selected; its options have to mean something all the same.
    ///
    /// # Errors
    /// The first option that means nothing. A selector that does not parse ends the agent: with another one, other pods would be in the
    /// mesh.
    pub(crate) fn new(options: &Options, scope: decide::Exclusions) -> Result<Self, BadOption> {
        let config = Self::read(options, scope)?;
        if config.is_off {
            let mut rules = DesiredRules::clone(&config.rules.now());
            rules.enrolment.selectors = Selectors::default();
            return Ok(Self { rules: Followed::new(rules), ..config });
        }
        if config.ztunnel_address.is_empty() {
            return Err(BadOption::new("ztunnel-uds-address", "", "is not the path of a socket"));
        }
        if config.rules.now().enrolment.ztunnel_namespace.is_empty() {
            return Err(BadOption::new("system-namespace", "", "is not the namespace of ztunnel"));
        }
        Ok(config)
    }

    fn read(options: &Options, scope: decide::Exclusions) -> Result<Self, BadOption> {
        let text = |setting| options.text(setting);
        let (v4, v6) = (text(Setting::HostProbeSnatIp), text(Setting::HostProbeSnatIpv6));
        let probe_v4 =
            v4.parse().map_err(|_| BadOption::new("host-probe-snat-ip", v4, "is not an IPv4 address"))?;
        let probe_v6 =
            v6.parse().map_err(|_| BadOption::new("host-probe-snat-ipv6", v6, "is not an IPv6 address"))?;
        let verify = VerifyConfig::new(options)?;
        let drain_timeout = duration("drain-timeout", text(Setting::DrainTimeout))?;
        Ok(Self {
            is_off: !options.on(Setting::AmbientEnabled),
            node: Followed::new(NodeOptions {
                dns_capture: options.on(Setting::AmbientDnsCapture),
                ipv6: options.on(Setting::AmbientIpv6),
                probe_v4,
                probe_v6,
            }),
            rules: Followed::new(DesiredRules {
                scope,
                enrolment: Enrolment {
                    selectors: selectors(options)?,
                    ztunnel_namespace: namespace(options, Setting::SystemNamespace, "system-namespace")?,
                },
            }),
            ztunnel_address: text(Setting::ZtunnelUdsAddress).to_owned(),
            native_nftables: crate::config::native_nftables(options)?,
            forced: forced(text(Setting::ForceIptablesBinary))?,
            kubelet_only: match text(Setting::HostProbeSender) {
                "socket" | "" => false,
                "kubelet" => true,
                other => {
                    return Err(BadOption::new("host-probe-sender", other, "is neither socket nor kubelet"));
                }
            },
            host_root: text(Setting::HostRoot).into(),
            switch_to_host: options.on(Setting::AllowSwitchToHostNs),
            reconcile: options.on(Setting::AmbientReconcilePodRulesOnStartup),
            branch_eni: options.on(Setting::AmbientEnableAwsBranchEniProbe),
            verify_every: verify.interval,
            repairs: verify.repairs,
            drain_timeout,
            live_updates: crate::config::live_updates(options)?,
            kernel_network_runtime_classes: crate::config::kernel_network_runtime_classes(options)?,
        })
    }

    /// Whether a pod of this runtime class and with these addresses can be captured.
    pub(crate) fn refuse(&self, class: Option<&str>, ips: &[IpAddr]) -> Result<(), Refusal> {
        let mode = CaptureMode::Ambient { ipv6: self.node.now().ipv6 };
        refuse(mode, class, &self.kernel_network_runtime_classes, ips)
    }

    /// Whether a runtime class is said to use the kernel's network stack (`KERNEL_NETWORK_RUNTIME_CLASSES`).
    pub(crate) fn uses_kernel_network(&self, class: &str) -> bool {
        self.kernel_network_runtime_classes.iter().any(|fine| fine == class)
    }

    /// Processes of the node.
    pub(crate) fn proc_root(&self) -> PathBuf {
        self.host_root.join("proc")
    }

    /// Where this process finds what has the path on the node.
    pub(crate) fn on_node(&self, path: &str) -> PathBuf {
        self.host_root.join(path.trim_start_matches('/'))
    }

    /// The iptables backend.
    pub(crate) fn iptables(&self) -> Iptables {
        self.forced.map_or_else(Iptables::new, Iptables::forced)
    }

    /// Which backend programs the node and its pods. What an agent before left in ipsets stays there: pods have its rules.
    ///
    /// # Errors
    /// The choice is the node's, and neither backend works on it.
    pub(crate) fn backend(&self, inside: &InsideHost<'_>, log: &Scope) -> Result<Backend, String> {
        let before = sets::exists_in_ipset(inside, &[PROBES_V4, PROBES_V6]).unwrap_or_else(|error| {
            log.warn("cannot look for the sets of an earlier agent", &[("error", &fault::chain(&error))]);
            false
        });
        let iptables = self.iptables();
        let programs = iptables.available().is_ok();
        match self.native_nftables {
            Some(false) if programs => Ok(Backend::Iptables),
            Some(false) => {
                let text = "iptables is not in this image, so nf_tables is used; set NATIVE_NFTABLES=auto";
                log.warn(text, &[]);
                Ok(Backend::Nftables)
            }
            Some(true) | None if before && programs => {
                log.warn("an agent with iptables ran since the node's start, so iptables goes on", &[]);
                Ok(Backend::Iptables)
            }
            Some(true) => Ok(Backend::Nftables),
            None => {
                let (backend, why) = backend::choose(inside.inside(), &iptables)?;
                if let Some(why) = why {
                    log.info("iptables programs the node and its pods", &[("cause", &why)]);
                }
                Ok(backend)
            }
        }
    }

    /// Whose connections to pods count as probes.
    ///
    /// # Errors
    /// kubelet is not found.
    pub(crate) fn sender(&self) -> Result<ProbeSender, kernel::kubelet::Error> {
        match self.kubelet_only {
            false => Ok(ProbeSender::AnySocket),
            true => kernel::kubelet::uid(&self.proc_root()).map(ProbeSender::Uid),
        }
    }
}

/// A bare zero needs no unit, as in Go.
fn selectors(options: &Options) -> Result<Selectors, BadOption> {
    Selectors::new(&crate::config::selectors(options)?).map_err(|error| {
        let text = options.text(Setting::AmbientEnablementSelector);
        BadOption::new("ambient-enablement-selector", text, error.to_string())
    })
}

fn forced(text: &str) -> Result<Option<Variant>, BadOption> {
    match text {
        "" => Ok(None),
        "legacy" => Ok(Some(Variant::Legacy)),
        "nft" => Ok(Some(Variant::Nft)),
        other => Err(BadOption::new("force-iptables-binary", other, "is neither legacy nor nft")),
    }
}
