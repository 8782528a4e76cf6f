//! Cases of one test.

/// Runs all cases at once, for cases that have nothing in common and whose time is mostly waiting.
///
/// # Panics
/// When a case does.
pub fn at_once<C: Send>(cases: impl IntoIterator<Item = C>, run: impl Fn(C) + Sync) {
    std::thread::scope(|scope| {
        let run = &run;
        let running: Vec<_> = cases.into_iter().map(|case| scope.spawn(move || run(case))).collect();
        for case in running {
            if let Err(panic) = case.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}
