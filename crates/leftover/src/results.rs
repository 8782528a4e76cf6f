//! What libcni keeps: `<cache>/results/<network>-<container>-<interface>`, JSON with the configuration in base64 (libcni's `api.go`, `cacheAdd`).

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cni::json::Value;

/// Folder of results in a cache directory.
const RESULTS: &str = "results";
/// Longest file that is read, in bytes. A longer one counts as naming the plugin.
const MAX_FILE: u64 = 4 << 20;

/// What kept results say of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Results {
    /// There is no folder of results.
    Absent,
    /// They cannot be read.
    Unknown,
    /// So many of them name the program.
    Naming(usize),
}

/// Counts the results below `cache` that name the plugin `program`, in the directory itself and in those of programs that keep their own
/// below it (Multus: `multus/results`). What cannot be read or does not parse counts: a result may be half written.
pub fn look(cache: &Path, program: &str) -> Results {
    let folders = match folders(cache) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Results::Absent,
        Err(_) => return Results::Unknown,
        Ok(folders) if folders.is_empty() => return Results::Absent,
        Ok(folders) => folders,
    };
    let mut naming = 0;
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(&folder) else { return Results::Unknown };
        for entry in entries {
            let Ok(entry) = entry else { return Results::Unknown };
            naming += usize::from(file_names(&entry.path(), program));
        }
    }
    Results::Naming(naming)
}

/// Whether the result of an attachment is kept.
pub(crate) fn is_kept(cache: &Path, result: &str) -> bool {
    folders(cache).is_ok_and(|folders| {
        folders.iter().any(|folder| std::fs::symlink_metadata(folder.join(result)).is_ok())
    })
}

/// The folders of results that there are.
fn folders(cache: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = vec![cache.join(RESULTS)];
    for entry in std::fs::read_dir(cache)? {
        folders.push(entry?.path().join(RESULTS));
    }
    folders.retain(|folder| folder.is_dir());
    Ok(folders)
}

fn file_names(path: &Path, program: &str) -> bool {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| {
        let is_file = file.metadata()?.is_file();
        if is_file { file.take(MAX_FILE + 1).read_to_end(&mut text) } else { Ok(0) }
    });
    match read {
        // Its pod was deleted meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(_) => true,
        Ok(_) if text.len() as u64 > MAX_FILE => true,
        Ok(_) => names(&text, program),
    }
}

/// Whether the text of a result names the program. One without a configuration (libcni before 0.8) does not: nothing can be deleted by it.
pub(crate) fn names(text: &[u8], program: &str) -> bool {
    let Ok(kept) = Value::parse(text) else { return !text.is_empty() };
    let Some(Value::String(config)) = kept.get("config") else { return false };
    let Ok(config) = STANDARD.decode(config) else { return true };
    // The configuration is the text that we wrote ourselves. A name in another place than `type` costs some megabytes.
    let quoted = format!("\"{program}\"");
    config.windows(quoted.len()).any(|window| window == quoted.as_bytes())
}
