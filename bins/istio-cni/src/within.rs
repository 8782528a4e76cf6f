//! Work that is left behind when it takes too long.

use std::sync::mpsc;
use std::time::Duration;

/// Why there is no result.
#[derive(Debug)]
pub(crate) enum Unfinished {
    /// The system gave no thread.
    Thread(std::io::Error),
    /// It was not done in time.
    Late,
}

/// Works on a thread of its own, called `name`, and waits for it no longer than `limit`. A thread that is late ends with the process, so what it
/// does has to be whole at any point.
///
/// # Panics
/// The work does.
pub(crate) fn within<T: Send + 'static>(
    name: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Nobody listens any more when it is late.
            let _ = sender.send(work());
        })
        .map_err(Unfinished::Thread)?;
    match receiver.recv_timeout(limit) {
        Ok(done) => Ok(done),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Unfinished::Late),
        // It ended without an answer, so it panicked; here that becomes an error for the runtime.
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => Err(Unfinished::Late),
        },
    }
}
