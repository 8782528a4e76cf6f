//! Cases of one test.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

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

/// The same, not more than so many at a time, for cases that want the processor too.
///
/// # Panics
/// When a case does.
pub fn at_most<C: Send>(most: usize, cases: impl IntoIterator<Item = C>, run: impl Fn(C) + Sync) {
    let waiting: Mutex<VecDeque<C>> = Mutex::new(cases.into_iter().collect());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    at_once(0..most, |_| {
        while let Some(case) = next() {
            run(case);
        }
    });
}
