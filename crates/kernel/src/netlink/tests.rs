//! Answers of the kernel.

use super::wire::{Message, MessageWriter, Messages};
use super::{ERROR_TEXT, Error, NLMSG_ERROR, error_of, flags};

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
    use super::NetlinkSocket;
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
