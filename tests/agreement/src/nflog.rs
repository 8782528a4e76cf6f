//! Who listens to logged packets: which group and prefix each had.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt,
};
use testkit::TestNetns;

/// `NETLINK_NETFILTER` of linux/netlink.h.
const NETFILTER: u32 = 12;
/// `NFNL_SUBSYS_ULOG << 8` of linux/netfilter/nfnetlink.h, `NFULNL_MSG_PACKET` and `NFULNL_MSG_CONFIG`.
const PACKET: u16 = 4 << 8;
const CONFIG: u16 = 4 << 8 | 1;
/// `NFULA_PREFIX`.
const PREFIX: u16 = 10;
/// How long a record takes at most.
const PATIENCE: Duration = Duration::from_secs(2);

/// A socket that gets what is logged to some groups of a namespace.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// When the kernel refuses, as one without `CONFIG_NETFILTER_NETLINK_LOG` does.
    pub fn new(namespace: &TestNetns, groups: &[u16]) -> Result<Self> {
        let socket = namespace.enter(|_| {
            let protocol = NonZeroU32::new(NETFILTER).map(rustix::net::Protocol::from_raw);
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
        })??;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        for group in groups {
            // Bind; no part of the packet; each at once.
            for (kind, data) in [(1, &[1][..]), (2, &[0, 0, 0, 0, 1, 0]), (5, &1_u32.to_be_bytes())] {
                configure(&socket, *group, kind, data)
                    .with_context(|| format!("listen to group {group}, attribute {kind}"))?;
            }
        }
        Ok(Self(socket))
    }

    /// The group and the prefix of the next `count` packets, in the order in which they were logged.
    ///
    /// # Errors
    /// There are fewer.
    pub fn next(&self, count: usize) -> Result<Vec<(u16, String)>> {
        let mut found = Vec::new();
        let mut buffer = [0; 8192];
        while found.len() < count {
            let read = recv(&self.0, &mut buffer[..], RecvFlags::empty());
            let (length, _) =
                read.with_context(|| format!("{count} packets should have been logged, got {found:?}"))?;
            found.extend(records(&buffer[..length]));
        }
        Ok(found)
    }

    /// The prefixes of everything that was logged until now, in order.
    pub fn drain(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut buffer = [0; 8192];
        while let Ok((length, _)) = recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT) {
            found.extend(records(&buffer[..length]).into_iter().map(|(_, prefix)| prefix));
        }
        found
    }

    /// Whether nothing else was logged.
    pub fn is_silent(&self) -> bool {
        recv(&self.0, &mut [0; 8192][..], RecvFlags::DONTWAIT).is_err()
    }
}

fn configure(socket: &OwnedFd, group: u16, kind: u16, data: &[u8]) -> Result<()> {
    let attribute = [&u16::try_from(data.len() + 4)?.to_ne_bytes()[..], &kind.to_ne_bytes(), data].concat();
    let length = (20 + attribute.len()).next_multiple_of(4);
    // Request and acknowledge; no family; the group.
    let head =
        [&u32::try_from(length)?.to_ne_bytes()[..], &CONFIG.to_ne_bytes(), &5_u16.to_ne_bytes(), &[0; 8]]
            .concat();
    let mut message = [&head[..], &[0, 0], &group.to_be_bytes(), &attribute].concat();
    message.resize(length, 0);
    send(socket, &message, SendFlags::empty())?;
    let mut answer = [0; 256];
    recv(socket, &mut answer[..], RecvFlags::empty())?;
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    ensure!(code == 0, "the kernel refuses with number {code}");
    Ok(())
}

fn records(mut bytes: &[u8]) -> Vec<(u16, String)> {
    let number =
        |bytes: &[u8], at: usize| bytes.get(at..at + 2).map(|two| u16::from_ne_bytes([two[0], two[1]]));
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (number(bytes, 0).map(usize::from), number(bytes, 4)) {
        let Some(message) = bytes.get(..length).filter(|_| length >= 20) else { break };
        let group = u16::from_be_bytes([message[18], message[19]]);
        let mut rest = &message[20..];
        while let (Some(size), Some(what)) = (number(rest, 0).map(usize::from), number(rest, 2)) {
            let Some(data) = rest.get(4..size) else { break };
            if (kind, what) == (PACKET, PREFIX) {
                let text = data.strip_suffix(&[0]).unwrap_or(data);
                found.push((group, String::from_utf8_lossy(text).into_owned()));
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}
