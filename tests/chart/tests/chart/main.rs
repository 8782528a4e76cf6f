//! What the chart gives to whom, for each combination of features.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod manifests;
mod objects;
mod options;
mod presets;
mod rbac;
mod security;
mod uninstall;
mod values;

use std::sync::OnceLock;

use chart::Objects;

/// `repair.enabled`, `agent.takePodsOutOfAmbient`, the values of `repair` that bring nothing, and `ambient.enabled`.
#[derive(Clone, Copy, Debug)]
struct Features {
    repair: bool,
    out_of_ambient: bool,
    idle: bool,
    ambient: bool,
}

impl Features {
    fn render(self) -> Objects {
        let Self { repair, out_of_ambient, idle, ambient } = self;
        let repair = format!(
            "repair.enabled={repair},repair.repairPods={idle},repair.deletePods={idle},repair.labelPods={idle}"
        );
        let ambient = format!("ambient.enabled={ambient},agent.takePodsOutOfAmbient={out_of_ambient}");
        chart::render_set(&[&repair, &ambient]).unwrap()
    }

    /// Whether the agent enters pods' network namespaces.
    fn enters(self) -> bool {
        self.ambient || self.out_of_ambient
    }
}

/// Every combination of the features that rights depend on, rendered once for all tests.
fn combinations() -> &'static [(Features, Objects)] {
    static ALL: OnceLock<Vec<(Features, Objects)>> = OnceLock::new();
    ALL.get_or_init(|| {
        (0..16_u8)
            .map(|bits| Features {
                repair: bits & 1 != 0,
                out_of_ambient: bits & 2 != 0,
                idle: bits & 4 != 0,
                ambient: bits & 8 != 0,
            })
            .map(|features| (features, features.render()))
            .collect()
    })
}
