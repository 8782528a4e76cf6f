//! What the chart gives to whom, for each combination of features.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod manifests;
mod objects;
mod options;
mod presets;
mod rbac;
mod security;
mod tenants;
mod uninstall;
mod values;

use std::sync::OnceLock;

use chart::Objects;

/// `repair.enabled`, `agent.takePodsOutOfAmbient`, `repair.repairPods` or else `repair.deletePods`, `ambient.enabled` and `verification.enabled`.
#[derive(Clone, Copy, Debug)]
struct Features {
    repair: bool,
    out_of_ambient: bool,
    repair_pods: bool,
    ambient: bool,
    verification: bool,
}

impl Features {
    fn render(self) -> Objects {
        let Self { repair, out_of_ambient, repair_pods, ambient, verification } = self;
        let repair =
            format!("repair.enabled={repair},repair.repairPods={repair_pods},repair.deletePods=true");
        let ambient = format!("ambient.enabled={ambient},agent.takePodsOutOfAmbient={out_of_ambient}");
        let verification = format!("verification.enabled={verification}");
        chart::render_set(&[&repair, &ambient, &verification]).unwrap()
    }

    /// Whether the agent enters pods' network namespaces.
    fn enters(self) -> bool {
        self.ambient || self.out_of_ambient || self.verification || (self.repair && self.repair_pods)
    }
}

/// Every combination of the features that rights depend on, rendered once for all tests.
fn combinations() -> &'static [(Features, Objects)] {
    static ALL: OnceLock<Vec<(Features, Objects)>> = OnceLock::new();
    ALL.get_or_init(|| {
        (0..32_u8)
            .map(|bits| Features {
                repair: bits & 1 != 0,
                out_of_ambient: bits & 2 != 0,
                repair_pods: bits & 4 != 0,
                ambient: bits & 8 != 0,
                verification: bits & 16 != 0,
            })
            .map(|features| (features, features.render()))
            .collect()
    })
}
