//! An ipset that is full.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use ruleset::{Action, Element, Family, Key, KeyType, Match, Rule, Set};
use testkit::TestNetns;

use crate::support::{Way, change, delta, ruleset, sh};

/// What the ipset program and we make a set for.
const ROOM: u32 = 65_536;

/// Ends the sender, also where the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A process that sends to members all the time never finds one missing while the set is replaced by a larger one.
#[test]
fn a_set_that_grows_has_all_members_at_every_instant() {
    for way in &Way::ALL[1..] {
        let ns = TestNetns::new().unwrap();
        ns.ip(&["link set lo up", "route add local 10.0.0.0/8 dev lo"]).unwrap();
        let set = Set { commented: true, ..Set::kept("istio-np-large", KeyType::Address(Family::V4)) };
        let is_out = Match::DestinationIn { set: set.name.clone(), keys: set.keys, not: true };
        let rule = Rule::new(
            vec![Match::Source { net: "0.0.0.0/0".parse().unwrap(), not: false }, is_out],
            Action::Drop,
            "no member",
        );
        let mut plan = ruleset(vec![set.clone()], vec![rule], vec![]);
        let chain = &mut plan.tables[0].chains[1];
        chain.name = "output".into();
        chain.base.as_mut().unwrap().hook = ruleset::Hook::Output;
        let (mut sets, _) = way.load(&ns, &plan);
        let ip = |n: u32| Ipv4Addr::from(0x0a00_0000 + n);
        let element =
            |n: u32| Element { comment: format!("{n}"), ..Key::from(std::net::IpAddr::V4(ip(n))).into() };
        assert_eq!(change(&mut sets, &set.name, &delta((0..ROOM).map(element), [])).added, ROOM as usize);
        let (stop, ns) = (AtomicBool::new(false), &ns);
        let (sent, denied) = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let send = |_: &netns::Inside| {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    let (mut sent, mut denied) = (0_u32, 0_u32);
                    while !stop.load(Ordering::Relaxed) {
                        // A packet that the chain drops is an error of the call.
                        let to = SocketAddr::from((ip(sent.wrapping_mul(7919) % ROOM), 9));
                        denied += u32::from(socket.send_to(b"x", to).is_err());
                        sent += 1;
                    }
                    (sent, denied)
                };
                ns.enter(send).unwrap()
            });
            let sending = Stop(&stop);
            let before = sh(ns, "ipset list -t istio-np-large");
            assert!(before.contains("maxelem 65536"), "{before}");
            let grown = change(&mut sets, &set.name, &delta((ROOM..ROOM + 100).map(element), []));
            drop(sending);
            assert_eq!(grown.added, 100, "{way:?}");
            sender.join().unwrap()
        });
        println!("{way:?}: {sent} packets sent while the set grew");
        assert!(
            sent > 100 && denied == 0,
            "{way:?}: {denied} of {sent} packets met a set without their address"
        );
        let after = sh(ns, "ipset list -t istio-np-large");
        let room: u32 = after.split("maxelem ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(room > 2 * ROOM, "{after}");
        assert_eq!(sh(ns, "ipset list -n"), "istio-np-large\n", "the old set is gone");
        let mut there = sets.list(&set.name).unwrap();
        there.sort_by_key(|element| element.key);
        assert_eq!(there, (0..ROOM + 100).map(element).collect::<Vec<_>>());
        // It is taken as it is by the next agent.
        way.load(ns, &plan);
        assert_eq!(sets.list(&set.name).unwrap().len(), there.len());
    }
}
