//! Only some ranges and ports are captured.

use envoy::Manifest;

use super::Combination;
use super::scene::{APP, APP_OTHER, BY_APP, Expected, From, INCLUDED_RANGES, SERVER, SERVER_OTHER, Scene};

pub(crate) fn check(what: Combination) {
    let manifest = Manifest::new(what.mode)
        .annotate("traffic.sidecar.istio.io/includeInboundPorts", &APP.to_string())
        .annotate("traffic.sidecar.istio.io/includeOutboundPorts", &SERVER_OTHER.to_string())
        .annotate("traffic.sidecar.istio.io/includeOutboundIPRanges", &what.ranges(INCLUDED_RANGES));
    let scene = Scene::new(what, manifest);
    let mut web = scene.web();
    for a in what.addresses() {
        let direct = |source| Expected { through: &[], source };
        let inbound = Expected { through: &["inbound"], source: what.forwarded(a.client, a.passthrough) };
        let outbound = Expected { through: &["outbound"], source: a.pod };
        let client = From::World(a.client);
        web.expect("in at an included port", client, (a.pod, APP), &inbound);
        web.expect("in at another port", client, (a.pod, APP_OTHER), &direct(a.client));
        web.expect("out to an included range", BY_APP, (a.server, SERVER), &outbound);
        web.expect("out to another range", BY_APP, (a.other_server, SERVER), &direct(a.pod));
        web.expect("out to an included port", BY_APP, (a.other_server, SERVER_OTHER), &outbound);
    }
    web.finish();
}
