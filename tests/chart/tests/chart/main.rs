//! What the chart gives to whom, for each combination of features. Numbers such as I-65 and N-14 are those of the specification of
//! the installer.

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

/// `repair.*` and `ambient.enabled`.
#[derive(Clone, Copy, Debug)]
struct Features {
    enabled: bool,
    repair: bool,
    delete: bool,
    label: bool,
    ambient: bool,
}

impl Features {
    fn render(self) -> Objects {
        let Self { enabled, repair, delete, label, ambient } = self;
        let repair = format!(
            "repair.enabled={enabled},repair.repairPods={repair},repair.deletePods={delete},repair.labelPods={label}"
        );
        chart::render_set(&[&repair, &format!("ambient.enabled={ambient}")]).unwrap()
    }
}

/// Every combination of the features that rights depend on, rendered once for all tests.
fn combinations() -> &'static [(Features, Objects)] {
    static ALL: OnceLock<Vec<(Features, Objects)>> = OnceLock::new();
    ALL.get_or_init(|| {
        (0..32_u8)
            .map(|bits| Features {
                enabled: bits & 1 != 0,
                repair: bits & 2 != 0,
                delete: bits & 4 != 0,
                label: bits & 8 != 0,
                ambient: bits & 16 != 0,
            })
            .map(|features| (features, features.render()))
            .collect()
    })
}
