//! Calls of the plugin as a runtime makes them from what the agent wrote.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Node;
use crate::plugin::{Answer, Call};

/// A call for one pod of namespace `default`.
pub struct PodCall {
    /// The plugin's network configuration; change it as a test needs.
    pub conf: Value,
    /// `K8S_POD_UID`; empty leaves it out.
    pub uid: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    name: String,
    netns: PathBuf,
    program: PathBuf,
}

impl PodCall {
    /// With the configuration that is installed on the node now, and the program that is.
    ///
    /// # Errors
    /// Our entry is not in the configuration.
    pub fn new(node: &Node, name: &str, uid: &str, netns: &Path) -> Result<Self> {
        Ok(Self { program: node.plugin(), ..Self::with(node.entry()?, name, uid, netns) })
    }

    /// With this entry of a list, and the program under test itself.
    pub fn with(mut entry: Value, name: &str, uid: &str, netns: &Path) -> Self {
        // As libcni does: the list's name and version, and what the plugins before had for a result.
        entry["cniVersion"] = json!("1.0.0");
        entry["name"] = json!("k8s-pod-network");
        entry["prevResult"] = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": netns}],
            "ips": [{"address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 0}],
        });
        Self {
            conf: entry,
            uid: uid.to_owned(),
            container: format!("c0ffee-{name}"),
            name: name.to_owned(),
            netns: netns.to_owned(),
            program: crate::programs().join("istio-cni"),
        }
    }

    /// The plugins before have given the pod this address.
    #[must_use]
    pub fn at(mut self, address: IpAddr) -> Self {
        let length = if address.is_ipv4() { 32 } else { 128 };
        self.conf["prevResult"]["ips"][0]["address"] = json!(format!("{address}/{length}"));
        self
    }

    /// Runs a verb.
    ///
    /// # Errors
    /// The plugin cannot be started.
    pub fn run(&self, verb: &str) -> Result<Answer> {
        self.run_behind(&[], verb)
    }

    /// The same behind a wrapper such as `strace -f`.
    ///
    /// # Errors
    /// As of [`Self::run`].
    pub fn run_behind(&self, wrapper: &[&str], verb: &str) -> Result<Answer> {
        let call = self.call(verb);
        call.run_as(call.command_of(&self.program, wrapper))
    }

    /// The program with its environment, and its standard input.
    pub fn command(&self, verb: &str) -> (Command, Vec<u8>) {
        let call = self.call(verb);
        let usual = call.command();
        let mut command = Command::new(&self.program);
        command.env_clear().envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
        (command, call.stdin)
    }

    fn call(&self, verb: &str) -> Call {
        let uid = if self.uid.is_empty() { String::new() } else { format!(";K8S_POD_UID={}", self.uid) };
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}{uid}", self.name);
        let netns = self.netns.to_string_lossy();
        let env = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &self.container),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", &args),
        ];
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())));
        Call { env: env.collect(), stdin: self.conf.to_string().into_bytes() }
    }

    /// Runs ADD, which has to succeed; gives what it logged.
    ///
    /// # Errors
    /// It fails; the text has what the plugin printed.
    pub fn add(&self) -> Result<Answer> {
        let answer = self.run("ADD")?;
        ensure!(answer.exit == Some(0), "ADD failed: {answer:#?}");
        Ok(answer)
    }

    /// Runs ADD, which has to fail; gives the error's text.
    ///
    /// # Errors
    /// It succeeds.
    pub fn refused(&self) -> Result<String> {
        let answer = self.run("ADD")?;
        Ok(answer.error().with_context(|| format!("{answer:#?}"))?.1)
    }
}
