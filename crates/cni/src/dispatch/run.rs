//! The stages between environment and answer.

use std::any::Any;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Answer, Identity, MAX_STDIN, NetnsRelation, Plugin, Request};
use crate::env::{self, Command, EnvError, Lookup, Verb};
use crate::error::{Error, code, shorten};
use crate::json::{JsonNode, Value};
use crate::version::SpecVersion;

/// State of one run.
pub(super) struct Run<'a> {
    pub(super) identity: Identity<'a>,
    /// What an error is labelled with: the configuration's version as soon as it is known and supported.
    pub(super) version: SpecVersion,
}

impl Run<'_> {
    pub(super) fn answer(
        &mut self,
        env: Lookup<'_>,
        stdin: &mut dyn Read,
        plugin: &mut dyn Plugin,
    ) -> Result<Answer, Error> {
        let vars = match env::read(env) {
            Ok(vars) => vars,
            Err(EnvError::NoCommand) => return Ok(Answer::About),
            Err(EnvError::Invalid(error)) => return Err(error),
        };
        if vars.command == Command::Known(Verb::Version) {
            return Ok(Answer::Stdout(supported_versions().into_bytes()));
        }
        let text = read_stdin(stdin)?;
        let config = Value::parse(&text).map_err(unreadable)?;
        let network = network_name(&config)?;
        let verb = match vars.command {
            Command::Known(verb) => verb,
            Command::Unknown(ref word) => {
                let msg = format!("unknown CNI_COMMAND: {}", shorten(word));
                return Err(Error::new(code::INVALID_ENVIRONMENT, msg));
            }
        };
        // An error of the gates is labelled with the configuration's version, too, where that one is supported.
        let asked = config_version(&config)?;
        if let Some(version) = SpecVersion::supported(&asked) {
            self.version = version;
        }
        let version = gate(verb, &asked)?;
        let compare = !vars.netns_override && matches!(verb, Verb::Add | Verb::Check | Verb::Del);
        let request = Request::new(verb, version, network, vars, config, text);
        self.guarded(verb, || {
            if compare {
                refuse_own_netns(&request, plugin)?;
            }
            perform(&request, plugin)
        })
    }

    /// Runs the plugin's code; a panic becomes an error.
    fn guarded(&self, verb: Verb, work: impl FnOnce() -> Result<Answer, Error>) -> Result<Answer, Error> {
        // The plugin is not used again after a panic, so its half-done state is not seen.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
            let (name, handler) = (self.identity.name, verb.handler_name());
            let cause = panic_text(payload.as_ref());
            Err(Error::internal(format!("{name} panicked during {handler}: {cause}")))
        })
    }
}

/// What is said on stderr to somebody who starts the plugin by hand.
pub(super) fn about(identity: Identity<'_>) -> String {
    let versions = SpecVersion::SUPPORTED.map(|version| version.to_string()).join(", ");
    format!(
        "CNI plugin {} {}\nCNI protocol versions supported: {versions}\n",
        identity.name, identity.version
    )
}

fn supported_versions() -> String {
    let versions = SpecVersion::SUPPORTED.map(|version| format!("\"{version}\"")).join(",");
    format!("{{\"cniVersion\":\"{}\",\"supportedVersions\":[{versions}]}}\n", SpecVersion::LATEST)
}

fn read_stdin(stdin: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let error = |cause: String| Error::new(code::IO_FAILURE, format!("error reading from stdin: {cause}"));
    let mut text = Vec::new();
    let limit = MAX_STDIN as u64 + 1;
    stdin.take(limit).read_to_end(&mut text).map_err(|cause| error(cause.to_string()))?;
    if text.len() > MAX_STDIN {
        let cause = format!("network configuration is larger than {MAX_STDIN} bytes; make it smaller");
        return Err(error(cause));
    }
    Ok(text)
}

fn unreadable(cause: impl std::fmt::Display) -> Error {
    Error::new(code::DECODING_FAILURE, format!("error unmarshall network config: {cause}"))
}

fn network_name(config: &Value) -> Result<String, Error> {
    let name = match config {
        Value::Null => String::new(),
        other => JsonNode::root(other, "network configuration").text_or_empty("name").map_err(unreadable)?,
    };
    if name.is_empty() {
        return Err(Error::new(code::INVALID_NETWORK_CONFIG, "missing network name"));
    }
    if !env::is_identifier(&name) {
        let error = Error::new(code::INVALID_NETWORK_CONFIG, "invalid characters found in network name");
        return Err(error.with_details(shorten(&name)));
    }
    Ok(name)
}

fn config_version(config: &Value) -> Result<String, Error> {
    let text = JsonNode::root(config, "").text_or_empty("cniVersion").map_err(|cause| {
        Error::new(code::DECODING_FAILURE, format!("decoding version from network config: {cause}"))
    })?;
    Ok(if text.is_empty() { SpecVersion::DEFAULT.to_string() } else { text })
}

/// The version to work with, if the verb exists in it.
fn gate(verb: Verb, asked: &str) -> Result<SpecVersion, Error> {
    let incompatible = |msg: String| Error::new(code::INCOMPATIBLE_VERSION, msg);
    let since = match verb {
        Verb::Check => Some(SpecVersion::V0_4_0),
        Verb::Gc | Verb::Status => Some(SpecVersion::V1_1_0),
        Verb::Add | Verb::Del | Verb::Version => None,
    };
    if let Some(since) = since {
        let asked = SpecVersion::parse(asked)
            .map_err(|cause| Error::new(code::DECODING_FAILURE, cause.to_string()))?;
        if asked < since {
            return Err(incompatible(format!("config version does not allow {verb}")));
        }
        if asked > SpecVersion::LATEST {
            return Err(incompatible(format!("plugin version does not allow {verb}")));
        }
    }
    SpecVersion::supported(asked).ok_or_else(|| {
        let supported = SpecVersion::SUPPORTED.map(|version| format!("\"{version}\"")).join(" ");
        let details = format!("config is {:?}, plugin supports [{supported}]", shorten(asked));
        incompatible("incompatible CNI versions".to_owned()).with_details(details)
    })
}

/// The comparison comes before the work: the reference library makes it afterwards, when the harm is done and a result
/// is printed already.
fn refuse_own_netns(request: &Request, plugin: &dyn Plugin) -> Result<(), Error> {
    let Some(path) = &request.netns else { return Ok(()) };
    match plugin.compare_netns(path) {
        Ok(NetnsRelation::Different | NetnsRelation::Unknown) => Ok(()),
        Ok(NetnsRelation::Same) => Err(Error::new(
            code::INVALID_NETNS,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        )),
        Err(cause) => Err(Error::new(code::INVALID_NETNS, "get plugin's netns failed").with_details(cause)),
    }
}

fn perform(request: &Request, plugin: &mut dyn Plugin) -> Result<Answer, Error> {
    match request.verb {
        Verb::Add => {
            let result = plugin.add(request)?;
            let text = result.render(request.version).map_err(|error| Error::internal(error.to_string()))?;
            return Ok(Answer::Stdout(text));
        }
        Verb::Del => plugin.del(request)?,
        Verb::Check => plugin.check(request)?,
        Verb::Status => plugin.status(request)?,
        Verb::Gc => plugin.gc(request)?,
        // Answered before stdin is read.
        Verb::Version => {}
    }
    Ok(Answer::Nothing)
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        shorten(text)
    } else if let Some(text) = payload.downcast_ref::<String>() {
        shorten(text)
    } else {
        "no message".to_owned()
    }
}
