//! What this process has of the system: its log, standard error, descriptors. None of them may stop it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use telemetry::{Journal, Scope};

use super::Error;
use crate::config;
use options::agent::{Options, Setting};

/// How long the end waits for the last lines of the log, and for what is said where there is no log.
pub(super) const LAST_LINES: Duration = Duration::from_secs(1);

/// The log's file, pipe or terminal itself: standard output's own buffer would keep what could not be written.
pub(super) fn journal(options: &Options) -> Result<Journal, Error> {
    let target = options.text(Setting::LogTarget);
    let out = match target {
        "stdout" | "" => std::io::stdout().as_fd().try_clone_to_owned().map(File::from),
        "stderr" => std::io::stderr().as_fd().try_clone_to_owned().map(File::from),
        path => File::options().append(true).create(true).open(path),
    };
    let out = out.map_err(|cause| Error::Log { path: target.to_owned(), cause })?;
    Journal::new(config::levels(options)?, options.on(Setting::LogAsJson), out).map_err(Error::Runtime)
}

/// A panic is told in the log, where nothing waits for its reader; the usual way waits for that of standard error.
pub(super) fn log_panics(log: &Scope) {
    let log = log.clone();
    std::panic::set_hook(Box::new(move |info| {
        let trace = std::backtrace::Backtrace::capture();
        let text = info.to_string().replace('\n', ": ");
        log.error(
            format!("install-cni panicked: {text}; this is a defect, please report it"),
            &[("stack", &trace)],
        );
    }));
}

/// Says something on standard error, and does not wait for a reader that stands still.
pub(super) fn last_words(text: String) {
    let (sender, said) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("last words".into()).spawn(move || {
        eprintln!("{text}");
        let _ = sender.send(());
    });
    if thread.is_ok() {
        let _ = said.recv_timeout(LAST_LINES);
    }
}

/// Connections are held open, in ambient mode a namespace of each pod too, and a container begins with 1024 descriptors.
pub(super) fn raise_open_files(log: &Scope) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log.warn("the number of open files cannot be raised to its limit", &[("error", &error)]);
    }
}
