//! Places where a test kills this process, to see what the next one makes of what is left.

/// Ends the process as SIGKILL does if `ISTIO_CNI_FAILPOINT` names this place. Only programs with debug assertions, as tests run them,
/// look at all; in those that ship this is empty.
pub(crate) fn reached(_place: &'static str) {
    #[cfg(debug_assertions)]
    if std::env::var_os("ISTIO_CNI_FAILPOINT").is_some_and(|wanted| wanted == _place) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::park();
    }
}
