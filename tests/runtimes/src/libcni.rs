//! How libcni calls the plugins of a list: environment, standard input, order, and the results that it keeps.

mod cache;
mod call;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use testkit::TestNetns;

pub use call::Call;

/// What VERSION is asked with.
const CURRENT: &str = "1.1.0";

/// A list of plugins as a file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// The network.
    pub name: String,
    /// Its `cniVersion`.
    pub version: String,
    /// The plugins' own objects, in order.
    pub plugins: Vec<Value>,
    /// The file.
    bytes: Vec<u8>,
}

/// An interface of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; empty when the namespace is gone.
    #[serde(default)]
    pub netns: String,
    /// `CNI_IFNAME`.
    pub if_name: String,
    /// `CNI_ARGS`, in order.
    #[serde(default)]
    pub cni_args: Vec<(String, String)>,
    /// What a plugin gets of it that has the capability.
    #[serde(default)]
    pub capability_args: Map<String, Value>,
}

/// A verb with the longest that it may take; none waits for ever, as the real ones do.
#[derive(Debug, Clone, Copy)]
pub struct Verb {
    name: &'static str,
    limit: Option<Duration>,
}

/// A libcni: directories, the namespace in which plugins run, and what it called so far.
pub struct Libcni<'a> {
    path: Vec<PathBuf>,
    cache: PathBuf,
    host: &'a TestNetns,
    calls: Mutex<Vec<Call>>,
}

// === impl List ===

impl List {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read or is no list with a name and plugins.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(bytes).with_context(|| format!("load {}", path.display()))
    }

    fn parse(bytes: Vec<u8>) -> Result<Self> {
        let list: Value = serde_json::from_slice(&bytes)?;
        let text = |key: &str| list[key].as_str().map(str::to_owned).with_context(|| format!("no {key}"));
        let plugins = list["plugins"].as_array().filter(|plugins| !plugins.is_empty());
        let plugins = plugins.context("no plugins")?.clone();
        Ok(Self { name: text("name")?, version: text("cniVersion")?, plugins, bytes })
    }

    /// Whether its version is at least this one.
    pub fn is_at_least(&self, version: &str) -> bool {
        let parts = |text: &str| text.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
        parts(&self.version) >= parts(version)
    }

    /// What a plugin reads.
    fn config(&self, plugin: &Value, more: &[(&str, Option<&Value>)]) -> Value {
        let mut config = plugin.clone();
        config["name"] = json!(self.name);
        config["cniVersion"] = json!(self.version);
        for (key, value) in more {
            if let Some(value) = value {
                config[*key] = (*value).clone();
            }
        }
        config
    }
}

// === impl Verb ===

impl Verb {
    /// A verb that the runtime gives up after this time.
    pub fn within(name: &'static str, limit: Duration) -> Self {
        Self { name, limit: Some(limit) }
    }

    /// A verb that the runtime waits for as long as it takes.
    pub fn unlimited(name: &'static str) -> Self {
        Self { name, limit: None }
    }
}

// === impl Libcni ===

impl<'a> Libcni<'a> {
    /// A libcni that finds plugins in these directories and keeps results below `cache`.
    pub fn new(path: Vec<PathBuf>, cache: PathBuf, host: &'a TestNetns) -> Self {
        Self { path, cache, host, calls: Mutex::default() }
    }

    /// The calls since the last question.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// ADD of every plugin, each with the result of the one before; the last result is kept.
    ///
    /// # Errors
    /// A plugin fails. The runtime calls DEL then.
    pub fn add(&self, list: &List, attachment: &Attachment, limit: Duration) -> Result<Value> {
        let mut result = None;
        for plugin in &list.plugins {
            let config = list.config(plugin, &[("prevResult", result.as_ref())]);
            let config = with_runtime_config(config, attachment);
            let stdout = self.call(Verb::within("ADD", limit), plugin, attachment, &config)?;
            result = Some(serde_json::from_str(&stdout).with_context(|| format!("result {stdout:?}"))?);
        }
        let result = result.context("no plugins")?;
        self.keep(list, attachment, &result)?;
        Ok(result)
    }

    /// CHECK of every plugin, with the kept result.
    ///
    /// # Errors
    /// A plugin fails; those after it are not asked.
    pub fn check(&self, list: &List, attachment: &Attachment, limit: Option<Duration>) -> Result<()> {
        ensure!(list.is_at_least("0.4.0"), "version {} has no CHECK", list.version);
        let verb = Verb { name: "CHECK", limit };
        self.each(verb, list.plugins.iter(), list, attachment, self.kept_result(list, attachment).as_ref())
    }

    /// DEL of every plugin from the last to the first, with the kept result, which is forgotten when all have succeeded.
    ///
    /// # Errors
    /// A plugin fails; those before it are not called.
    pub fn del(&self, list: &List, attachment: &Attachment, limit: Duration) -> Result<()> {
        let kept = self.kept_result(list, attachment).filter(|_| list.is_at_least("0.4.0"));
        let verb = Verb::within("DEL", limit);
        self.each(verb, list.plugins.iter().rev(), list, attachment, kept.as_ref())?;
        self.forget(list, attachment);
        Ok(())
    }

    fn each<'b>(
        &self,
        verb: Verb,
        plugins: impl Iterator<Item = &'b Value>,
        list: &List,
        attachment: &Attachment,
        result: Option<&Value>,
    ) -> Result<()> {
        for plugin in plugins {
            let config = with_runtime_config(list.config(plugin, &[("prevResult", result)]), attachment);
            self.call(verb, plugin, attachment, &config)?;
        }
        Ok(())
    }

    /// STATUS of every plugin, where the version has it.
    ///
    /// # Errors
    /// A plugin says that it is not available.
    pub fn status(&self, list: &List) -> Result<()> {
        if !list.is_at_least("1.1.0") {
            return Ok(());
        }
        for plugin in &list.plugins {
            let config = list.config(plugin, &[]);
            self.call(Verb::unlimited("STATUS"), plugin, &Attachment::default(), &config)?;
        }
        Ok(())
    }

    /// DEL of every kept attachment of the network that is not among these, then GC of every plugin, where the version has it.
    ///
    /// # Errors
    /// A plugin fails.
    pub fn gc(&self, list: &List, valid: &[(String, String)], limit: Duration) -> Result<()> {
        for attachment in self.kept_attachments(&list.name)? {
            if !valid.contains(&(attachment.container_id.clone(), attachment.if_name.clone())) {
                self.del(list, &attachment, limit)?;
            }
        }
        if !list.is_at_least("1.1.0") {
            return Ok(());
        }
        let valid =
            valid.iter().map(|(container, ifname)| json!({"containerID": container, "ifname": ifname}));
        let valid = Value::Array(valid.collect());
        for plugin in &list.plugins {
            let keys = [("cni.dev/valid-attachments", Some(&valid)), ("cni.dev/attachments", Some(&valid))];
            let config = list.config(plugin, &keys);
            self.call(Verb::within("GC", limit), plugin, &Attachment::default(), &config)?;
        }
        Ok(())
    }

    /// VERSION of every plugin: whether each is there and knows the list's version.
    ///
    /// # Errors
    /// One does not.
    pub fn validate(&self, list: &List) -> Result<()> {
        // Old plugins wanted these set.
        let dummy = Attachment { netns: "dummy".into(), if_name: "dummy".into(), ..Attachment::default() };
        let mut refusals = Vec::new();
        for plugin in &list.plugins {
            let config = json!({"cniVersion": CURRENT});
            let supported =
                self.call(Verb::unlimited("VERSION"), plugin, &dummy, &config).and_then(|answer| {
                    let answer: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
                    let versions = answer["supportedVersions"].as_array().context("no supportedVersions")?;
                    ensure!(versions.contains(&json!(list.version)), "it does not know {}", list.version);
                    Ok(())
                });
            refusals.extend(supported.err().map(|error| format!("{error:#}")));
        }
        ensure!(refusals.is_empty(), "{refusals:?}");
        Ok(())
    }

    fn call(&self, verb: Verb, plugin: &Value, attachment: &Attachment, config: &Value) -> Result<String> {
        let kind = plugin["type"].as_str().context("a plugin without a type")?;
        let find = || self.path.iter().map(|dir| dir.join(kind)).find(|program| program.is_file());
        let program = find().with_context(|| format!("failed to find plugin {kind:?} in {:?}", self.path))?;
        let call = Call::run(&program, verb, &self.path, attachment, config, self.host)?;
        let outcome = call.outcome();
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        match outcome {
            Ok(stdout) => Ok(stdout),
            Err(cause) => bail!("plugin type=\"{kind}\" failed ({}): {cause}", verb.name.to_lowercase()),
        }
    }
}

fn with_runtime_config(mut config: Value, attachment: &Attachment) -> Value {
    let wanted = config["capabilities"].as_object().into_iter().flatten();
    let wanted: Vec<String> =
        wanted.filter(|(_, flag)| *flag == &Value::Bool(true)).map(|(name, _)| name.clone()).collect();
    let given = attachment.capability_args.iter().filter(|(name, _)| wanted.contains(name));
    let given: Map<String, Value> = given.map(|(name, value)| (name.clone(), value.clone())).collect();
    if !given.is_empty() {
        config["runtimeConfig"] = Value::Object(given);
    }
    config
}
