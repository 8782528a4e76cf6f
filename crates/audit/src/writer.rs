//! Appends to a chain: whole lines or nothing, also where the disk is full; rotates, packs and removes what is too old.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::chain::{ChainLink, MAX_LINE_BYTES, SealedLine};
use crate::files::{FileSet, Naming, is_packed, lines, pack};

/// Who may read: the owner, and the group.
const MODE: u32 = 0o640;

/// How large and old files become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLimits {
    /// Bytes of a file; not of one for a day.
    pub bytes: u64,
    /// After this another file is begun.
    pub age: Duration,
    /// Files beside the one that is written.
    pub files: usize,
    /// Files whose last line is older are removed.
    pub keep: Duration,
    /// Group of the files.
    pub gid: Option<u32>,
}

/// How the chain was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainStart {
    /// There were no lines.
    New,
    /// It goes on at its last line.
    Continued,
    /// It goes on at its last line; one that was not written to its end is removed.
    Torn,
    /// The last line is not one of a chain; the lines begin anew with a number that is higher than all that were read.
    Broken,
}

/// See the module.
#[derive(Debug)]
pub struct ChainWriter {
    set: FileSet,
    schema: &'static str,
    limits: FileLimits,
    link: ChainLink,
    file: Option<LiveFile>,
    packing: Option<std::thread::JoinHandle<()>>,
    /// Whether there may be rotated files that are not packed.
    is_unpacked: bool,
}

#[derive(Debug)]
struct LiveFile {
    path: PathBuf,
    file: File,
    inode: u64,
    /// The number of its first line.
    first: u64,
    begun: SystemTime,
    is_synced: bool,
}

/// Opens a file that is made for this and readable by its group.
pub(crate) fn create(path: &Path, gid: Option<u32>) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let file =
        OpenOptions::new().read(true).append(true).create(true).mode(MODE).custom_flags(flags).open(path)?;
    if let Some(gid) = gid {
        std::os::unix::fs::fchown(&file, None, Some(gid))?;
    }
    Ok(file)
}

// === impl ChainWriter ===

impl ChainWriter {
    /// Goes on where the files end. What is too old is removed first.
    ///
    /// # Errors
    /// Directory or file cannot be made or read.
    pub fn open(
        set: FileSet,
        schema: &'static str,
        limits: FileLimits,
        now: SystemTime,
    ) -> io::Result<(Self, ChainStart)> {
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o750);
        let is_new = !set.dir.exists();
        builder.recursive(true).create(&set.dir)?;
        // One that was there is not only ours.
        if let Some(gid) = limits.gid.filter(|_| is_new) {
            std::os::unix::fs::chown(&set.dir, None, Some(gid))?;
        }
        set.remove_unfinished()?;
        let mut writer = Self {
            set,
            schema,
            limits,
            link: ChainLink::start(),
            file: None,
            packing: None,
            is_unpacked: true,
        };
        let start = writer.find_end()?;
        writer.remove_old(now)?;
        writer.pack_rotated()?;
        Ok((writer, start))
    }

    /// Where the chain stands.
    pub fn link(&self) -> &ChainLink {
        &self.link
    }

    /// The last line of the newest file that has one.
    fn find_end(&mut self) -> io::Result<ChainStart> {
        let mut is_torn = false;
        for path in self.set.list()?.into_iter().rev() {
            is_torn |= !is_packed(&path) && remove_torn(&path)?;
            let Some(last) = last_line(&path)? else { continue };
            return Ok(match SealedLine::check(&last) {
                Ok(line) => {
                    self.link = line.link;
                    if is_torn { ChainStart::Torn } else { ChainStart::Continued }
                }
                Err(_) => {
                    self.link.seq = self.highest()?;
                    ChainStart::Broken
                }
            });
        }
        Ok(if is_torn { ChainStart::Torn } else { ChainStart::New })
    }

    /// The highest number of any line that can be read.
    fn highest(&self) -> io::Result<u64> {
        let mut highest = 0;
        for path in self.set.list()? {
            for line in lines(&path)? {
                // A packed file that is broken has no more lines.
                let Ok(line) = line else { break };
                if let Ok(sealed) = SealedLine::check(&line.text) {
                    highest = highest.max(sealed.link.seq);
                }
            }
        }
        Ok(highest)
    }

    /// Appends lines of these bodies, JSON objects: all or, with an error, nothing.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn append(&mut self, now: SystemTime, bodies: &[&str]) -> io::Result<()> {
        self.rotate(now)?;
        let (mut link, mut text) = (self.link.clone(), String::new());
        for body in bodies {
            let line = link.seal(body, self.schema).filter(|line| line.len() <= MAX_LINE_BYTES);
            let Some(line) = line else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a line is not an object, or too long",
                ));
            };
            text += &line;
            text.push('\n');
        }
        let first = self.link.seq + 1;
        let live = self.live(now, first)?;
        let length = live.file.metadata()?.len();
        if let Err(error) = live.file.write_all(text.as_bytes()) {
            // Half a line would end the chain; where this fails too, the next start removes it.
            let _ = live.file.set_len(length);
            return Err(error);
        }
        live.is_synced = false;
        self.link = link;
        Ok(())
    }

    /// Brings all to the disk. Where somebody has moved or removed the file, another one is begun with the next line.
    ///
    /// # Errors
    /// The disk fails.
    pub fn sync(&mut self) -> io::Result<()> {
        let Some(live) = &mut self.file else { return Ok(()) };
        if !live.is_synced {
            live.file.sync_data()?;
            live.is_synced = true;
        }
        let is_there = std::fs::metadata(&live.path).is_ok_and(|found| found.ino() == live.inode);
        if !is_there {
            self.file = None;
        }
        self.pack_rotated()
    }

    fn live(&mut self, now: SystemTime, first: u64) -> io::Result<&mut LiveFile> {
        let live = match self.file.take() {
            Some(live) => live,
            None => {
                let path = self.set.live(now);
                let file = create(&path, self.limits.gid)?;
                let (inode, length) = file.metadata().map(|of| (of.ino(), of.len()))?;
                let oldest = if length > 0 { first_number(&path)? } else { None };
                let begun = if length > 0 { begun(&path, now) } else { now };
                LiveFile { path, file, inode, first: oldest.unwrap_or(first), begun, is_synced: true }
            }
        };
        Ok(self.file.insert(live))
    }

    /// Begins another file where this one is large or old enough, or of another day.
    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        let first = self.link.seq + 1;
        if self.file.is_none() {
            // One that an earlier writer left may be full.
            self.live(now, first)?;
        }
        let Some(live) = &self.file else { return Ok(()) };
        let is_full = match self.set.naming {
            Naming::Daily(_) => live.path != self.set.live(now),
            Naming::Rotated(_) => {
                let length = live.file.metadata()?.len();
                let age = now.duration_since(live.begun).unwrap_or_default();
                length > 0 && (length >= self.limits.bytes || age >= self.limits.age)
            }
        };
        if !is_full {
            return Ok(());
        }
        live.file.sync_all()?;
        if let Some(to) = self.set.rotated(live.first, now) {
            std::fs::rename(&live.path, to)?;
        }
        self.file = None;
        // The next append does it again where it fails; a line is worth more than a file that is too old.
        self.is_unpacked = true;
        let _ = self.remove_old(now);
        let _ = self.pack_rotated();
        Ok(())
    }

    /// Begins another file where this one is too old, and removes those that are; for times without lines.
    ///
    /// # Errors
    /// The disk fails.
    pub fn age(&mut self, now: SystemTime) -> io::Result<()> {
        if self.file.is_some() {
            self.rotate(now)?;
        }
        self.remove_old(now)
    }

    /// Removes files that are too many or too old.
    fn remove_old(&self, now: SystemTime) -> io::Result<()> {
        let live = self.set.live(now);
        let rotated: Vec<PathBuf> = self.set.list()?.into_iter().filter(|path| *path != live).collect();
        let surplus = rotated.len().saturating_sub(self.limits.files);
        for (at, path) in rotated.iter().enumerate() {
            let changed = std::fs::metadata(path)?.modified()?;
            let is_old = now.duration_since(changed).is_ok_and(|age| age > self.limits.keep);
            // One in the middle stays until those before it are gone, so that no number is missing in between.
            if at >= surplus && !is_old {
                break;
            }
            std::fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Packs rotated files on a thread of its own, one after the other.
    fn pack_rotated(&mut self) -> io::Result<()> {
        let is_packing = self.packing.as_ref().is_some_and(|one| !one.is_finished());
        if !self.is_unpacked || is_packing || matches!(self.set.naming, Naming::Daily(_)) {
            return Ok(());
        }
        self.is_unpacked = false;
        let live = self.set.live(SystemTime::now());
        let plain: Vec<PathBuf> =
            self.set.list()?.into_iter().filter(|path| *path != live && !is_packed(path)).collect();
        if plain.is_empty() {
            return Ok(());
        }
        // What cannot be packed stays as it is, and is tried again with the next rotation.
        let work = move || plain.iter().for_each(|path| drop(pack(path)));
        self.packing = Some(std::thread::Builder::new().name("audit-pack".into()).spawn(work)?);
        Ok(())
    }
}

impl Drop for ChainWriter {
    fn drop(&mut self) {
        let _ = self.sync();
        let _ = self.packing.take().map(std::thread::JoinHandle::join);
    }
}

/// Cuts off what stands behind the last newline. Whether there was something.
fn remove_torn(path: &Path) -> io::Result<bool> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let length = file.metadata()?.len();
    let tail = tail(&file, length)?;
    let torn = tail.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
    if torn > 0 {
        file.set_len(length - torn)?;
    }
    Ok(torn > 0)
}

/// The last bytes, with at least one whole line if there is one.
fn tail(mut file: &File, length: u64) -> io::Result<Vec<u8>> {
    let most = 2 * (MAX_LINE_BYTES as u64 + 1);
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut tail = Vec::new();
    file.take(most).read_to_end(&mut tail)?;
    Ok(tail)
}

fn last_line(path: &Path) -> io::Result<Option<String>> {
    if is_packed(path) {
        // Without its end the lines before the fault count.
        return Ok(lines(path)?.map_while(Result::ok).last().map(|line| line.text));
    }
    let file = File::open(path)?;
    let tail = tail(&file, file.metadata()?.len())?;
    let Some(tail) = tail.strip_suffix(b"\n") else { return Ok(None) };
    let from = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(Some(String::from_utf8_lossy(&tail[from..]).into_owned()))
}

fn first_number(path: &Path) -> io::Result<Option<u64>> {
    let first = lines(path)?.next().transpose()?;
    Ok(first.and_then(|line| SealedLine::check(&line.text).ok()).map(|line| line.link.seq))
}

/// When a file was begun, as far as the file system tells.
fn begun(path: &Path, now: SystemTime) -> SystemTime {
    std::fs::metadata(path).and_then(|of| of.created()).unwrap_or(now)
}
