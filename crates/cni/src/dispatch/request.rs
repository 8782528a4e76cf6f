//! A valid call, ready for the plugin.

use crate::args::Args;
use crate::config::{Attachment, PluginConf};
use crate::env::{Variables, Verb};
use crate::error::Error;
use crate::json::{DecodeError, Value};
use crate::result::CniResult;
use crate::version::SpecVersion;

/// A call whose environment, network name and version are valid.
///
/// The rest of the configuration is decoded only when asked for: a DEL has to succeed even where the ADD failed because
/// of a broken key.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// The configuration's version, one of [`SpecVersion::SUPPORTED`]; answers are printed in it.
    pub version: SpecVersion,
    /// The network's name.
    pub network: String,
    /// `CNI_CONTAINERID`; empty for STATUS and GC.
    pub container_id: String,
    /// `CNI_NETNS`; `None` when it is empty, which only DEL, STATUS and GC allow.
    pub netns: Option<String>,
    /// `CNI_IFNAME`; empty for STATUS and GC.
    pub ifname: String,
    /// `CNI_ARGS` as given.
    pub args_text: String,
    /// `CNI_PATH`
    pub path: String,
    /// The whole configuration, for keys that [`PluginConf`] does not have.
    pub config: Value,
    /// stdin as given, for the log.
    pub stdin: Vec<u8>,
}

impl Request {
    pub(super) fn new(
        verb: Verb,
        version: SpecVersion,
        network: String,
        vars: Variables,
        config: Value,
        stdin: Vec<u8>,
    ) -> Self {
        Self {
            verb,
            version,
            network,
            container_id: vars.container_id,
            netns: Some(vars.netns).filter(|netns| !netns.is_empty()),
            ifname: vars.ifname,
            args_text: vars.args,
            path: vars.path,
            config,
            stdin,
        }
    }

    /// The typed configuration; the error is ready for the runtime.
    pub fn conf(&self) -> Result<PluginConf, Error> {
        PluginConf::decode(&self.config).map_err(|error| config_error(&error))
    }

    /// `CNI_ARGS`; the error is ready for the runtime.
    pub fn args(&self) -> Result<Args, Error> {
        Args::parse(&self.args_text).map_err(|error| Error::internal(format!("failed to load args: {error}")))
    }

    /// `prevResult`, `None` when there is none; the error is ready for the runtime.
    pub fn prev_result(&self) -> Result<Option<CniResult>, Error> {
        let Some(value) = self.config.get("prevResult") else { return Ok(None) };
        let result = CniResult::decode(value, self.version);
        result.map(Some).map_err(|error| Error::internal(error.to_string()))
    }

    /// What an ADD that changes nothing in the result returns: `prevResult`, or an empty result.
    ///
    /// It also makes sure that this can be printed in the configuration's version, so that calling it first means that
    /// nothing fails after the work is done.
    pub fn passthrough(&self) -> Result<CniResult, Error> {
        let result = self.prev_result()?.unwrap_or_default();
        result.render(self.version).map_err(|error| Error::internal(error.to_string()))?;
        Ok(result)
    }

    /// GC: the attachments that still exist. `None` when the runtime sent no list (or `null`), which is not the same as
    /// an empty one: it says nothing about what is stale.
    pub fn valid_attachments(&self) -> Result<Option<Vec<Attachment>>, Error> {
        Attachment::decode_valid(&self.config).map_err(|error| config_error(&error))
    }
}

fn config_error(error: &DecodeError) -> Error {
    Error::internal(format!("failed to parse network configuration: {error}"))
}
