//! A kernel that lacks something, for tests of whole programs.

/// Whether this kernel is taken for one without this: `ISTIO_CNI_KERNEL_LACKS` names it, among others, separated by commas. Only programs with debug
/// assertions, as tests run them, look at all; in those that ship nothing is lacking.
pub(super) fn lacks(_what: &str) -> bool {
    #[cfg(debug_assertions)]
    if let Ok(lacks) = std::env::var("ISTIO_CNI_KERNEL_LACKS") {
        return lacks.split(',').any(|one| one == _what);
    }
    false
}
