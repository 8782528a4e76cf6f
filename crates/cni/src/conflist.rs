//! CNI configuration files, and our entry in them.
//!
//! A container runtime loads the first valid `.conflist` or `.conf` of a directory. To be called, this plugin has to stand in the
//! list that another component wrote. What is not ours is kept as the text that it is: order, duplicate keys and numbers of any
//! size survive, only the space between them is laid out anew.
//!
//! Files are decided upon as `libcni` decides: keys of a list match exactly, the last of equal ones counts.

mod entry;
mod layout;

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use entry::Place;
pub use entry::{ENTRY_TYPE, PluginEntry};

use crate::Version;
use crate::json::Value;

/// Name of the list that a single network without a name becomes.
const DEFAULT_NAME: &str = "\"k8s-pod-network\"";
/// Version of the list that a single network without a version becomes.
const DEFAULT_VERSION: &str = "\"0.3.1\"";

/// What a file is, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `.conflist`: a list of plugins.
    List,
    /// `.conf`: one plugin.
    Single,
}

/// A configuration file's content: one JSON object.
#[derive(Debug, Clone)]
pub struct Document {
    members: Vec<(String, Box<RawValue>)>,
    tree: Value,
}

/// A file that is no network configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// Also an empty or half written file.
    #[error("not JSON: {0}")]
    NotJson(serde_json::Error),
    /// JSON of another kind.
    #[error("{0} and not a JSON object")]
    NotAnObject(&'static str),
    /// A key that has to be there is not.
    #[error("key {0} is missing")]
    Missing(&'static str),
    /// A key's value has the wrong type.
    #[error("key {key} is not {expected}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// A version in `cniVersion` or `cniVersions` that is none.
    #[error("{0}")]
    Version(crate::version::ParseError),
    /// A list that calls nothing.
    #[error("the list has no plugins")]
    NoPlugins,
    /// One of the list's plugins.
    #[error("plugins[{0}] is not an object with a type, which is the name of a program")]
    Plugin(usize),
    /// Nothing to put an entry into.
    #[error("neither a list of plugins (key plugins) nor a plugin (key type)")]
    NoNetwork,
}

impl Form {
    /// The form of a file with this name, `None` when no runtime loads it.
    ///
    /// The whole name counts, as it does for `libcni`: `.x.conflist`, a hidden file, is a list. `.json`, which `libcni` also loads,
    /// is left out as upstream leaves it out.
    pub fn of(file_name: &str) -> Option<Self> {
        match file_name.rsplit_once('.')?.1 {
            "conflist" => Some(Self::List),
            "conf" => Some(Self::Single),
            _ => None,
        }
    }
}

impl Document {
    /// Reads a file's content. Whether a runtime would load it is another question, see [`Document::check`].
    ///
    /// # Errors
    ///
    /// It is not JSON, or no object.
    pub fn parse(text: &[u8]) -> Result<Self, ConflistError> {
        let tree = Value::parse(text).map_err(ConflistError::NotJson)?;
        if !matches!(tree, Value::Object(_)) {
            return Err(ConflistError::NotAnObject(tree.kind()));
        }
        let Members(members) = serde_json::from_slice(text).map_err(ConflistError::NotJson)?;
        Ok(Self { members, tree })
    }

    /// Whether a runtime accepts the file. `folder_plugins` counts the valid files in the [`Document::folder`].
    ///
    /// # Errors
    ///
    /// The first thing that a runtime refuses.
    pub fn check(&self, form: Form, folder_plugins: usize) -> Result<(), ConflistError> {
        match form {
            Form::Single => match plugin_type(&self.tree) {
                Some(_) => Ok(()),
                None => Err(ConflistError::WrongType { key: "type", expected: "the name of a program" }),
            },
            Form::List => self.check_list(folder_plugins),
        }
    }

    fn check_list(&self, folder_plugins: usize) -> Result<(), ConflistError> {
        match self.member("name") {
            None => return Err(ConflistError::Missing("name")),
            Some(Value::String(_)) => {}
            Some(_) => return Err(ConflistError::WrongType { key: "name", expected: "a text" }),
        }
        if let Some(version) = self.member("cniVersion") {
            text(version, "cniVersion")?;
        }
        if let Some(versions) = self.member("cniVersions") {
            let expected = "a list of versions";
            let Value::Array(versions) = versions else {
                return Err(ConflistError::WrongType { key: "cniVersions", expected });
            };
            for version in versions {
                Version::parse(text(version, "cniVersions")?).map_err(ConflistError::Version)?;
            }
        }
        for key in ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"] {
            self.flag(key)?;
        }
        let plugins = match self.member("plugins") {
            None => &[],
            Some(Value::Array(plugins)) if plugins.is_empty() => return Err(ConflistError::NoPlugins),
            Some(Value::Array(plugins)) => plugins.as_slice(),
            Some(_) => return Err(ConflistError::WrongType { key: "plugins", expected: "a list" }),
        };
        if let Some(index) = plugins.iter().position(|plugin| plugin_type(plugin).is_none()) {
            return Err(ConflistError::Plugin(index));
        }
        if plugins.len() + folder_plugins == 0 {
            return Err(ConflistError::NoPlugins);
        }
        Ok(())
    }

    /// The folder beside the list whose `.conf` files are plugins of it too, if the list wants that.
    pub fn folder(&self) -> Option<&str> {
        let name = self.network()?;
        let inlined_only = self.flag("loadOnlyInlinedPlugins").unwrap_or(true);
        // The name is made a path: it must not lead elsewhere.
        let is_step = name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']);
        (!inlined_only && !is_step).then_some(name)
    }

    /// `name`.
    pub fn network(&self) -> Option<&str> {
        match self.member("name")? {
            Value::String(name) => Some(name),
            _ => None,
        }
    }

    /// The type of each plugin that has one: of the list, or the only one.
    pub fn plugin_types(&self) -> Vec<&str> {
        match self.member("plugins") {
            Some(Value::Array(plugins)) => plugins.iter().filter_map(plugin_type).collect(),
            _ => plugin_type(&self.tree).into_iter().collect(),
        }
    }

    /// Whether this is our plugin on its own, the file of the standalone mode.
    pub fn is_standalone(&self) -> bool {
        !matches!(self.member("plugins"), Some(Value::Array(_))) && is_ours(&self.tree)
    }

    /// Our entries in the list, or the whole file if it [is ours](Self::is_standalone). More than one is a mistake that
    /// [`Document::merge`] corrects.
    pub fn entries(&self) -> Vec<&Value> {
        match self.member("plugins") {
            Some(Value::Array(plugins)) => plugins.iter().filter(|plugin| is_ours(plugin)).collect(),
            _ if is_ours(&self.tree) => vec![&self.tree],
            _ => Vec::new(),
        }
    }

    /// Whether `entry`, and no other entry of ours, is in the list (or is the file).
    pub fn holds(&self, entry: &PluginEntry) -> bool {
        let [ours] = self.entries()[..] else { return false };
        let place = if self.is_standalone() { Place::Standalone } else { Place::Member };
        serde_json::Value::from(ours) == entry.value(place)
    }

    /// The file with `entry` as the last plugin and no other entry of ours. A single network becomes a list with its name and
    /// version.
    ///
    /// # Errors
    ///
    /// There is no network here.
    pub fn merge(&self, entry: &PluginEntry) -> Result<Vec<u8>, ConflistError> {
        let mut list = self.as_list()?;
        list.plugins.push(Cow::Owned(entry.text(Place::Member)));
        Ok(list.render())
    }

    /// The file without entries of ours; `None` if nothing is left that a runtime could use.
    ///
    /// # Errors
    ///
    /// There is no network here.
    pub fn without_entry(&self) -> Result<Option<Vec<u8>>, ConflistError> {
        if self.is_standalone() {
            return Ok(None);
        }
        let list = self.as_list()?;
        if list.plugins.is_empty() && self.folder().is_none() { Ok(None) } else { Ok(Some(list.render())) }
    }

    /// Whether both are the same network apart from our entries; a single network is the list that it becomes. Compared as JSON:
    /// order of keys and layout do not count.
    pub fn is_same_network(&self, other: &Self) -> bool {
        let foreign = |document: &Self| {
            let text = document.as_list().ok()?.render();
            serde_json::from_slice::<serde_json::Value>(&text).ok()
        };
        foreign(self).is_some_and(|network| Some(network) == foreign(other))
    }

    /// Everything that is not ours, as a list.
    fn as_list(&self) -> Result<List<'_>, ConflistError> {
        let texts = self.members.iter().map(|(key, value)| (key.as_str(), value.get()));
        if let Some(place) = self.members.iter().rposition(|(key, _)| key == "plugins") {
            let plugins: Vec<&RawValue> = serde_json::from_str(self.members[place].1.get())
                .map_err(|_| ConflistError::WrongType { key: "plugins", expected: "a list" })?;
            let foreign = plugins.into_iter().filter(|plugin| !is_ours_text(plugin.get()));
            let plugins = foreign.map(|plugin| Cow::Borrowed(plugin.get())).collect();
            return Ok(List { members: texts.collect(), place, plugins });
        }
        if self.tree.get("type").is_none() {
            return Err(ConflistError::NoNetwork);
        }
        let own =
            |key, default| texts.clone().rfind(|(name, _)| *name == key).map_or(default, |(_, text)| text);
        let members = vec![
            ("cniVersion", own("cniVersion", DEFAULT_VERSION)),
            ("name", own("name", DEFAULT_NAME)),
            ("plugins", ""),
        ];
        let plugin = || Cow::Owned(object(texts.filter(|(key, _)| *key != "cniVersion")));
        let plugins = if is_ours(&self.tree) { Vec::new() } else { vec![plugin()] };
        Ok(List { members, place: 2, plugins })
    }

    fn member(&self, key: &str) -> Option<&Value> {
        let Value::Object(members) = &self.tree else { return None };
        members.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn flag(&self, key: &'static str) -> Result<bool, ConflistError> {
        match self.member(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
            Some(_) => Err(ConflistError::WrongType { key, expected: "a boolean" }),
        }
    }
}

/// A list as text: what is in `members[place]` is replaced by `plugins`.
struct List<'a> {
    members: Vec<(&'a str, &'a str)>,
    place: usize,
    plugins: Vec<Cow<'a, str>>,
}

impl List<'_> {
    fn render(&self) -> Vec<u8> {
        let plugins = format!("[{}]", self.plugins.join(","));
        let members = self.members.iter().enumerate();
        let members = members
            .map(|(place, (key, text))| (*key, if place == self.place { plugins.as_str() } else { *text }));
        layout::pretty(&object(members))
    }
}

/// An object of members whose values are JSON text.
fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let members = members.map(|(key, value)| format!("{}:{value}", serde_json::Value::from(key)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// Plugins are called by their type, which has to be a text that is not empty. Its key matches in any letter case, as everywhere
/// in a plugin's own configuration.
fn plugin_type(plugin: &Value) -> Option<&str> {
    match plugin.get("type")? {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

fn is_ours(plugin: &Value) -> bool {
    plugin_type(plugin) == Some(ENTRY_TYPE)
}

fn is_ours_text(plugin: &str) -> bool {
    Value::parse(plugin.as_bytes()).is_ok_and(|plugin| is_ours(&plugin))
}

fn text<'a>(value: &'a Value, key: &'static str) -> Result<&'a str, ConflistError> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(ConflistError::WrongType { key, expected: "a text" }),
    }
}

/// An object's members in their order, values as they are written.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

#[cfg(test)]
mod tests;
