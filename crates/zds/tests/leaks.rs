//! What is left open. One test after the other, in a process of their own: descriptors are counted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use support::{PATIENCE, Server, open_files};
use testkit::TestNetns;
use testkit::ztunnel::Script;
use zds::AddError;

/// One counts at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test while no other does, its runtime included, which has descriptors of its own.
fn alone(test: impl Future<Output = ()>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn the_end_of_the_agent_closes_everything() {
    alone(everything_is_closed());
}

#[test]
fn a_thousand_pods_leave_no_descriptor() {
    alone(a_thousand_are_told());
}

async fn everything_is_closed() {
    let before = open_files();
    let server = Server::new();
    let (first, second) = (server.ztunnel(Script::default()), server.ztunnel(Script::default()));
    second.wait_snapshot(PATIENCE).unwrap();
    server.stop().await;
    first.wait_end(PATIENCE).unwrap();
    second.wait_end(PATIENCE).unwrap();
    drop((first, second));
    assert!(open_files() <= before, "{} and {before}", open_files());
}

async fn a_thousand_are_told() {
    let server = Server::new();
    let netns = TestNetns::new().unwrap();
    for number in 0..1000 {
        server.enrol(&format!("{number}-{}", "x".repeat(240)), Some(&netns));
    }
    let before = open_files();
    let start = Instant::now();
    let ztunnel = server.ztunnel(Script::default());
    ztunnel.wait_snapshot(Duration::from_secs(30)).unwrap();
    println!("1000 pods in the snapshot: {:?}", start.elapsed());
    assert_eq!(ztunnel.workloads().len(), 1000);
    assert_eq!(ztunnel.violations(), Vec::<String>::new(), "a packet that is too long is one");
    ztunnel.close();
    server.wait_connected(0);
    assert!(open_files() <= before, "{} and {before}", open_files());
    // Names that no API server has: refused by us, and the connection stands.
    let ztunnel = server.ztunnel(Script::default());
    ztunnel.wait_snapshot(Duration::from_secs(30)).unwrap();
    let error = server.add(&"y".repeat(2000), &netns).await.unwrap_err();
    assert!(matches!(&error, AddError::Refused(text) if text.contains("1024")), "{error}");
    assert!(ztunnel.is_connected());
    server.stop().await;
}
