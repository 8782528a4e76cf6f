//! The tables of iptables-legacy, as one number.
//!
//! The kernel hands a table out as it has it, in one piece, with the counters of each rule; these are left out.

use std::ffi::{c_int, c_void};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use netns::Inside;
use ruleset::Family;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::Error;
use crate::iptables::legacy_tables;

/// `SOL_IP` and `SOL_IPV6`.
const SOL_IP: c_int = 0;
const SOL_IPV6: c_int = 41;
/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES` of `linux/netfilter_ipv4/ip_tables.h`; those of IPv6 have the same numbers.
const GET_INFO: c_int = 64;
const GET_ENTRIES: c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// Length of `struct ipt_getinfo`; the size of the entries is its last number.
const INFO: usize = NAME + 13 * 4;
/// Where the entries begin in `struct ipt_get_entries`, which has their size after the name.
const ENTRIES: usize = NAME + 8;
/// Bytes of a table that are read. Of a larger one that is all that is known.
const MOST: usize = 4 << 20;
/// Bytes of all tables that are compared by whoever keeps others waiting: some hundred microseconds.
const QUICK: usize = 256 << 10;
/// How often a table is read that grows meanwhile.
const TRIES: usize = 5;

/// The names of the tables that there are, of both families.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LegacyTables(Vec<(Family, String)>);

/// Tables, and a hash of what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct LegacyContent {
    pub(super) tables: LegacyTables,
    hash: u64,
    /// Length of all of it.
    bytes: usize,
}

/// Asks for what is in tables of one namespace.
#[derive(Debug)]
pub(crate) struct LegacySocket(OwnedFd);

/// Where a rule (`struct ipt_entry`, `struct ip6t_entry`) has the distance to its target, that to the next one, and its counters.
struct EntryLayout {
    target: usize,
    next: usize,
    counters: usize,
}

// === impl LegacyTables ===

impl LegacyTables {
    /// Whether this kernel can have any. Its file is in every namespace or in none.
    pub(super) fn may_exist() -> bool {
        // What is there once goes with the kernel's module only, and no file is no table.
        static EXISTS: AtomicBool = AtomicBool::new(false);
        let is_there = || crate::iptables::LEGACY_NAMES.iter().any(|path| Path::new(path).exists());
        let exists = EXISTS.load(Ordering::Relaxed) || is_there();
        EXISTS.store(exists, Ordering::Relaxed);
        exists
    }

    pub(super) fn read(_: &Inside) -> Result<Self, Error> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            all.extend(legacy_tables(family)?.into_iter().map(|name| (family, name)));
        }
        all.sort();
        Ok(Self(all))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, family: Family) -> bool {
        self.0.iter().any(|(of, _)| *of == family)
    }
}

/// What is in tables that there are. Without any, no socket is needed.
pub(super) fn content(socket: Option<&LegacySocket>, tables: LegacyTables) -> Result<LegacyContent, Error> {
    let (mut hasher, mut bytes) = (crate::keyed::hasher(), 0);
    for (family, table) in socket.iter().flat_map(|_| &tables.0) {
        table.hash(&mut hasher);
        let entries = socket.map(|socket| socket.entries(*family, table)).transpose();
        let mut entries = entries.map_err(|source| Error::Legacy { table: table.clone(), source })?;
        if let Some(entries) = &mut entries {
            mask_counters(*family, entries);
        }
        bytes += entries.as_ref().map_or(0, Vec::len);
        entries.hash(&mut hasher);
    }
    Ok(LegacyContent { hash: hasher.finish(), tables, bytes })
}

impl LegacyContent {
    /// Whether it is read in no time.
    pub(super) fn is_small(&self) -> bool {
        self.bytes <= QUICK
    }
}

// === impl LegacySocket ===

impl LegacySocket {
    /// For the namespace of the calling thread. A socket of IPv6 answers for IPv4, too, if it is none of type raw.
    pub(crate) fn open(_: &Inside) -> Result<Self, Error> {
        let open = |family| rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let fd = open(AddressFamily::INET6).or_else(|_| open(AddressFamily::INET));
        fd.map(Self).map_err(|e| Error::Legacy { table: "of any name".to_owned(), source: e.into() })
    }

    /// Whether others have a rule in PREROUTING of the nat table, which is there. A jump to a chain of ours is none.
    pub(crate) fn others_translate(
        &self,
        family: Family,
        is_ours: impl Fn(&str) -> bool,
    ) -> Result<bool, Error> {
        let read = self.table(family, "nat");
        let (info, entries) = read.map_err(|source| Error::Legacy { table: "nat".to_owned(), source })?;
        Ok(has_others(family, &info, &entries, is_ours))
    }

    /// The rules of a table as the kernel has them.
    fn entries(&self, family: Family, table: &str) -> io::Result<Vec<u8>> {
        let (info, entries) = self.table(family, table)?;
        Ok(if entries.is_empty() { info } else { entries })
    }

    /// What the kernel says about a table, and its rules; none of those where they are too many.
    fn table(&self, family: Family, table: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
        for _ in 0..TRIES {
            let mut info = vec![0; INFO];
            self.get(family, GET_INFO, table, &mut info)?;
            let size = info.last_chunk::<4>().map_or(0, |size| u32::from_ne_bytes(*size));
            let length = usize::try_from(size).unwrap_or(usize::MAX);
            if length > MOST {
                return Ok((info, Vec::new()));
            }
            let mut answer = vec![0; ENTRIES + length];
            answer[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
            match self.get(family, GET_ENTRIES, table, &mut answer) {
                Ok(()) => return Ok((info, answer.split_off(ENTRIES))),
                Err(e) if Errno::from_io_error(&e) == Some(Errno::AGAIN) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The value of an option that begins with the name of a table.
    #[allow(unsafe_code)]
    fn get(&self, family: Family, option: c_int, table: &str, value: &mut [u8]) -> io::Result<()> {
        unsafe extern "C" {
            // Every libc declares it so; socklen_t is 32 bits on all of them.
            fn getsockopt(
                fd: c_int,
                level: c_int,
                name: c_int,
                value: *mut c_void,
                length: *mut u32,
            ) -> c_int;
        }
        let level = if family == Family::V4 { SOL_IP } else { SOL_IPV6 };
        // The kernel puts a zero at the end of a longer one.
        let name = &table.as_bytes()[..table.len().min(NAME - 1)];
        value[..name.len()].copy_from_slice(name);
        let mut length = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
        // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes, which are all of the value's.
        match unsafe {
            getsockopt(self.0.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut length)
        } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

// === impl EntryLayout ===

impl EntryLayout {
    const fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self { target: 88, next: 90, counters: 96 },
            Family::V6 => Self { target: 140, next: 142, counters: 152 },
        }
    }
}

/// Whether PREROUTING has a rule that does more than jump to a chain of ours. `struct ipt_getinfo` has where its rules and its policy begin, behind
/// the table's name and the hooks; of a table that cannot be read that is so.
fn has_others(family: Family, info: &[u8], entries: &[u8], is_ours: impl Fn(&str) -> bool) -> bool {
    const RULES: usize = NAME + 4;
    const POLICIES: usize = RULES + 5 * 4;
    let layout = EntryLayout::of(family);
    let number = |bytes: &[u8], at: usize| {
        let number = bytes.get(at..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))?;
        usize::try_from(number).ok()
    };
    let distance =
        |at: usize| entries.get(at..)?.first_chunk().map(|two| usize::from(u16::from_ne_bytes(*two)));
    let (Some(mut at), Some(policy)) = (number(info, RULES), number(info, POLICIES)) else { return true };
    while at < policy {
        let (target, next) = (distance(at + layout.target), distance(at + layout.next));
        let chain = target.and_then(|target| jumped_to(entries, at + target));
        let Some(next) = next.filter(|next| *next > 0 && chain.is_some_and(&is_ours)) else { return true };
        at += next;
    }
    false
}

/// The chain that a target leads to: one without a name (`XT_STANDARD_TARGET`), with the place of the chain's first rule. The chain's name is the
/// end of the entry before that (`struct xt_error_target`).
fn jumped_to(entries: &[u8], target: usize) -> Option<&str> {
    const TARGET: usize = 32;
    let has_no_name = *entries.get(target + 2)? == 0;
    let verdict =
        entries.get(target + TARGET..)?.first_chunk().map(|verdict| i32::from_ne_bytes(*verdict))?;
    let first = usize::try_from(verdict).ok().filter(|_| has_no_name)?;
    let name = entries.get(first.checked_sub(TARGET)?..first)?;
    std::str::from_utf8(name.split(|byte| *byte == 0).next()?).ok()
}

/// Puts zeros in the place of what packets change. It ends at the first rule that is not well-formed.
pub(crate) fn mask_counters(family: Family, entries: &mut [u8]) {
    const COUNTERS: usize = 16;
    let layout = EntryLayout::of(family);
    let mut rest = entries;
    while rest.len() >= layout.counters + COUNTERS {
        rest[layout.counters..layout.counters + COUNTERS].fill(0);
        let next = usize::from(u16::from_ne_bytes([rest[layout.next], rest[layout.next + 1]]));
        if next < layout.counters + COUNTERS || next > rest.len() {
            return;
        }
        rest = &mut rest[next..];
    }
}
