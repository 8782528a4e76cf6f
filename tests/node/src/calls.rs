//! What the runtime asked of each CNI plugin: every plugin named in the conflist is reached through a small script that keeps
//! a record of the call.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// Where Debian's `containernetworking-plugins` puts the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// One call of one plugin.
#[derive(Debug, Clone)]
pub struct Call {
    /// The plugin's `type`.
    pub plugin: String,
    /// When the call began, in nanoseconds since 1970.
    pub at: u64,
    /// The variables whose names begin with `CNI_`.
    pub env: BTreeMap<String, String>,
    /// Standard input as JSON, or as a string where it is no JSON.
    pub stdin: Value,
    /// What the plugin answered.
    pub stdout: String,
    /// What the plugin logged.
    pub stderr: String,
    /// The exit status.
    pub code: i32,
}

impl Call {
    /// `CNI_COMMAND`.
    #[must_use]
    pub fn verb(&self) -> &str {
        self.env("CNI_COMMAND")
    }

    /// A variable, empty when it was not set.
    #[must_use]
    pub fn env(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    /// Whether the runtime handed over the result of the plugins before.
    #[must_use]
    pub fn has_prev_result(&self) -> bool {
        self.stdin.get("prevResult").is_some_and(|r| !r.is_null())
    }
}

/// The plugin directory of a node and the records of the calls.
#[derive(Debug)]
pub(crate) struct Recorder {
    calls: PathBuf,
    refusals: PathBuf,
}

impl Recorder {
    /// Fills `bin` with the reference plugins and `extra`; a type named in `conflist` is put behind the recording script.
    ///
    /// # Errors
    /// When a directory or file below `dir` cannot be written or the reference plugins are not installed.
    pub(crate) fn install(dir: &Path, bin: &Path, conflist: &Value, extra: &[(&str, &Path)]) -> Result<Self> {
        let recorder = Self { calls: dir.join("calls"), refusals: dir.join("refusals") };
        let real = dir.join("plugins");
        for made in [&recorder.calls, &recorder.refusals, &real, &bin.to_path_buf()] {
            fs::create_dir_all(made).with_context(|| format!("create {}", made.display()))?;
        }
        let reference = fs::read_dir(REFERENCE_PLUGINS).with_context(|| {
            format!("list {REFERENCE_PLUGINS}: install the package containernetworking-plugins")
        })?;
        for plugin in reference {
            let plugin = plugin?;
            symlink(plugin.path(), real.join(plugin.file_name()))?;
        }
        for (name, path) in extra {
            let path = fs::canonicalize(path).with_context(|| format!("find plugin {}", path.display()))?;
            let link = real.join(name);
            symlink(&path, &link)
                .with_context(|| format!("link {} to {}", link.display(), path.display()))?;
        }
        let recorded: Vec<&str> = conflist["plugins"]
            .as_array()
            .context("the conflist has no list `plugins`")?
            .iter()
            .filter_map(|p| p["type"].as_str())
            .collect();
        for plugin in fs::read_dir(&real)? {
            let name = plugin?.file_name().to_string_lossy().into_owned();
            if recorded.contains(&name.as_str()) {
                recorder.write_script(&bin.join(&name), &name, &real.join(&name))?;
            } else {
                symlink(real.join(&name), bin.join(&name))?;
            }
        }
        Ok(recorder)
    }

    fn write_script(&self, script: &Path, name: &str, real: &Path) -> Result<()> {
        let text = include_str!("recorder.sh")
            .replace("@NAME@", name)
            .replace("@CALLS@", &self.calls.to_string_lossy())
            .replace("@REFUSALS@", &self.refusals.to_string_lossy())
            .replace("@REAL@", &real.to_string_lossy());
        fs::write(script, text).with_context(|| format!("write {}", script.display()))?;
        fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Every complete record, oldest first.
    pub(crate) fn read(&self) -> Result<Vec<Call>> {
        let mut calls = Vec::new();
        for record in fs::read_dir(&self.calls)? {
            let record = record?;
            if record.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            calls.push(
                parse_call(&record.path()).with_context(|| format!("read record {:?}", record.path()))?,
            );
        }
        calls.sort_by_key(|c| c.at);
        Ok(calls)
    }

    /// Drops all complete records.
    pub(crate) fn forget(&self) -> Result<()> {
        for record in fs::read_dir(&self.calls)? {
            let record = record?;
            if !record.file_name().to_string_lossy().starts_with('.') {
                fs::remove_dir_all(record.path())?;
            }
        }
        Ok(())
    }

    /// Has `plugin` refuse `verb` with `answer`, until called with `None`.
    pub(crate) fn refuse(&self, plugin: &str, verb: &str, answer: Option<&str>) -> Result<()> {
        let file = self.refusals.join(format!("{plugin}.{verb}"));
        match answer {
            Some(text) => fs::write(&file, text)?,
            None if file.exists() => fs::remove_file(&file)?,
            None => {}
        }
        Ok(())
    }
}

fn parse_call(record: &Path) -> Result<Call> {
    let read = |name: &str| -> Result<String> {
        let bytes = fs::read(record.join(name)).with_context(|| format!("read {name}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let stdin = read("stdin")?;
    Ok(Call {
        plugin: read("plugin")?.trim().to_owned(),
        at: read("at")?.trim().parse()?,
        env: read("env")?
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        stdin: serde_json::from_str(&stdin).unwrap_or(Value::String(stdin)),
        stdout: read("stdout")?,
        stderr: read("stderr")?,
        code: read("code")?.trim().parse()?,
    })
}
