use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// The next key, or nothing if there is none for as long as the clock, which stands still, can tell.
async fn next<'a>(queue: &'a Queue<&'static str>, within: Duration) -> Option<Running<'a, &'static str>> {
    tokio::time::timeout(within, queue.pop()).await.ok()
}

const SOON: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_key_waits_once_and_runs_again_when_pushed_while_it_runs() {
    let queue = Queue::new();
    for key in ["a", "b", "a", "a"] {
        queue.push(key);
    }
    assert_eq!(queue.len(), 2);
    let a = next(&queue, SOON).await.unwrap();
    assert_eq!((*a.key(), a.attempt()), ("a", 1));
    queue.push("a");
    queue.push("a");
    let b = next(&queue, SOON).await.unwrap();
    assert_eq!(*b.key(), "b");
    assert!(next(&queue, SOON).await.is_none(), "a runs and must not run a second time beside");
    a.done();
    b.done();
    let again = next(&queue, SOON).await.unwrap();
    assert_eq!((*again.key(), again.attempt()), ("a", 1));
    again.done();
    assert!(queue.is_empty());
}

#[tokio::test(start_paused = true)]
async fn failures_come_again_after_growing_pauses_and_a_push_ends_the_pause() {
    let queue = Queue::new();
    queue.push("a");
    let mut pauses = Vec::new();
    for attempt in 1..=15 {
        let start = Instant::now();
        let running = next(&queue, Duration::from_secs(6)).await.unwrap();
        pauses.push(start.elapsed());
        assert_eq!(running.attempt(), attempt);
        running.retry();
    }
    // timers are precise to a millisecond
    for (n, pause) in pauses.iter().enumerate().skip(1) {
        let about = Duration::from_millis(5 << (n - 1)).min(Duration::from_secs(5));
        let low = about.mul_f64(0.79);
        assert!(*pause >= low && *pause <= about.mul_f64(1.21) + SOON * 2, "{n}: {pause:?}, about {about:?}");
    }
    assert!(next(&queue, SOON * 100).await.is_none());
    queue.push("a");
    let running = next(&queue, SOON).await.unwrap();
    assert_eq!(running.attempt(), 16);
    running.done();
    queue.push("a");
    assert_eq!(next(&queue, SOON).await.unwrap().attempt(), 1, "success ends the count");
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_unfinished_comes_again() {
    let queue = Arc::new(Queue::new());
    queue.push("a");
    let worker = tokio::spawn({
        let queue = queue.clone();
        async move {
            let _running = queue.pop().await;
            panic!("the worker breaks");
        }
    });
    assert!(worker.await.unwrap_err().is_panic());
    assert_eq!(next(&queue, Duration::from_secs(1)).await.unwrap().attempt(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_thousand_pushes_lose_nothing_and_run_no_key_twice_at_once() {
    const KEYS: usize = 500;
    const PUSHES: usize = 100_000;
    let queue = Arc::new(Queue::new());
    let pushed: Arc<Vec<AtomicUsize>> = Arc::new((0..KEYS).map(|_| AtomicUsize::new(0)).collect());
    let running: Arc<Vec<AtomicUsize>> = Arc::new((0..KEYS).map(|_| AtomicUsize::new(0)).collect());
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (queue, pushed, running, seen) =
                (queue.clone(), pushed.clone(), running.clone(), seen.clone());
            tokio::spawn(async move {
                loop {
                    let work = queue.pop().await;
                    let key: usize = *work.key();
                    assert_eq!(running[key].fetch_add(1, Ordering::SeqCst), 0, "{key} runs twice");
                    let newest = pushed[key].load(Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    seen.lock().unwrap().insert(key, newest);
                    running[key].fetch_sub(1, Ordering::SeqCst);
                    if newest % 97 == 0 { work.retry() } else { work.done() }
                }
            })
        })
        .collect();
    for push in 0..PUSHES {
        let key = (push * 7919) % KEYS;
        pushed[key].fetch_add(1, Ordering::SeqCst);
        queue.push(key);
        assert!(queue.len() <= KEYS);
        if push % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let settled = async {
        // keys whose last count divides by 97 are retried for ever, so each key gets a last push that ends that
        for key in 0..KEYS {
            while pushed[key].load(Ordering::SeqCst).is_multiple_of(97) {
                pushed[key].fetch_add(1, Ordering::SeqCst);
            }
            queue.push(key);
        }
        while !queue.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.expect("the queue drains");
    workers.iter().for_each(tokio::task::JoinHandle::abort);
    let seen = seen.lock().unwrap();
    for (key, pushed) in pushed.iter().enumerate() {
        assert_eq!(seen.get(&key), Some(&pushed.load(Ordering::SeqCst)), "key {key}");
    }
}
