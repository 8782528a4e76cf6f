use std::time::{Duration, Instant, SystemTime};

use policy::compile::{LogMark, LoggedFate};
use rundir::denials::{
    DenialEnd, DenialRecord, DeniedConnection, DenyingPolicies, NearRule, POLICY_WOULD_DENY,
};

use super::*;
use crate::point::EnforcementPoint;

const DENIES: LogMark = LogMark { class: 7, fate: LoggedFate::Dropped };
const WOULD_DENY: LogMark = LogMark { class: 7, fate: LoggedFate::Passed };

fn packet(port: u16) -> DeniedPacket {
    DeniedPacket {
        mark: Some(DENIES),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2".parse().unwrap(),
        protocol: 6,
        ports: Some((40000, port)),
        icmp: None,
        tcp_flags: "SYN".to_owned(),
    }
}

fn batch(ports: &[u16], counted: u64) -> DenialBatch {
    let mut batch = DenialBatch::new(EnforcementPoint::Node, 0, [].into());
    ports.iter().for_each(|port| batch.add(packet(*port), SystemTime::now()));
    batch.count(DENIES, counted);
    batch
}

/// Of policies that are only tried out, by a backend whose counters are read now and then.
fn tried_out(packets: u64, counted: Option<u64>) -> DenialBatch {
    let mut batch = DenialBatch::new(EnforcementPoint::Node, 0, [].into());
    (0..packets)
        .for_each(|_| batch.add(DeniedPacket { mark: Some(WOULD_DENY), ..packet(80) }, SystemTime::now()));
    counted.into_iter().for_each(|counted| batch.count(WOULD_DENY, counted));
    batch
}

/// As the task of policies gives them.
fn records(batch: &DenialBatch) -> Vec<DenialRecord> {
    let end = |name: &str, port| DenialEnd {
        namespace: "shop".to_owned(),
        pod_name: name.to_owned(),
        port,
        kind: "pod".to_owned(),
        ..DenialEnd::default()
    };
    let kind = |flow: &batch::DeniedFlow| match flow.mark {
        Some(WOULD_DENY) => POLICY_WOULD_DENY.to_owned(),
        _ => String::new(),
    };
    let record = |(flow, tally): (&batch::DeniedFlow, &batch::FlowTally)| DenialRecord {
        kind: kind(flow),
        traffic_direction: "INGRESS".to_owned(),
        connection: DeniedConnection {
            source: Some(end("client", tally.source_port)),
            destination: Some(end("web", flow.port)),
            protocol: "TCP".to_owned(),
            ..DeniedConnection::default()
        },
        packets: tally.packets,
        policy: DenyingPolicies {
            selecting: vec!["shop/closed".to_owned()],
            nearest_miss: Some(NearRule {
                policy: "shop/closed".to_owned(),
                rule: 2,
                missed: "port".to_owned(),
            }),
            ..DenyingPolicies::default()
        },
        ..DenialRecord::default()
    };
    batch.flows.iter().map(record).collect()
}

#[test]
fn records_and_suppressed_packets_are_all_that_a_rule_counted() {
    let (book, start) = (DenialBook::new("n1", "run".to_owned()), Instant::now());
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    // What an earlier agent has told.
    book.begin(0, [(DENIES, 1000)]);
    let (mut told, mut counted) = (Vec::new(), 0);
    let mut take = |ports: &[u16], by_now, now| {
        let mut batch = batch(ports, by_now);
        batch.hear(now, true);
        let (records, more) = book.take(&batch, records(&batch), now);
        counted += more.iter().map(|more| more.packets).sum::<u64>();
        told.extend(records);
    };
    // Eight more by the counter, of which it is not known yet whether they were logged.
    take(&[80, 80, 81], 1011, at(0));
    // Four of them were; and twenty thousand more are denied.
    take(&[80, 80, 80, 80], 21_011, at(400));
    take(&[82], 21_012, at(500));
    assert_eq!(
        told.iter().map(|record| (record.packets, record.suppressed)).collect::<Vec<_>>(),
        [(2, 0), (1, 0), (4, 4), (1, 0),]
    );
    assert!(book.active(at(600)).is_empty(), "what was logged is underway");
    assert_eq!((book.active(at(2000)), book.silent(0, at(2000))), (vec![0], vec![DENIES]));
    let count = |counted, milliseconds| book.count(0, DENIES, counted, [at(milliseconds); 2]);
    let (rest, more) = count(21_015, 2000);
    let rest = rest.unwrap();
    assert_eq!((rest.packets, rest.suppressed, &rest.connection.source), (0, 20_000, &None));
    // What was counted just now may be underway.
    assert_eq!(count(21_015, 2200), (None, None));
    let (last, none) = count(21_015, 4000);
    assert_eq!((last.unwrap().suppressed, none), (3, None));
    assert_eq!(count(21_015, 6000), (None, None));
    let more = more.unwrap();
    assert_eq!((&*more.direction, &*more.namespace, &*more.policies), ("ingress", "shop", "shop/closed"));
    assert_eq!(counted + more.packets, 20_015);
    let report = book.report(0);
    let sum: u64 = report.records.iter().map(|record| record.packets + record.suppressed).sum();
    assert_eq!(sum, 20_015);
    assert_eq!(report.records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(book.report(4).records[0], rest);
    // Its rule is made anew, and counts from 0.
    assert_eq!(count(2, 8000).1.unwrap().packets, 2);
    assert_eq!(count(2, 10_000).0.unwrap().suppressed, 2);
}

#[test]
fn what_is_tried_out_is_counted_apart_also_by_counters_that_are_read_seldom() {
    let (book, start) = (DenialBook::new("n1", "run".to_owned()), Instant::now());
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    book.begin(0, [(WOULD_DENY, 500)]);
    let (mut told, mut counted) = ((0, 0), 0);
    let mut take = |mut batch: DenialBatch, now| {
        batch.hear(now, true);
        let (records, more) = book.take(&batch, records(&batch), now);
        told = records
            .iter()
            .fold(told, |(packets, more), record| (packets + record.packets, more + record.suppressed));
        assert!(more.iter().all(|more| more.is_tried_out == records[0].is_tried_out()), "{more:?}");
        counted += more.iter().filter(|more| more.is_tried_out).map(|more| more.packets).sum::<u64>();
        (told, counted)
    };
    assert_eq!(take(tried_out(3, Some(503)), at(0)), ((3, 0), 3));
    // More of the same class that is denied has a counter of its own.
    take(batch(&[80], 1), at(10));
    // Not read: what was received is known.
    assert_eq!(take(tried_out(4, None), at(500)), ((8, 0), 7));
    assert_eq!(take(tried_out(2, Some(600)), at(2000)), ((10, 0), 100));
    // Nothing is underway any more of what the counter had then.
    assert_eq!(take(tried_out(1, None), at(2400)), ((11, 90), 100), "the counter may have had it");
    let (rest, more) = book.count(0, WOULD_DENY, 603, [at(4000); 2]);
    assert_eq!((rest, more.unwrap().packets), (None, 3));
    let (rest, more) = book.count(0, WOULD_DENY, 603, [at(6000); 2]);
    assert_eq!((rest.unwrap().suppressed, more), (3, None));
    let record = records(&tried_out(1, None)).remove(0);
    assert_eq!(DenialEvents::default().take(&record, start), None, "nothing is wrong with the pod");
}

#[test]
fn only_so_many_records_are_kept() {
    let book = DenialBook::new("n1", "run".to_owned());
    for number in 0..5000u64 {
        let batch = batch(&[80], number + 1);
        book.take(&batch, records(&batch), Instant::now());
    }
    let report = book.report(0);
    assert_eq!((report.records.len(), report.records[0].seq), (4096, 905));
}

#[test]
fn an_event_is_of_a_pod_peer_and_port_and_few_are_written_in_a_minute() {
    let (mut events, start) = (DenialEvents::default(), Instant::now());
    let mut due = |port: u16, seconds| {
        let record = records(&batch(&[port], 0)).remove(0);
        events.take(&record, start + Duration::from_secs(seconds)).map(|event| event.message)
    };
    let first = due(80, 0).unwrap();
    assert_eq!(
        first,
        "NetworkPolicies deny TCP from shop/client on port 80: no ingress rule of shop/closed allows it; rule 2 of shop/closed does not match \
         by its port; 1 packet"
    );
    assert_eq!((1..600).filter(|second| due(80, *second).is_some()).count(), 0);
    assert!(due(80, 600).unwrap().ends_with("; 600 packets"));
    assert_eq!((1000..1100).filter(|port| due(*port, 700).is_some()).count(), 5);
    assert_eq!((1000..1100).filter(|port| due(*port, 800).is_some()).count(), 5);
    let mut other = records(&batch(&[80], 0)).remove(0);
    let ends = |record: &mut DenialRecord, tenants: [&str; 2]| {
        let DeniedConnection { source, destination, .. } = &mut record.connection;
        source.as_mut().unwrap().tenant = tenants[0].to_owned();
        destination.as_mut().unwrap().tenant = tenants[1].to_owned();
    };
    for (kind, tenants, crosses) in [
        ("NetworkTenant", ["red", "blue"], true),
        ("NetworkTenant", ["", "blue"], true),
        ("NetworkTenant", ["blue", "blue"], false),
        ("NetworkPolicy", ["red", "blue"], false),
    ] {
        other.policy.kind = kind.to_owned();
        ends(&mut other, tenants);
        let event = DenialEvents::default().take(&other, start).unwrap();
        assert_eq!(event.is_cross_tenant, crosses, "{kind} {tenants:?}");
        assert_eq!(
            event.message.starts_with("Tenants deny TCP"),
            kind == "NetworkTenant",
            "{}",
            event.message
        );
    }
    let mut outside = records(&batch(&[80], 0)).remove(0);
    outside.connection.source = Some(DenialEnd { kind: "external".to_owned(), ..DenialEnd::default() });
    assert_eq!(DenialEvents::default().take(&outside, start), None);
}

/// What happens to a class: a packet is denied and logged, or denied where there is no room in the log.
#[derive(Debug, Clone, Copy)]
enum Denied {
    Logged,
    Unlogged,
}

/// What the reader does next, each half a second later.
#[derive(Debug, Clone, Copy)]
enum Reads {
    /// Packets of the log, so many, and the counter after them.
    Log(usize),
    /// The same without the counter.
    LogOnly(usize),
    /// The counter of a class that is silent.
    Counter,
}

#[test]
fn whatever_is_received_before_or_after_the_counter_has_it_the_sum_is_the_counter() {
    use Denied::{Logged, Unlogged};
    use Reads::{Counter, Log, LogOnly};
    let cases: [&[(&[Denied], Reads)]; 6] = [
        &[(&[Logged, Logged, Unlogged], Log(2))],
        // The counter had one that is received later, and is not read then.
        &[(&[Logged, Logged], Log(1)), (&[], LogOnly(1)), (&[], Counter)],
        &[(&[Logged, Logged, Unlogged], Log(1)), (&[Logged], LogOnly(2)), (&[Unlogged], Log(0))],
        // Received, and counted later.
        &[(&[Logged, Logged], LogOnly(2)), (&[Logged], LogOnly(1)), (&[Unlogged, Logged], Log(1))],
        &[(&[Logged], LogOnly(1)), (&[Unlogged], Counter), (&[Logged], LogOnly(1)), (&[Unlogged], Counter)],
        &[(&[Logged; 5], Log(2)), (&[Unlogged; 4], LogOnly(3)), (&[Logged], Counter), (&[], Log(1))],
    ];
    for case in cases {
        let (book, start) = (DenialBook::new("n1", "run".to_owned()), Instant::now());
        let (mut counter, mut logged, mut metric) = (0, 0, 0);
        let ends = [(&[] as &[Denied], Counter); 2];
        for (step, (denied, reads)) in case.iter().chain(&ends).enumerate() {
            counter += denied.len() as u64;
            logged += denied.iter().filter(|one| matches!(one, Logged)).count();
            let now = start + Duration::from_millis(500 * step as u64);
            let (packets, is_counted) = match reads {
                Log(packets) => (*packets, true),
                LogOnly(packets) => (*packets, false),
                Counter => {
                    let (_, more) = book.count(0, DENIES, counter, [now; 2]);
                    metric += more.map_or(0, |more| more.packets);
                    continue;
                }
            };
            let packets = packets.min(logged);
            logged -= packets;
            let mut batch = DenialBatch::new(EnforcementPoint::Node, 0, [].into());
            (0..packets).for_each(|_| batch.add(packet(80), SystemTime::now()));
            if is_counted {
                batch.count(DENIES, counter);
            }
            // What is left in the log is received before anything is settled.
            batch.hear(now, logged == 0);
            let (_, more) = book.take(&batch, records(&batch), now);
            metric += more.iter().map(|more| more.packets).sum::<u64>();
        }
        let told: u64 = book.report(0).records.iter().map(|record| record.packets + record.suppressed).sum();
        assert_eq!((told, metric, logged), (counter, counter, 0), "{case:?}");
        assert_eq!(book.denied()[&DENIES.class], counter, "{case:?}");
    }
}

/// Hearing begins again within the life of an agent: what rules have counted that are there only since is told whole, and of others what is new.
#[test]
fn rules_that_came_while_nothing_was_heard_are_counted_from_their_first_packet() {
    let other = LogMark { class: 8, ..DENIES };
    for (marks, counted, wanted) in [
        // Of an earlier agent, and heard of for the first time afterwards.
        (vec![(DENIES, 1010)], 1012, 12),
        // There only since: none of it was told.
        (vec![(DENIES, 1000), (other, 7)], 9, 9),
    ] {
        let (book, start) = (DenialBook::new("n1", "run".to_owned()), Instant::now());
        book.begin(0, [(DENIES, 1000)]);
        let mark = marks.last().map(|(mark, _)| *mark).unwrap();
        book.begin(0, marks);
        let mut batch = DenialBatch::new(EnforcementPoint::Node, 0, [].into());
        batch.add(DeniedPacket { mark: Some(mark), ..packet(80) }, SystemTime::now());
        batch.count(mark, counted);
        batch.hear(start, true);
        let (_, more) = book.take(&batch, records(&batch), start);
        assert_eq!(more.iter().map(|more| more.packets).sum::<u64>(), wanted, "{mark:?}");
    }
}
