//! Nothing is excluded.

use envoy::bootstrap::OWN_SERVICE;
use envoy::{Manifest, User};

use super::Combination;
use super::scene::{APP, APP_OTHER, BY_APP, Expected, From, SERVER, SERVER_OTHER, Scene};

pub(crate) fn check(what: Combination) {
    let scene = Scene::new(what, Manifest::new(what.mode));
    let mut web = scene.web();
    let by_proxy = From::Pod(User::proxy(what.mode));
    for a in what.addresses() {
        let inbound =
            |client| Expected { through: &["inbound"], source: what.forwarded(client, a.passthrough) };
        for port in [APP, APP_OTHER] {
            web.expect("in", From::World(a.client), (a.pod, port), &inbound(a.client));
        }
        let neighbour = a.second.1;
        web.expect(
            "in at a second interface",
            From::World(neighbour),
            (a.second.0, APP),
            &inbound(neighbour),
        );

        let outbound = Expected { through: &["outbound"], source: a.pod };
        for port in [SERVER, SERVER_OTHER] {
            web.expect("out", BY_APP, (a.server, port), &outbound);
        }
        web.expect("out, as root", From::Pod(User::ROOT), (a.server, SERVER), &outbound);
        let second = Expected { through: &["outbound"], source: a.second.0 };
        web.expect("out at a second interface", BY_APP, (a.second.1, SERVER), &second);

        let direct = |source| Expected { through: &[], source };
        web.expect("the proxy, out", by_proxy, (a.server, SERVER), &direct(a.pod));
        web.expect(
            "the proxy's user, out",
            From::Pod(User { uid: 1337, ..User::APP }),
            (a.server, SERVER),
            &direct(a.pod),
        );
        web.expect(
            "the proxy's group, out",
            From::Pod(User { gid: 1337, ..User::APP }),
            (a.server, SERVER),
            &direct(a.pod),
        );
        web.expect("the pod to itself", BY_APP, (a.pod, APP), &direct(a.pod));
        web.expect("the pod's loopback", BY_APP, (a.loopback, APP), &direct(a.loopback));
        web.expect("the proxy to loopback", by_proxy, (a.loopback, APP), &direct(a.loopback));
        web.expect("the proxy to its own pod", by_proxy, (a.pod, APP), &inbound(a.pod));
    }
    own_service(what, &mut web);
    web.finish();
}

/// A service that leads back to the pod that calls it: out through Envoy, and in again.
fn own_service(what: Combination, web: &mut super::scene::Web<'_>) {
    let a = what.addresses()[0];
    let expected =
        Expected { through: &["inbound", "outbound"], source: what.forwarded(a.pod, a.passthrough) };
    let why = "the pod to its own service";
    web.expect_at_host(why, OWN_SERVICE, BY_APP, (a.server, SERVER), (a.pod, APP), &expected);
}
