//! What counts in a pod's namespace, by real packets and against the counters of the pod's interface. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use enforcement::{MemberNews, UsageMeter};
use policy::TrafficDirection::{self, Egress, Ingress};
use testkit::probe::{self, Flow, Listener, Listeners};
use testkit::{Families, Pod};
use usage::{Amount, CountedPod, PeerClass, PodKey, PodReading, UsageBook, UsageClass, UsagePlan};

const PORT: u16 = 8080;
/// Of one transfer, each way.
const BYTES: usize = 300_000;

fn classes() -> Vec<PeerClass> {
    let blue = PeerClass::Tenant("blue".into());
    vec![PeerClass::Own, blue, PeerClass::Unassigned, PeerClass::Service, PeerClass::Node]
}

/// The addresses of a class, by its place; those of the place behind the last one are in no class.
fn addresses(place: usize) -> [IpAddr; 2] {
    [format!("10.20.0.{}", place + 1), format!("fd20::{}", place + 1)].map(|text| text.parse().unwrap())
}

fn plan(classes: &[PeerClass]) -> Arc<UsagePlan> {
    let class = |(place, class): (usize, &PeerClass)| UsageClass {
        class: class.clone(),
        members: addresses(place).to_vec().into(),
    };
    Arc::new(UsagePlan { classes: classes.iter().enumerate().map(class).collect() })
}

fn open(pod: &Pod, plan: &Arc<UsagePlan>) -> UsageMeter {
    pod.enter(|inside| UsageMeter::open(inside, plan)).unwrap().unwrap()
}

/// Sends and receives, from the pod to an address that the rest of the world answers for.
fn transfer(pod: &Pod, to: IpAddr) {
    probe::transfer(pod.own(), pod.peer(), to, BYTES).unwrap();
}

/// Bytes without headers of the link, and packets, that an interface has received and sent.
fn interface(pod: &Pod) -> [Amount; 2] {
    pod.own().link_counters().unwrap().map(|(bytes, packets)| Amount { bytes, packets, connections: 0 })
}

fn sum(reading: &PodReading, direction: TrafficDirection) -> u64 {
    let all = classes().into_iter().chain([PeerClass::External, PeerClass::Denied]);
    all.map(|class| reading.amount(direction, &class).bytes).sum()
}

/// Whether two numbers of bytes are alike to a thousandth.
fn agree(counted: u64, told: u64) -> bool {
    counted.abs_diff(told) * 1000 <= told
}

#[test]
fn each_class_is_counted_in_both_directions_and_families() {
    let pod = Pod::new(Families::Dual).unwrap();
    pod.know_neighbours().unwrap();
    let all = classes();
    let mut meter = open(&pod, &plan(&all));
    assert!(meter.is_fresh());
    let begun = interface(&pod);
    for place in 0..=all.len() {
        addresses(place).into_iter().for_each(|to| transfer(&pod, to));
    }
    let _there = Listeners::start(&pod, [Listener::tcp(PORT)]).unwrap();
    for (place, pod_address) in (0..=all.len()).flat_map(|place| pod.ips().iter().map(move |ip| (place, *ip)))
    {
        let from = addresses(place)[usize::from(pod_address.is_ipv6())];
        let flow = Flow::from(pod.peer()).source(SocketAddr::new(from, 0));
        assert!(flow.tcp(SocketAddr::new(pod_address, PORT)).unwrap().port().is_some(), "{from}");
    }
    let (reading, ended) = (meter.read().unwrap(), interface(&pod));
    for (direction, [begun, ended]) in
        [Ingress, Egress].into_iter().zip([[begun[0], ended[0]], [begun[1], ended[1]]])
    {
        let told = ended.bytes - begun.bytes;
        let counted = sum(&reading, direction);
        println!("{direction:?}: counted {counted}, the interface says {told}");
        assert!(agree(counted, told), "{direction:?}: counted {counted}, the interface says {told}");
        for class in all.iter().chain([&PeerClass::External]) {
            let amount = reading.amount(direction, class);
            println!("{direction:?} {class}: {amount:?}");
            // Two transfers, and two short connections from outside.
            assert!(
                amount.bytes > 2 * BYTES as u64 && amount.bytes < 3 * BYTES as u64,
                "{direction:?} {class}: {amount:?}"
            );
            assert_eq!(amount.connections, 2, "{direction:?} {class}");
        }
        assert_eq!(reading.amount(direction, &PeerClass::Denied).packets, 0, "{direction:?}");
    }
}

#[test]
fn what_is_dropped_at_the_pod_is_denied_and_nothing_else() {
    let pod = Pod::new(Families::Dual).unwrap();
    let mut meter = open(&pod, &plan(&classes()));
    pod.nft(
        "add table inet judge
         add chain inet judge in { type filter hook prerouting priority -160; }
         add chain inet judge out { type filter hook postrouting priority 95; }
         add rule inet judge in udp dport 7777 drop
         add rule inet judge out udp dport 7778 drop",
    )
    .unwrap();
    let send = |from: &testkit::TestNetns, to: SocketAddr| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = from.enter(|_| std::net::UdpSocket::bind(any)).unwrap().unwrap();
        for _ in 0..5 {
            // A packet that is dropped on its way out may be told as an error.
            let _ = socket.send_to(&[0; 100], to);
        }
    };
    for (family, address) in pod.ips().iter().enumerate() {
        send(pod.peer(), SocketAddr::new(*address, 7777));
        send(pod.own(), SocketAddr::new(addresses(0)[family], 7778));
    }
    let reading = meter.read().unwrap();
    for direction in [Ingress, Egress] {
        let denied = reading.amount(direction, &PeerClass::Denied);
        // IPv4: 20 + 8 + 100, IPv6: 40 + 8 + 100.
        assert_eq!((denied.packets, denied.bytes), (10, 5 * 128 + 5 * 148), "{direction:?}");
        assert_eq!(reading.amount(direction, &PeerClass::Own).connections, 0, "{direction:?}");
    }
}

/// Sums over pods that come and go, an agent that is killed twice, and classes that change, against what the interfaces say.
#[test]
fn sums_are_what_interfaces_say_whatever_restarts() {
    let (mut book, mut told) = (UsageBook::new("n", "boot", 0), 0);
    let mut now = 0;
    for round in 0..4 {
        let pod = Pod::new(Families::Dual).unwrap();
        pod.know_neighbours().unwrap();
        let name = format!("red/{round}");
        let read = |book: &mut UsageBook, now: u64, meter: &mut UsageMeter| {
            let (key, netns) = (PodKey(name.as_str().into()), pod.netns().id().ino);
            let is_fresh = meter.is_fresh();
            let counted =
                CountedPod { key, name: name.as_str().into(), tenant: "red".into(), netns, is_fresh };
            book.read(now, &counted, &meter.read().unwrap());
        };
        let mut meter = open(&pod, &plan(&classes()));
        let begun = interface(&pod);
        book.expect(now, &PodKey(name.as_str().into()), &name, "red");
        read(&mut book, now, &mut meter);
        transfer(&pod, addresses(round % 3)[round % 2]);
        now += 10;
        read(&mut book, now, &mut meter);
        if round % 2 == 1 {
            // Killed: what it read and did not keep is read by the next one.
            let kept = book.save(now);
            transfer(&pod, addresses(1)[0]);
            read(&mut book, now + 1, &mut meter);
            drop(meter);
            transfer(&pod, addresses(5)[1]);
            book = UsageBook::restore(&kept, "n", "boot").unwrap();
            now += 10;
            meter = open(&pod, &plan(&classes()));
            assert!(!meter.is_fresh(), "counters go on");
            read(&mut book, now, &mut meter);
        }
        // Other classes: what both have goes on.
        let fewer = plan(&classes()[..2]);
        assert!(!meter.can_follow(&fewer));
        meter = open(&pod, &fewer);
        transfer(&pod, addresses(0)[1]);
        now += 10;
        let ended = interface(&pod);
        read(&mut book, now, &mut meter);
        book.gone(now, &PodKey(name.as_str().into()), true);
        // As an agent does after each round: pods that come from now on were not missed.
        book.save(now);
        told += ended[0].bytes + ended[1].bytes - begun[0].bytes - begun[1].bytes;
    }
    let lines = book.lines();
    let counted: u64 = lines[0].rows.iter().map(|row| row.amount.bytes).sum();
    let (observed, all) = (lines[0].observed_pod_seconds, lines[0].pod_seconds);
    println!("counted {counted}, the interfaces say {told}; {observed} of {all} seconds");
    assert!(agree(counted, told), "counted {counted}, the interfaces say {told}");
    assert!(!lines[0].incomplete && observed == all && all == 4 * 20 + 2 * 10, "{lines:?}");
}

/// Somebody removes the table: that is told, and another one is made.
#[test]
fn a_table_that_is_gone_is_told_and_made_again() {
    let pod = Pod::new(Families::Dual).unwrap();
    let wanted = plan(&classes());
    let mut meter = open(&pod, &wanted);
    meter.read().unwrap();
    pod.nft("delete table inet istio-usage-raw").unwrap();
    assert!(matches!(meter.read(), Err(enforcement::MeterError::Gone)));
    assert!(open(&pod, &wanted).is_fresh());
    assert!(!open(&pod, &wanted).is_fresh());
    pod.enter(UsageMeter::remove).unwrap().unwrap();
    assert!(!pod.nft_text().unwrap().contains("istio-usage"), "removed");
}

/// Who is in a class changes while connections are open, and nobody is inside the namespace.
#[test]
fn members_of_classes_are_followed_from_outside() {
    let pod = Pod::new(Families::Dual).unwrap();
    pod.know_neighbours().unwrap();
    let first = plan(&classes());
    let mut meter = open(&pod, &first);
    // Own and blue change places.
    let swapped = |place: usize, of: usize| UsageClass {
        class: classes()[place].clone(),
        members: addresses(of).to_vec().into(),
    };
    let other = Arc::new(UsagePlan {
        classes: [(0, 1), (1, 0), (2, 2), (3, 3), (4, 4)].map(|(place, of)| swapped(place, of)).to_vec(),
    });
    transfer(&pod, addresses(0)[0]);
    assert!(meter.can_follow(&other));
    let news = MemberNews::between(&first, &other);
    meter.follow(&news).unwrap();
    let again = meter.follow(&news);
    assert!(matches!(again, Err(enforcement::MeterError::OtherPlan)), "it has them already: {again:?}");
    transfer(&pod, addresses(0)[1]);
    let reading = meter.read().unwrap();
    for class in [&classes()[0], &classes()[1]] {
        let amount = reading.amount(Egress, class);
        assert!(amount.bytes > BYTES as u64 && amount.connections == 1, "{class}: {amount:?}");
    }
    // What an agent finds that follows is what it wants, and counters go on.
    let mut next = open(&pod, &other);
    assert!(!next.is_fresh());
    // Of the two: the kernel tells routers of its groups when it likes, and that goes outside.
    let reading_again = next.read().unwrap();
    for class in [&classes()[0], &classes()[1]] {
        for direction in [Egress, Ingress] {
            assert_eq!(reading_again.amount(direction, class), reading.amount(direction, class), "{class}");
        }
    }
}
