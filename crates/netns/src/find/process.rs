//! A process of the node as procfs shows it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::NetnsId;

/// No file of procfs that is read here is longer than some hundred bytes, but for odd cgroups.
const MAX_FILE: u64 = 64 << 10;

/// The processes of a node, sorted by their number as text (AA-71).
pub(super) struct Processes(std::vec::IntoIter<PathBuf>);

/// One of them; it may be gone by now.
pub(super) struct Process(PathBuf);

// === impl Processes ===

impl Processes {
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(root)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
                all.push(path);
            }
        }
        all.sort_unstable();
        Ok(Self(all.into_iter()))
    }
}

impl Iterator for Processes {
    type Item = Process;

    fn next(&mut self) -> Option<Process> {
        self.0.next().map(Process)
    }
}

// === impl Process ===

impl Process {
    pub(super) fn namespace_path(&self) -> PathBuf {
        self.0.join("ns/net")
    }

    /// Which network namespace it is in.
    pub(super) fn namespace(&self) -> Option<NetnsId> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(self.namespace_path()).ok()?;
        Some(NetnsId { dev: metadata.dev(), ino: metadata.ino() })
    }

    pub(super) fn cgroup(&self) -> Option<String> {
        self.read("cgroup")
    }

    /// When it started, in clock ticks since the node's start.
    pub(super) fn started(&self) -> Option<u64> {
        started(&self.read("stat")?)
    }

    /// Which sandbox it is the process of.
    pub(super) fn sandbox(&self, names: &[(&str, &'static str)]) -> Option<&'static str> {
        let comm = self.read("comm")?;
        let comm = comm.trim_end();
        let named = |name: &str| match name {
            // What gVisor's sandbox calls itself after it has executed itself anew.
            "exe" => comm == name && self.read("cmdline").is_some_and(|line| line.starts_with("runsc")),
            name => comm.starts_with(name),
        };
        names.iter().find(|(name, _)| named(name)).map(|(_, sandbox)| *sandbox)
    }

    fn read(&self, name: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(self.0.join(name)).ok()?;
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Field 22 of `stat` (proc(5)). The second field is the program's name, in which anything may stand.
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::started;

    #[test]
    fn the_start_time_is_after_the_last_parenthesis() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 70298968 20";
        assert_eq!(started(&format!("12 (a) b) c) {rest}")), Some(70_298_968));
        assert_eq!(started("12 (a) S 1 2 3"), None);
        assert_eq!(started("12 a S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"), None);
        assert_eq!(started(""), None);
    }
}
