#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use ::verification::{DataPlaneMode, VerificationState};
use telemetry::Levels;

use super::*;

fn metrics() -> Arc<Metrics> {
    let journal = Journal::new(Levels::default(), false, std::io::sink()).unwrap();
    Arc::new(Metrics::new(true, journal).unwrap())
}

fn lines(metrics: &Metrics) -> Vec<String> {
    String::from_utf8(metrics.read().unwrap()).unwrap().lines().map(str::to_owned).collect()
}

/// The sum of the series whose names begin so.
fn sum(lines: &[String], series: &str) -> u64 {
    let of = lines.iter().filter(|line| line.starts_with(series));
    of.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Two monitoring systems ask at once, and the pods change meanwhile.
#[test]
fn whoever_reads_finds_the_sums_of_one_census() {
    const READERS: usize = 4;
    const READS: usize = 100;
    let (metrics, census) = (metrics(), AtomicUsize::new(0));
    let weak = Arc::downgrade(&metrics);
    metrics.before_reading(move || {
        let number = census.fetch_add(1, Ordering::Relaxed);
        let state = if number % 2 == 0 { VerificationState::Verified } else { VerificationState::Drifted };
        let pods = (0..=number % 7).map(|_| (DataPlaneMode::Ambient, state)).collect();
        weak.upgrade().unwrap().pods_verified(&pods);
    });
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                for _ in 0..READS {
                    let lines = lines(&metrics);
                    let expected = sum(&lines, "istio_cni_pods_expected{");
                    let others = sum(&lines, "istio_cni_pods_unverified{");
                    assert!(expected > 0);
                    assert_eq!(expected, sum(&lines, "istio_cni_pods_verified{") + others);
                }
            });
        }
    });
}

#[test]
fn no_pod_is_the_oldest_where_there_is_none() {
    let metrics = metrics();
    let oldest = || lines(&metrics).into_iter().find(|line| line.contains("scope=\"oldest-pod\""));
    assert_eq!(oldest(), None);
    metrics.oldest_verification(Some(SystemTime::UNIX_EPOCH + Duration::from_secs(7)));
    assert!(oldest().is_some_and(|line| line.ends_with(" 7")));
    metrics.oldest_verification(None);
    assert_eq!(oldest(), None);
}
