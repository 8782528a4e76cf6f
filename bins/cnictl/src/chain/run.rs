//! The verbs over a chain, in the order and with the input that the CNI spec prescribes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use cni::{SpecVersion, Verb};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::attachment::PodAttachment;
use super::conflist::{Conflist, ConflistPlugin};
use super::exec::{Execution, execute};

/// The capability by which a plugin asks for the pod's annotations (containerd, CRI-O).
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// A conflist and the programs that it names.
#[derive(Debug)]
pub(super) struct PluginChain {
    pub(super) conflist: Conflist,
    plugins: Vec<(ConflistPlugin, PathBuf)>,
    /// `CNI_PATH`.
    path: String,
    timeout: Duration,
}

/// One call of one plugin.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PluginRun {
    /// `type`.
    pub(super) plugin: String,
    /// `ADD` and so on.
    pub(super) command: &'static str,
    pub(super) ok: bool,
    pub(super) duration_ms: f64,
    pub(super) peak_rss_kib: u64,
    pub(super) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<PluginError>,
    /// What it wrote to standard error.
    #[serde(skip)]
    pub(super) log: String,
}

/// The error object of the CNI protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PluginError {
    #[serde(default)]
    pub(super) code: u32,
    #[serde(default)]
    pub(super) msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) details: String,
}

/// A verb over the whole chain.
#[derive(Debug, Default)]
pub(super) struct ChainJournal {
    pub(super) runs: Vec<PluginRun>,
    /// Of the last plugin, where all succeeded.
    pub(super) result: Option<Value>,
}

impl PluginChain {
    /// Finds the programs. `path` are directories separated by colons, as in `CNI_PATH`.
    ///
    /// # Errors
    /// A program is in none of them; nothing has been run then.
    pub(super) fn new(conflist: Conflist, path: &str, timeout: Duration) -> Result<Self> {
        let mut plugins = Vec::new();
        for plugin in &conflist.plugins {
            let places = path.split(':').filter(|dir| !dir.is_empty());
            let Some(program) =
                places.map(|dir| Path::new(dir).join(&plugin.kind)).find(|file| file.is_file())
            else {
                bail!(
                    "plugin type={:?} not found in {path}: install it there or name its directory with --cni-path",
                    plugin.kind
                );
            };
            plugins.push((plugin.clone(), program));
        }
        Ok(Self { conflist, plugins, path: path.to_owned(), timeout })
    }

    /// Has our plugin take facts of pods from this directory.
    pub(super) fn read_manifests(&mut self, dir: &Path) {
        for (plugin, _) in self.plugins.iter_mut().filter(|(plugin, _)| plugin.kind == install::PLUGIN) {
            plugin.conf.insert("pod_source".to_owned(), json!({"manifests": dir}));
        }
    }

    /// ADD, first to last; each gets the result of the one before. Ends with the first failure.
    pub(super) fn add(&self, attachment: &PodAttachment) -> ChainJournal {
        let mut journal = ChainJournal::default();
        let mut result = None;
        for (plugin, program) in &self.plugins {
            let conf = self.conf(plugin, Some(attachment), result.as_ref());
            let (mut run, output) = self.run(Verb::Add, program, plugin, Some(attachment), &conf);
            match output.map(|output| serde_json::from_slice::<Value>(&output)) {
                Some(Ok(next @ Value::Object(_))) => result = Some(next),
                Some(_) => run.fail("it printed no JSON object as its result"),
                None => {}
            }
            let ok = run.ok;
            journal.runs.push(run);
            if !ok {
                return journal;
            }
        }
        journal.result = result;
        journal
    }

    /// DEL, last to first; each gets the result of the ADD. Ends with the first failure, as in libcni.
    pub(super) fn del(&self, attachment: &PodAttachment, result: Option<&Value>) -> ChainJournal {
        // older plugins do not expect one
        let result = result.filter(|_| self.conflist.version >= SpecVersion::V0_4_0);
        self.each(Verb::Del, self.plugins.iter().rev(), Some(attachment), |conf| {
            conf.extend(result.map(|result| ("prevResult".to_owned(), result.clone())));
        })
    }

    /// CHECK, first to last; each gets the result of the ADD.
    pub(super) fn check(&self, attachment: &PodAttachment, result: &Value) -> ChainJournal {
        self.each(Verb::Check, self.plugins.iter(), Some(attachment), |conf| {
            conf.insert("prevResult".to_owned(), result.clone());
        })
    }

    /// STATUS of every plugin.
    pub(super) fn status(&self) -> ChainJournal {
        self.each(Verb::Status, self.plugins.iter(), None, |_| {})
    }

    /// GC, with the attachments that are to stay, as (container id, interface name).
    pub(super) fn gc(&self, valid: &[(String, String)]) -> ChainJournal {
        let valid: Vec<Value> =
            valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
        self.each(Verb::Gc, self.plugins.iter(), None, |conf| {
            // the name in the text of CNI 1.1.0, and the name that its plugins read
            for key in ["cni.dev/attachments", "cni.dev/valid-attachments"] {
                conf.insert(key.to_owned(), Value::Array(valid.clone()));
            }
        })
    }

    /// VERSION of every plugin, with what each supports.
    pub(super) fn versions(&self) -> Vec<(PluginRun, Vec<String>)> {
        #[derive(Deserialize)]
        struct Supported {
            #[serde(rename = "supportedVersions")]
            versions: Vec<String>,
        }
        let ask = |(plugin, program): &(ConflistPlugin, PathBuf)| {
            let conf = Map::from_iter([("cniVersion".to_owned(), self.conflist.version.to_string().into())]);
            let (mut run, output) = self.run(Verb::Version, program, plugin, None, &conf);
            let supported = output.map(|output| serde_json::from_slice::<Supported>(&output));
            let versions = match supported {
                Some(Ok(supported)) => supported.versions,
                Some(Err(error)) => {
                    run.fail(&format!("it printed no list of versions: {error}"));
                    Vec::new()
                }
                None => Vec::new(),
            };
            (run, versions)
        };
        self.plugins.iter().map(ask).collect()
    }

    fn each<'a>(
        &self,
        verb: Verb,
        plugins: impl Iterator<Item = &'a (ConflistPlugin, PathBuf)>,
        attachment: Option<&PodAttachment>,
        extend: impl Fn(&mut Map<String, Value>),
    ) -> ChainJournal {
        let mut journal = ChainJournal::default();
        for (plugin, program) in plugins {
            let mut conf = self.conf(plugin, attachment, None);
            extend(&mut conf);
            let (run, _) = self.run(verb, program, plugin, attachment, &conf);
            let ok = run.ok;
            journal.runs.push(run);
            if !ok {
                break;
            }
        }
        journal
    }

    /// What the plugin finds on its standard input.
    fn conf(
        &self,
        plugin: &ConflistPlugin,
        attachment: Option<&PodAttachment>,
        previous: Option<&Value>,
    ) -> Map<String, Value> {
        let mut conf = plugin.conf.clone();
        conf.insert("name".to_owned(), self.conflist.name.clone().into());
        conf.insert("cniVersion".to_owned(), self.conflist.version.to_string().into());
        conf.extend(previous.map(|result| ("prevResult".to_owned(), result.clone())));
        let wants = |capability: &str| {
            conf.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
        };
        if let (Some(attachment), true) = (attachment, wants(ANNOTATIONS)) {
            conf.insert("runtimeConfig".to_owned(), json!({ANNOTATIONS: attachment.annotations}));
        }
        conf
    }

    /// The call, and what the plugin printed if it succeeded.
    fn run(
        &self,
        verb: Verb,
        program: &Path,
        plugin: &ConflistPlugin,
        attachment: Option<&PodAttachment>,
        conf: &Map<String, Value>,
    ) -> (PluginRun, Option<Vec<u8>>) {
        let mut env = vec![("CNI_COMMAND", verb.as_str()), ("CNI_PATH", &self.path)];
        if let Some(attachment) = attachment {
            env.extend([
                ("CNI_CONTAINERID", attachment.container_id.as_str()),
                ("CNI_NETNS", &attachment.netns),
                ("CNI_IFNAME", &attachment.ifname),
                ("CNI_ARGS", &attachment.args),
            ]);
        }
        let mut run = PluginRun {
            plugin: plugin.kind.clone(),
            command: verb.as_str(),
            ok: true,
            duration_ms: 0.0,
            peak_rss_kib: 0,
            path: program.display().to_string(),
            error: None,
            log: String::new(),
        };
        let input = Value::Object(conf.clone()).to_string();
        let mut command = Command::new(program);
        command.envs(env);
        match execute(command, input.as_bytes(), self.timeout) {
            Err(error) => {
                run.fail(&format!("run {}: {error}", program.display()));
                (run, None)
            }
            Ok(execution) => {
                let output = run.finish(execution, self.timeout);
                (run, output)
            }
        }
    }
}

impl PluginRun {
    fn fail(&mut self, msg: &str) {
        self.ok = false;
        self.error = Some(PluginError { code: 0, msg: msg.to_owned(), details: String::new() });
    }

    /// Takes over what the run gave; what it printed if it succeeded.
    fn finish(&mut self, execution: Execution, timeout: Duration) -> Option<Vec<u8>> {
        // microseconds are as much as means anything
        self.duration_ms = (execution.duration.as_secs_f64() * 1e6).round() / 1e3;
        self.peak_rss_kib = execution.peak_rss_kib;
        self.log = String::from_utf8_lossy(&execution.stderr).into_owned();
        if execution.timed_out {
            self.fail(&format!("killed after {} s without an end (--timeout)", timeout.as_secs_f64()));
            return None;
        }
        if execution.status.success() {
            return Some(execution.stdout);
        }
        match serde_json::from_slice::<PluginError>(&execution.stdout) {
            Ok(error) => (self.ok, self.error) = (false, Some(error)),
            Err(_) => self.fail(&format!(
                "it ended with {} and printed no error object; standard error: {}",
                execution.status,
                last_line(&self.log.clone())
            )),
        }
        None
    }

    /// `plugin type="istio-cni" failed (add): <msg>`, as runtimes write it; the details stand apart.
    pub(super) fn problem(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        let verb = self.command.to_ascii_lowercase();
        Some(format!("plugin type={:?} failed ({verb}): {}", self.plugin, error.msg))
    }

    /// What the plugin adds to its failure, a line each.
    pub(super) fn details(&self) -> impl Iterator<Item = &str> {
        let details = self.error.as_ref().map(|error| error.details.as_str()).unwrap_or_default();
        details.split("; ").filter(|line| !line.is_empty())
    }
}

impl ChainJournal {
    /// The failure that ended it.
    pub(super) fn problem(&self) -> Option<String> {
        self.runs.iter().find_map(PluginRun::problem)
    }
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(nothing)")
}
