//! Whether container runtimes load a configuration file, and as what.
//!
//! All runtimes ask `libcni` (`containernetworking/cni`), and its releases do not agree about every file. Two of them stand for all:
//! [`LibcniRelease::V1_1`] knows the CNI specification 1.0, [`LibcniRelease::V1_3`] the specification 1.1 with a list's own folder of plugins. What is
//! put into a file has to be right for both, because nothing tells which one the node's runtime was built with.
//!
//! ```text
//! bytes ─► gojson::normalize ─► load ─┬─► V1_1: Network | Refusal
//!                                     └─► V1_3: Network | Refusal
//! ```
//!
//! A `.conflist` is decoded into a map: keys match exactly, the last of equal ones counts. A `.conf` or `.json`, and each plugin, is decoded
//! into a struct: keys match in any letter case, and a field of the wrong type is an error.

mod plugin;

use std::fmt;

use crate::conflist::Form;
use crate::gojson::{self, GoNode, MAX_DEPTH, Order, WrongType};
use crate::version::ParseError;
use plugin::LoadedPlugin;

/// A release of `libcni`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LibcniRelease {
    /// 1.1.1, as in containerd 1.6.
    V1_1,
    /// 1.3.0, as in containerd 2.
    V1_3,
}

/// A network as a runtime has it after loading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedNetwork {
    /// `name`; may be empty.
    pub name: String,
    /// `cniVersion`, with 1.3 the newest of `cniVersions` too; may be empty.
    pub version: String,
    /// The types of the plugins, in the order of ADD.
    pub plugins: Vec<String>,
}

/// Why a release does not load a file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// Also an empty or half written file.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// Nested deeper than Go's decoder goes.
    #[error("nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// JSON of another kind.
    #[error("{0} and not a JSON object")]
    NotAnObject(&'static str),
    /// A key that has to be there is not.
    #[error("key {0} is missing")]
    Missing(&'static str),
    /// A key's value has the wrong type.
    #[error(transparent)]
    WrongType(#[from] WrongType),
    /// A number that no 64-bit float can hold.
    #[error("number {0} is too large")]
    HugeNumber(String),
    /// A text in `cniVersion` or `cniVersions` that is not a version.
    #[error("{0}")]
    Version(ParseError),
    /// A list that calls nothing.
    #[error("the list has no plugins")]
    NoPlugins,
    /// A network without a plugin's type.
    #[error("key type is not the name of a program")]
    NoType,
    /// One of the list's plugins.
    #[error("plugins[{0}] is not an object with a type, which is the name of a program")]
    Plugin(usize),
    /// A key of one of the list's plugins.
    #[error("plugins[{index}]: {cause}")]
    PluginKey {
        /// Which plugin.
        index: usize,
        /// The key.
        cause: WrongType,
    },
    /// The folder of the list.
    #[error("the network's folder: {0}")]
    Folder(String),
}

/// What both releases make of a file.
#[derive(Debug)]
pub struct LoadResults {
    old: Result<LoadedNetwork, LoadError>,
    new: Result<LoadedNetwork, LoadError>,
}

/// The `.conf` files of the folder beside a list that is named like the network: since CNI 1.1 they are plugins of it too.
#[derive(Debug, Default)]
pub struct Folder {
    /// The outcome for each file, in the order of their names: the plugin's type, or why the file is not a plugin.
    pub plugins: Vec<Result<String, String>>,
    /// Why the folder cannot be read. One that does not exist is empty.
    pub unreadable: Option<String>,
}

/// What is to be known of a list beside its plugins.
struct Head {
    name: String,
    version: String,
    inlined_only: bool,
}

/// What both releases make of a file of this form. The folder is that of [`folder_name`].
pub fn load(form: Form, bytes: &[u8], folder: &Folder) -> LoadResults {
    match read(bytes) {
        Err(cause) => LoadResults { old: Err(cause.clone()), new: Err(cause) },
        Ok(text) => judge(form, &text, folder),
    }
}

/// The text that is judged, see [`gojson::normalize`].
pub(crate) fn read(bytes: &[u8]) -> Result<String, LoadError> {
    let text = gojson::normalize(bytes).map_err(|cause| LoadError::NotJson(cause.to_string()))?;
    if gojson::depth(&text) > MAX_DEPTH { Err(LoadError::TooDeep) } else { Ok(text) }
}

/// As [`load`] for a text that was [`read`] already.
pub(crate) fn judge(form: Form, text: &str, folder: &Folder) -> LoadResults {
    let load = |release| match form {
        Form::Single => single(text, release),
        Form::List => list(text, release, folder),
    };
    LoadResults { old: load(LibcniRelease::V1_1), new: load(LibcniRelease::V1_3) }
}

/// The type of the plugin in a file of a network's [`Folder`].
///
/// # Errors
///
/// The release that knows such folders refuses it, and the network with it.
pub fn load_folder_file(bytes: &[u8]) -> Result<String, LoadError> {
    plugin_of_struct(&read(bytes)?, LibcniRelease::V1_3).map(|plugin| plugin.kind)
}

/// The name of the folder that belongs to a list; `None` if it wants none.
pub(crate) fn folder_name(list: &str) -> Option<String> {
    let head = Head::read(list, LibcniRelease::V1_3).ok()?;
    (!head.inlined_only).then_some(head.name)
}

/// Name and version that a single network gives itself; `None` for what it leaves out.
pub(crate) fn own_name_and_version(single: &str) -> Result<(Option<String>, Option<String>), WrongType> {
    let plugin = LoadedPlugin::read(&GoNode::root(single, Order::Text), LibcniRelease::V1_3)?;
    Ok((plugin.name, plugin.version))
}

/// The type of a plugin in a list, whatever else is wrong with it.
pub(crate) fn plugin_type(plugin: &str) -> Option<String> {
    let members = GoNode::root(plugin, Order::Map).members("an object").ok()?;
    let types = members.iter().filter(|(key, _)| gojson::is_field(key, "type"));
    types.filter_map(|(_, value)| value.text().ok().flatten()).next_back().filter(|kind| !kind.is_empty())
}

/// One network alone in a file. A runtime makes a list of it and loads that.
fn single(text: &str, release: LibcniRelease) -> Result<LoadedNetwork, LoadError> {
    /// Depth of a plugin in a list.
    const IN_A_LIST: usize = 2;
    let plugin = plugin_of_struct(text, release)?;
    if let Some(number) = gojson::huge_number(text) {
        return Err(LoadError::HugeNumber(number.to_owned()));
    }
    if gojson::depth(text) + IN_A_LIST > MAX_DEPTH {
        return Err(LoadError::TooDeep);
    }
    // The list has a map of it: of keys in different letter cases another one may be the last now.
    let member = LoadedPlugin::read(&GoNode::root(text, Order::Map), release)?;
    if member.kind.is_empty() {
        return Err(LoadError::NoType);
    }
    Ok(LoadedNetwork {
        name: plugin.name.unwrap_or_default(),
        version: plugin.version.unwrap_or_default(),
        plugins: vec![member.kind],
    })
}

fn plugin_of_struct(text: &str, release: LibcniRelease) -> Result<LoadedPlugin, LoadError> {
    if !matches!(gojson::kind(text), "an object" | "null") {
        return Err(LoadError::NotAnObject(gojson::kind(text)));
    }
    let plugin = LoadedPlugin::read(&GoNode::root(text, Order::Text), release)?;
    if plugin.kind.is_empty() { Err(LoadError::NoType) } else { Ok(plugin) }
}

fn list(text: &str, release: LibcniRelease, folder: &Folder) -> Result<LoadedNetwork, LoadError> {
    if let Some(number) = gojson::huge_number(text) {
        return Err(LoadError::HugeNumber(number.to_owned()));
    }
    let head = Head::read(text, release)?;
    let mut plugins = match member(text, "plugins")? {
        Some(plugins) => inlined(&plugins, release)?,
        None if release == LibcniRelease::V1_1 => return Err(LoadError::Missing("plugins")),
        None => Vec::new(),
    };
    if release == LibcniRelease::V1_3 && !head.inlined_only {
        if let Some(cause) = &folder.unreadable {
            return Err(LoadError::Folder(cause.clone()));
        }
        for plugin in &folder.plugins {
            plugins.push(plugin.clone().map_err(LoadError::Folder)?);
        }
    }
    if plugins.is_empty() {
        return Err(LoadError::NoPlugins);
    }
    Ok(LoadedNetwork { name: head.name, version: head.version, plugins })
}

/// The types of the plugins in a list's `plugins`.
fn inlined(plugins: &GoNode<'_>, release: LibcniRelease) -> Result<Vec<String>, LoadError> {
    const EXPECTED: &str = "a list";
    if plugins.is_null() {
        return Err(WrongType { key: "plugins".to_owned(), expected: EXPECTED }.into());
    }
    let plugins = plugins.items(EXPECTED)?;
    if plugins.is_empty() {
        return Err(LoadError::NoPlugins);
    }
    let kind = |(index, plugin): (usize, GoNode<'_>)| {
        if gojson::kind(plugin.raw()) != "an object" {
            return Err(LoadError::Plugin(index));
        }
        let plugin = GoNode::root(plugin.raw(), Order::Map);
        let plugin =
            LoadedPlugin::read(&plugin, release).map_err(|cause| LoadError::PluginKey { index, cause })?;
        if plugin.kind.is_empty() { Err(LoadError::Plugin(index)) } else { Ok(plugin.kind) }
    };
    plugins.into_iter().enumerate().map(kind).collect()
}

/// A member of a list, by its exact key.
fn member<'a>(list: &'a str, key: &str) -> Result<Option<GoNode<'a>>, LoadError> {
    if gojson::kind(list) != "an object" {
        return Err(LoadError::NotAnObject(gojson::kind(list)));
    }
    let members = GoNode::root(list, Order::Map).members("an object")?;
    Ok(members.into_iter().find_map(|(name, value)| (name == key).then_some(value)))
}

impl Head {
    fn read(list: &str, release: LibcniRelease) -> Result<Self, LoadError> {
        let text = |key: &'static str| -> Result<Option<String>, LoadError> {
            let Some(value) = member(list, key)? else { return Ok(None) };
            let wrong = || WrongType { key: key.to_owned(), expected: "a text" };
            Ok(Some(value.text()?.ok_or_else(wrong)?))
        };
        let flag = |key: &'static str| -> Result<bool, LoadError> {
            let Some(value) = member(list, key)? else { return Ok(false) };
            match value.boolean() {
                Ok(Some(flag)) => Ok(flag),
                _ => truth(&value, release)
                    .ok_or_else(|| WrongType { key: key.to_owned(), expected: "a boolean" }.into()),
            }
        };
        let name = text("name")?.ok_or(LoadError::Missing("name"))?;
        let mut version = text("cniVersion")?.unwrap_or_default();
        flag("disableCheck")?;
        let mut inlined_only = true;
        if release == LibcniRelease::V1_3 {
            if let Some(versions) = member(list, "cniVersions")? {
                version = newest(&versions, version)?;
            }
            flag("disableGC")?;
            inlined_only = flag("loadOnlyInlinedPlugins")?;
        }
        Ok(Self { name, version, inlined_only })
    }
}

/// A boolean that is written as a text, which only the newer release takes.
fn truth(value: &GoNode<'_>, release: LibcniRelease) -> Option<bool> {
    let text = value.text().ok().flatten().filter(|_| release == LibcniRelease::V1_3)?;
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// The newest version of `cniVersions` and `cniVersion` that is not newer than what the release knows.
fn newest(versions: &GoNode<'_>, version: String) -> Result<String, LoadError> {
    const EXPECTED: &str = "a list of versions";
    let wrong = |key: &str, expected| WrongType { key: key.to_owned(), expected };
    if versions.is_null() {
        return Err(wrong(versions.key(), EXPECTED).into());
    }
    let mut offered = Vec::new();
    for offer in versions.items(EXPECTED)? {
        offered.push(offer.text()?.ok_or_else(|| wrong(offer.key(), "a text"))?);
    }
    offered.extend(Some(version.clone()).filter(|version| !version.is_empty()));
    let mut newest: Option<([i64; 3], String)> = None;
    for offer in offered {
        let parts = comparable(&offer).map_err(LoadError::Version)?;
        let is_newer = newest.as_ref().is_none_or(|(best, _)| parts > *best);
        if parts <= [1, 1, 0] && is_newer {
            newest = Some((parts, offer));
        }
    }
    Ok(newest.map_or(version, |(_, newest)| newest))
}

/// The parts of a version, read as `libcni` reads them: signs are taken, an empty text is the first version.
fn comparable(version: &str) -> Result<[i64; 3], ParseError> {
    if version.is_empty() {
        return Ok([0, 1, 0]);
    }
    let mut parts = [0; 3];
    for (index, part) in version.split('.').enumerate() {
        let slot =
            parts.get_mut(index).ok_or_else(|| ParseError::TooManyParts(crate::error::shorten(version)))?;
        *slot = part.parse().map_err(|_| ParseError::NotANumber {
            text: crate::error::shorten(version),
            part: crate::error::shorten(part),
        })?;
    }
    Ok(parts)
}

// === impl LoadResults ===

impl LoadResults {
    /// What one release makes of the file.
    pub fn of(&self, release: LibcniRelease) -> Result<&LoadedNetwork, &LoadError> {
        match release {
            LibcniRelease::V1_1 => self.old.as_ref(),
            LibcniRelease::V1_3 => self.new.as_ref(),
        }
    }

    /// Whether both releases load it, and call the same plugins.
    pub fn is_agreed(&self) -> bool {
        matches!((&self.old, &self.new), (Ok(old), Ok(new)) if old.plugins == new.plugins)
    }

    /// Why no release loads it; `None` if one does.
    pub fn refusal(&self) -> Option<&LoadError> {
        self.new.as_ref().err().filter(|_| self.old.is_err())
    }

    /// In what the releases differ, in words, and what to do.
    pub fn difference(&self) -> String {
        let (old, new) = (LibcniRelease::V1_1, LibcniRelease::V1_3);
        match (&self.old, &self.new) {
            (Ok(_), Err(cause)) => format!("{old} loads it, {new} does not: {cause}; correct the file"),
            (Err(cause), Ok(_)) => format!("{new} loads it, {old} does not: {cause}; correct the file"),
            (Ok(before), Ok(after)) => {
                format!(
                    "{old} calls {}, {new} calls {}; move the plugins of the network's folder into the list",
                    before.plugins.join(", "),
                    after.plugins.join(", ")
                )
            }
            (Err(_), Err(cause)) => format!("{old} and {new} do not load it: {cause}"),
        }
    }
}

impl fmt::Display for LibcniRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_1 => "libcni 1.1 (containerd 1.6)",
            Self::V1_3 => "libcni 1.3 (containerd 2)",
        })
    }
}

#[cfg(test)]
mod tests;
