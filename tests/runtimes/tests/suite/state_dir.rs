//! containerd with `netns_mounts_under_state_dir`: the paths of pods' namespaces are where the agent's mount namespace has nothing.

use std::time::Duration;

use runtimes::{Containerd, Kubelet, Machine, PodSpec, Runtime};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_pod_is_in_the_mesh_although_the_agent_cannot_see_the_path() {
    for backend in ["true", "false"] {
        let machine = Machine::new("1.0.0").unwrap();
        machine.hide_namespaces().unwrap();
        let agent = machine.ambient_agent().env("NATIVE_NFTABLES", backend).ready().unwrap();
        let _ztunnel = machine.mesh.ztunnel().unwrap();
        let containerd = Containerd::start(&machine);
        let kubelet = Kubelet::new(&machine, &containerd);
        let pods = ["one", "two", "three"].map(|name| PodSpec::new("mesh", name));
        machine.schedule(&pods);
        for started in kubelet.start_all(&pods, LIMIT).unwrap() {
            assert_eq!(started.refusals, [""; 0], "{}", agent.log().text());
            assert!(containerd.sandboxes().is_in_mesh(&started.sandbox).unwrap(), "{}", agent.log().text());
        }
    }
}
