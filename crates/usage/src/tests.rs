use std::sync::Arc;

use policy::TrafficDirection;
use ruleset::{Backend, Family, Hook, Protocol};

use crate::*;

const HOUR: u64 = 1_764_500_400;

fn amount(bytes: u64, packets: u64, connections: u64) -> Amount {
    Amount { bytes, packets, connections }
}

fn plan() -> UsagePlan {
    let class = |class, members: &[&str]| UsageClass {
        class,
        members: members.iter().map(|address| address.parse().unwrap()).collect::<Vec<_>>().into(),
    };
    UsagePlan {
        classes: vec![
            class(PeerClass::Own, &["10.0.0.2", "fd00::2"]),
            class(PeerClass::Tenant("blue".into()), &["10.0.0.3"]),
            class(PeerClass::Tenant("x".repeat(63).into()), &[]),
            class(PeerClass::Node, &["192.0.2.1"]),
        ],
    }
}

/// Counters as the kernel would list them: in, out, all others nothing.
fn reading(list: &[(&str, u64, u64)]) -> PodReading {
    let counters = list.iter().map(|(name, packets, bytes)| CounterCount {
        name: (*name).to_owned(),
        packets: *packets,
        bytes: *bytes,
    });
    PodReading::new(&plan(), counters)
}

fn pod(netns: u64, is_fresh: bool) -> CountedPod {
    let key = PodKey("uid-1".into());
    CountedPod { key, name: "red/web".into(), tenant: "red".into(), netns, is_fresh }
}

#[test]
fn hours_are_those_of_the_calendar() {
    for (seconds, text, day) in [
        (0, "1970-01-01T00:00:00Z", "19700101"),
        (951_782_399, "2000-02-28T23:00:00Z", "20000228"),
        (951_782_400, "2000-02-29T00:00:00Z", "20000229"),
        (1_764_503_999, "2025-11-30T11:00:00Z", "20251130"),
        (4_107_542_400, "2100-03-01T00:00:00Z", "21000301"),
    ] {
        let hour = Hour::of(seconds);
        assert_eq!((hour.to_string().as_str(), hour.day().as_str()), (text, day));
        assert_eq!(text.parse(), Ok(hour));
        assert_eq!(Hour::of_day(day).unwrap().day(), day);
        assert_eq!(Hour::of_day(&text[..10]).unwrap().day(), day);
    }
    for bad in ["2025-02-30", "20251301", "2025-1-01", "1969-01-01", "", "2025-11-30T", "ÄÄÄÄ"] {
        assert_eq!(Hour::of_day(bad), None, "{bad}");
    }
    for bad in
        ["2025-11-30T24:00:00Z", "2025-11-30T1:00:00Z", "20251130T01:00:00Z", "2025-11-30T01:01:00Z", "x"]
    {
        assert!(bad.parse::<Hour>().is_err(), "{bad}");
    }
}

#[test]
fn classes_are_read_as_they_are_written() {
    let all = plan().classes.into_iter().map(|class| class.class);
    for class in
        all.chain([PeerClass::Unassigned, PeerClass::Service, PeerClass::External, PeerClass::Denied])
    {
        assert_eq!(class.to_string().parse(), Ok(class));
    }
    assert!("tenant:".parse::<PeerClass>().is_err() && "other".parse::<PeerClass>().is_err());
}

#[test]
fn the_rules_are_such_as_may_be_loaded() {
    for plan in [plan(), UsagePlan::default()] {
        let rules = plan.rules();
        assert_eq!(ruleset::check(&rules), Ok(()));
        let counters = rules.tables[0].counters();
        assert_eq!(counters.len(), 2 * (2 + 2 * (plan.classes.len() + 1)));
        // So that what passes while they are read is not taken for denied.
        let place = |name| counters.iter().position(|counter| *counter == name).unwrap();
        assert!(place("in-all") < place("in-passed") && place("out-all") < place("out-passed"));
    }
}

/// What the rules do to a packet is nothing: they only count.
#[test]
fn every_packet_passes() {
    let rules = plan().rules();
    let packet = ruleset::eval::Packet::new(
        Protocol::Tcp,
        "10.0.0.3:1000".parse().unwrap(),
        "10.0.0.9:80".parse().unwrap(),
    );
    for hook in [Hook::Prerouting, Hook::Postrouting] {
        let layers = std::slice::from_ref(&rules);
        let done =
            ruleset::eval::evaluate(layers, Backend::Nftables, &packet, hook, true, &ruleset::NoMembers);
        assert_eq!(done.verdict, ruleset::eval::Verdict::Pass);
    }
}

#[test]
fn members_are_parted_by_family() {
    let members = plan().members();
    let keys = |name: &str| members[name].len();
    assert_eq!((keys("usage-own-4"), keys("usage-own-6"), keys("usage-node-6")), (1, 1, 0));
    let names: Vec<&String> = members.keys().collect();
    assert_eq!(names.len(), 2 * plan().classes.len());
    assert!(names.iter().all(|name| name.len() <= ruleset::Set::MAX_NAME));
    assert_eq!(Family::of_address("fd00::2".parse().unwrap()), Family::V6);
}

#[test]
fn a_reading_says_what_each_class_and_what_was_denied() {
    let all = [
        ("in-all", 12, 1_200),
        ("in-passed", 10, 1_000),
        ("in-own", 7, 700),
        ("in-own-new", 2, 120),
        ("in-external", 3, 300),
        // Passed while it was read.
        ("out-all", 5, 500),
        ("out-passed", 6, 600),
        ("somebody-elses", 9, 9),
    ];
    let reading = reading(&all);
    assert_eq!(reading.amount(TrafficDirection::Ingress, &PeerClass::Own), amount(700, 7, 2));
    assert_eq!(reading.amount(TrafficDirection::Ingress, &PeerClass::External), amount(300, 3, 0));
    assert_eq!(reading.amount(TrafficDirection::Ingress, &PeerClass::Denied), amount(200, 2, 0));
    assert_eq!(reading.amount(TrafficDirection::Egress, &PeerClass::Denied), amount(0, 0, 0));
}

/// Whatever becomes of pods, counters and agents, what was counted is in the sums once.
#[test]
fn increments_are_counted_once() {
    let own = |bytes| reading(&[("in-own", bytes / 100, bytes)]);
    let sum = |book: &UsageBook| {
        book.lines().iter().flat_map(|line| &line.rows).map(|row| row.amount.bytes).sum::<u64>()
    };
    let state = |book: &UsageBook| {
        let line = &book.lines()[0];
        (
            line.rows.iter().map(|row| row.amount.bytes).sum::<u64>(),
            line.observed_pod_seconds,
            line.pod_seconds,
            line.incomplete,
        )
    };

    let mut book = UsageBook::new("n", "boot", HOUR);
    book.expect(HOUR, &pod(1, true).key, "red/web", "red");
    // What is waited for shows.
    book.expect(HOUR + 4, &pod(1, true).key, "red/web", "red");
    assert_eq!(state(&book), (0, 0, 4, false));
    // Ten seconds pass before the counters are there.
    book.read(HOUR + 10, &pod(1, true), &own(100));
    assert_eq!(state(&book), (100, 0, 10, false));
    let more = book.read(HOUR + 70, &pod(1, true), &own(500));
    assert_eq!(
        more,
        [UsageIncrement {
            direction: TrafficDirection::Ingress,
            class: PeerClass::Own,
            amount: amount(400, 4, 0)
        }]
    );
    assert_eq!(state(&book), (500, 60, 70, false));
    // Nothing new.
    assert_eq!(book.read(HOUR + 80, &pod(1, true), &own(500)), []);

    // The agent is killed after this, and what it read since is read again.
    let kept = book.save(HOUR + 80);
    book.read(HOUR + 90, &pod(1, true), &own(900));
    let mut next = UsageBook::restore(&kept, "n", "boot").unwrap();
    next.read(HOUR + 100, &pod(1, false), &own(1_000));
    assert_eq!(state(&next), (1_000, 90, 100, false));
    // A pod that came meanwhile may have been there the whole time, and its counters are fresh.
    let other = CountedPod { key: PodKey("uid-2".into()), name: "red/db".into(), ..pod(2, true) };
    next.read(HOUR + 100, &other, &own(0));
    assert_eq!(state(&next), (1_000, 90, 120, false));

    // Somebody flushes the table: what comes afterwards is counted, what was lost is said.
    next.read(HOUR + 110, &pod(1, false), &own(50));
    assert_eq!(state(&next), (1_050, 90, 130, true));

    // Another namespace under the same name: fresh counters count from nothing, those of an unknown agent do not.
    let mut third = UsageBook::new("n", "boot", HOUR);
    third.read(HOUR, &pod(3, false), &own(10_000));
    assert_eq!((sum(&third), third.lines()[0].incomplete), (0, true));
    third.read(HOUR + 1, &pod(3, false), &own(10_100));
    assert_eq!(sum(&third), 100);
    third.read(HOUR + 2, &pod(4, true), &own(30));
    assert_eq!(sum(&third), 130);

    // Its end: read, or not.
    third.gone(HOUR + 3, &pod(4, true).key, true);
    assert_eq!(third.pods().count(), 0);

    // A new start of the machine.
    let text = next.save(HOUR + 110);
    let mut booted = UsageBook::restore(&text, "n", "another").unwrap();
    assert_eq!((booted.pods().count(), sum(&booted)), (0, 1_050));
    booted.read(HOUR + 200, &pod(1, true), &own(20));
    assert_eq!(sum(&booted), 1_070);
}

#[test]
fn what_was_denied_never_becomes_less() {
    let mut book = UsageBook::new("n", "boot", HOUR);
    let denied = |all, passed| {
        reading(&[("in-all", all, all), ("in-passed", passed, passed), ("in-own", passed, passed)])
    };
    let mut sum = |reading| {
        book.read(HOUR, &pod(1, true), &reading);
        let lines = book.lines();
        let rows = lines[0].rows.iter();
        rows.filter(|row| row.peer == PeerClass::Denied).map(|row| row.amount.packets).sum::<u64>()
    };
    assert_eq!(sum(denied(3, 1)), 2);
    assert_eq!(sum(denied(4, 3)), 2);
    assert_eq!(sum(denied(6, 4)), 2);
    assert_eq!(sum(denied(9, 5)), 4);
}

#[test]
fn an_hour_is_closed_once_and_a_report_takes_the_last_line_of_each() {
    let mut book = UsageBook::new("n", "boot", HOUR);
    book.read(HOUR, &pod(1, true), &reading(&[("out-own", 1, 100), ("out-own-new", 1, 100)]));
    assert_eq!(book.close(HOUR + 3_599), []);
    book.read(
        HOUR + 3_600,
        &pod(1, true),
        &reading(&[("out-own", 3, 300), ("out-own-new", 1, 100), ("out-external", 1, 5)]),
    );
    let lines = book.close(HOUR + 3_600);
    assert_eq!((lines.len(), lines[0].hour), (1, Hour::of(HOUR)));
    assert_eq!(book.close(HOUR + 3_601), []);
    assert_eq!(book.lines(), []);
    // A clock is put right by a little, and by much; nobody was there at the end of an hour.
    for (begun, now, closes, incomplete) in [
        (HOUR + 3_600, HOUR + 3_500, false, false),
        (HOUR + 3_600, HOUR - 1, true, false),
        (HOUR, HOUR + 3_600 + 660, true, false),
        (HOUR, HOUR + 3_600 + 661, true, true),
    ] {
        let mut book = UsageBook::new("n", "boot", begun);
        book.read(now, &pod(1, true), &reading(&[("out-own", 4, 400), ("out-own-new", 1, 100)]));
        let lines = book.close(now);
        assert_eq!(!lines.is_empty(), closes, "{now}");
        assert!(lines.iter().all(|line| line.incomplete == incomplete), "{now}: {lines:?}");
    }

    // The chain's members stand in the same object, and lines of others beside it.
    let body = lines[0].to_json();
    let sealed = format!(
        "{},\"seq\":1,\"prev\":\"00\",\"hash\":\"11\",\"schema\":\"{SCHEMA}\"}}",
        &body[..body.len() - 1]
    );
    assert_eq!(UsageLine::parse(&sealed).unwrap().as_ref(), Some(&lines[0]));
    assert_eq!(UsageLine::parse(&body).unwrap(), None);
    assert_eq!(UsageLine::parse("{\"type\":\"audit_start\"}").unwrap(), None);
    assert!(UsageLine::parse("{").is_err());

    let repeated = UsageLine { pod_seconds: 1, ..lines[0].clone() };
    let elsewhere = UsageLine { node: "m".into(), ..lines[0].clone() };
    let other = UsageLine { tenant: "blue".into(), ..lines[0].clone() };
    let all = [repeated, lines[0].clone(), elsewhere, other];
    let filter = ReportFilter { tenant: Some("red".into()), ..ReportFilter::default() };
    let report = UsageReport::new(all.clone(), &filter);
    assert_eq!((report.nodes, report.rows.len(), report.coverage), (2, 2, Some(1.0)));
    assert_eq!(report.rows[0].amount, amount(600, 6, 2));
    assert_eq!(report.rows[0].peer_tenant.as_deref(), Some("red"));
    let csv = "hour,tenant,peer,direction,bytes,packets,connections\n,red,own,egress,600,6,2\n,red,external,egress,10,2,0\n";
    assert_eq!(report.to_csv(), csv);
    assert_eq!(report.to_table().len(), 3);
    assert_eq!(report.top, [PodShare { pod: "red/web".into(), bytes: 610 }]);
    let day = Hour::of_day("2025-11-30");
    let at = |from, before| ReportFilter { from, before, by_hour: true, ..ReportFilter::default() };
    assert_eq!(UsageReport::new(all.clone(), &at(day, None)).rows.len(), 4);
    assert_eq!(UsageReport::new(all.clone(), &at(None, day)).rows.len(), 0);
    let peer = ReportFilter { peer: Some("blue".into()), ..ReportFilter::default() };
    let of_peer = UsageReport::new(all, &peer);
    assert!(of_peer.rows.iter().all(|row| &*row.tenant == "blue" && row.peer == PeerClass::Own));
}

/// Cells of other programs' tables are no formulas.
#[test]
fn hostile_names_stay_text() {
    let line = UsageLine {
        node: "n".into(),
        hour: Hour::of(0),
        tenant: "=cmd|\"x\",".into(),
        measured_at: "pod".into(),
        pod_seconds: 0,
        observed_pod_seconds: 0,
        incomplete: true,
        rows: vec![LineRow {
            direction: TrafficDirection::Egress,
            peer: PeerClass::Node,
            amount: amount(1, 1, 0),
        }],
        top: Vec::new(),
    };
    let report = UsageReport::new([line], &ReportFilter::default());
    assert!(report.to_csv().contains("\n,\"'=cmd|\"\"x\"\",\",node,egress,1,1,0\n"), "{}", report.to_csv());
    assert!(report.summary().contains("incomplete"));
    let _: Arc<str> = report.measured_at.into();
}
