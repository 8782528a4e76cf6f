//! Exclusions by port, range and interface; beside each, something that is not excluded.

use envoy::Manifest;

use super::Combination;
use super::scene::{
    APP, APP_OTHER, BY_APP, EXCLUDED_RANGES, Expected, From, SECOND, SERVER, SERVER_OTHER, Scene,
};

pub(crate) fn check(what: Combination) {
    let manifest = Manifest::new(what.mode)
        .annotate("traffic.sidecar.istio.io/excludeInboundPorts", &APP_OTHER.to_string())
        .annotate("traffic.sidecar.istio.io/excludeOutboundPorts", &SERVER_OTHER.to_string())
        .annotate("traffic.sidecar.istio.io/excludeOutboundIPRanges", &what.ranges(EXCLUDED_RANGES))
        .annotate("traffic.sidecar.istio.io/excludeInterfaces", SECOND);
    let scene = Scene::new(what, manifest);
    let mut web = scene.web();
    for a in what.addresses() {
        let direct = |source| Expected { through: &[], source };
        let inbound = Expected { through: &["inbound"], source: what.forwarded(a.client, a.passthrough) };
        let outbound = Expected { through: &["outbound"], source: a.pod };
        let client = From::World(a.client);
        web.expect("in", client, (a.pod, APP), &inbound);
        web.expect("in at an excluded port", client, (a.pod, APP_OTHER), &direct(a.client));
        web.expect("out", BY_APP, (a.server, SERVER), &outbound);
        web.expect("out to an excluded port", BY_APP, (a.server, SERVER_OTHER), &direct(a.pod));
        web.expect("out to an excluded range", BY_APP, (a.excluded_server, SERVER), &direct(a.pod));
        web.expect("out to another range", BY_APP, (a.other_server, SERVER), &outbound);
        let (own, neighbour) = a.second;
        web.expect("in at an excluded interface", From::World(neighbour), (own, APP), &direct(neighbour));
        web.expect("out at an excluded interface", BY_APP, (neighbour, SERVER), &direct(own));
    }
    web.finish();
}
