use std::time::{Duration, Instant, SystemTime};

use rundir::denials::{DenialEnd, DenialRecord, DenyingPolicies, NearRule};

use super::*;
use crate::point::EnforcementPoint;

const CLASS: u64 = 7;

fn packet(port: u16) -> DeniedPacket {
    DeniedPacket {
        class: Some(CLASS),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2".parse().unwrap(),
        protocol: 6,
        ports: Some((40000, port)),
        icmp: None,
        tcp_flags: "SYN".to_owned(),
    }
}

fn batch(ports: &[u16], counted: u64) -> DenialBatch {
    let mut batch = DenialBatch::new(EnforcementPoint::Node, 0, false, [].into());
    ports.iter().for_each(|port| batch.add(packet(*port), SystemTime::now()));
    batch.count(CLASS, counted);
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
    let record = |(flow, tally): (&batch::DeniedFlow, &batch::FlowTally)| DenialRecord {
        traffic_direction: "INGRESS".to_owned(),
        source: Some(end("client", tally.source_port)),
        destination: Some(end("web", flow.port)),
        protocol: "TCP".to_owned(),
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
    book.begin(0, CLASS, 1000);
    let (mut told, mut counted) = (Vec::new(), 0);
    let mut take = |ports: &[u16], by_now, now| {
        let batch = batch(ports, by_now);
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
    assert_eq!((book.active(at(2000)), book.silent(0, at(2000))), (vec![0], vec![CLASS]));
    let (rest, more) = book.count(0, CLASS, 21_015);
    let rest = rest.unwrap();
    assert_eq!((rest.packets, rest.suppressed, &rest.source), (0, 20_003, &None));
    assert_eq!(book.count(0, CLASS, 21_015), (None, None));
    let more = more.unwrap();
    assert_eq!((&*more.direction, &*more.namespace, &*more.policies), ("ingress", "shop", "shop/closed"));
    assert_eq!(counted + more.packets, 20_015);
    let report = book.report(0);
    let sum: u64 = report.records.iter().map(|record| record.packets + record.suppressed).sum();
    assert_eq!(sum, 20_015);
    assert_eq!(report.records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(book.report(4).records, [rest]);
    // Its rule is made anew, and counts from 0.
    assert_eq!(book.count(0, CLASS, 2).0.unwrap().suppressed, 2);
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
    let mut outside = records(&batch(&[80], 0)).remove(0);
    outside.source = Some(DenialEnd { kind: "external".to_owned(), ..DenialEnd::default() });
    assert_eq!(DenialEvents::default().take(&outside, start), None);
}
