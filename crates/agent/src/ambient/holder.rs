//! Which process keeps a table of nf_tables for itself, as far as the kernel and procfs say.

use std::fs;
use std::path::Path;

use netns::{Inside, NetnsId};

/// Sockets of netlink in the namespace of the thread that reads it: the third column is the port, the last the inode.
const SOCKETS: &str = "/proc/thread-self/net/netlink";
/// `NETLINK_NETFILTER` (linux/netlink.h), the second column.
const NETFILTER: &str = "12";

/// The process that is why an error of the kernel came, where there is one.
pub(super) fn process(inside: &Inside, error: &kernel::Error, proc_root: &Path) -> Option<String> {
    error.holder().and_then(|port| holder(inside, port, proc_root))
}

/// The process in this namespace that has the netlink socket with this port.
fn holder(inside: &Inside, port: u32, proc_root: &Path) -> Option<String> {
    let sockets = fs::read_to_string(SOCKETS).ok()?;
    let columns = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let port = port.to_string();
    let mut found = columns.filter(|columns| columns.get(1..3) == Some(&[NETFILTER, &*port]));
    let link = format!("socket:[{}]", found.next()?.last()?);
    let processes = fs::read_dir(proc_root).ok()?.flatten().map(|entry| entry.path());
    // Few processes are in the pod's namespace, and a process's descriptors are many.
    let mut holders = processes
        .filter(|process| number(process).is_some() && is_in(process, inside.id()) && has(process, &link));
    let process = holders.next()?;
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let name: String = name.trim_end().chars().filter(|c| c.is_ascii_graphic()).take(15).collect();
    Some(format!("process {} ({name})", number(&process)?))
}

/// The process's number; procfs has other entries.
fn number(process: &Path) -> Option<u32> {
    process.file_name()?.to_str()?.parse().ok()
}

fn is_in(process: &Path, netns: NetnsId) -> bool {
    use std::os::unix::fs::MetadataExt;
    let of = fs::metadata(process.join("ns/net"));
    of.is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (netns.dev, netns.ino))
}

fn has(process: &Path, link: &str) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target.as_os_str() == link)
}

#[cfg(test)]
mod tests {
    use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

    use super::*;

    #[test]
    fn the_process_with_the_socket_is_named() {
        let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, Some(NETFILTER)).unwrap();
        bind(&netlink, &SocketAddrNetlink::new(0, 0)).unwrap();
        let port = SocketAddrNetlink::try_from(getsockname(&netlink).unwrap()).unwrap().pid();
        let inside = Inside::of_calling_thread().unwrap();
        let found = holder(&inside, port, Path::new("/proc")).unwrap();
        let own = format!("process {} (", std::process::id());
        assert!(found.starts_with(&own) && found.contains("agent-"), "{found} is not {own}");
        drop(netlink);
        assert_eq!(holder(&inside, port, Path::new("/proc")), None);
    }
}
