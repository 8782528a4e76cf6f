//! Policies of a pod that starts: with an agent that answers in every way, and without one. What counts is which packets pass when its first process
//! runs, which is at once.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::fstat;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use testkit::plugin::Answer;
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Families, Node, Pod, PodObject, assert_says};

const PORT: u16 = 8080;
/// Where a sidecar takes what comes in.
const PROXY_PORT: u16 = 15006;
const PROXY_ID: u32 = 1337;
const NODE_ADDRESS: &str = "192.0.2.1";
/// A packet that is dropped costs the whole of it.
const PATIENCE: Duration = Duration::from_millis(150);

/// Policies that isolate pods of `default` with `app: web` in both directions, and those with `app: in` in one.
const SNAPSHOT: &str = "istio-cni policies 3\nnode 192.0.2.1 2001:db8::1\nnamespace default 1 kubernetes.io/metadata.name default\n\
                        policy np default both yes yes named default 1 app in 1 web\npolicy np default in yes no named default 1 app in 1 in\n\
                        policy np shop all yes yes named shop 0\nseen\n";

/// A pod and the rest of the world; the node enforces policies, and an agent has kept [`SNAPSHOT`].
struct Scene {
    node: Node,
    pod: Pod,
    /// In the pod: the application, or the sidecar that takes its place.
    app: Listeners,
    /// Outside of it.
    world: Listeners,
}

impl Scene {
    fn new(nftables: bool, labels: &[(&str, &str)], is_captured: bool) -> Self {
        let mut node = Node::bare().unwrap();
        node.conf["native_nftables"] = json!(nftables);
        node.conf["policy_enforcement"] = json!("on");
        let object = PodObject::named("web").labels(labels);
        node.write_manifest(if is_captured { object.sidecar() } else { object }).unwrap();
        for dir in [node.state_dir(), node.run_dir()] {
            std::fs::create_dir(dir).unwrap();
        }
        let pod = Pod::new(Families::Dual).unwrap();
        let port = if is_captured { PROXY_PORT } else { PORT };
        let app = Listeners::start(&pod, [Listener::tcp(port), Listener::udp(PORT)]).unwrap();
        let world = Listeners::start(pod.peer(), [Listener::tcp(PORT), Listener::udp(PORT)]).unwrap();
        let scene = Self { node, pod, app, world };
        scene.keep(SNAPSHOT);
        scene
    }

    fn web(nftables: bool) -> Self {
        Self::new(nftables, &[("app", "web")], false)
    }

    fn keep(&self, snapshot: &str) {
        std::fs::write(self.node.state_dir().join("policies.snapshot"), snapshot).unwrap();
    }

    /// An ADD, then at once what the pod's first process and its neighbours send; which of it passes, in and out.
    fn start(&self) -> (Answer, [bool; 2]) {
        let answer = self.node.call("ADD", "web", self.pod.path()).run().unwrap();
        let passes = self.look();
        (answer, passes)
    }

    /// Whether anything comes in that is not from the node, and whether anything gets out; each by TCP and by a datagram, in both families.
    fn look(&self) -> [bool; 2] {
        for listeners in [&self.app, &self.world] {
            drop(listeners.take_records());
        }
        let (inward, outward) = (self.pod.ips(), &self.pod.interfaces()[0].peer);
        let send = |ips: &[IpAddr]| {
            for ip in ips {
                let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
                // What is dropped on its way out is an error here.
                let _ = UdpSocket::bind((any, 0)).unwrap().send_to(b"x", (*ip, PORT));
            }
        };
        self.pod.enter(|_| send(outward)).unwrap();
        self.pod.peer().enter(|_| send(inward)).unwrap();
        let tcp =
            |from: Flow<'_>, ip: &IpAddr| from.patience(PATIENCE).tcp(SocketAddr::new(*ip, PORT)).unwrap();
        let inside = || Flow::from(&self.pod).user(PROXY_ID, PROXY_ID);
        let ways = [
            inward.iter().filter(|ip| tcp(Flow::from(self.pod.peer()), ip).port().is_some()).count(),
            outward.iter().filter(|ip| tcp(inside(), ip).port().is_some()).count(),
        ];
        let seen = [self.app.take_records().len(), self.world.take_records().len()];
        std::array::from_fn(|way| {
            let is_whole = ways[way] == 2 || (ways[way], seen[way]) == (0, 0);
            assert!(is_whole, "all or nothing: {ways:?} {seen:?}");
            ways[way] > 0
        })
    }

    /// What the own node reaches.
    fn reached_by_node(&self) -> Option<u16> {
        let source = SocketAddr::new(NODE_ADDRESS.parse().unwrap(), 0);
        let flow = Flow::from(self.pod.peer()).source(source).patience(PATIENCE);
        flow.tcp(SocketAddr::new(self.pod.ips()[0], PORT)).unwrap().port()
    }

    fn is_guarded(&self) -> bool {
        crate::everything(&self.pod).to_lowercase().replace('_', "-").contains("istio-np-guard")
    }
}

/// What an agent does with each question about policies.
#[derive(Debug, Clone)]
enum Behaviour {
    Answers(u16, String),
    HangsUp,
    /// It is ended in the middle of its answer.
    Ends,
    Hangs,
}

/// An agent of a few answers. It keeps what it heard of policies.
#[derive(Clone, Default)]
struct Double(Arc<Mutex<Vec<Heard>>>);

/// Path, body and descriptor of a question.
type Heard = (String, Value, Option<OwnedFd>);

impl Double {
    fn start(scene: &Scene, behaviour: Behaviour) -> Self {
        let (double, path) = (Self::default(), scene.node.agent_socket());
        let listener = UnixListener::bind(path).unwrap();
        let of_thread = double.clone();
        // It ends with the process; nobody knows its socket any more then.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                of_thread.answer(stream.unwrap(), &behaviour);
            }
        });
        double
    }

    fn answer(&self, mut stream: UnixStream, behaviour: &Behaviour) {
        let (head, body, descriptor) = request(&mut stream);
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if !path.starts_with("/v1/policy/") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        self.0.lock().unwrap().push((path, serde_json::from_str(&body).unwrap(), descriptor));
        match behaviour {
            Behaviour::Answers(status, text) => {
                let _ = write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            }
            Behaviour::HangsUp => {}
            Behaviour::Ends => {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 80\r\n\r\n{\"in_for"));
            }
            Behaviour::Hangs => drop(stream.read(&mut [0])),
        }
    }

    fn heard(&self) -> Vec<(String, Value, Option<OwnedFd>)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn request(stream: &mut UnixStream) -> (String, String, Option<OwnedFd>) {
    let (mut text, mut descriptor) = (Vec::new(), None);
    loop {
        let mut part = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut part)];
        let len =
            recvmsg(stream.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).map_or(0, |m| m.bytes);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut rights) = message {
                descriptor = rights.next();
            }
        }
        text.extend_from_slice(&part[..len]);
        let all = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = all.split_once("\r\n\r\n") else {
            assert!(len > 0, "not a request: {all}");
            continue;
        };
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if len == 0 || body.len() >= length.unwrap_or(0) {
            return (head.to_owned(), body.to_owned(), descriptor);
        }
    }
}

fn in_force(point: &str) -> Behaviour {
    let answer = json!({"isolation": {"ingress": true, "egress": true}, "in_force": true, "point": point});
    Behaviour::Answers(200, answer.to_string())
}

#[track_caller]
fn succeeded(answer: &Answer, parts: &[&str]) {
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&answer.stderr, parts);
}

/// Isolated are those that a policy selects, in the directions that it says, whether or not they have a sidecar.
#[test]
fn without_an_agent_a_pod_starts_as_isolated_as_was_known_last() {
    testkit::at_once(
        [true, false].into_iter().flat_map(|nftables| {
            [
                (nftables, "web", false, [false, false]),
                (nftables, "web", true, [false, false]),
                (nftables, "in", false, [false, true]),
                (nftables, "other", false, [true, true]),
            ]
        }),
        |(nftables, app, is_captured, expected)| {
            let scene = Scene::new(nftables, &[("app", app)], is_captured);
            let (answer, passes) = scene.start();
            succeeded(&answer, &[]);
            assert_eq!(passes, expected, "{nftables} {app} {is_captured}: {}", answer.stderr);
            assert_eq!(scene.reached_by_node(), Some(if is_captured { PROXY_PORT } else { PORT }));
            assert_eq!(scene.is_guarded(), expected != [true, true]);
            let check = scene.node.call("CHECK", "web", scene.pod.path()).run().unwrap();
            assert_eq!(check.exit, Some(0), "a guard that stays is no difference: {check:#?}");
        },
    );
}

#[test]
fn what_becomes_of_such_a_pod_is_the_administrators_choice() {
    let mut scene = Scene::web(true);
    scene.node.conf["policy_unprepared"] = json!("open");
    let (answer, passes) = scene.start();
    succeeded(&answer, &["WITHOUT ITS POLICIES", "ingress and egress"]);
    assert!(passes == [true, true] && !scene.is_guarded());

    scene.node.conf["policy_unprepared"] = json!("fail");
    let (answer, _) = scene.start();
    assert_eq!(answer.exit, Some(1), "{answer:#?}");
    assert_says(
        &answer.error().unwrap().1,
        &["policies isolate the pod (ingress and egress)", "POLICY_UNPREPARED"],
    );

    // What is there cannot be read: then nobody knows that no policy selects the pod.
    let scene = Scene::web(true);
    for other in ["istio-cni policies 1", "istio-cni policies 4"] {
        scene.keep(&format!("{other}\nseen\n"));
        let (answer, passes) = scene.start();
        succeeded(&answer, &["it is of another version"]);
        assert_eq!(passes, [false, false]);
    }
}

#[test]
fn where_nothing_is_enforced_or_known_no_pod_is_guarded() {
    let mut off = Scene::web(true);
    off.node.conf.as_object_mut().unwrap().remove("policy_enforcement");
    let unknown = Scene::web(true);
    std::fs::remove_file(unknown.node.state_dir().join("policies.snapshot")).unwrap();
    for scene in [off, unknown] {
        let (answer, passes) = scene.start();
        succeeded(&answer, &[]);
        assert!(passes == [true, true] && !crate::everything(&scene.pod).contains("istio"));
    }
}

/// It hears what it needs, and what it says comes after it is true.
#[test]
fn where_the_agent_has_the_policies_in_force_no_guard_is_made() {
    for nftables in [true, false] {
        let scene = Scene::web(nftables);
        let agent = Double::start(&scene, in_force("node"));
        let (answer, passes) = scene.start();
        succeeded(&answer, &[]);
        // The double enforces nothing.
        assert!(passes == [true, true] && !scene.is_guarded(), "{}", answer.stderr);
        let heard = agent.heard();
        let [(path, said, Some(netns))] = &heard[..] else { panic!("{heard:?}") };
        assert_eq!((&**path, &said["labels"]), ("/v1/policy/prepare", &json!({"app": "web"})));
        assert_eq!(
            (&said["name"], &said["namespace"], &said["interface"]),
            (&json!("web"), &json!("default"), &json!("eth0"))
        );
        // It is asked before anything guards the pod, and nothing has to.
        assert_eq!((&said["addresses"], &said["guarded"]["ingress"]), (&json!(["10.77.0.2"]), &json!(false)));
        let (given, own) = (fstat(netns).unwrap(), scene.pod.netns().id());
        assert_eq!((given.st_dev, given.st_ino), (own.dev, own.ino));

        let end = scene.node.call("DEL", "web", scene.pod.path()).run().unwrap();
        assert_eq!(end.exit, Some(0), "{end:#?}");
        let heard = agent.heard();
        let [(path, said, _)] = &heard[..] else { panic!("{heard:?}") };
        assert_eq!((&**path, &said["pods"][0]["addresses"]), ("/v1/policy/release", &json!(["10.77.0.2"])));
        assert_eq!(applied::policed::all(&scene.node.run_dir()).unwrap(), []);
    }
}

/// Of attachments that are gone the addresses are told.
#[test]
fn a_collection_of_what_is_gone_releases_it() {
    let scene = Scene::web(true);
    let agent = Double::start(&scene, in_force("node"));
    succeeded(&scene.start().0, &[]);
    drop(agent.heard());
    let mut conf = scene.node.conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    conf["cni.dev/valid-attachments"] = json!([]);
    let call = scene.node.call("GC", "web", scene.pod.path()).stdin(conf.to_string());
    let answer = call.without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME").run().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    let heard = agent.heard();
    assert_eq!((heard.len(), &heard[0].1["pods"][0]["name"]), (1, &json!("web")));
}

/// Wherever an agent is when it ends, and whatever it says instead of an answer.
#[test]
fn whatever_becomes_of_the_agent_no_packet_passes_that_policies_deny() {
    let not_yet =
        json!({"isolation": {"ingress": true, "egress": true}, "in_force": false, "node": [NODE_ADDRESS]});
    let all = [
        Behaviour::Answers(200, not_yet.to_string()),
        Behaviour::Answers(200, "{\"isolation\": 3}".to_owned()),
        Behaviour::Answers(503, "the policies are not listed yet".to_owned()),
        Behaviour::Answers(404, "404 page not found".to_owned()),
        // It says that its own rules are there, so the guard is not ended by the plugin.
        in_force("pod"),
        in_force("both"),
        Behaviour::HangsUp,
        Behaviour::Ends,
        Behaviour::Hangs,
    ];
    testkit::at_once(all, |behaviour| {
        let scene = Scene::web(true);
        let _agent = Double::start(&scene, behaviour.clone());
        let (answer, passes) = scene.start();
        succeeded(&answer, &[]);
        assert_eq!(passes, [false, false], "{behaviour:?}: {}", answer.stderr);
        assert!(answer.took < Duration::from_secs(10), "{behaviour:?}: {:?}", answer.took);
    });
    // It knows of policies that are newer than what is kept.
    let scene = Scene::new(true, &[("app", "other")], false);
    let _agent = Double::start(&scene, Behaviour::Answers(200, not_yet.to_string()));
    let (answer, passes) = scene.start();
    succeeded(&answer, &["isolated (ingress and egress)"]);
    assert_eq!((passes, scene.reached_by_node()), ([false, false], Some(PORT)));
}

/// A pod that is to be in ambient mode.
fn mesh_scene() -> Scene {
    let mut scene = Scene::new(true, &[("app", "web"), ("istio.io/dataplane-mode", "ambient")], false);
    scene.node.conf["ambient_enabled"] = json!(true);
    let selector = json!({"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}});
    scene.node.conf["enablement_selectors"] = json!([selector]);
    scene
}

/// An agent has rules for its tunnel only then, so it is asked once, when the pod is in the mesh and guarded still.
#[test]
fn the_agent_is_asked_for_policies_when_the_pod_is_in_the_mesh() {
    let scene = mesh_scene();
    let events = UnixListener::bind(scene.node.run_dir().join("pluginevent.sock")).unwrap();
    let agent = Double::start(&scene, in_force("node"));
    std::thread::scope(|scope| {
        let (scene, agent) = (&scene, &agent);
        let taken = scope.spawn(move || {
            let (mut stream, _) = events.accept().unwrap();
            drop(request(&mut stream));
            let seen = (scene.is_guarded(), agent.heard().len());
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            seen
        });
        let (answer, passes) = scene.start();
        succeeded(&answer, &["the node agent has taken it"]);
        assert_eq!(taken.join().unwrap(), (true, 0), "guarded, and not asked yet: {answer:#?}");
        let heard = agent.heard();
        let [(_, said, _)] = &heard[..] else { panic!("asked {} times", heard.len()) };
        assert_eq!(said["guarded"]["ingress"], json!(true), "{said}");
        assert_eq!(passes, [true, true], "the guard is gone: {answer:#?}");
    });
}

/// In ambient mode, too, the pod is isolated before it is handed over, and what probes go by still comes in.
#[test]
fn a_pod_is_guarded_before_it_comes_into_the_mesh() {
    let scene = mesh_scene();
    let events = UnixListener::bind(scene.node.run_dir().join("pluginevent.sock")).unwrap();
    std::thread::scope(|scope| {
        let scene = &scene;
        let taken = scope.spawn(move || {
            let (mut stream, _) = events.accept().unwrap();
            drop(request(&mut stream));
            let guarded = scene.is_guarded();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            guarded
        });
        let (answer, passes) = scene.start();
        succeeded(&answer, &["the node agent has taken it"]);
        assert!(taken.join().unwrap() && passes == [false, false], "{answer:#?}");
        let probe = Flow::from(scene.pod.peer()).source((IpAddr::from([169, 254, 7, 127]), 0).into());
        let probed = probe.patience(PATIENCE).tcp(SocketAddr::new(scene.pod.ips()[0], PORT)).unwrap();
        assert_eq!(probed.port(), Some(PORT));
    });
}
