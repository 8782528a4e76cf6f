//! The process that waits for the end of a DEL.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::mark::{Mark, remove_if_unneeded};
use crate::results;

/// The first argument that turns the program into a watcher. No argument that a user would give.
const MODE: &str = "--remove-left-over-program";
/// How long the rest of a DEL may take. After it the program stays: the runtime tries again, and that DEL has a watcher of its own.
const LONGEST: Duration = Duration::from_secs(300);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Proof that `main` of this program begins with [`watch_if_asked`], so that it can be started again as a watcher.
#[derive(Debug, Clone, Copy)]
pub struct Watcher(());

/// Must be among the first things that `main` does. In the hidden mode it waits until the result is forgotten, removes the program if no
/// other result names it, and ends the process; otherwise it returns at once.
#[must_use]
pub fn watch_if_asked() -> Watcher {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == MODE) {
        if let (Some(mark), Some(cache), Some(result)) =
            (Mark::of_this_program(), arguments.next(), arguments.next())
        {
            // Not with the runtime's group or session. It fails only for the leader of a group, which is out of reach already.
            let _ = rustix::process::setsid();
            // With nobody to tell; a program that stays costs some megabytes.
            let _ = watch(&mark, &PathBuf::from(cache), &result.to_string_lossy(), LONGEST);
        }
        std::process::exit(0);
    }
    Watcher(())
}

impl Watcher {
    /// Starts a watcher for the DEL of an attachment, if its result is kept: a runtime that keeps it elsewhere keeps others there too, and
    /// nothing can be told from what is here. `result` is `<network>-<container>-<interface>`. Whether it was started.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(self, cache: &Path, result: &str) -> io::Result<bool> {
        if result.contains('/') || !results::is_kept(cache, result) {
            return Ok(false);
        }
        let arguments: [OsString; 3] = [MODE.into(), cache.into(), result.into()];
        // The runtime waits for whoever holds the plugin's pipes.
        Command::new("/proc/self/exe")
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(|_| true)
    }
}

pub(crate) fn watch(mark: &Mark, cache: &Path, result: &str, limit: Duration) -> io::Result<()> {
    let began = Instant::now();
    while results::is_kept(cache, result) {
        if began.elapsed() > limit || !mark.is_set() {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    remove_if_unneeded(mark, cache).map(drop)
}
