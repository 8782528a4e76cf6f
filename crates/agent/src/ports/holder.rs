//! Who has a port, as far as this process may see.

use std::fmt;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Largest table of sockets that is read, in bytes; a line has about 150.
const MAX_TABLE: u64 = 16 << 20;
/// Most processes, and descriptors of each, that are looked at.
const MAX_PROCESSES: usize = 65_536;
const MAX_DESCRIPTORS: usize = 4096;
/// Longest name of a process (`TASK_COMM_LEN` in the kernel), as long as it is read.
const MAX_NAME: u64 = 16;

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListeningSocket {
    pub(super) inode: u64,
    /// Whose it is.
    uid: u32,
}

/// Whose a socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SocketHolder {
    uid: u32,
    /// Number and name; absent where no process that may be looked at has the socket.
    process: Option<(u32, String)>,
}

impl fmt::Display for SocketHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, name)) => write!(f, "process {pid} ({name}) has the port"),
            None => write!(f, "a process of user {} has the port, see `ss -ltnp` on the node", self.uid),
        }
    }
}

/// The socket that listens on this port in the own network namespace.
pub(super) fn socket(address: SocketAddr) -> Option<ListeningSocket> {
    ["tcp", "tcp6"].iter().find_map(|table| {
        let mut text = String::new();
        let file = std::fs::File::open(Path::new("/proc/self/net").join(table)).ok()?;
        file.take(MAX_TABLE).read_to_string(&mut text).ok()?;
        parse_listener(&text, address)
    })
}

/// The process that has it, by the first of these roots of procfs that shows one.
pub(super) fn of(roots: &[PathBuf], socket: ListeningSocket) -> SocketHolder {
    let process = roots.iter().find_map(|root| process_with(root, socket.inode));
    SocketHolder { uid: socket.uid, process }
}

/// proc(5): column 1 is the local address, 3 the state with 0A for LISTEN, 7 the user, 9 the inode.
fn parse_listener(table: &str, wanted: SocketAddr) -> Option<ListeningSocket> {
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let (ip, port) = columns.get(1)?.rsplit_once(':')?;
        let ip = parse_ip(ip)?;
        let same_ip = ip == wanted.ip().to_canonical() || ip.is_unspecified() || wanted.ip().is_unspecified();
        let same = same_ip && u16::from_str_radix(port, 16).ok()? == wanted.port();
        let listens = *columns.get(3)? == "0A" && same;
        let (uid, inode) = (columns.get(7)?.parse().ok()?, columns.get(9)?.parse().ok()?);
        listens.then_some(ListeningSocket { inode, uid })
    })
}

/// Words of 32 bits, each in the byte order of this machine.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

fn process_with(root: &Path, inode: u64) -> Option<(u32, String)> {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    let processes = std::fs::read_dir(root).ok()?.take(MAX_PROCESSES).flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.find_map(|pid| {
        let dir = root.join(pid.to_string());
        let mut descriptors = std::fs::read_dir(dir.join("fd")).ok()?.take(MAX_DESCRIPTORS).flatten();
        descriptors.find(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link == wanted))?;
        let mut name = String::new();
        let read = std::fs::File::open(dir.join("comm"))
            .and_then(|file| file.take(MAX_NAME).read_to_string(&mut name));
        let name = if read.is_ok() { name.trim().replace(char::is_control, "?") } else { "?".to_owned() };
        Some((pid, name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
         0: 0100007F:1F40 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0 20 4 30 10 -1\n   \
         1: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 4711 1 0 100 0 0 10 0\n   \
         2: 00000000:3AA6 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0\n";

    #[test]
    fn what_listens_is_told_from_what_is_connected() {
        let at = |address: &str| parse_listener(TABLE, address.parse().unwrap());
        for address in ["127.0.0.1:8000", "0.0.0.0:8000", "[::]:8000", "[::ffff:127.0.0.1]:8000"] {
            assert_eq!(at(address), Some(ListeningSocket { inode: 4711, uid: 101 }), "{address}");
        }
        assert_eq!(
            at("127.0.0.1:15014"),
            Some(ListeningSocket { inode: 12, uid: 0 }),
            "it has every address"
        );
        assert_eq!((at("127.0.0.2:8000"), at("127.0.0.1:15021")), (None, None));
        assert_eq!(parse_ip("B80D0120000000000000000001000000"), "2001:db8::1".parse().ok());
        assert_eq!(parse_ip("0000000000000000FFFF00000100007F"), "127.0.0.1".parse().ok());
        for broken in ["", "head\n", "head\n 0: x", "head\n 0: 00:zz 0 0A 0 0 0 a b c", "head\n\n"] {
            assert_eq!(parse_listener(broken, "127.0.0.1:8000".parse().unwrap()), None, "{broken:?}");
        }
    }

    #[test]
    fn a_port_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = socket(listener.local_addr().unwrap()).unwrap();
        let holder = of(&["/nowhere".into(), "/proc".into()], socket);
        let (pid, name) = holder.process.clone().unwrap();
        assert!(pid == std::process::id() && !name.is_empty());
        assert_eq!(holder.to_string(), format!("process {pid} ({name}) has the port"));
        let hidden = of(&["/nowhere".into()], socket);
        assert_eq!(hidden.to_string(), "a process of user 0 has the port, see `ss -ltnp` on the node");
    }
}
