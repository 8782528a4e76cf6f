//! Standard error of a short-lived process. It is a pipe most often, and the parent process may read it late, or only at its end.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// What a pipe takes without waiting once it says that it takes something (pipe(7), `PIPE_BUF`).
const PART: usize = 4096;

/// Takes lines, and is not waited for without end.
pub(crate) trait Patient: Send {
    /// Writes a line, waits for that no longer than `patience`, and takes off what it waited; whether that was enough. One that is closed
    /// needs no line.
    fn write_line(&mut self, line: &[u8], patience: &mut Duration) -> bool;
}

/// Standard error itself.
pub(crate) struct Standard;

/// Something in its place, which never waits.
pub(crate) struct WrittenLine<W>(pub(crate) W);

impl Patient for Standard {
    fn write_line(&mut self, line: &[u8], patience: &mut Duration) -> bool {
        write(std::io::stderr().as_fd(), line, patience)
    }
}

impl<W: Write + Send> Patient for WrittenLine<W> {
    fn write_line(&mut self, line: &[u8], _: &mut Duration) -> bool {
        let _ = self.0.write_all(line);
        true
    }
}

/// The descriptor may be shared, so it is asked before each part instead of made one that does not wait.
fn write(fd: impl AsFd, line: &[u8], patience: &mut Duration) -> bool {
    let mut rest = line;
    while !rest.is_empty() {
        let began = Instant::now();
        let limit = Timespec::try_from(*patience).ok();
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], limit.as_ref());
        *patience = patience.saturating_sub(began.elapsed());
        match ready {
            Ok(0) => return false,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return true,
        }
        match rustix::io::write(&fd, &rest[..rest.len().min(PART)]) {
            Ok(written) if written > 0 => rest = &rest[written..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Nobody reads it any more.
            Ok(_) | Err(_) => return true,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_is_waited_for_once() {
        let (mut reader, pipe) = std::io::pipe().unwrap();
        let mut patience = Duration::from_millis(30);
        let line = [&[b'x'; 9_999][..], b"\n"].concat();
        let began = Instant::now();
        let written = (0..1000).filter(|_| write(&pipe, &line, &mut patience)).count();
        // A thousand waits would be thirty seconds.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!((5..10).contains(&written) && patience.is_zero(), "{written} {patience:?}");
        drop(pipe);
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert!(text.len() >= written * line.len());
    }

    #[test]
    fn a_reader_that_is_gone_is_no_wait() {
        let (reader, pipe) = std::io::pipe().unwrap();
        drop(reader);
        let mut patience = Duration::from_secs(1000);
        assert!(write(&pipe, b"x\n", &mut patience));
        assert!(patience > Duration::from_secs(900));
    }
}
