//! What is looked at: answers of this program, of the node's tools, and files.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use http1::{Connection, Deadline};
use kernel::RuleStore;
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use netns::Inside;
use rustix::fs::OFlags;

use super::archive::ReportItem;
use crate::chain::execute;
use crate::node::in_host;
use crate::pods::{attached, chain_text};

/// Time for one program; one that hangs in the kernel is left to itself soon after.
const PROGRAM_TIME: Duration = Duration::from_secs(10);
/// Time for a verb of this program, which itself waits for programs that may hang, the plugin among them.
pub(super) const VERB_TIME: Duration = Duration::from_secs(20);
const LEFT_ALONE: Duration = Duration::from_secs(2);
/// Largest answer of /metrics, in bytes.
const MAX_METRICS: usize = 8 << 20;
/// Words of the kernel's log lines that are about packets.
const KERNEL_WORDS: [&str; 8] =
    ["netfilter", "nf_", "nft", "conntrack", "iptables", "x_tables", "xt_", "ip_set"];
/// Most lines of the kernel's log that are read.
const MAX_KERNEL_LINES: usize = 100_000;

/// Settings of the kernel by which packets of pods are treated.
const SETTINGS: [&str; 17] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/conf/all/src_valid_mark",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_tcp_loose",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/bridge/bridge-nf-call-iptables",
    "user/max_net_namespaces",
    "user/max_user_namespaces",
    "fs/file-nr",
    "fs/inotify/max_user_instances",
    "kernel/osrelease",
];

/// A program of the node, in the node's own network namespace.
pub(super) fn in_node(file: &str, line: &str) -> ReportItem {
    let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    timed(file, line, move || match in_host(|_| run(&words, PROGRAM_TIME)) {
        Ok(ran) => ran,
        Err(error) => failed(format!("enter the node's network namespace: {}", fault::chain(&error))),
    })
}

/// A verb of this program.
pub(super) fn own(file: &str, words: &[String]) -> ReportItem {
    let line = format!("cnictl {}", words.join(" "));
    let mut command = vec!["/proc/self/exe".to_owned()];
    command.extend_from_slice(words);
    timed_within(VERB_TIME, file, &line, move || run(&command, VERB_TIME))
}

/// Something that this program does itself; `command` says what.
pub(super) fn timed(
    file: &str,
    command: &str,
    look: impl FnOnce() -> ReportItem + Send + 'static,
) -> ReportItem {
    timed_within(PROGRAM_TIME, file, command, look)
}

fn timed_within(
    time: Duration,
    file: &str,
    command: &str,
    look: impl FnOnce() -> ReportItem + Send + 'static,
) -> ReportItem {
    let begun = Instant::now();
    let item = answered_within(time + LEFT_ALONE, look).unwrap_or_else(failed);
    let seconds = begun.elapsed().as_secs_f64();
    ReportItem { file: file.to_owned(), command: command.to_owned(), seconds, ..item }
}

/// What comes of a look in a thread of its own, which is left behind where the kernel does not give it back.
///
/// # Errors
/// It takes longer, or there is no thread.
pub(super) fn answered_within<T: Send + 'static>(
    time: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, wait) = mpsc::channel();
    let started = thread::Builder::new().spawn(move || done.send(look()));
    started.map_err(|error| format!("start a thread: {error}"))?;
    wait.recv_timeout(time).map_err(|_| format!("no answer after {} s", time.as_secs()))
}

pub(super) fn failed(problem: String) -> ReportItem {
    ReportItem { problem, ..ReportItem::default() }
}

pub(super) fn text(text: String) -> ReportItem {
    ReportItem { text, ..ReportItem::default() }
}

fn run(words: &[String], time: Duration) -> ReportItem {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    match execute(command, b"", time) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            failed("there is no such program here".to_owned())
        }
        Err(error) => failed(format!("it cannot be started: {error}")),
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stderr);
            let late =
                if ran.timed_out { format!("killed after {} s; ", time.as_secs()) } else { String::new() };
            ReportItem {
                exit: ran.status.code(),
                problem: format!("{late}{}", &said.trim()[..said.trim().floor_char_boundary(2000)]),
                text: String::from_utf8_lossy(&ran.stdout).into_owned(),
                ..ReportItem::default()
            }
        }
    }
}

/// All rules of a network namespace, as the kernel gives them; no program of nf_tables is needed.
pub(super) fn rules(inside: &Inside) -> ReportItem {
    let iptables = Iptables::new();
    let stores: [(&str, &dyn RuleStore); 2] = [("nf_tables", &Nftables), ("iptables", &iptables)];
    let mut item = ReportItem::default();
    for (name, store) in stores {
        match store.others(inside, &[]) {
            Ok(listing) => {
                item.problem.extend(listing.notes.iter().map(|note| format!("{name}: {note}; ")));
                for table in listing.tables {
                    // Writing to a String cannot fail.
                    let _ = writeln!(item.text, "table {}", table.name);
                    for chain in &table.chains {
                        let _ = writeln!(item.text, "  chain {}", chain_text(&chain.name, &attached(chain)));
                        for rule in &chain.rules {
                            let handle =
                                rule.handle.map_or_else(String::new, |handle| format!("  # handle {handle}"));
                            let _ = writeln!(item.text, "    {rule}{handle}");
                        }
                    }
                }
            }
            Err(error) => {
                let _ = write!(item.problem, "{name}: {}; ", fault::chain(&error));
            }
        }
    }
    item
}

/// What the agent counts.
pub(super) fn metrics(address: SocketAddr) -> ReportItem {
    let ask = || -> Result<http1::Response, String> {
        let deadline = Deadline::within(PROGRAM_TIME);
        let socket = TcpStream::connect_timeout(&address, PROGRAM_TIME).map_err(|error| error.to_string())?;
        let request = http1::request("GET", &address.to_string(), "/metrics", &[], None);
        http1::exchange(&mut Connection::new(socket, deadline), &request, None, MAX_METRICS, deadline)
            .map_err(|error| fault::chain(&error))
    };
    match ask() {
        Ok(answer) if answer.status == 200 => text(String::from_utf8_lossy(&answer.body).into_owned()),
        Ok(answer) => failed(format!("it answers {}", answer.status)),
        Err(error) => failed(error),
    }
}

/// Those of the kernel's last lines that are about packets.
pub(super) fn kernel_log() -> ReportItem {
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut log = match File::options().read(true).custom_flags(flags).open("/dev/kmsg") {
        Ok(log) => log,
        Err(error) => return failed(format!("open /dev/kmsg: {error}")),
    };
    let (mut found, mut record) = (String::new(), [0; 8 << 10]);
    for _ in 0..MAX_KERNEL_LINES {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let line = String::from_utf8_lossy(&record[..length]);
                let line = line.lines().next().unwrap_or_default();
                let lower = line.to_ascii_lowercase();
                if KERNEL_WORDS.iter().any(|word| lower.contains(word)) {
                    found += line;
                    found.push('\n');
                }
            }
            // Overwritten while it was read.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return failed(format!("read /dev/kmsg: {error}")),
        }
    }
    if found.is_empty() { failed("no line is about packets".to_owned()) } else { text(found) }
}

pub(super) fn settings() -> ReportItem {
    let read = |name: &&str| {
        let value = std::fs::read_to_string(Path::new("/proc/sys").join(name));
        let value = value.map_or_else(|error| format!("({error})"), |value| value.trim().to_owned());
        format!("{} = {value}\n", name.replace('/', "."))
    };
    text(SETTINGS.iter().map(read).collect())
}

/// The names, sizes and modes of a directory's files.
pub(super) fn listing(dir: &Path) -> ReportItem {
    use std::os::unix::fs::MetadataExt as _;
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return failed(error.to_string()),
    };
    let line = |entry: std::fs::DirEntry| {
        let metadata = entry.path().symlink_metadata().ok()?;
        let (mode, size) = (metadata.mode(), metadata.len());
        let (uid, gid, name) = (metadata.uid(), metadata.gid(), entry.file_name());
        Some(format!("{mode:06o} {uid}:{gid} {size:>9} {}\n", name.to_string_lossy().escape_debug()))
    };
    let mut lines: Vec<String> = entries.flatten().take(10_000).filter_map(line).collect();
    lines.sort_by(|a, b| a.rsplit(' ').next().cmp(&b.rsplit(' ').next()));
    text(lines.concat())
}
