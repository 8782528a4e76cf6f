//! Who kubelet is, from the processes of the node. Only where host probes are told by their sender's user.

use std::path::{Path, PathBuf};

/// kubelet is not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The processes cannot be seen.
    #[error("look for kubelet in {}: {cause}", path.display())]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// The system's words.
        cause: std::io::Error,
    },
    /// None is it.
    #[error(
        "no process in {} is kubelet, kubelite or k3s; mount the node's /proc there, or let probes be those of any socket \
         (HOST_PROBE_SENDER=socket)", path.display()
    )]
    NotFound {
        /// Where.
        path: PathBuf,
    },
}

/// The real user of kubelet.
///
/// # Errors
/// See [`Error`].
pub fn uid(proc_root: &Path) -> Result<u32, Error> {
    let unreadable = |cause| Error::Unreadable { path: proc_root.to_owned(), cause };
    let mut processes = Vec::new();
    for entry in std::fs::read_dir(proc_root).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
            // Shorter numbers are smaller.
            processes.push((name.len(), path));
        }
    }
    processes.sort_unstable();
    // One that ends meanwhile has no user any more; another may be the one that follows it.
    let mut candidates = processes.iter().map(|(_, process)| process).filter(|process| is_kubelet(process));
    let found = candidates.find_map(|process| real_uid(process));
    found.ok_or_else(|| Error::NotFound { path: proc_root.to_owned() })
}

fn is_kubelet(process: &Path) -> bool {
    let Ok(comm) = std::fs::read(process.join("comm")) else { return false };
    match comm.trim_ascii_end() {
        b"k3s" => true,
        // Anybody can call himself so; kubelet also says so in its arguments.
        b"kubelet" | b"kubelite" => {
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default().to_ascii_lowercase();
            line.split(|byte| *byte == 0).any(|word| word.windows(7).any(|part| part == b"kubelet"))
        }
        _ => false,
    }
}

/// The first number of `Uid:` (proc(5), `status`).
fn real_uid(process: &Path) -> Option<u32> {
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
