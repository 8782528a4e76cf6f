//! Who takes the plugin's log and report and does not: a call must not wait for it. The runtime waits for the call, and kubelet for the runtime.

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use testkit::plugin::{Answer, Call};
use testkit::{Families, Node, Pod, PodObject};

/// What a call may wait for its log and its report, in all.
const MOST: Duration = Duration::from_millis(50);
const TRIES: usize = 12;

/// A call for which nothing else is waited for, on a node with a run directory.
fn node_and_call() -> (Node, Pod, Call) {
    let mut node = Node::bare().unwrap();
    node.conf["plugin_log_level"] = "debug".into();
    node.write_manifest(PodObject::named("web").sidecar()).unwrap();
    std::fs::create_dir(node.run_dir()).unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    node.add("web", pod.path()).unwrap();
    let call = node.call("ADD", "web", pod.path());
    (node, pod, call)
}

/// The machine has other work, so the soonest of some calls tells what one waits.
fn soonest(run: impl Fn() -> Answer) -> Duration {
    let took = |_| {
        let answer = run();
        assert_eq!(answer.exit, Some(0), "{answer:#?}");
        answer.took
    };
    (0..TRIES).map(took).min().unwrap()
}

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.run_dir().join("istio-cni.log")).unwrap()
}

#[test]
fn sockets_that_nobody_serves_are_waited_for_50_ms_in_all() {
    let (node, _pod, call) = node_and_call();
    let without = soonest(|| call.run().unwrap());
    // The kernel accepts connections for a process that is stopped or hangs.
    let hung = ["agent.sock", "log.sock"].map(|name| UnixListener::bind(node.run_dir().join(name)).unwrap());
    let with = soonest(|| call.run().unwrap());
    println!("{without:?} without sockets, {with:?} with sockets that hang");
    assert!(with < without + MOST + Duration::from_millis(20), "{with:?}, without {without:?}");
    // Each call has left its report and its lines there, for an agent that goes on.
    for (listener, path) in hung.iter().zip(["/v1/report", "/log"]) {
        listener.set_nonblocking(true).unwrap();
        let mut count = 0;
        while let Ok((mut stream, _)) = listener.accept() {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
            count += usize::from(text.starts_with(&format!("POST {path} ")) && text.contains("\r\n\r\n"));
        }
        assert_eq!(count, TRIES, "{path}");
    }
}

#[test]
fn sockets_whose_queue_is_full_are_waited_for_50_ms_in_all() {
    let (node, _pod, call) = node_and_call();
    let without = soonest(|| call.run().unwrap());
    let full = ["agent.sock", "log.sock"].map(|name| {
        let path = node.run_dir().join(name);
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        (listener, UnixStream::connect(&path).unwrap())
    });
    let with = soonest(|| call.run().unwrap());
    println!("{without:?} without sockets, {with:?} with full ones");
    assert!(with < without + MOST + Duration::from_millis(20), "{with:?}, without {without:?}");
    drop(full);
}

/// A pipe with nothing left of its room.
fn stuck_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut pipe) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&pipe, true).unwrap();
    while pipe.write(&[b'\n'; 4096]).is_ok() {}
    // The plugin's own descriptor is of the same pipe, and waits.
    rustix::io::ioctl_fionbio(&pipe, false).unwrap();
    (reader, pipe)
}

#[test]
fn a_standard_error_that_nobody_reads_is_waited_for_50_ms_in_all() {
    let (node, _pod, call) = node_and_call();
    let without = soonest(|| call.run().unwrap());
    let (_reader, pipe) = stuck_pipe();
    let with = soonest(|| {
        let mut command = call.command();
        command.stderr(Stdio::from(pipe.try_clone().unwrap()));
        call.run_as(command).unwrap()
    });
    println!("{without:?} with standard error, {with:?} with one that nobody reads");
    assert!(with < without + MOST + Duration::from_millis(20), "{with:?}, without {without:?}");
    let log = log(&node);
    assert!(log.contains("log lines are missing on standard error"), "{log}");
    assert_eq!(log.matches("pod is captured").count(), 1 + 2 * TRIES, "the file has them all");
}

#[test]
fn everything_at_once_is_waited_for_50_ms_in_all() {
    let (node, _pod, call) = node_and_call();
    let without = soonest(|| call.run().unwrap());
    let _hung = ["agent.sock", "log.sock"].map(|name| UnixListener::bind(node.run_dir().join(name)).unwrap());
    let file = File::open(node.run_dir().join("istio-cni.log")).unwrap();
    file.lock().unwrap();
    let (_reader, pipe) = stuck_pipe();
    let with = soonest(|| {
        let mut command = call.command();
        command.stderr(Stdio::from(pipe.try_clone().unwrap()));
        call.run_as(command).unwrap()
    });
    println!("{without:?} with everything as it should be, {with:?} with everything stuck");
    assert!(with < without + MOST + Duration::from_millis(20), "{with:?}, without {without:?}");
}

/// A disk that is full for the log, and an agent that hangs up at once.
#[test]
fn sinks_that_refuse_cost_nothing() {
    let (node, _pod, call) = node_and_call();
    std::fs::remove_file(node.run_dir().join("istio-cni.log")).unwrap();
    std::fs::create_dir(node.run_dir().join("istio-cni.log")).unwrap();
    let sockets =
        ["agent.sock", "log.sock"].map(|name| UnixListener::bind(node.run_dir().join(name)).unwrap());
    let servers = sockets.map(|listener| {
        std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                stream.unwrap().shutdown(Shutdown::Both).unwrap();
            }
        })
    });
    let start = Instant::now();
    for _ in 0..2 {
        let answer = call.run().unwrap();
        assert_eq!(answer.exit, Some(0), "{answer:#?}");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    for server in servers {
        server.join().unwrap();
    }
}
