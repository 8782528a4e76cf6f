//! Places where a test kills this process, to see what the next one makes of what is left.

use std::time::Duration;

use intent::Act;

/// Ends the process as SIGKILL does after the act that `ISTIO_CNI_FAILPOINT` names. Only programs with debug assertions, as tests run them, look at
/// all; in those that ship this is empty.
pub(super) fn reached(_act: &Act) {
    #[cfg(debug_assertions)]
    if std::env::var_os("ISTIO_CNI_FAILPOINT").is_some_and(|wanted| wanted == _act.name()) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::park();
    }
}

/// A time that no test waits for: as long as `ISTIO_CNI_HOUR_MS` says where that is looked at.
pub(super) fn or_in_tests(time: Duration) -> Duration {
    #[cfg(debug_assertions)]
    if let Ok(Ok(short)) = std::env::var("ISTIO_CNI_HOUR_MS").map(|text| text.parse()) {
        return Duration::from_millis(short);
    }
    time
}
