//! Packets of ztunnel's protocol, in both directions.

use fuzz::{Outcome, Target, of_text};
use proptest::prelude::*;
use prost::Message;
use zds::message::{
    Ack, Answer, DelWorkload, KeepWorkload, MAX_PACKET, Payload, SnapshotSent, WorkloadRequest,
    WorkloadResponse, ZdsHello, read_answer, read_hello,
};

fn generate() -> BoxedStrategy<Vec<u8>> {
    let payload = prop_oneof![
        ("\\PC{0,40}", "\\PC{0,40}", "[a-z0-9-]{0,64}", "\\PC{0,40}").prop_map(
            |(uid, name, namespace, service_account)| {
                Payload::add(&zds::Workload { uid, name, namespace, service_account })
            }
        ),
        "\\PC{0,40}".prop_map(|uid| Payload::Del(DelWorkload { uid })),
        "\\PC{0,40}".prop_map(|uid| Payload::Keep(KeepWorkload { uid })),
        Just(Payload::SnapshotSent(SnapshotSent {})),
    ];
    let request =
        proptest::option::of(payload).prop_map(|payload| WorkloadRequest { payload }.encode_to_vec());
    let answer = proptest::option::of("\\PC{0,80}").prop_map(|error| {
        WorkloadResponse { payload: error.map(|error| Answer::Ack(Ack { error })) }.encode_to_vec()
    });
    let hello = any::<i32>().prop_map(|version| ZdsHello { version }.encode_to_vec());
    prop_oneof![request, answer, hello].boxed()
}

/// Every packet is read as each kind of message.
fn run(input: &[u8]) -> Outcome {
    let answer = match read_answer(input) {
        Ok(error) => {
            assert!(error.len() <= input.len(), "an answer longer than its packet");
            Outcome::of((error.is_empty(), error.len() > 80))
        }
        Err(error) => of_text(&error.to_string()),
    };
    let hello = read_hello(input).map(|version| version.clamp(-1, 2)).ok();
    let request =
        same::<WorkloadRequest>(input).map(|request| request.payload.as_ref().map(std::mem::discriminant));
    let kinds = (same::<WorkloadResponse>(input).is_some(), same::<ZdsHello>(input).is_some());
    Outcome::of((answer, hello, request, kinds))
}

/// What is read of a packet is written so that it is read again; written once more, it is the same packet.
fn same<M: Message + Default + PartialEq + std::fmt::Debug>(packet: &[u8]) -> Option<M> {
    let message = M::decode(packet).ok()?;
    let written = message.encode_to_vec();
    let read = M::decode(&*written).expect("what is written is read");
    assert!(read == message, "{message:?} is read as {read:?}");
    assert_eq!(read.encode_to_vec(), written);
    // An absent member and an unknown one have no bytes of their own.
    assert!(written.len() <= packet.len().max(1) * 2, "{} bytes of {}", written.len(), packet.len());
    Some(message)
}

const TARGET: Target = Target {
    name: "zds",
    package: env!("CARGO_PKG_NAME"),
    dictionary: &["\n", "\u{12}", "\u{1a}", "*", "\u{8}\u{1}", "\u{0}", "\u{7f}", "error", "default"],
    max_len: MAX_PACKET,
    memory: 64 << 10,
    generate,
    run,
};

#[test]
fn fuzz_zds() {
    TARGET.fuzz();
}
