mod arbitrary;
mod errors;
mod verbs;

use std::cell::Cell;

use super::*;
use crate::code;

const IDENTITY: Identity<'static> = Identity { name: "istio-cni", version: "1.2.3" };

/// A plugin that counts its calls and answers as it is told.
struct Scripted {
    calls: Vec<&'static str>,
    compared: Cell<usize>,
    netns: Result<NetnsRelation, String>,
    failure: Option<Error>,
    panic: bool,
}

impl Default for Scripted {
    fn default() -> Self {
        let netns = Ok(NetnsRelation::Different);
        Self { calls: Vec::new(), compared: Cell::new(0), netns, failure: None, panic: false }
    }
}

impl Scripted {
    fn called(&mut self, name: &'static str) -> Result<(), Error> {
        self.calls.push(name);
        assert!(!self.panic, "scripted panic in {name}");
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl Plugin for Scripted {
    fn compare_netns(&self, path: &str) -> Result<NetnsRelation, String> {
        assert!(!path.is_empty());
        self.compared.set(self.compared.get() + 1);
        self.netns.clone()
    }

    fn add(&mut self, request: &Request) -> Result<CniResult, Error> {
        request.conf()?;
        request.args()?;
        let result = request.passthrough()?;
        self.called("add")?;
        Ok(result)
    }

    fn del(&mut self, _: &Request) -> Result<(), Error> {
        self.called("del")
    }

    fn check(&mut self, _: &Request) -> Result<(), Error> {
        self.called("check")
    }

    fn status(&mut self, _: &Request) -> Result<(), Error> {
        self.called("status")
    }

    fn gc(&mut self, request: &Request) -> Result<(), Error> {
        request.valid_attachments()?;
        self.called("gc")
    }
}

/// What one run left behind.
#[derive(Debug)]
struct Seen {
    outcome: PluginExit,
    stdout: String,
    stderr: String,
}

type Vars<'a> = &'a [(&'a str, &'a str)];

/// A complete environment for `verb`.
fn env_for(verb: &str) -> Vec<(&str, &str)> {
    vec![
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", "/var/run/netns/pod"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
}

fn run_with(vars: Vars<'_>, stdin: &mut dyn Read, plugin: &mut Scripted) -> Seen {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    // The last of equal names counts, so that a test can append to a complete environment.
    let env =
        |name: &str| vars.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let io = Invocation { identity: IDENTITY, env: &env, stdin, stdout: &mut stdout, stderr: &mut stderr };
    let outcome = dispatch(io, plugin);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Seen { outcome, stdout: text(stdout), stderr: text(stderr) }
}

fn run(vars: Vars<'_>, stdin: &str, plugin: &mut Scripted) -> Seen {
    run_with(vars, &mut stdin.as_bytes(), plugin)
}

fn conf(version: &str) -> String {
    format!(r#"{{"cniVersion":"{version}","name":"net","type":"istio-cni"}}"#)
}

/// A stream that must not be read.
struct Untouchable;

impl Read for Untouchable {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        panic!("stdin was read");
    }
}

/// A stream that fails.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("device gone"))
    }
}

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("device gone"))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
