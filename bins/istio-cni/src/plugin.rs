//! The verbs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use applied::RecordKey;
use cni::{CniResult, Error, FailurePolicy, NetnsRelation, Plugin, PluginConf, Request, code};
use kernel::iptables::{Iptables, Supervisor};
use kernel::nft::Nftables;
use kernel::{Choice, Kernel};
use leftover::{Mark, Watcher};
use netns::Netns;
use ruleset::Backend;
use rundir::{OperationReport, Outcome};
use telemetry::{Level, Logger};

use crate::check::{self, CheckVerdict};
use crate::failure::OperationFailure;
use crate::job::{Added, Job};
use crate::progress::Progress;
use crate::sources::run_dir;
use crate::status::StatusLook;
use crate::within::{Unfinished, within};
use crate::{policies, report};

/// How long one program of iptables may take for a CHECK, which only looks.
const CHECK_PROGRAM_TIMEOUT: Duration = Duration::from_secs(2);

/// Both backends, shared with the thread that works.
pub(crate) struct SharedBackends {
    pub(crate) iptables: Iptables,
    nftables: Nftables,
}

/// The plugin.
pub(crate) struct IstioCni<'a> {
    log: &'a Logger,
    /// What the running call is about, as soon as that is known.
    call_log: Option<Logger>,
    backends: Arc<SharedBackends>,
    supervisor: Supervisor,
    progress: Arc<Progress>,
    watcher: Watcher,
    /// What says that this program was uninstalled and stays for the DELs of pods from before.
    left_over: Option<Mark>,
}

impl SharedBackends {
    pub(crate) fn kernel(&self) -> Kernel<'_> {
        Kernel { nftables: &self.nftables, iptables: &self.iptables }
    }
}

impl<'a> IstioCni<'a> {
    /// `started` is when the process began.
    pub(crate) fn new(log: &'a Logger, supervisor: Supervisor, watcher: Watcher, started: Instant) -> Self {
        let backends = Arc::new(SharedBackends { iptables: Iptables::new(), nftables: Nftables });
        let progress = Arc::new(Progress::new(started));
        let left_over = Mark::of_this_program().filter(Mark::is_set);
        Self { log, call_log: None, backends, supervisor, progress, watcher, left_over }
    }

    /// The configuration; from here on lines reach the file and the node agent.
    fn configure(&self, request: &Request) -> Result<PluginConf, Error> {
        let conf = request.conf()?;
        self.log.attach(&conf.cni_agent_run_dir, Level::parse(&conf.plugin_log_level));
        Ok(conf)
    }

    fn job(&self, request: &Request, conf: &PluginConf, log: &Logger) -> Result<Job, Error> {
        Job::new(request, conf.clone(), log.clone(), self.backends.clone(), self.progress.clone())
    }

    /// Logs the warnings of the iptables backend.
    fn log_warnings(&self, log: &Logger) {
        for warning in self.backends.iptables.take_warnings() {
            log.warn(&warning, &[]);
        }
    }

    /// What came of the pod, within the time of `add_timeout`, under the failure policy.
    fn add_pod(&self, job: Job, log: &Logger) -> (Outcome, Option<OperationFailure>) {
        let job = Arc::new(job);
        let captured = self.capture_pod(&job, log);
        if captured.0 == Outcome::Failed || !job.conf.policy_enforcement {
            return captured;
        }
        let policed = in_time(&job, Job::police);
        self.log_warnings(log);
        match policed {
            Ok(policy) => {
                self.progress.set_policy(policy);
                captured
            }
            Err(failure) => (Outcome::Failed, Some(failure)),
        }
    }

    fn capture_pod(&self, job: &Arc<Job>, log: &Logger) -> (Outcome, Option<OperationFailure>) {
        if job.is_disabled() {
            log.warn("pod starts without capture: the configuration says capture: disabled", &[]);
            return (Outcome::Disabled, None);
        }
        let policy = job.conf.failure_policy;
        let done = in_time(job, Job::add);
        self.log_warnings(log);
        match (done, policy) {
            (Ok(Added::Captured), _) => (Outcome::Captured, None),
            (Ok(Added::Skipped), _) => (Outcome::Skipped, None),
            (Err(failure), FailurePolicy::Closed) => (Outcome::Failed, Some(failure)),
            (Err(failure), FailurePolicy::Open) => (Outcome::Uncaptured, Some(failure)),
        }
    }

    /// Tells the node agent how the call ended.
    fn report(&self, request: &Request, conf: &PluginConf, result: Outcome, error: String, log: &Logger) {
        let Ok(args) = request.args() else { return };
        let doubts = self.progress.doubts();
        let (result, error) = match result {
            Outcome::Captured if error.is_empty() && !doubts.is_empty() => (Outcome::Incomplete, doubts),
            Outcome::Captured if !doubts.is_empty() => (Outcome::Incomplete, format!("{doubts}; {error}")),
            other => (other, error),
        };
        let report = OperationReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            operation: request.verb.to_string().to_lowercase(),
            result,
            namespace: args.k8s_pod_namespace,
            name: args.k8s_pod_name,
            uid: args.k8s_pod_uid,
            container: request.container_id.clone(),
            facts_source: self.progress.facts_source().to_owned(),
            seconds: self.progress.seconds(),
            phases: self.progress.phases(),
            backend_missing: self.progress.is_backend_missing(),
            error,
            policy: self.progress.policy(),
        };
        report::send(conf, report, log);
    }

    /// Lets the program go with this DEL, if that is the last one that a runtime makes by a configuration from before.
    fn end_left_over(&self, mark: &Mark, request: &Request, log: &Logger) {
        let Some(cache) = mark.cache() else { return };
        let result = format!("{}-{}-{}", request.network, request.container_id, request.ifname);
        if let Err(error) = self.watcher.start(&cache, &result) {
            log.warn(&format!("the program stays after this DEL: cannot wait for its end: {error}"), &[]);
        }
    }

    /// What policies have of the pod goes before its addresses do.
    fn release(&self, request: &Request, conf: &PluginConf, log: &Logger) {
        let Some(run_dir) = run_dir(conf).filter(|_| conf.policy_enforcement) else { return };
        match applied::policed::take(run_dir, &request.container_id, &request.ifname) {
            Ok(gone) => policies::release(conf, gone.into_iter().collect(), log),
            Err(error) => log.warn(&error.to_string(), &[]),
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
        let own = Netns::current().map_err(|error| fault::chain(&error))?;
        Ok(match Netns::open(path) {
            Ok(netns) if netns == own => NetnsRelation::Same,
            Ok(_) => NetnsRelation::Different,
            Err(_) => NetnsRelation::Unknown,
        })
    }

    fn add(&mut self, request: &Request) -> Result<CniResult, Error> {
        let log = self.log_of(request);
        if self.left_over.is_some() {
            // The runtime goes by a configuration from before. What other runtimes do with pods on this node is right here too.
            log.warn("pod starts without capture: the plugin was uninstalled from this node", &[]);
            return request.passthrough();
        }
        let conf = self.configure(request)?;
        let result = request.passthrough()?;
        let iptables = Iptables::new().supervised(self.supervisor);
        let iptables = match run_dir(&conf) {
            Some(run_dir) => iptables.locking(run_dir),
            None => iptables,
        };
        self.backends = Arc::new(SharedBackends { iptables, nftables: Nftables });
        let job = self.job(request, &conf, &log)?;
        let pod = job.id.to_string();
        let (outcome, failure) = self.add_pod(job, &log);
        if failure.as_ref().is_some_and(OperationFailure::is_backend_missing) {
            self.progress.set_backend_missing();
        }
        let error = failure.map(|failure| failure.into_cni(&format!("istio-cni could not set up pod {pod}")));
        let text = error.as_ref().map_or_else(|| self.progress.take_remark(), |error| error.msg.clone());
        if outcome == Outcome::Uncaptured {
            log.error(&format!("pod starts WITHOUT CAPTURE, as failure_policy: open allows: {text}"), &[]);
        }
        self.report(request, &conf, outcome, text, &log);
        match error {
            Some(error) if outcome == Outcome::Failed => Err(error),
            _ => Ok(result),
        }
    }

    /// The rules end with the namespace; what else is kept of a pod is the record of them.
    fn del(&mut self, request: &Request) -> Result<(), Error> {
        // A configuration that ADD refused must not keep the pod from being removed, and what was uninstalled stays so.
        let conf = request.conf().ok().filter(|conf| conf.cni_agent_run_dir.is_dir());
        if conf.is_some() {
            let _ = self.configure(request);
        }
        let log = self.log_of(request);
        log.debug("nothing to undo: rules end with the pod's network namespace", &[]);
        if let Some(mark) = &self.left_over {
            self.end_left_over(mark, request, &log);
        }
        if let Some(conf) = conf {
            self.release(request, &conf, &log);
            let key = RecordKey::Attachment { container: &request.container_id, interface: &request.ifname };
            let removed = run_dir(&conf).map(|run_dir| {
                let sandbox = applied::sandbox::remove(run_dir, &request.container_id, &request.ifname);
                [applied::remove(run_dir, key), sandbox]
            });
            for error in removed.into_iter().flatten().filter_map(Result::err) {
                log.warn(&error.to_string(), &[]);
            }
            self.report(request, &conf, Outcome::Skipped, String::new(), &log);
        }
        Ok(())
    }

    fn check(&mut self, request: &Request) -> Result<(), Error> {
        let log = self.log_of(request);
        if self.left_over.is_some() {
            log.warn("pod is not checked: the plugin was uninstalled from this node", &[]);
            return Ok(());
        }
        let conf = self.configure(request)?;
        // It must be readable, but what other plugins did is theirs to check.
        request.prev_result()?;
        // A program that hangs must not hold up a runtime that checks pod after pod at its start.
        let iptables = Iptables::new().timeout(CHECK_PROGRAM_TIMEOUT);
        self.backends = Arc::new(SharedBackends { iptables, nftables: Nftables });
        let job = self.job(request, &conf, &log)?;
        if job.is_disabled() {
            log.warn("pod is not checked: the configuration says capture: disabled", &[]);
            self.report(request, &conf, Outcome::Disabled, String::new(), &log);
            return Ok(());
        }
        let (pod, verdict) = (job.id.to_string(), check::within_limit(job));
        self.log_warnings(&log);
        let (outcome, error, text) = match verdict {
            CheckVerdict::AsPlanned => (Outcome::Captured, None, String::new()),
            CheckVerdict::Unknown(reason) => {
                log.warn(&format!("whether the pod is captured as planned is not known: {reason}"), &[]);
                (Outcome::Skipped, None, reason)
            }
            CheckVerdict::Differs(differences) => {
                let error = check::failure(&differences, &pod);
                let text = error.msg.clone();
                (Outcome::Failed, Some(error), text)
            }
        };
        self.report(request, &conf, outcome, text, &log);
        match (error, conf.failure_policy) {
            (None, _) => Ok(()),
            (Some(error), FailurePolicy::Closed) => Err(error),
            // CRI-O checks a pod right after its ADD and gives it up where that fails (`checkNetwork` of cri-o/ocicni), so an error here would
            // undo the policy.
            (Some(error), FailurePolicy::Open) => {
                let msg = format!("CHECK succeeds because of failure_policy: open: {}", error.msg);
                log.error(&msg, &[("details", &error.details)]);
                Ok(())
            }
        }
    }

    fn status(&mut self, request: &Request) -> Result<(), Error> {
        if self.left_over.is_some() {
            return Ok(());
        }
        let unavailable =
            |cause: String| Error::new(code::NOT_AVAILABLE, "istio-cni cannot serve ADD").with_details(cause);
        // Without the sinks in the run directory, which could be waited for.
        let conf = request.conf().map_err(|error| unavailable(error.msg))?;
        let (backends, progress) = (self.backends.clone(), self.progress.clone());
        let look = StatusLook { conf, backends, progress, log: self.log.clone() };
        look.obstacle().map_or(Ok(()), |cause| Err(unavailable(cause)))
    }

    /// Records of attachments that are gone are removed. Without a list nothing is known of any.
    fn gc(&mut self, request: &Request) -> Result<(), Error> {
        let conf = self.configure(request)?;
        let Some(valid) = request.valid_attachments()? else { return Ok(()) };
        let (Some(run_dir), count) = (run_dir(&conf), valid.len()) else { return Ok(()) };
        let names = valid.iter().map(|valid| (&*valid.container_id, &*valid.ifname));
        let sandboxes = applied::sandbox::keep(run_dir, names.clone());
        match applied::policed::keep(run_dir, names.clone()) {
            Ok(gone) => policies::release(&conf, gone, self.log),
            Err(error) => self.log.warn(&error.to_string(), &[]),
        }
        match applied::keep_attachments(run_dir, names)
            .and_then(|removed| sandboxes.map(|more| removed + more))
        {
            Ok(removed) => self.log.info(
                "records of attachments that are gone are removed",
                &[("valid", &count), ("removed", &removed)],
            ),
            Err(error) => self.log.warn(&error.to_string(), &[]),
        }
        Ok(())
    }
}

/// A part of the pod's setup, in the time of `add_timeout`.
fn in_time<T: Send + 'static>(
    job: &Arc<Job>,
    work: fn(&Job) -> Result<T, OperationFailure>,
) -> Result<T, OperationFailure> {
    let (progress, limit) = (job.progress.clone(), job.conf.add_timeout);
    let job = job.clone();
    within("add", limit, move || work(&job)).unwrap_or_else(|unfinished| {
        Err(match unfinished {
            Unfinished::Thread(error) => OperationFailure::Thread(error),
            Unfinished::Late => {
                OperationFailure::TimedOut { after: limit, waiting_for: progress.waiting_for() }
            }
        })
    })
}

pub(crate) fn choice(conf: &PluginConf) -> Choice {
    match conf.native_nftables {
        Some(true) => Choice::Only(Backend::Nftables),
        Some(false) => Choice::Only(Backend::Iptables),
        None => Choice::Auto,
    }
}

pub(crate) fn pod_id(args: &cni::Args) -> facts::PodRef {
    facts::PodRef {
        namespace: args.k8s_pod_namespace.clone(),
        name: args.k8s_pod_name.clone(),
        uid: args.k8s_pod_uid.clone(),
    }
}
