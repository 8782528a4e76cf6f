//! The base network's component writes over the configuration that the plugin is in, and pods start before the agent has put it back.

use std::time::{Duration, Instant};

use runtimes::{Containerd, CriO, Kubelet, Machine, PodSpec, Runtime};
use rustix::process::Signal;
use testkit::{PATIENCE, eventually};

use crate::boot::{LIMIT, assert_captured_or_named};

/// The longest time without the plugin after the first overwriting, by the one that was healed soonest.
const AT_ONCE: Duration = Duration::from_millis(250);

/// From an overwriting to the plugin's being back.
fn overwrite(machine: &Machine) -> Duration {
    machine.write_conflist("1.1.0").unwrap();
    let begin = Instant::now();
    eventually("the plugin is back", PATIENCE, || machine.entry()).unwrap();
    begin.elapsed()
}

#[test]
fn the_first_overwriting_is_healed_at_once() {
    let times: Vec<[Duration; 2]> = (0..3)
        .map(|_| {
            let machine = Machine::new("1.1.0").unwrap();
            let _agent = machine.agent().ready().unwrap();
            [overwrite(&machine), overwrite(&machine)]
        })
        .collect();
    println!("healed, and healed again: {times:.1?}");
    assert!(times.iter().any(|[first, _]| *first < AT_ONCE), "{times:?}");
}

fn start_in_the_gap(runtime: impl for<'a> Fn(&'a Machine) -> Box<dyn Runtime + 'a>) {
    let machine = Machine::new("1.1.0").unwrap();
    let agent = machine.agent().ready().unwrap();
    let runtime = runtime(&machine);
    let kubelet = Kubelet::new(&machine, runtime.as_ref());
    let start = |names: &[&str]| {
        let pod = |name: &&str| PodSpec::sidecar("default", name);
        let mut pods: Vec<PodSpec> = names.iter().map(pod).collect();
        pods.push(PodSpec::new("default", &format!("plain-beside-{}", names[0])));
        machine.schedule(&pods);
        kubelet.start_all(&pods, LIMIT).unwrap()
    };
    let mut started = start(&["sidecar-before"]);
    agent.signal(Signal::STOP).unwrap();
    machine.write_conflist("1.1.0").unwrap();
    started.extend(start(&["sidecar-1", "sidecar-2", "sidecar-3"]));
    agent.signal(Signal::CONT).unwrap();
    eventually("the plugin is back", PATIENCE, || machine.entry()).unwrap();
    started.extend(start(&["sidecar-after"]));
    assert_eq!(assert_captured_or_named(&kubelet, &started, &agent), 3);
}

#[test]
fn pods_that_started_meanwhile_are_found() {
    start_in_the_gap(|machine| Box::new(Containerd::start(machine)));
    start_in_the_gap(|machine| Box::new(CriO::start(machine)));
}
