//! Other writers of the same file.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cni::conflist::Document;

use crate::support::{CALICO, Node, entry};

const NAME: &str = "05-cilium.conflist";

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX constants
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn network(version: u64) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"cilium","plugins":[{{"type":"cilium-cni","version":{version}}},{{"type":"x{version}"}}]}}"#
    )
}

/// Whether the plugin is in the network of this version, and nothing else has changed.
fn is_healed(node: &Node, version: u64) -> bool {
    let Ok(text) = fs::read(node.net(NAME)) else { return false };
    let foreign = Document::parse(network(version).as_bytes()).unwrap();
    Document::parse(&text)
        .is_ok_and(|document| document.holds(&entry()) && document.is_same_network(&foreign))
}

#[test]
fn overwritten_100_times_at_random_and_healed_each_time() {
    let node = Node::new();
    node.replace(NAME, &network(0));
    let running = node.start();
    running.until_ready();
    let (mut random, mut version) = (Random(7), 0);
    for burst in 0..4 {
        for _ in 0..24 {
            version += 1;
            disturb(&node, random.below(6), version);
            std::thread::sleep(Duration::from_millis(random.below(30)));
        }
        version += 1;
        let kind = [0, 2, 3, 4][burst];
        if kind == 2 || kind == 3 {
            // what is broken comes back as the installer has seen it last
            node.replace(NAME, &network(version));
            running.until("seen", || is_healed(&node, version));
        }
        disturb(&node, kind, version);
        running.until("healed", || is_healed(&node, version) && running.told.is_ready());
    }
    assert!(running.told.has("OVERWRITTEN by cilium"));
    assert!(!running.told.has("FAILED"), "{:?}", running.told.all());
    let left = node.names();
    assert_eq!(left, [NAME.to_owned(), format!("{NAME}.istio-cni-original")]);
    assert!(running.stop().cleanup(&[]).errors.is_empty());
    let restored = Document::parse(node.read(NAME).as_bytes()).unwrap();
    assert!(restored.entries().is_empty());
    assert!(restored.is_same_network(&Document::parse(network(version).as_bytes()).unwrap()));
    assert_eq!(node.names(), [NAME]);
}

/// What other writers do, good and bad.
fn disturb(node: &Node, kind: u64, version: u64) {
    let text = network(version);
    match kind {
        // renamed into place
        0 => node.replace(NAME, &text),
        // written in place
        1 | 5 => fs::write(node.net(NAME), &text).unwrap(),
        // emptied by a crash
        2 => fs::write(node.net(NAME), "").unwrap(),
        // half written by a crash
        3 => fs::write(node.net(NAME), &text[..text.len() / 2]).unwrap(),
        // removed and written anew, slowly
        _ => {
            let _ = fs::remove_file(node.net(NAME));
            let mut file = fs::File::create(node.net(NAME)).unwrap();
            for part in text.as_bytes().chunks(40) {
                std::io::Write::write_all(&mut file, part).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// The cycle of the start has taken its turn already.
#[test]
fn the_first_overwriting_is_healed_at_once() {
    let node = Node::new();
    node.replace(NAME, CALICO);
    let running = node.start();
    running.until_ready();
    node.replace(NAME, CALICO);
    let start = Instant::now();
    running.until("healed", || node.has_entry(NAME));
    assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
}

#[test]
fn a_fight_is_braked_and_told_with_what_helps() {
    let node = Node::new();
    node.replace(NAME, CALICO);
    let running = node.start();
    running.until_ready();
    let start = Instant::now();
    let mut reverts = 0;
    while start.elapsed() < Duration::from_millis(7500) {
        if node.has_entry(NAME) {
            node.replace(NAME, CALICO);
            reverts += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!((6..=9).contains(&reverts), "{reverts} rewrites in 7.5 s");
    running.until_told("another component keeps reverting");
    running.until_told("set cni.exclusive=false");
}

/// Whoever replaces the file in the very moment in which the installer does is not lost.
#[test]
fn no_foreign_version_is_lost_in_a_race() {
    let node = Node::new();
    node.replace(NAME, &network(0));
    let is_over = AtomicBool::new(false);
    let holds = |version: u64| {
        let document: serde_json::Value = serde_json::from_str(&node.read(NAME)).unwrap();
        document["plugins"][0]["version"] == version
    };
    let version = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut version = 0;
            while !is_over.load(Ordering::Relaxed) {
                version += 1;
                node.replace(NAME, &network(version));
                // every now and then a rewrite gets through
                std::thread::sleep(Duration::from_micros(if version.is_multiple_of(20) {
                    10_000
                } else {
                    version * 7 % 300
                }));
                // for an instant an older one may be seen, until the installer has put back what it displaced
                let is_kept = (0..200).any(|_| {
                    holds(version) || {
                        std::thread::sleep(Duration::from_millis(1));
                        false
                    }
                });
                assert!(is_kept, "version {version} is lost: {}", node.read(NAME));
            }
            version
        });
        // installers that begin anew all the time are not throttled
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(2500) && !writer.is_finished() {
            let running = node.start();
            std::thread::sleep(Duration::from_millis(10));
            running.stop();
        }
        is_over.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    assert!(version > 100, "only {version} versions: too few to say anything");
    node.start().until_ready();
    assert!(is_healed(&node, version));
}
