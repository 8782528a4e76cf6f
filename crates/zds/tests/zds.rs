//! Every rule of ztunnel's protocol that the agent has to keep, over real sockets with real namespaces.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{PATIENCE, Server, workload};
use testkit::ztunnel::{Answer, Hello, Request, Script, Ztunnel, nack};
use testkit::{TestNetns, until};
use zds::message::{Payload, read_answer, read_hello};
use zds::{AddError, Listener, MessageKind, ZtunnelEvent};

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_of_seqpacket_and_replaces_a_stale_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("z.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a stale file");
    let server = Server::on(path.to_str().unwrap());
    let error = std::os::unix::net::UnixStream::connect(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(91), "EPROTOTYPE: {error}");
    let ztunnel = server.ztunnel(Script::default());
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
    server.stop().await;
    assert!(!path.exists(), "unlinked");

    for (address, says) in [
        ("", "is empty"),
        ("/absent/dir/z.sock", "check that the directory"),
        (&"/x".repeat(100), "longer than"),
    ] {
        let error = Listener::bind(address).err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
    std::fs::write(&path, "precious").unwrap();
    let error = Listener::bind(path.to_str().unwrap()).err().unwrap().to_string();
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

/// The socket of the agent that comes after is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn the_successors_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("z.sock");
    let old = Server::on(path.to_str().unwrap());
    let new = Server::on(path.to_str().unwrap());
    old.stop().await;
    let ztunnel = Ztunnel::connect(&path, Script::default()).unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    new.stop().await;
}

#[test]
fn encodings_are_exact() {
    const UID: &str = "863b91d4-4b68-4efa-917f-4b560e3e86aa";
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let uid = hex(UID.as_bytes());
    let foo = zds::Workload {
        uid: UID.into(),
        name: "foo".into(),
        namespace: "bar".into(),
        service_account: "sa".into(),
    };
    let add = Payload::add(&foo).packet();
    assert_eq!(add.len(), 56);
    assert_eq!(hex(&add), format!("0a360a24{uid}120e0a03666f6f12036261721a027361"));
    let keep = Payload::Keep(zds::message::KeepWorkload { uid: UID.into() }).packet();
    assert_eq!(hex(&keep), format!("2a260a24{uid}"));
    let del = Payload::Del(zds::message::DelWorkload { uid: UID.into() }).packet();
    assert_eq!(hex(&del), format!("12261224{uid}"));
    assert_eq!(hex(&Payload::SnapshotSent(zds::message::SnapshotSent {}).packet()), "1a00");
    let nobody = Payload::add(&zds::Workload { uid: "u".into(), ..Default::default() }).packet();
    assert_eq!(hex(&nobody), "0a050a01751200", "edge case 12");

    assert_eq!(read_hello(&[0x08, 0x01]).unwrap(), 1);
    assert_eq!(read_hello(&[0x08, 0x07]).unwrap(), 7, "any version");
    assert_eq!(read_answer(&[0x0a, 0x00]).unwrap(), "");
    assert_eq!(read_answer(&[0x0a, 0x06, 0x0a, 0x04, 0x62, 0x6f, 0x6f, 0x6d]).unwrap(), "boom");
    assert_eq!(nack("boom"), [0x0a, 0x06, 0x0a, 0x04, 0x62, 0x6f, 0x6f, 0x6d]);
    assert_eq!(read_answer(&[0x12, 0x01, 0x00]).unwrap(), "", "unknown members");
    assert!(read_answer(&[0x0a, 0x20, 0x00]).is_err() && read_answer(&[0xff; 8]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_before_the_hello_and_then_the_snapshot() {
    let server = Server::new();
    let netns = TestNetns::new().unwrap();
    server.enrol("a", Some(&netns));
    server.enrol("b", None);
    let silent = server.ztunnel(Script::default().hello(Hello::Silence));
    std::thread::sleep(Duration::from_millis(300));
    assert!(silent.requests().is_empty());
    silent.close();
    let ztunnel = server.ztunnel(Script::default());
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let heard: Vec<Request> = ztunnel.requests().into_iter().map(|(_, request)| request).collect();
    assert_eq!(heard.len(), 3);
    assert_eq!(heard[2], Request::SnapshotSent);
    assert!(heard.contains(&Request::Keep(workload("b").uid)));
    assert_eq!(ztunnel.workloads().keys().collect::<Vec<_>>(), [&workload("a").uid]);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
    server.stop().await;

    let empty = Server::new();
    let ztunnel = empty.ztunnel(Script::default());
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert_eq!(ztunnel.requests().len(), 1);
    empty.stop().await;
}

/// What a ztunnel says to the pods of its snapshot is known for each: one that it refuses is not served.
#[tokio::test(flavor = "multi_thread")]
async fn answers_to_a_snapshot_are_told_for_each_pod() {
    let server = Server::new();
    let netns = TestNetns::new().unwrap();
    server.enrol("good", Some(&netns));
    server.enrol("bad", Some(&netns));
    server.enrol("lost", None);
    let bad = workload("bad").uid;
    let refuses = |bad: String| {
        move |request: &Request| match request {
            Request::Add { uid, .. } if *uid == bad => Answer::Nack("port in use".to_owned()),
            _ => Answer::Ack,
        }
    };
    let ztunnel = server.ztunnel(Script::answering(refuses(bad.clone())));
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let pod =
        |name: &str, netns, result: Result<(), &str>| (name.to_owned(), netns, result.map_err(str::to_owned));
    let first = [pod("bad", true, Err("port in use")), pod("good", true, Ok(())), pod("lost", false, Ok(()))];
    assert_eq!(server.told(), first);
    until("it is informed", PATIENCE, || server.ztunnels.is_informed(), || "it is not").unwrap();
    // A pod that is handed over is answered to whoever did that, and to nobody else.
    assert_eq!(server.add("bad", &netns).await, Err(AddError::Refused("port in use".to_owned())));
    assert_eq!(server.told().len(), 3);
    // A newer one takes it and goes: the older one, which refused it, is asked again.
    let newer = server.ztunnel(Script::default());
    newer.wait_snapshot(PATIENCE).unwrap();
    assert_eq!(server.told().len(), 6);
    newer.close();
    until("one more answer", PATIENCE, || server.told().len() >= 7, || format!("{:?}", server.told()))
        .unwrap();
    assert_eq!(server.told().iter().filter(|told| told.2.is_err()).count(), 2, "{:?}", server.told());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_descriptor_on_add_and_none_on_the_others() {
    let server = Server::new();
    let ztunnel = server.ztunnel(Script::default());
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let netns = TestNetns::new().unwrap();
    server.add("a", &netns).await.unwrap();
    let stat = rustix::fs::fstat(netns.netns().as_fd()).unwrap();
    assert_eq!(ztunnel.workloads()[&workload("a").uid].netns, (stat.st_dev, stat.st_ino));
    server.ztunnels.remove(&workload("a").uid).await.unwrap();
    assert!(ztunnel.workloads().is_empty());
    // The double reports a descriptor too many or too few as a violation.
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_before_the_answer_and_the_end_without_one() {
    let server = Server::new();
    server.enrol("a", None);
    server.enrol("b", None);
    let ztunnel = server.ztunnel(Script::answering(|_| Answer::Silence));
    ztunnel.wait_requests(1, PATIENCE).unwrap();
    let start = Instant::now();
    ztunnel.wait_end(Duration::from_secs(8)).unwrap();
    assert!((4..7).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(ztunnel.requests().len(), 1);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_does_not_end_the_snapshot() {
    let server = Server::new();
    let (a, b) = (TestNetns::new().unwrap(), TestNetns::new().unwrap());
    server.enrol("a", Some(&a));
    server.enrol("b", Some(&b));
    let ztunnel = server.ztunnel(Script::answering(|request| match request {
        Request::Add { .. } => Answer::Nack("failure to start proxy : port in use".into()),
        _ => Answer::Ack,
    }));
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert_eq!(ztunnel.requests().len(), 3);
    let nacks =
        server.events().into_iter().filter(|event| matches!(event, ZtunnelEvent::Nacked { .. })).count();
    assert_eq!(nacks, 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adds_go_to_the_newest_and_deletions_to_all() {
    let server = Server::new();
    let first = server.ztunnel(Script::default());
    first.wait_snapshot(PATIENCE).unwrap();
    let second = server.ztunnel(Script::default());
    second.wait_snapshot(PATIENCE).unwrap();
    let netns = TestNetns::new().unwrap();
    server.add("a", &netns).await.unwrap();
    assert_eq!((first.workloads().len(), second.workloads().len()), (0, 1));
    server.leave("a");
    server.ztunnels.remove(&workload("a").uid).await.unwrap();
    let gone = Request::Del(workload("a").uid);
    for ztunnel in [&first, &second] {
        assert!(ztunnel.requests().iter().any(|(_, request)| *request == gone));
    }
    second.close();
    server.wait_connected(1);
    server.add("b", &netns).await.unwrap();
    assert_eq!(first.workloads().len(), 1);
    assert_eq!(first.violations(), Vec::<String>::new());
    server.stop().await;
}

/// What only the newest had is told to the one before it when that is the newest again.
#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_ztunnel_that_dies_are_told_to_the_remaining_one() {
    let server = Server::new();
    let first = server.ztunnel(Script::default());
    first.wait_snapshot(PATIENCE).unwrap();
    let second = server.ztunnel(Script::default());
    second.wait_snapshot(PATIENCE).unwrap();
    let (a, b) = (TestNetns::new().unwrap(), TestNetns::new().unwrap());
    server.add("a", &a).await.unwrap();
    server.add("b", &b).await.unwrap();
    server.leave("b");
    server.ztunnels.remove(&workload("b").uid).await.unwrap();
    assert!(first.workloads().is_empty());
    second.close();
    first.wait_served(1, PATIENCE).unwrap();
    assert_eq!(first.workloads().keys().collect::<Vec<_>>(), [&workload("a").uid]);
    let resent = ZtunnelEvent::Resent { ztunnel: 1, pods: 1 };
    assert!(server.events().contains(&resent), "{:?}", server.events());
    assert_eq!(first.violations(), Vec::<String>::new());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_follows_in_any_order() {
    for oldest_first in [true, false] {
        let server = Server::new();
        let first = server.ztunnel(Script::default());
        first.wait_snapshot(PATIENCE).unwrap();
        let second = server.ztunnel(Script::default());
        second.wait_snapshot(PATIENCE).unwrap();
        let (one, other) = if oldest_first { (first, second) } else { (second, first) };
        one.close();
        server.wait_connected(1);
        other.close();
        server.wait_connected(0);
        assert_eq!(server.counts(), [1, 2, 1, 0]);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ztunnel_an_add_fails_at_once() {
    let server = Server::new();
    let netns = TestNetns::new().unwrap();
    assert_eq!(server.add("a", &netns).await, Err(AddError::NoZtunnel));
    assert_eq!(server.ztunnels.remove("a").await, Ok(()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_has_its_words_and_another_try_is_a_whole_add() {
    let server = Server::new();
    let count = AtomicUsize::new(0);
    let ztunnel = server.ztunnel(Script::answering(move |request| match request {
        Request::Add { .. } if count.fetch_add(1, Ordering::SeqCst) == 0 => Answer::Nack("no port".into()),
        _ => Answer::Ack,
    }));
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let netns = TestNetns::new().unwrap();
    assert_eq!(server.add("a", &netns).await, Err(AddError::Refused("no port".into())));
    assert_eq!(server.add("a", &netns).await, Ok(()));
    assert_eq!(ztunnel.adds(&workload("a").uid), 2);
    assert!(ztunnel.is_connected());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ztunnel_that_closes_is_gone_at_once_and_nobody_waits() {
    let server = Server::new();
    let ztunnel = server.ztunnel(Script::answering(|request| match request {
        Request::Add { .. } => Answer::Close,
        _ => Answer::Ack,
    }));
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let netns = TestNetns::new().unwrap();
    let start = Instant::now();
    assert!(matches!(server.add("a", &netns).await, Err(AddError::Lost(_))));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    server.wait_connected(0);

    let idle = server.ztunnel(Script::default());
    idle.wait_snapshot(PATIENCE).unwrap();
    let start = Instant::now();
    idle.close();
    server.wait_connected(0);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_meets_the_end_of_a_connection() {
    let server = Server::new();
    for _ in 0..10 {
        let ztunnel = server.ztunnel(Script::default());
        ztunnel.wait_snapshot(PATIENCE).unwrap();
        let ztunnels = server.ztunnels.clone();
        let removals = tokio::spawn(async move {
            for number in 0..50 {
                // Told or not: it returns.
                let _ = ztunnels.remove(&format!("uid-{number}")).await;
            }
        });
        tokio::time::sleep(Duration::from_millis(2)).await;
        ztunnel.close();
        tokio::time::timeout(PATIENCE, removals).await.unwrap().unwrap();
        server.wait_connected(0);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_ztunnel_hears_nothing_and_a_stray_answer_ends_it() {
    let server = Server::new();
    let ztunnel = server.ztunnel(Script::default());
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    tokio::time::sleep(Duration::from_millis(5500)).await;
    assert_eq!(ztunnel.requests().len(), 1);
    assert!(ztunnel.is_connected());
    ztunnel.close();
    server.wait_connected(0);
    let chatty = server.ztunnel(Script::answering(|_| Answer::Twice));
    chatty.wait_end(PATIENCE).unwrap();
    let asked = |event: &ZtunnelEvent| matches!(event, ZtunnelEvent::Disconnected { reason, regular: false, .. } if reason.contains("unexpected"));
    server.wait_event(asked, "a stray answer");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_five_connections_a_second() {
    let server = Server::new();
    let start = Instant::now();
    let all: Vec<Ztunnel> = (0..8).map(|_| server.ztunnel(Script::default())).collect();
    for ztunnel in &all {
        ztunnel.wait_snapshot(PATIENCE).unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(1350), "{:?}", start.elapsed());
    server.stop().await;
}

/// Each would cost its fifth of a second, if it had a place.
#[tokio::test(flavor = "multi_thread")]
async fn users_that_may_not_ask_keep_no_ztunnel_waiting() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("z.sock");
    let server = Server::on(path.to_str().unwrap());
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(dir.path(), 0o755);
    open(&path, 0o666);
    let others = std::thread::spawn(move || {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
        let uid = rustix::thread::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        let silent = || {
            let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
            connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            socket
        };
        ((0..60).map(|_| silent()).collect::<Vec<_>>(), path)
    });
    let (_silent, path) = others.join().unwrap();
    let start = Instant::now();
    let ztunnel = Ztunnel::connect(&path, Script::default()).unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let refused =
        |event: &ZtunnelEvent| matches!(event, ZtunnelEvent::Refused { reason } if reason.contains("65534"));
    server.wait_event(refused, "a refusal");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_gives_up_does_not_shift_the_answers() {
    let server = Server::new();
    let ztunnel = server.ztunnel(Script::answering(|request| match request {
        Request::Add { name, .. } if name == "slow" => Answer::Late(Duration::from_millis(500)),
        Request::Add { name, .. } if name == "bad" => Answer::Nack("bad".into()),
        _ => Answer::Ack,
    }));
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let netns = TestNetns::new().unwrap();
    let slow = tokio::time::timeout(Duration::from_millis(50), server.add("slow", &netns)).await;
    assert!(slow.is_err(), "it gave up");
    assert_eq!(server.add("bad", &netns).await, Err(AddError::Refused("bad".into())));
    assert_eq!(server.add("good", &netns).await, Ok(()));
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
    server.stop().await;
}

/// After a time-out the connection ends, so that no late answer is taken for another message's.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_is_nobodys() {
    let server = Server::new();
    let ztunnel = server.ztunnel(Script::answering(|request| match request {
        Request::Add { name, .. } if name == "slow" => Answer::Late(Duration::from_millis(5300)),
        Request::Add { .. } => Answer::Nack("not this one".into()),
        _ => Answer::Ack,
    }));
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let netns = TestNetns::new().unwrap();
    let (slow, next) = tokio::join!(server.add("slow", &netns), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.add("next", &netns).await
    });
    assert!(matches!(slow, Err(AddError::Lost(_))), "{slow:?}");
    assert!(next.is_err(), "{next:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_packet_of_a_ztunnel_ends_the_connection() {
    let server = Server::new();
    let netns = TestNetns::new().unwrap();
    for (hello, says) in [
        (Hello::Packets(vec![vec![0xff; 16]]), "the hello is not valid"),
        (Hello::Packets(vec![vec![0x08, 0x01]; 2]), "its answer is not valid"),
        (Hello::Packets(vec![vec![0x08; 1025]]), "more than 1024 bytes"),
        (Hello::Packets(vec![vec![]]), "closed the connection instead"),
        (Hello::Packets(vec![vec![0x0a, 0x7f]]), "the hello is not valid"),
    ] {
        let ztunnel = server.ztunnel(Script::answering(|_| Answer::Silence).hello(hello.clone()));
        server.wait_event(
            |event| matches!(event, ZtunnelEvent::Disconnected { reason, .. } if reason.contains(says)),
            &format!("{hello:?}"),
        );
        ztunnel.close();
    }
    for answer in [vec![0xff; 4], vec![0x0a; 1025], vec![], vec![0x0a, 0x05, 0x0a, 0x7f, 1, 2, 3]] {
        let bytes = answer.clone();
        let ztunnel = server.ztunnel(Script::answering(move |request| match request {
            Request::Add { .. } => Answer::Bytes(bytes.clone()),
            _ => Answer::Ack,
        }));
        ztunnel.wait_snapshot(PATIENCE).unwrap();
        let result = server.add("a", &netns).await;
        assert!(matches!(result, Err(AddError::Lost(_))), "{answer:?}: {result:?}");
        server.leave("a");
        server.wait_connected(0);
    }
    server.stop().await;
}

/// One message at a time under random schedules: pods come and go while ztunnels come, go and misbehave; the double reports what breaks the
/// protocol, above all Keep or SnapshotSent after the snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn random_schedules_break_no_rule_of_the_protocol() {
    let netns = Arc::new(TestNetns::new().unwrap());
    let mut state = 0x9e37_79b9_u32;
    let mut random = move |below: u32| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % below
    };
    for _ in 0..6 {
        let server = Arc::new(Server::new());
        let violations = Arc::new(Mutex::new(Vec::new()));
        let mut ztunnels: Vec<Ztunnel> = Vec::new();
        let mut works = tokio::task::JoinSet::new();
        for step in 0..60 {
            match random(10) {
                0 | 1 => {
                    let bad = random(4);
                    let count = AtomicUsize::new(0);
                    ztunnels.push(server.ztunnel(Script::answering(move |_| {
                        match (bad, count.fetch_add(1, Ordering::Relaxed) % 7) {
                            (1, 3) => Answer::Nack("no".into()),
                            (2, 4) => Answer::Close,
                            (3, 5) => Answer::Late(Duration::from_millis(20)),
                            _ => Answer::Ack,
                        }
                    })));
                }
                2 if !ztunnels.is_empty() => {
                    let which = random(u32::try_from(ztunnels.len()).unwrap()) as usize;
                    let gone = ztunnels.swap_remove(which);
                    violations.lock().unwrap().extend(gone.violations());
                }
                3 => server.enrol(&format!("kept-{step}"), None),
                4..=6 => {
                    let (server, netns) = (server.clone(), netns.clone());
                    works.spawn(async move { drop(server.add(&format!("pod-{step}"), &netns).await) });
                }
                _ => {
                    let (server, uid) = (server.clone(), workload(&format!("pod-{}", random(60))).uid);
                    works.spawn(async move { drop(server.ztunnels.remove(&uid).await) });
                }
            }
            tokio::time::sleep(Duration::from_millis(u64::from(random(12)))).await;
        }
        tokio::time::timeout(Duration::from_secs(20), async { while works.join_next().await.is_some() {} })
            .await
            .expect("somebody waits for ever");
        for ztunnel in ztunnels {
            violations.lock().unwrap().extend(ztunnel.violations());
        }
        assert_eq!(*violations.lock().unwrap(), Vec::<String>::new());
        Arc::try_unwrap(server).ok().unwrap().stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_adds_one_at_a_time() {
    let server = Server::new();
    let ztunnel = server.ztunnel(Script::default());
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let netns = TestNetns::new().unwrap();
    let start = Instant::now();
    for number in 0..500 {
        server.add(&format!("pod-{number}"), &netns).await.unwrap();
    }
    println!("500 adds: {:?}", start.elapsed());
    assert_eq!(ztunnel.workloads().len(), 500);
    let acks = |event: &ZtunnelEvent| matches!(event, ZtunnelEvent::Acked { kind: MessageKind::Add, .. });
    assert_eq!(server.events().iter().filter(|event| acks(event)).count(), 500);
    server.stop().await;
}
