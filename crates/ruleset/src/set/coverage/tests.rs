use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn texts(coverage: &Coverage) -> Vec<String> {
    coverage.elements().map(|net| net.to_string()).collect()
}

fn changes(delta: &SetDelta) -> (Vec<String>, Vec<String>) {
    let text = |key: &Key| match key {
        Key::Prefix(net) => net.to_string(),
        key => panic!("{key:?} is no prefix"),
    };
    (
        delta.added().map(|element| text(&element.key)).collect(),
        delta.removed().map(|key| text(&key)).collect(),
    )
}

#[test]
fn each_step_and_its_change() {
    let mut coverage = Coverage::new(Family::V4);
    for (how, prefix, added, removed) in [
        ('+', "10.1.0.7/16", &["10.1.0.0/16"][..], &[][..]),
        ('+', "10.1.0.0/16", &[], &[]),
        // Within another.
        ('+', "10.1.2.0/24", &[], &[]),
        // Around another.
        ('+', "10.0.0.0/8", &["10.0.0.0/8"], &["10.1.0.0/16"]),
        // Beside another: not its half.
        ('+', "9.0.0.0/8", &["9.0.0.0/8"], &[]),
        ('-', "10.0.0.0/8", &["10.1.0.0/16"], &["10.0.0.0/8"]),
        ('-', "10.1.0.0/16", &[], &[]),
        ('-', "10.1.0.0/16", &["10.1.2.0/24"], &["10.1.0.0/16"]),
        // Its half, and then the half of both.
        ('+', "10.1.3.0/24", &["10.1.2.0/23"], &["10.1.2.0/24"]),
        ('+', "10.1.0.0/23", &["10.1.0.0/22"], &["10.1.2.0/23"]),
        ('-', "10.1.2.0/24", &["10.1.0.0/23", "10.1.3.0/24"], &["10.1.0.0/22"]),
        ('+', "0.0.0.0/0", &["0.0.0.0/0"], &["10.1.0.0/23", "10.1.3.0/24", "9.0.0.0/8"]),
        ('-', "0.0.0.0/0", &["10.1.0.0/23", "10.1.3.0/24", "9.0.0.0/8"], &["0.0.0.0/0"]),
    ] {
        let delta = match how {
            '+' => coverage.add(net(prefix)),
            _ => coverage.remove(net(prefix)),
        };
        let (mut new, mut gone) = changes(&delta.unwrap());
        new.sort();
        gone.sort();
        assert_eq!((new, gone), (added.map_strings(), removed.map_strings()), "{how}{prefix}: {coverage:?}");
    }
    assert_eq!(texts(&coverage), ["9.0.0.0/8", "10.1.0.0/23", "10.1.3.0/24"]);
    assert_eq!(coverage.remove(net("10.1.2.0/24")), Err(CoverageError::NotHeld(net("10.1.2.0/24"))));
    assert_eq!(coverage.add(net("::/0")), Err(CoverageError::OtherFamily(net("::/0"))));
}

trait MapStrings {
    fn map_strings(&self) -> Vec<String>;
}

impl MapStrings for [&str] {
    fn map_strings(&self) -> Vec<String> {
        self.iter().map(ToString::to_string).collect()
    }
}

/// Numbers that look random, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// A space of 64 addresses at an end of the family's, so that every address can be asked for.
fn random_net(random: &mut Random, family: Family, at_the_end: bool) -> IpNet {
    let (last, cut) = (random.below(64), u8::try_from(random.below(7)).unwrap());
    match (family, at_the_end) {
        (Family::V4, end) => {
            let base = if end { u32::MAX - 63 } else { 0 };
            IpNet::new(Ipv4Addr::from(base + last as u32).into(), 32 - cut).unwrap()
        }
        (Family::V6, end) => {
            let base = if end { u128::MAX - 63 } else { 0 };
            IpNet::new(Ipv6Addr::from(base + u128::from(last)).into(), 128 - cut).unwrap()
        }
    }
}

/// Against a list of what is held: elements have the same addresses, none overlaps or is the half of another, and each change leads from the
/// elements before to those after without touching any that stays.
#[test]
fn random_prefixes_against_a_list() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..200 {
        let family = if round % 2 == 0 { Family::V4 } else { Family::V6 };
        let mut coverage = Coverage::new(family);
        let mut held: Vec<IpNet> = Vec::new();
        for _ in 0..60 {
            let before: BTreeSet<IpNet> = coverage.elements().collect();
            let delta = if held.is_empty() || random.below(3) > 0 {
                let net = random_net(&mut random, family, round % 4 < 2);
                held.push(net.trunc());
                coverage.add(net).unwrap()
            } else {
                let at = usize::try_from(random.below(held.len() as u64)).unwrap();
                coverage.remove(held.swap_remove(at)).unwrap()
            };
            let after: Vec<IpNet> = coverage.elements().collect();
            let has = |nets: &[IpNet], address: IpNet| nets.iter().any(|net| net.contains(&address));
            for last in 0..64_u32 {
                let address = match (family, round % 4 < 2) {
                    (Family::V4, end) => {
                        let base = if end { u32::MAX - 63 } else { 0 };
                        IpNet::from(std::net::IpAddr::from(Ipv4Addr::from(base + last)))
                    }
                    (Family::V6, end) => {
                        let base = if end { u128::MAX - 63 } else { 0 };
                        IpNet::from(std::net::IpAddr::from(Ipv6Addr::from(base + u128::from(last))))
                    }
                };
                assert_eq!(has(&after, address), has(&held, address), "{address} of {held:?}");
            }
            assert_eq!(after, merged(held.iter().copied(), family), "{held:?}");
            for (number, one) in after.iter().enumerate() {
                for other in &after[number + 1..] {
                    assert!(!one.contains(other) && !other.contains(one), "{one} {other}");
                    let halves = one.supernet() == other.supernet() && one.prefix_len() == other.prefix_len();
                    assert!(!halves, "{one} {other}");
                }
            }
            let (new, gone) = changes(&delta);
            let parse = |texts: Vec<String>| texts.iter().map(|text| net(text)).collect::<BTreeSet<IpNet>>();
            let (new, gone) = (parse(new), parse(gone));
            assert!(gone.is_subset(&before) && new.is_disjoint(&before));
            let changed: BTreeSet<IpNet> = before.difference(&gone).chain(&new).copied().collect();
            assert_eq!(changed, after.into_iter().collect());
        }
        for net in held {
            coverage.remove(net).unwrap();
        }
        assert!(coverage.is_empty() && coverage.elements().next().is_none());
    }
}
