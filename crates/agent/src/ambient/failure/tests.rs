#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io;

use fault::{LONGEST_MESSAGE, message};
use kernel::{NetlinkError, nft};
use rustix::io::Errno;

use super::*;

fn refused(errno: Errno) -> NetlinkError {
    NetlinkError::Refused { text: None, source: io::Error::from_raw_os_error(errno.raw_os_error()) }
}

fn held() -> kernel::Error {
    let (operation, table) =
        ("create table inet istio-ambient-nat".to_owned(), "istio-ambient-nat".to_owned());
    nft::Error::Held { operation, table, port: 77, source: refused(Errno::PERM) }.into()
}

fn failed(errno: Errno) -> kernel::Error {
    let operation = "create table inet istio-ambient-nat".to_owned();
    nft::Error::Failed { operation, hint: "", source: refused(errno) }.into()
}

#[test]
fn the_cause_comes_first_and_what_helps_last() {
    let process = Some("process 7 (nft)".to_owned());
    let cases = [
        (
            AmbientFailure::Rules(InKernel::new(held(), process)),
            "another program keeps table istio-ambient-nat for itself: process 7 (nft) (program the network namespace of the pod); end \
             that program, or delete the pod",
        ),
        (
            Cleanup::from(InKernel::new(held(), None)).into(),
            "another program keeps table istio-ambient-nat for itself: netlink port 77 (remove the rules from the network namespace of \
             the pod); end that program, or delete the pod",
        ),
        (
            AmbientFailure::Ztunnel(zds::AddError::NoZtunnel),
            "no ztunnel connection (hand the pod to ztunnel); check that ztunnel runs on this node",
        ),
        (
            AmbientFailure::Ztunnel(zds::AddError::Refused("port in use".to_owned())),
            "ztunnel refused: port in use (hand the pod to ztunnel)",
        ),
    ];
    for (failure, text) in cases {
        assert_eq!(message(&failure), text);
        assert!(text.len() <= LONGEST_MESSAGE);
    }
}

/// What is scarce may be there again after a pause; a table that a program keeps is there until somebody ends that program.
#[test]
fn when_it_is_tried_again_is_the_causes_affair() {
    let retry = |error| AmbientFailure::Rules(InKernel::new(error, None)).retry();
    assert_eq!(retry(failed(Errno::NOBUFS)), Retry::Backoff);
    assert_eq!(retry(failed(Errno::NOMEM)), Retry::Backoff);
    assert_eq!(
        retry(nft::Error::Contended { owner: "istio-ambient".to_owned(), tries: 5 }.into()),
        Retry::Backoff
    );
    assert_eq!(retry(failed(Errno::INVAL)), Retry::OnChange);
    assert_eq!(retry(held()), Retry::OnChange);
    // Rules that redirect and have nobody to redirect to are asked for until they are gone.
    assert_eq!(AmbientFailure::from(Cleanup::from(InKernel::new(held(), None))).retry(), Retry::Backoff);
}
