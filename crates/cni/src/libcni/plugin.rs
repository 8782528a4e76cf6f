//! One plugin's configuration: `PluginConf` of `libcni` (`NetConf` until 1.1).

use super::LibcniRelease;
use crate::gojson::{GoNode, WrongType, huge_number, is_field};

/// What is kept of a plugin. The other fields are only checked for their types.
#[derive(Debug, Default)]
pub(super) struct LoadedPlugin {
    /// `name`; `None` if it is absent or `null`.
    pub(super) name: Option<String>,
    /// `cniVersion`; `None` if it is absent or `null`.
    pub(super) version: Option<String>,
    /// `type`; empty if it is absent or `null`.
    pub(super) kind: String,
}

impl LoadedPlugin {
    /// Every member is checked, also one that a later one of the same key replaces.
    pub(super) fn read(plugin: &GoNode<'_>, release: LibcniRelease) -> Result<Self, WrongType> {
        let mut read = Self::default();
        for (key, value) in plugin.members("an object")? {
            let is = |field| is_field(&key, field);
            if is("cniVersion") {
                read.version = value.text()?.or(read.version);
            } else if is("name") {
                read.name = value.text()?.or(read.name);
            } else if is("type") {
                read.kind = value.text()?.unwrap_or(read.kind);
            } else if is("capabilities") {
                for (_, flag) in value.members("an object of booleans")? {
                    flag.boolean()?;
                }
            } else if is("ipam") {
                fields(&value, |field, value| if is_field(field, "type") { text(value) } else { Ok(()) })?;
            } else if is("dns") {
                fields(&value, dns)?;
            } else if is("prevResult") {
                value.members("an object")?;
                // nothing in it has a type, so that its numbers are read as floats
                if huge_number(value.raw()).is_some() {
                    return Err(WrongType { key, expected: "an object whose numbers fit a 64-bit float" });
                }
            } else if is("cni.dev/valid-attachments") && release == LibcniRelease::V1_3 {
                for attachment in value.items("a list of objects")? {
                    fields(&attachment, |field, value| {
                        if is_field(field, "containerID") || is_field(field, "ifname") {
                            text(value)
                        } else {
                            Ok(())
                        }
                    })?;
                }
            }
        }
        Ok(read)
    }
}

fn fields(
    object: &GoNode<'_>,
    check: impl Fn(&str, &GoNode<'_>) -> Result<(), WrongType>,
) -> Result<(), WrongType> {
    object.members("an object")?.iter().try_for_each(|(field, value)| check(field, value))
}

fn dns(field: &str, value: &GoNode<'_>) -> Result<(), WrongType> {
    if is_field(field, "domain") {
        return text(value);
    }
    if ["nameservers", "search", "options"].iter().any(|list| is_field(field, list)) {
        return value.items("a list of texts")?.iter().try_for_each(text);
    }
    Ok(())
}

fn text(value: &GoNode<'_>) -> Result<(), WrongType> {
    value.text().map(|_| ())
}
