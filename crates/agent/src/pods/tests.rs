//! The workers, with a mode whose pods fail in each class.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use super::*;

#[derive(Debug, thiserror::Error)]
#[error("{0:?}")]
struct Failure(Retry);

impl Fault for Failure {
    fn retry(&self) -> Retry {
        self.0
    }
}

/// Notes how often each pod was worked on; the pod's name says what comes of it.
#[derive(Default)]
struct Mode {
    queue: Queue<PodRef>,
    tries: Mutex<HashMap<String, u32>>,
    /// Pods on which work goes on.
    running: Mutex<Vec<String>>,
    told: Mutex<Vec<(String, u32)>>,
    panics: Mutex<u32>,
}

impl Mode {
    fn tries(&self, name: &str) -> u32 {
        self.tries.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

impl Reconcile for Mode {
    type Failure = Failure;

    fn queue(&self) -> &Queue<PodRef> {
        &self.queue
    }

    fn places(&self) -> usize {
        2
    }

    fn resized(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    async fn reconcile(&self, pod: &PodRef, attempt: u32) -> Result<(), Failure> {
        let tries = {
            let mut tries = self.tries.lock().unwrap();
            let tries = tries.entry(pod.name.clone()).or_default();
            *tries += 1;
            *tries
        };
        {
            let mut running = self.running.lock().unwrap();
            assert!(!running.contains(&pod.name), "two work on {pod}");
            running.push(pod.name.clone());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.running.lock().unwrap().retain(|name| *name != pod.name);
        match &*pod.name {
            "again" if tries < 3 => {
                assert_eq!(attempt, tries);
                Err(Failure(Retry::Backoff))
            }
            "never" => Err(Failure(Retry::OnChange)),
            "panics" if tries == 1 => panic!("as it is meant to"),
            _ => Ok(()),
        }
    }

    fn succeeded(&self, pod: &PodRef) {
        self.told.lock().unwrap().push((pod.name.clone(), 0));
    }

    async fn failed(&self, pod: &PodRef, _: &Failure, attempt: u32) {
        self.told.lock().unwrap().push((pod.name.clone(), attempt));
    }

    fn panicked(&self, error: JoinError) {
        assert!(error.is_panic());
        *self.panics.lock().unwrap() += 1;
    }
}

#[tokio::test]
async fn each_pod_comes_again_as_its_failure_says_and_a_panic_ends_no_other() {
    let mode = Arc::new(Mode::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(work(mode.clone()));
    for name in ["panics", "again", "never", "works"] {
        mode.queue.push(PodRef::named("shop", name));
        mode.queue.push(PodRef::named("shop", name));
    }
    let done = async {
        while !mode.queue.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), done).await.unwrap();
    let tries = ["panics", "again", "never", "works"].map(|name| mode.tries(name));
    assert_eq!((tries, *mode.panics.lock().unwrap()), ([2, 3, 1, 1], 1));
    let told = mode.told.lock().unwrap().clone();
    let of = |name: &str| told.iter().filter(|(told, _)| told == name).map(|(_, at)| *at).collect::<Vec<_>>();
    assert_eq!((of("again"), of("never"), of("works")), (vec![1, 2, 0], vec![1], vec![0]));
    // What it depends on has changed.
    mode.queue.push(PodRef::named("shop", "never"));
    let again = async {
        while mode.tries("never") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.unwrap();
}
