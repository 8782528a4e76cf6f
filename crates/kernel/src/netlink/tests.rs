//! Answers of the kernel.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use super::dump::{DUMP_TRIES, NLMSG_DONE};
use super::wire::{Message, MessageWriter, Messages};
use super::{ERROR_TEXT, Error, NLMSG_ERROR, NetlinkSocket, error_of, flags};

/// A socket that has the answers already, and its other end, which whoever sends needs.
pub(crate) fn answering<'a>(answers: impl IntoIterator<Item = &'a [u8]>) -> (NetlinkSocket, OwnedFd) {
    let (ours, kernel) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets");
    for answer in answers {
        send(&kernel, answer, SendFlags::empty()).expect("room for the answers");
    }
    (NetlinkSocket::over(ours), kernel)
}

/// `struct nlmsgerr` with the header of the refused message, and what follows.
fn answer(code: i32, extra: u16, body: impl FnOnce(&mut MessageWriter)) -> MessageWriter {
    let mut w = MessageWriter::default();
    let mut header = code.to_ne_bytes().to_vec();
    // Length 24: an echo without the capped flag has eight bytes behind the header.
    header.extend_from_slice(&24u32.to_ne_bytes());
    header.extend_from_slice(&[0; 12]);
    w.message(NLMSG_ERROR, extra, 3, &header, body);
    w
}

fn result(w: &MessageWriter) -> Result<(), Error> {
    let message: Message<'_> = Messages::new(w.bytes()).next().expect("a message");
    assert_eq!(message.sequence, 3);
    error_of(&message)
}

#[test]
fn a_refusal_has_the_kernels_words() {
    assert!(result(&answer(0, 0, |_| {})).is_ok());

    let capped = flags::CAPPED | flags::ACK_TLVS;
    let error =
        result(&answer(-17, capped, |w| w.text(ERROR_TEXT, "such a thing is there"))).expect_err("refused");
    assert_eq!(error.errno(), Some(rustix::io::Errno::EXIST));
    assert_eq!(error.to_string(), "the kernel refused it, saying \"such a thing is there\"");

    // A kernel that echoes the request.
    let echoed = result(&answer(-2, flags::ACK_TLVS, |w| {
        w.be32(1, 0);
        w.text(ERROR_TEXT, "behind the echo");
    }));
    assert!(echoed.expect_err("refused").to_string().contains("behind the echo"));

    let silent = result(&answer(-1, flags::CAPPED, |_| {})).expect_err("refused");
    assert_eq!(silent.to_string(), "the kernel refused it");
}

/// A list that goes on is left where there is enough of it, and the next question gets its own answer.
#[test]
fn a_list_is_left_unread_where_it_is_too_long() {
    let mut request = MessageWriter::default();
    // RTM_GETLINK, of every family: each namespace has the loopback interface, and this one maybe others.
    request.message(18, flags::REQUEST | flags::DUMP, 1, &[0; 16], |_| {});
    let mut socket = NetlinkSocket::open(None).expect("a socket");
    let mut count = |most: usize| {
        let mut seen = 0;
        let listed =
            socket.dump_most(request.bytes(), (most, "links"), |part| seen += usize::from(part.is_some()));
        (listed, seen)
    };
    let (listed, all) = count(100_000);
    listed.expect("all of them");
    assert!(all > 0);
    let (listed, some) = count(all - 1);
    let error = listed.expect_err("one more than that");
    assert!(matches!(error, Error::TooMany { most, .. } if most == all - 1), "{error}");
    assert_eq!(some, all - 1);
    assert_eq!(count(all).1, all, "nothing of the list before is left");
}

/// A list of one part, and how the kernel ends it.
fn list(kind: u16, extra: u16, code: i32) -> Vec<u8> {
    let mut w = MessageWriter::default();
    w.message(20, extra, 1, &[0; 4], |_| {});
    w.message(kind, extra, 1, &code.to_ne_bytes(), |_| {});
    w.bytes().to_vec()
}

#[test]
fn a_list_that_was_disturbed_is_read_again_and_never_taken_for_whole() {
    let whole = list(NLMSG_DONE, 0, 0);
    let read = |answers: &[&[u8]]| {
        let (mut socket, _kernel) = answering(answers.iter().copied());
        let mut parts = 0;
        let listed = socket.dump(&[], |part| parts = part.map_or(0, |_| parts + 1));
        listed.map(|()| parts)
    };
    for disturbed in [list(NLMSG_DONE, flags::DUMP_INTR, 0), list(NLMSG_DONE, 0, -Errno::INTR.raw_os_error())]
    {
        let again = [vec![&*disturbed; DUMP_TRIES - 1], vec![&*whole]].concat();
        assert_eq!(read(&again).expect("the last one is whole"), 1);
        let error = read(&[&*disturbed; DUMP_TRIES]).expect_err("no list is whole");
        assert!(matches!(error, Error::Disturbed), "{error}");
    }
    // The kernel refuses it, at once or half-way; it does not end.
    for kind in [NLMSG_ERROR, NLMSG_DONE] {
        let error = read(&[&list(kind, 0, -Errno::PERM.raw_os_error()), &whole]).expect_err("refused");
        assert_eq!(error.errno(), Some(Errno::PERM));
    }
    assert!(matches!(read(&[&list(20, 0, 0)]), Err(Error::NoAnswer)));
}
