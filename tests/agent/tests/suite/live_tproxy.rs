//! Sidecar pods with a transparent proxy that are not to be captured any more, while connections are open.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use testkit::probe::answer_bytes;
use testkit::{PATIENCE, at_once, eventually};

use crate::live::{APP, BACKENDS, Scene, asked, connect};

/// What came in through a transparent socket goes on by marks and a route, which stay as long as it does.
#[test]
fn what_came_in_by_a_transparent_proxy_goes_on_while_the_pod_drains() {
    at_once(BACKENDS, |native| {
        let (scene, agent) = Scene::new(native, "on", &[("sidecar.istio.io/interceptionMode", "TPROXY")]);
        answer_bytes(&scene.pod.netns, APP, b'a').unwrap();
        let to = SocketAddr::new(scene.pod.ip, APP);
        let come_in = || connect(&scene.world, to);
        let before = come_in();
        assert_eq!(asked(&before), 'p');
        scene.edit("labels", "sidecar.istio.io/inject", "false");
        eventually("what comes in now goes to the application", PATIENCE, || {
            let found = asked(&come_in());
            ensure!(found == 'a', "{found} answers; {}", agent.log().text());
            Ok(())
        })
        .unwrap();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!((asked(&before), asked(&come_in())), ('p', 'a'), "{native}");
        }
        drop(before);
        scene.wait_without_rules();
        assert_eq!(asked(&come_in()), 'a');
    });
}
