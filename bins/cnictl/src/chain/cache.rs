//! Results of ADD, kept for CHECK and DEL as the CNI spec asks of runtimes.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attachment::PodAttachment;

/// A directory with one file for each attachment.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
}

/// What is kept of an attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CacheEntry {
    pub(super) network: String,
    pub(super) container_id: String,
    pub(super) ifname: String,
    pub(super) netns: String,
    pub(super) result: Value,
}

impl Cache {
    /// In `dir`, or where the user's programs keep their state (XDG base directories): never in a directory that others can
    /// write to, because what is read here goes to plugins that run as root.
    ///
    /// # Errors
    /// Neither `dir` nor the environment says where.
    pub(super) fn new(dir: Option<&Path>) -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let state = || {
            let state = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
            state.or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        };
        let dir = match dir {
            Some(dir) => dir.to_owned(),
            None => state()
                .context("neither XDG_STATE_HOME nor HOME is set; give a directory with --cache-dir")?
                .join("cnictl/results"),
        };
        Ok(Self { dir })
    }

    /// The parts are identifiers, so none of them leads out of the directory. `:` is in no identifier.
    fn file(&self, network: &str, attachment: &PodAttachment) -> PathBuf {
        self.dir.join(format!("{network}:{}:{}.json", attachment.container_id, attachment.ifname))
    }

    /// What an ADD left, if there was one.
    ///
    /// # Errors
    /// The file cannot be read or is broken.
    pub(super) fn load(&self, network: &str, attachment: &PodAttachment) -> Result<Option<CacheEntry>> {
        let file = self.file(network, attachment);
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("read cached result {}", file.display()));
            }
        };
        serde_json::from_slice(&text).map(Some).with_context(|| {
            format!("read cached result {}: remove the file if it is broken", file.display())
        })
    }

    /// Keeps a result. The file is whole or not there.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn store(&self, entry: &CacheEntry, attachment: &PodAttachment) -> Result<()> {
        let file = self.file(&entry.network, attachment);
        let place = || format!("write cached result {}", file.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).with_context(place)?;
        let partial = file.with_extension(format!("{}.tmp", std::process::id()));
        let text = serde_json::to_vec_pretty(entry)?;
        let mut options = std::fs::OpenOptions::new();
        let written = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .and_then(|mut open| io::Write::write_all(&mut open, &text))
            .and_then(|()| std::fs::rename(&partial, &file));
        if written.is_err() {
            // It may not even exist; the error that matters is the one before.
            let _ = std::fs::remove_file(&partial);
        }
        written.with_context(place)
    }

    /// Removes a result. A missing one is not an error.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn remove(&self, network: &str, attachment: &PodAttachment) -> Result<()> {
        let file = self.file(network, attachment);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove cached result {}", file.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    fn attachment() -> PodAttachment {
        let pod = capture::Pod { namespace: "n".to_owned(), name: "p".to_owned(), ..capture::Pod::default() };
        PodAttachment::new(&pod, None, "eth0").unwrap()
    }

    #[test]
    fn a_result_is_kept_private_and_whole_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let cache = Cache::new(Some(&path)).unwrap();
        assert_eq!(cache.load("net", &attachment()).unwrap(), None);
        let entry = CacheEntry {
            network: "net".to_owned(),
            container_id: "cnictl-n-p".to_owned(),
            ifname: "eth0".to_owned(),
            netns: "/run/netns/p".to_owned(),
            result: json!({"cniVersion": "1.0.0"}),
        };
        cache.store(&entry, &attachment()).unwrap();
        assert_eq!(cache.load("net", &attachment()).unwrap(), Some(entry));
        let files: Vec<_> = std::fs::read_dir(&path).unwrap().map(|file| file.unwrap()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        cache.remove("net", &attachment()).unwrap();
        cache.remove("net", &attachment()).unwrap();
        assert_eq!(cache.load("net", &attachment()).unwrap(), None);
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("net:cnictl-n-p:eth0.json"), "{").unwrap();
        let cache = Cache::new(Some(dir.path())).unwrap();
        let text = cache.load("net", &attachment()).unwrap_err().to_string();
        assert!(text.contains("net:cnictl-n-p:eth0.json") && text.contains("remove the file"), "{text}");
    }
}
