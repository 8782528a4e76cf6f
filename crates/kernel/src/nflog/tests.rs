use super::*;

fn v4(protocol: u8, part: u16, transport: &[u8]) -> Vec<u8> {
    let [p0, p1] = part.to_be_bytes();
    [&[0x45, 0, 0, 60, 0, 0, p0, p1, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2][..], transport].concat()
}

fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 40, next, 64];
    packet.extend([[0xfd; 16], [0xfe; 16]].concat());
    packet.extend(rest);
    packet
}

#[test]
fn headers_are_read_as_far_as_they_go() {
    let syn = [0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0];
    let read = |packet: &[u8]| LoggedHeader::read(packet).unwrap();
    let tcp = read(&v4(6, 0x4000, &syn));
    assert_eq!((tcp.source, tcp.destination), ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()));
    assert_eq!((tcp.protocol, tcp.ports), (6, Some((40000, 8080))));
    assert_eq!(tcp.tcp_flags.unwrap().to_string(), "SYN");
    assert_eq!(read(&v4(17, 1, &syn)).ports, None, "a later part has no ports");
    assert_eq!(read(&v4(47, 0, &syn)).ports, None, "nor has GRE");
    let echo = read(&v4(1, 0, &[8, 0, 1, 2]));
    assert_eq!((echo.ports, echo.icmp), (None, Some(LoggedIcmp { kind: 8, code: 0 })));
    // Options, then a first part, then UDP.
    let udp = v6(60, &[&[44, 0, 0, 0, 0, 0, 0, 0][..], &[17, 0, 0, 1, 0, 0, 0, 0], &syn[..8]].concat());
    assert_eq!((read(&udp).protocol, read(&udp).ports), (17, Some((40000, 8080))));
    let later = v6(44, &[&[17, 0, 0, 9, 0, 0, 0, 0][..], &syn[..8]].concat());
    assert_eq!((read(&later).protocol, read(&later).ports), (17, None));
    for cut in 0..udp.len() {
        let header = LoggedHeader::read(&udp[..cut]);
        assert_eq!(header.is_some(), cut >= 40, "{cut}");
    }
    assert_eq!(LoggedHeader::read(&[0x10; 64]), None);
}

/// What the kernel gives, of packets that it did not number one after the other.
pub(crate) fn read(open: crate::fuzz::Open<'_>) -> Vec<crate::fuzz::Read> {
    let mut log = PacketLog { socket: open(), next: None };
    let mut found = 0;
    let read = log.read(&mut PacketLog::buffer(), |packet| {
        found += usize::from(LoggedHeader::read(packet.packet).is_some());
    });
    vec![read.ok().map(|_| found)]
}
