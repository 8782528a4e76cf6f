//! One run of the plugin, from the environment to the exit code.

mod request;
mod run;

use std::io::{Read, Write};

pub use request::Request;

use crate::env::Lookup;
use crate::error::Error;
use crate::result::CniResult;
use crate::version::SpecVersion;

/// Most bytes of stdin that are read. Far above any real configuration: Kubernetes limits all annotations of a pod to
/// 256 KiB together.
pub const MAX_STDIN: usize = 16 << 20;

/// Who is running, for messages.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The plugin's name, e.g. `istio-cni`.
    pub name: &'a str,
    /// The plugin's own version.
    pub version: &'a str,
}

/// Everything that a run gets from outside.
pub struct Invocation<'a> {
    /// Name and version for messages.
    pub identity: Identity<'a>,
    /// The environment.
    pub env: Lookup<'a>,
    /// The network configuration; not read for VERSION.
    pub stdin: &'a mut dyn Read,
    /// Gets one JSON object or nothing.
    pub stdout: &'a mut dyn Write,
    /// Gets the plugin's name and versions when there is no `CNI_COMMAND`, and a line when stdout cannot be written.
    pub stderr: &'a mut dyn Write,
}

/// How `CNI_NETNS` relates to the network namespace that the plugin itself runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetnsRelation {
    /// Both are the same namespace (device and inode are equal).
    Same,
    /// They differ.
    Different,
    /// There is nothing to compare: the path cannot be opened. Not an error here, an ADD finds out by itself.
    Unknown,
}

/// The work behind the protocol. [`dispatch`] calls one of the verbs at most, and only with a valid [`Request`].
pub trait Plugin {
    /// Compares the namespace at `path` (never empty) with the plugin's own.
    ///
    /// # Errors
    ///
    /// The cause, when the plugin's own namespace cannot be opened.
    fn compare_netns(&self, path: &str) -> Result<NetnsRelation, String>;

    /// ADD. Returns what is to be printed, see [`Request::passthrough`].
    fn add(&mut self, request: &Request) -> Result<CniResult, Error>;

    /// DEL. Succeeds when there is nothing left to do.
    fn del(&mut self, request: &Request) -> Result<(), Error>;

    /// CHECK.
    fn check(&mut self, request: &Request) -> Result<(), Error>;

    /// STATUS. Fails with [`crate::code::NOT_AVAILABLE`] when ADDs cannot be served. No pod of the pod network starts on the node then, so it
    /// must not wait for what only a pod can bring.
    fn status(&mut self, request: &Request) -> Result<(), Error>;

    /// GC, see [`Request::valid_attachments`].
    fn gc(&mut self, request: &Request) -> Result<(), Error>;
}

/// How a run ended. Everything is printed already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginExit {
    /// For the process: 0 for success, 1 for any error.
    pub exit: u8,
    /// The error that went to stdout, for the log.
    pub error: Option<Error>,
}

/// What a successful run prints.
enum Answer {
    Nothing,
    Stdout(Vec<u8>),
    About,
}

/// Runs the operation that the environment asks for and prints its answer.
///
/// The order is: environment, stdin, network name, verb, version, namespace comparison, then the plugin. So a plugin
/// that is called inside its own namespace, or with a version that it does not speak, does nothing at all. A panic of
/// the plugin becomes an error with code 999.
pub fn dispatch(io: Invocation<'_>, plugin: &mut dyn Plugin) -> PluginExit {
    let Invocation { identity, env, stdin, stdout, stderr } = io;
    let mut run = run::Run { identity, version: SpecVersion::LATEST };
    let answer = run.answer(env, stdin, plugin);
    let (text, error) = match answer {
        Ok(Answer::Nothing) => (None, None),
        Ok(Answer::Stdout(text)) => (Some(text), None),
        Ok(Answer::About) => {
            // Nobody reads an exit code here, and stderr is all there is.
            let _ = write!(stderr, "{}", run::about(identity));
            (None, None)
        }
        Err(error) => (Some(error.render(run.version)), Some(error)),
    };
    let exit = u8::from(error.is_some());
    let Some(text) = text else { return PluginExit { exit, error } };
    match stdout.write_all(&text).and_then(|()| stdout.flush()) {
        Ok(()) => PluginExit { exit, error },
        Err(cause) => {
            // Part of the text may be out already: a second object would make both unreadable.
            let failure =
                Error::new(crate::code::IO_FAILURE, format!("cannot write the answer to stdout: {cause}"));
            let _ = writeln!(stderr, "{}: {failure}", identity.name);
            PluginExit { exit: 1, error: Some(error.unwrap_or(failure)) }
        }
    }
}

#[cfg(test)]
mod tests;
