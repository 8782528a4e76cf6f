//! CNI configuration files, and our entry in them.
//!
//! A container runtime loads the first `.conflist`, `.conf` or `.json` of a directory. To be called, this plugin has to stand in the
//! list that another component wrote. What is not ours is kept as the text that it is: order, duplicate keys and numbers of any
//! size survive, only the space between them is laid out anew.
//!
//! Whether a runtime loads a file, and as what, is [`crate::libcni`]'s to say: of what is there and of what would be written.

mod entry;
mod layout;

use std::borrow::Cow;

use serde_json::value::RawValue;

use entry::EntryPlace;
pub use entry::{ENTRY_TYPE, PluginEntry};

use crate::gojson::{self, GoNode, Order, WrongType};
use crate::json::Value;
use crate::libcni::{self, Folder, LibcniRelease, LoadError, LoadResults, LoadedNetwork};

/// Name of the list that a single network without a name becomes.
const DEFAULT_NAME: &str = "k8s-pod-network";
/// Version of the list that a single network without a version becomes.
const DEFAULT_VERSION: &str = "0.3.1";

/// Types of plugins that change an interface or the node for it and give no address: those of the CNI project that can only follow
/// another plugin, `loopback`, and ours.
const WITHOUT_ADDRESS: &[&str] =
    &["bandwidth", "firewall", "istio-cni", "loopback", "portmap", "sbr", "tuning", "vrf"];

/// What a file is, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `.conflist`: a list of plugins.
    List,
    /// `.conf` and `.json`: one plugin.
    Single,
}

/// A configuration file's content: one JSON object.
#[derive(Debug, Clone)]
pub struct Document {
    text: String,
    /// `None` for a file whose name does not say it; then its keys do.
    form: Option<Form>,
    members: Vec<(String, Box<RawValue>)>,
}

/// A file that the plugin cannot be put into.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// No runtime loads it.
    #[error(transparent)]
    Refused(#[from] LoadError),
    /// Runtimes do not agree about it.
    #[error("{0}")]
    Differs(String),
    /// Nothing to put an entry into.
    #[error("neither a list of plugins (key plugins) nor a plugin (key type)")]
    NoNetwork,
    /// What would be written is another network.
    #[error("the list with the plugin would not load as this network: {0}")]
    WouldDiffer(String),
}

impl Form {
    /// The form of a file with this name, `None` when no runtime loads it.
    ///
    /// The whole name counts, as it does for `libcni`: `.x.conflist`, a hidden file, is a list.
    pub fn of(file_name: &str) -> Option<Self> {
        match file_name.rsplit_once('.')?.1 {
            "conflist" => Some(Self::List),
            "conf" | "json" => Some(Self::Single),
            _ => None,
        }
    }
}

impl Document {
    /// Reads a file's content, whose form its keys tell. Whether a runtime would load it is another question, see
    /// [`Document::verdict`].
    ///
    /// # Errors
    ///
    /// It is not JSON, or no object.
    pub fn parse(bytes: &[u8]) -> Result<Self, LoadError> {
        Self::of_form(None, bytes)
    }

    /// Reads the content of a file of a form.
    ///
    /// # Errors
    ///
    /// It is not JSON, or no object.
    pub fn of_form(form: Option<Form>, bytes: &[u8]) -> Result<Self, LoadError> {
        let text = libcni::read(bytes)?;
        let members = gojson::members(&text).ok_or_else(|| LoadError::NotAnObject(gojson::kind(&text)))?;
        let members = members.into_iter().map(|(key, value)| (key, value.to_owned())).collect();
        Ok(Self { text, form, members })
    }

    /// What runtimes make of the file.
    pub fn verdict(&self, folder: &Folder) -> LoadResults {
        libcni::judge(self.form(), &self.text, folder)
    }

    /// The name of the folder beside the list (or beside the list that the file becomes) whose `.conf` files are plugins of it too, if the
    /// list wants that.
    pub fn folder(&self) -> Option<String> {
        match self.form() {
            Form::List => libcni::folder_name(&self.text),
            Form::Single => Some(self.network().unwrap_or_else(|| DEFAULT_NAME.to_owned())),
        }
    }

    /// `name`.
    pub fn network(&self) -> Option<String> {
        match self.form() {
            Form::List => self.member("name").and_then(|name| serde_json::from_str(name).ok()),
            Form::Single => libcni::own_name_and_version(&self.text).ok()?.0,
        }
    }

    /// The type of each plugin that has one: of the list, or the only one.
    pub fn plugin_types(&self) -> Vec<String> {
        match self.inlined() {
            Some(plugins) => plugins.into_iter().filter_map(libcni::plugin_type).collect(),
            None => libcni::plugin_type(&self.text).into_iter().collect(),
        }
    }

    /// Whether a plugin that gives the pod an address is called.
    pub fn gives_address(&self) -> bool {
        self.plugin_types().iter().any(|kind| !WITHOUT_ADDRESS.contains(&kind.as_str()))
    }

    /// Whether this is our plugin on its own, the file of the standalone mode.
    pub fn is_standalone(&self) -> bool {
        self.inlined().is_none() && is_ours(&self.text)
    }

    /// Our entries in the list, or the whole file if it [is ours](Self::is_standalone). More than one is a mistake that
    /// [`Document::merge`] corrects. `Null` stands for one that is nested too deep to be ours any more.
    pub fn entries(&self) -> Vec<Value> {
        let parsed = |entry: &str| Value::parse(entry.as_bytes()).unwrap_or(Value::Null);
        self.ours().into_iter().map(parsed).collect()
    }

    /// Whether there is an entry of ours.
    pub fn has_entry(&self) -> bool {
        !self.ours().is_empty()
    }

    /// Whether `entry`, and no other entry of ours, is in the list and its last plugin (or is the file).
    pub fn holds(&self, entry: &PluginEntry) -> bool {
        let [ours] = self.ours()[..] else { return false };
        let place = if self.is_standalone() { EntryPlace::Standalone } else { EntryPlace::Member };
        let is_last = self.inlined().is_none_or(|plugins| plugins.last().is_some_and(|last| is_ours(last)));
        is_last
            && serde_json::from_str::<serde_json::Value>(ours).is_ok_and(|ours| ours == entry.value(place))
    }

    /// The file with `entry` as the last plugin and no other entry of ours. A single network becomes a list with its name and
    /// version. The folder is that of [`Document::folder`].
    ///
    /// What is returned is loaded by every release as the same network with our plugin behind it.
    ///
    /// # Errors
    ///
    /// Not every release loads the file, or not every one would load what would be written.
    pub fn merge(&self, entry: &PluginEntry, folder: &Folder) -> Result<Vec<u8>, ConflistError> {
        if self.form.is_none() {
            // What is missing decides what it was meant to be.
            self.as_list()?;
        }
        let before = self.verdict(folder);
        if !before.is_agreed() {
            return Err(match before.refusal() {
                Some(cause) => cause.clone().into(),
                None => ConflistError::Differs(before.difference()),
            });
        }
        let mut list = self.as_list()?;
        list.plugins.push(Cow::Owned(entry.text(EntryPlace::Member)));
        let merged = list.render();
        let after = libcni::load(Form::List, &merged, folder);
        let is_right = |release| match (before.of(release), after.of(release)) {
            (Ok(before), Ok(after)) => is_with_entry(before, after),
            _ => false,
        };
        if is_right(LibcniRelease::V1_1) && is_right(LibcniRelease::V1_3) {
            Ok(merged)
        } else {
            Err(ConflistError::WouldDiffer(after.difference()))
        }
    }

    /// The file without entries of ours; `None` if nothing is left that a runtime could use.
    ///
    /// # Errors
    ///
    /// There is no network here.
    pub fn without_entry(&self, folder: &Folder) -> Result<Option<Vec<u8>>, ConflistError> {
        if self.is_standalone() {
            return Ok(None);
        }
        let mut list = self.as_list()?;
        if !list.plugins.is_empty() {
            return Ok(Some(list.render()));
        }
        if folder.plugins.is_empty() {
            return Ok(None);
        }
        // an empty list of plugins is refused, none at all is not
        list.members.remove(list.place);
        list.place = list.members.len();
        Ok(Some(list.render()))
    }

    /// Whether both are the same network apart from our entries; a single network is the list that it becomes. Compared as JSON:
    /// order of keys and layout do not count.
    pub fn is_same_network(&self, other: &Self) -> bool {
        let (Ok(mine), Ok(others)) = (self.as_list(), other.as_list()) else { return false };
        let (mine, others) = (mine.render(), others.render());
        // What is nested too deep for a tree is compared as it is laid out.
        let tree = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).ok();
        mine == others || tree(&mine).is_some_and(|mine| Some(mine) == tree(&others))
    }

    /// Everything that is not ours, as a list.
    fn as_list(&self) -> Result<List<'_>, ConflistError> {
        let texts = self.members.iter().map(|(key, value)| (key.as_str(), value.get()));
        if self.form() == Form::List {
            let place = self.members.iter().rposition(|(key, _)| key == "plugins");
            let place = place.ok_or(ConflistError::NoNetwork)?;
            let plugins = GoNode::root(self.members[place].1.get(), Order::Text).items("a list");
            let wrong = |_| LoadError::WrongType(WrongType { key: "plugins".to_owned(), expected: "a list" });
            let foreign = plugins.map_err(wrong)?.into_iter().filter(|plugin| !is_ours(plugin.raw()));
            let plugins = foreign.map(|plugin| Cow::Borrowed(plugin.raw())).collect();
            return Ok(List {
                members: texts.map(|(key, text)| (key, text.into())).collect(),
                place,
                plugins,
            });
        }
        if libcni::plugin_type(&self.text).is_none() {
            return Err(ConflistError::NoNetwork);
        }
        let (name, version) = libcni::own_name_and_version(&self.text).map_err(LoadError::WrongType)?;
        let own = |own: Option<String>, default: &str| {
            Cow::Owned(serde_json::Value::from(own.as_deref().unwrap_or(default)).to_string())
        };
        let members = vec![
            ("cniVersion", own(version, DEFAULT_VERSION)),
            ("name", own(name, DEFAULT_NAME)),
            ("plugins", Cow::Borrowed("")),
        ];
        let plugin = || Cow::Owned(object(texts.filter(|(key, _)| *key != "cniVersion")));
        let plugins = if is_ours(&self.text) { Vec::new() } else { vec![plugin()] };
        Ok(List { members, place: 2, plugins })
    }

    fn form(&self) -> Form {
        let by_keys = || if self.member("plugins").is_some() { Form::List } else { Form::Single };
        self.form.unwrap_or_else(by_keys)
    }

    /// The plugins of a list; `None` for a single network, and for what is no list.
    fn inlined(&self) -> Option<Vec<&str>> {
        if self.form() == Form::Single {
            return None;
        }
        let plugins = self.member("plugins").filter(|plugins| gojson::kind(plugins) == "an array")?;
        let plugins = GoNode::root(plugins, Order::Text).items("a list").ok()?;
        Some(plugins.into_iter().map(|plugin| plugin.raw()).collect())
    }

    fn ours(&self) -> Vec<&str> {
        match self.inlined() {
            Some(plugins) => plugins.into_iter().filter(|plugin| is_ours(plugin)).collect(),
            None if is_ours(&self.text) => vec![&self.text],
            None => Vec::new(),
        }
    }

    fn member(&self, key: &str) -> Option<&str> {
        self.members.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.get())
    }
}

/// A list as text: what is in `members[place]` is replaced by `plugins`.
struct List<'a> {
    members: Vec<(&'a str, Cow<'a, str>)>,
    place: usize,
    plugins: Vec<Cow<'a, str>>,
}

impl List<'_> {
    fn render(&self) -> Vec<u8> {
        let plugins = format!("[{}]", self.plugins.join(","));
        let members = self.members.iter().enumerate();
        let members = members
            .map(|(place, (key, text))| (*key, if place == self.place { plugins.as_str() } else { text }));
        layout::pretty(&object(members))
    }
}

/// An object of members whose values are JSON text.
fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let members = members.map(|(key, value)| format!("{}:{value}", serde_json::Value::from(key)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// Whether a network is another one with our plugin behind it. What the other one leaves out may have been filled in.
fn is_with_entry(before: &LoadedNetwork, after: &LoadedNetwork) -> bool {
    let is_kept = |before: &str, after: &str| before.is_empty() || before == after;
    let foreign = before.plugins.iter().map(String::as_str).filter(|kind| *kind != ENTRY_TYPE);
    is_kept(&before.name, &after.name)
        && is_kept(&before.version, &after.version)
        && foreign.chain([ENTRY_TYPE]).eq(after.plugins.iter().map(String::as_str))
}

fn is_ours(plugin: &str) -> bool {
    libcni::plugin_type(plugin).as_deref() == Some(ENTRY_TYPE)
}

#[cfg(test)]
mod tests;
