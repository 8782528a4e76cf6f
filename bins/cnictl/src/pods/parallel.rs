//! Work on many pods by a few threads: what it takes is waiting for the kernel and for threads that enter namespaces.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::Instant;

/// The most pods that are looked at at once.
const MAX_THREADS: usize = 8;

/// What `work` makes of each, in their order, by a few threads; those that are left when the time is over are not begun.
pub(super) fn in_parallel<I: Iterator<Item: Send> + Send, T: Send>(
    items: I,
    deadline: Option<Instant>,
    work: &(impl Fn(I::Item) -> T + Sync),
) -> Vec<T> {
    let items = Mutex::new(items.enumerate());
    let is_over = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next().filter(|_| !is_over());
    let turn = || {
        let mut done = Vec::new();
        while let Some((at, item)) = next() {
            done.push((at, work(item)));
        }
        done
    };
    let threads = available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let mut done = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(turn)).collect();
        let mut done = turn();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_nothing_is_begun_when_the_time_is_over() {
        let double = |number: i32| 2 * number;
        assert_eq!(in_parallel(0..1000, None, &double), (0..1000).map(double).collect::<Vec<_>>());
        assert_eq!(in_parallel(0..1000, Some(Instant::now()), &double), Vec::<i32>::new());
    }
}
