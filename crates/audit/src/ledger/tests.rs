//! Windows of rules and flows, and what they come to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rundir::denials::DenyingPolicies;

use super::*;

const WINDOW: Duration = Duration::from_secs(10);

fn ledger(now: Instant) -> AuditLedger {
    AuditLedger::new(LedgerConfig { window: WINDOW, rate: 1000, mask: None }, now)
}

/// A record from the `number`th source; `accounted` is what all records of the rule come to with it.
fn record(number: u8, packets: u64, suppressed: u64, accounted: u64) -> DenialRecord {
    let end = |last: u8| {
        let ip = Some(IpAddr::from([10, 0, 0, last]));
        Some(DenialEnd { ip, kind: "external".to_owned(), ..DenialEnd::default() })
    };
    DenialRecord {
        kind: "policy_violation".to_owned(),
        connection: DeniedConnection {
            source: (packets > 0).then(|| end(number)).flatten(),
            destination: (packets > 0).then(|| end(255)).flatten(),
            ..DeniedConnection::default()
        },
        policy: DenyingPolicies { id: "ic1:1".to_owned(), ..DenyingPolicies::default() },
        netns: 7,
        packets,
        suppressed,
        accounted,
        ..DenialRecord::default()
    }
}

fn sum(lines: &[AuditEvent]) -> u64 {
    lines.iter().filter_map(|line| line.accounted()).map(|(_, packets)| packets).sum()
}

#[test]
fn a_packet_alone_is_one_line_at_once() {
    let now = Instant::now();
    let mut ledger = ledger(now);
    let line = ledger.take(&record(1, 1, 0, 1), now).unwrap();
    assert_eq!((line.packets, line.sampled), (Some(1), false));
    assert_eq!(ledger.tick(now + WINDOW, false), []);
    assert_eq!(ledger.written().map(|(_, packets)| packets).collect::<Vec<_>>(), [1]);
}

/// Whatever is taken, the lines and what waits come to what was counted.
#[test]
fn nothing_is_told_twice_or_never() {
    let mut now = Instant::now();
    let mut ledger = ledger(now);
    let (mut counted, mut told, mut lines, mut chance) = (0, 0, 0, 12345_u64);
    for step in 0..3000 {
        chance = chance.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let draw = |bound: u64, at: u32| (chance >> at) % bound;
        let (packets, suppressed) = (draw(4, 20), draw(3, 30) * draw(1000, 40));
        if draw(20, 10) == 0 {
            ledger.lose(suppressed / 2);
        }
        counted += packets + suppressed;
        let at_once = ledger.take(&record(draw(5, 33) as u8, packets, suppressed, counted), now);
        let mut given: Vec<AuditEvent> = at_once.into_iter().collect();
        now += Duration::from_millis(draw(4000, 35));
        given.extend(ledger.tick(now, step == 2999));
        (told, lines) = (told + sum(&given), lines + given.len());
        let written: u64 = ledger.written().map(|(_, packets)| packets).sum();
        assert_eq!(written, told, "after step {step}");
    }
    assert_eq!(told, counted);
    assert!(lines < 3000, "{lines} lines");
}

#[test]
fn what_the_kernel_lost_is_a_gap_and_not_limited() {
    let now = Instant::now();
    let mut ledger = ledger(now);
    let first = ledger.take(&record(1, 10, 0, 10), now).unwrap();
    ledger.lose(30);
    assert_eq!(ledger.take(&record(0, 0, 100, 110), now), None);
    let lines = ledger.tick(now + WINDOW, false);
    let gap = lines.iter().find(|line| line.kind == crate::event::AUDIT_GAP).unwrap();
    assert_eq!((gap.lost, gap.place.as_str()), (Some(30), "kernel"));
    assert_eq!(sum(&lines) + sum(&[first]), 110);
}

#[test]
fn who_tries_many_destinations_makes_few_lines() {
    let now = Instant::now();
    let mut ledger = AuditLedger::new(LedgerConfig { window: WINDOW, rate: 10, mask: None }, now);
    let mut at_once = 0;
    for number in 0..10_000_u32 {
        let mut record = record((number % 2) as u8, 1, 0, u64::from(number) + 1);
        record.connection.source.as_mut().unwrap().tenant = ["red", "green"][number as usize % 2].to_owned();
        let to = record.connection.destination.as_mut().unwrap();
        (to.ip, to.tenant) = (Some((0x0a01_0000 + number).to_be_bytes().into()), "blue".to_owned());
        at_once += u64::from(ledger.take(&record, now).is_some());
    }
    let lines = ledger.tick(now + WINDOW, false);
    let ends = lines
        .iter()
        .filter_map(|line| line.connection.source.as_ref().zip(line.connection.destination.as_ref()));
    let (from, to) = ends.clone().find(|(_, to)| to.kind == "many").unwrap();
    assert_eq!((at_once, lines.len(), to.distinct), (10, 991, 9000));
    // Only what all have in common is told of them.
    assert_eq!((&*from.kind, &*from.tenant, from.ip, &*to.tenant), ("many", "", None, "blue"));
    assert_eq!(sum(&lines) + at_once, 10_000);
}

#[test]
fn addresses_outside_are_masked() {
    let mask = AddressMask::parse("/24,/48");
    let event = AuditEvent::of(&record(9, 1, 0, 1), mask);
    assert_eq!(event.connection.source.unwrap().ip, Some(IpAddr::from([10, 0, 0, 0])));
    for text in ["", "24,48", "/33,/48", "/24", "/24,/129"] {
        assert_eq!(AddressMask::parse(text), None, "{text}");
    }
}
