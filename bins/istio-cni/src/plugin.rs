//! The verbs.

use std::time::Duration;

use cni::{CniResult, Error, NetnsRelation, Plugin, PluginConf, Request, code};
use kernel::iptables::{Iptables, Supervisor};
use kernel::nft::{Nftables, Support};
use kernel::{Choice, Kernel};
use netns::Netns;
use podsource::{KUBECONFIG_NAME, Kubernetes, Manifests, PodSource};
use ruleset::Backend;
use telemetry::{Level, Logger};

use crate::job::{self, Job, Verdict};

/// How many differences a failing CHECK tells. One flushed chain may be thousands of them.
const SHOWN: usize = 20;

/// The plugin.
pub(crate) struct IstioCni<'a> {
    log: &'a Logger,
    /// What the running call is about, as soon as that is known.
    call_log: Option<Logger>,
    iptables: Iptables,
    nftables: Nftables,
}

impl<'a> IstioCni<'a> {
    pub(crate) fn new(log: &'a Logger, supervisor: Supervisor) -> Self {
        Self { log, call_log: None, iptables: Iptables::new().supervised(supervisor), nftables: Nftables }
    }

    fn kernel(&self) -> Kernel<'_> {
        Kernel { nftables: &self.nftables, iptables: &self.iptables }
    }

    /// The configuration; from here on lines reach the file and the node agent.
    fn configure(&self, request: &Request) -> Result<PluginConf, Error> {
        let conf = request.conf()?;
        self.log.attach(&conf.cni_agent_run_dir, Level::parse(&conf.plugin_log_level));
        Ok(conf)
    }

    /// What a call is about, in every line of its log.
    fn job<'j>(
        &'j self,
        request: &'j Request,
        conf: &'j PluginConf,
        log: &'j Logger,
    ) -> Result<Job<'j>, Error> {
        let args = request.args()?;
        Ok(Job { request, conf, log, kernel: self.kernel(), id: pod_id(&args) })
    }

    /// Says what iptables had to put up with.
    fn log_warnings(&self, log: &Logger) {
        for warning in self.iptables.take_warnings() {
            log.warn(&warning, &[]);
        }
    }

    fn log_of(&mut self, request: &Request) -> Logger {
        let pod = request.args().map(|args| format!("{}/{}", args.k8s_pod_namespace, args.k8s_pod_name));
        let log = self.log.with(&[
            ("cmd", &request.verb),
            ("pod", &pod.unwrap_or_default()),
            ("if", &request.ifname),
            ("container", &request.container_id),
        ]);
        self.call_log.insert(log).clone()
    }

    /// The error that the runtime gets, with the labels of its call.
    pub(crate) fn log_failure(&self, error: &Error) {
        let details =
            (!error.details.is_empty()).then_some(("details", &error.details as &dyn std::fmt::Display));
        let labels: Vec<telemetry::Label<'_>> =
            [Some(("code", &error.code as &dyn std::fmt::Display)), details].into_iter().flatten().collect();
        self.call_log.as_ref().unwrap_or(self.log).error(&error.msg, &labels);
    }
}

impl Plugin for IstioCni<'_> {
    fn compare_netns(&self, path: &str) -> Result<NetnsRelation, String> {
        let own = Netns::current().map_err(|error| kernel::chain_text(&error))?;
        Ok(match Netns::open(path) {
            Ok(netns) if netns == own => NetnsRelation::Same,
            Ok(_) => NetnsRelation::Different,
            Err(_) => NetnsRelation::Unknown,
        })
    }

    fn add(&mut self, request: &Request) -> Result<CniResult, Error> {
        let log = self.log_of(request);
        let conf = self.configure(request)?;
        let result = request.passthrough()?;
        let job = self.job(request, &conf, &log)?;
        let done = job.add(source(&conf, &log).as_ref());
        self.log_warnings(&log);
        done.map_err(|failure| {
            failure.into_cni(&format!("istio-cni could not set up pod {}", job.pod_text()))
        })?;
        Ok(result)
    }

    /// The rules end with the namespace, and nothing else is kept of a pod: there is nothing to remove, whatever state it is in.
    fn del(&mut self, request: &Request) -> Result<(), Error> {
        // A configuration that ADD refused must not keep the pod from being removed, and what was uninstalled stays so.
        if request.conf().is_ok_and(|conf| conf.cni_agent_run_dir.is_dir()) {
            let _ = self.configure(request);
        }
        self.log_of(request).info("nothing to undo: rules end with the pod's network namespace", &[]);
        Ok(())
    }

    fn check(&mut self, request: &Request) -> Result<(), Error> {
        let log = self.log_of(request);
        let conf = self.configure(request)?;
        // It must be readable, but what other plugins did is theirs to check.
        request.prev_result()?;
        let job = self.job(request, &conf, &log)?;
        let what = format!("istio-cni could not check pod {}", job.pod_text());
        let verdict = job.check(source(&conf, &log).as_ref()).map_err(|failure| failure.into_cni(&what))?;
        self.log_warnings(&log);
        match verdict {
            Verdict::AsPlanned => Ok(()),
            Verdict::Differs(differences) => {
                let msg = format!("pod {} is not captured as planned", job.pod_text());
                let mut texts: Vec<String> =
                    differences.iter().take(SHOWN).map(ToString::to_string).collect();
                if differences.len() > SHOWN {
                    texts.push(format!("and {} more differences", differences.len() - SHOWN));
                }
                texts.push("delete the pod so that it is set up again".to_owned());
                Err(Error::internal(msg).with_details(texts.join("; ")))
            }
        }
    }

    fn status(&mut self, request: &Request) -> Result<(), Error> {
        let unavailable = |cause: String| {
            Err(Error::new(code::NOT_AVAILABLE, "istio-cni cannot serve ADD").with_details(cause))
        };
        let conf = match self.configure(request) {
            Ok(conf) => conf,
            Err(error) => return unavailable(error.msg),
        };
        if let Err(error) = job::node_settings() {
            return unavailable(error.to_string());
        }
        if let Err(error) = source(&conf, self.log).ready() {
            return unavailable(error.to_string());
        }
        if let Err(cause) = self.backend_ready(choice(&conf)) {
            return unavailable(cause);
        }
        Ok(())
    }

    /// Nothing is kept of an attachment outside its namespace, so there is nothing stale; the list is only checked.
    fn gc(&mut self, request: &Request) -> Result<(), Error> {
        self.configure(request)?;
        let valid = request.valid_attachments()?.map_or(0, |attachments| attachments.len());
        self.log.info(
            "nothing to collect: no state is kept outside pods' network namespaces",
            &[("valid", &valid)],
        );
        Ok(())
    }
}

impl IstioCni<'_> {
    fn backend_ready(&self, choice: Choice) -> Result<(), String> {
        let inside = netns::Inside::of_calling_thread().map_err(|error| kernel::chain_text(&error))?;
        let nftables =
            kernel::nft::probe(&inside).map_err(|error| kernel::chain_text(&error)).and_then(|support| {
                match support {
                    Support { redirect: true, tproxy: true } => Ok(()),
                    Support { redirect: false, .. } => {
                        Err("the kernel has no nf_tables nat for both families".to_owned())
                    }
                    Support { tproxy: false, .. } => Err("the kernel has no nf_tables tproxy".to_owned()),
                }
            });
        let iptables = || self.iptables.available().map_err(|error| kernel::chain_text(&error));
        match choice {
            Choice::Only(Backend::Nftables) => nftables,
            Choice::Only(Backend::Iptables) => iptables(),
            Choice::Auto => nftables.or_else(|no_nftables| {
                iptables().map_err(|no_iptables| format!("{no_nftables}, and {no_iptables}"))
            }),
        }
    }
}

/// Where the pod's facts come from.
fn source<'s>(conf: &'s PluginConf, log: &'s Logger) -> Box<dyn PodSource + 's> {
    match &conf.pod_source {
        cni::PodSource::Manifests(dir) => Box::new(Manifests::new(dir)),
        cni::PodSource::Kubernetes => {
            let on_retry = |error: &podsource::Error, attempt: u32, pause: Duration| {
                let labels: [telemetry::Label<'_>; 2] = [("try", &attempt), ("pause_ms", &pause.as_millis())];
                log.warn(&error.to_string(), &labels);
            };
            let kubernetes =
                Kubernetes::new(conf.cni_agent_run_dir.join(KUBECONFIG_NAME), env!("CARGO_PKG_VERSION"));
            Box::new(kubernetes.with_timeout(conf.facts_timeout).with_on_retry(on_retry))
        }
    }
}

pub(crate) fn choice(conf: &PluginConf) -> Choice {
    match conf.native_nftables {
        Some(true) => Choice::Only(Backend::Nftables),
        Some(false) => Choice::Only(Backend::Iptables),
        None => Choice::Auto,
    }
}

fn pod_id(args: &cni::Args) -> capture::PodId {
    capture::PodId {
        namespace: args.k8s_pod_namespace.clone(),
        name: args.k8s_pod_name.clone(),
        uid: Some(args.k8s_pod_uid.clone()).filter(|uid| !uid.is_empty()),
    }
}
