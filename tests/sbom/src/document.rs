//! The document: CycloneDX 1.5.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use cargo_lock::Lockfile;
use serde_json::{Value, json};

use crate::PROGRAMS;
use crate::toolchain::Part;
use crate::tree::{Crate, Crates, Id};

/// What the document is about, and the name of the image.
const SUBJECT: &str = "install-cni-image";

pub(crate) fn render(crates: &Crates, lock: &Lockfile, parts: &[Part]) -> Result<Value> {
    let checksums: BTreeMap<(&str, String), String> = lock
        .packages
        .iter()
        .filter_map(|p| Some(((p.name.as_str(), p.version.to_string()), p.checksum.as_ref()?.to_string())))
        .collect();
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    let toolchain: Vec<String> = parts.iter().map(reference_of_part).collect();
    for (id, krate) in crates {
        let checksum = checksums.get(&(id.name.as_str(), id.version.clone()));
        components.push(component(id, krate, checksum)?);
        let mut uses: Vec<String> = krate.uses.iter().map(|used| reference(used, &crates[used])).collect();
        if is_program(id, krate) {
            uses.extend(toolchain.clone());
        }
        dependencies.push(json!({"ref": reference(id, krate), "dependsOn": uses}));
    }
    for part in parts {
        components.push(json!({
            "type": "library",
            "bom-ref": reference_of_part(part),
            "name": part.name,
            "version": part.version,
            "description": "linked statically",
            "licenses": [{"expression": part.license}],
        }));
        dependencies.push(json!({"ref": reference_of_part(part), "dependsOn": []}));
    }
    let programs: Vec<String> = crates
        .iter()
        .filter(|(id, krate)| is_program(id, krate))
        .map(|(id, krate)| reference(id, krate))
        .collect();
    dependencies.push(json!({"ref": SUBJECT, "dependsOn": programs}));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "container",
                "bom-ref": SUBJECT,
                "name": "install-cni",
                "version": env!("CARGO_PKG_VERSION"),
                "licenses": [{"expression": env!("CARGO_PKG_LICENSE")}],
            },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

fn component(id: &Id, krate: &Crate, checksum: Option<&String>) -> Result<Value> {
    let mut component = json!({
        "type": if is_program(id, krate) { "application" } else { "library" },
        "bom-ref": reference(id, krate),
        "name": id.name,
        "version": id.version,
        "licenses": [{"expression": krate.license}],
    });
    if !krate.ours {
        let checksum = checksum.with_context(|| {
            format!("Cargo.lock has no checksum of {} {}: it is no crate of a registry", id.name, id.version)
        })?;
        component["purl"] = json!(reference(id, krate));
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        if !krate.repository.is_empty() {
            component["externalReferences"] = json!([{"type": "vcs", "url": krate.repository}]);
        }
    }
    Ok(component)
}

fn is_program(id: &Id, krate: &Crate) -> bool {
    krate.ours && PROGRAMS.contains(&id.name.as_str())
}

/// Names a component within the document. That of a published crate is its package URL; ours are in no registry.
fn reference(id: &Id, krate: &Crate) -> String {
    let scheme = if krate.ours { "workspace:" } else { "pkg:cargo/" };
    // In a package URL the plus of a version is written in percent.
    format!("{scheme}{}@{}", id.name, id.version.replace('+', "%2B"))
}

fn reference_of_part(part: &Part) -> String {
    format!("toolchain:{}@{}", part.name, part.version)
}
