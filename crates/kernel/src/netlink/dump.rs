//! Lists: one request, answers in as many parts as it takes.

use std::ops::ControlFlow;

use rustix::io::Errno;

use super::wire::{Message, Messages};
use super::{Error, NLMSG_ERROR, NetlinkSocket, error_of, flags, open, refused};

pub(super) const NLMSG_DONE: u16 = 3;
/// How often a dump is repeated that was disturbed by a change (the original tries as often).
pub(super) const DUMP_TRIES: usize = 5;

/// How a list ended.
enum Dumped {
    Whole,
    /// The kernel says that it is not consistent.
    Disturbed,
    /// Who takes it has enough.
    Enough,
}

impl NetlinkSocket {
    /// Sends one message with [`flags::DUMP`] and hands each part of the answer to `take`, from the beginning whenever a change
    /// disturbed the list: `take` gets `None` then, and first.
    pub(crate) fn dump(
        &mut self,
        request: &[u8],
        mut take: impl FnMut(Option<&Message<'_>>),
    ) -> Result<(), Error> {
        self.dump_until(request, |message| {
            take(message);
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// As [`Self::dump`], until `take` has enough; whether it got everything.
    pub(crate) fn dump_until(
        &mut self,
        request: &[u8],
        mut take: impl FnMut(Option<&Message<'_>>) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        for _ in 0..DUMP_TRIES {
            if take(None).is_break() {
                return Ok(false);
            }
            let dumped = self.dump_once(request, |message| take(Some(message)));
            match dumped.or_else(|error| self.disturbed_by_events(error))? {
                Dumped::Whole => return Ok(true),
                Dumped::Disturbed => {}
                // One that stays in its namespace reads the rest of the answer away before it is asked again.
                Dumped::Enough if self.stays => return Ok(false),
                Dumped::Enough => {
                    // The kernel forgets the rest of the answer with the socket.
                    self.fd = open(self.protocol)?;
                    return Ok(false);
                }
            }
        }
        Err(Error::Disturbed)
    }

    /// As [`Self::dump`], of at most so many objects.
    pub(crate) fn dump_most(
        &mut self,
        request: &[u8],
        (most, what): (usize, &'static str),
        mut take: impl FnMut(Option<&Message<'_>>),
    ) -> Result<(), Error> {
        let mut seen = 0;
        let whole = self.dump_until(request, |message| {
            seen = if message.is_some() { seen + 1 } else { 0 };
            if seen > most {
                return ControlFlow::Break(());
            }
            take(message);
            ControlFlow::Continue(())
        })?;
        if whole { Ok(()) } else { Err(Error::TooMany { most, what }) }
    }

    /// As [`Self::dump`], until `limit` bytes have come. `false` when there are more, or when a change disturbed the list. Not for a socket
    /// that is kept.
    pub(crate) fn dump_some(
        &mut self,
        request: &[u8],
        limit: usize,
        mut take: impl FnMut(&Message<'_>),
    ) -> Result<bool, Error> {
        self.send(request)?;
        let (mut seen, mut consistent) = (0, true);
        while let Some(length) = self.receive()? {
            seen += length;
            for message in Messages::new(&self.buffer[..length]) {
                consistent &= message.flags & flags::DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR => return error_of(&message).and(Err(Error::NoAnswer)),
                    NLMSG_DONE => return dump_status(&message).map(|()| consistent),
                    _ => take(&message),
                }
            }
            if seen >= limit {
                // The kernel forgets the rest of the answer with the socket.
                self.fd = open(self.protocol)?;
                return Ok(false);
            }
        }
        Err(Error::NoAnswer)
    }

    fn dump_once(
        &mut self,
        request: &[u8],
        mut take: impl FnMut(&Message<'_>) -> ControlFlow<()>,
    ) -> Result<Dumped, Error> {
        self.send(request)?;
        let mut consistent = true;
        while let Some(length) = self.receive()? {
            for message in Messages::new(&self.buffer[..length]) {
                consistent &= message.flags & flags::DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR => return error_of(&message).and(Err(Error::NoAnswer)),
                    NLMSG_DONE => {
                        let status = dump_status(&message);
                        self.answered();
                        return match status {
                            Ok(()) if consistent => Ok(Dumped::Whole),
                            Ok(()) => Ok(Dumped::Disturbed),
                            Err(Error::Refused { source, .. })
                                if Errno::from_io_error(&source) == Some(Errno::INTR) =>
                            {
                                Ok(Dumped::Disturbed)
                            }
                            Err(error) => Err(error),
                        };
                    }
                    _ if take(&message).is_break() => return Ok(Dumped::Enough),
                    _ => {}
                }
            }
        }
        Err(Error::NoAnswer)
    }

    /// On a kept socket, events that nobody has read yet may leave no room for an answer. They are read before the next try. The kernel may not
    /// have ended that answer: it is busy with it then, and goes on once there is room, so that the rest is to be read away.
    fn disturbed_by_events(&mut self, error: Error) -> Result<Dumped, Error> {
        let is_busy = error.errno() == Some(Errno::BUSY);
        let no_room = is_busy || matches!(error, Error::NoAnswer) || error.errno() == Some(Errno::NOBUFS);
        if self.events.is_none() || !no_room {
            return Err(error);
        }
        if is_busy {
            self.note_unread(true);
        }
        Ok(Dumped::Disturbed)
    }
}

/// The content of an `NLMSG_DONE`: an error number, then attributes.
fn dump_status(message: &Message<'_>) -> Result<(), Error> {
    match message.payload.split_first_chunk::<4>() {
        Some((code, rest)) if i32::from_ne_bytes(*code) < 0 => Err(refused(i32::from_ne_bytes(*code), rest)),
        _ => Ok(()),
    }
}
