use super::*;

fn gaps(journal: &OlderJournal, now: u64) -> Vec<(u64, u64)> {
    journal.gaps(now).iter().map(|gap| (gap.from, gap.until)).collect()
}

#[test]
fn a_first_installation_ends_a_gap_without_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = OlderJournal::read(dir.path());
    journal.missing().unwrap();
    assert_eq!(gaps(&journal, 90), [(0, 91)], "it goes on");
    journal.in_place(100).unwrap();
    assert_eq!(gaps(&journal, 200), [(0, 101)]);
    journal.in_doubt(150).unwrap();
    journal.in_place(151).unwrap();
    assert_eq!(gaps(&journal, 200), [(0, 101)], "nothing was missing");
}

#[test]
fn a_plugin_that_was_there_before_leaves_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = OlderJournal::read(dir.path());
    journal.in_place(100).unwrap();
    assert_eq!(gaps(&journal, 200), []);
}

#[test]
fn a_configuration_that_was_overwritten_is_a_gap_from_a_little_before_it_was_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = OlderJournal::read(dir.path());
    journal.in_place(100).unwrap();
    journal.in_doubt(1000).unwrap();
    // It could not look for a while.
    journal.in_doubt(1500).unwrap();
    journal.missing().unwrap();
    journal.missing().unwrap();
    journal.in_place(1501).unwrap();
    assert_eq!(gaps(&journal, 2000), [(990, 1502)]);
}

#[test]
fn the_next_agent_goes_on_and_knows_whom_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = OlderJournal::read(dir.path());
    journal.in_place(100).unwrap();
    journal.in_doubt(500).unwrap();
    journal.told("a").unwrap();
    journal.told("b").unwrap();
    drop(journal);
    let mut next = OlderJournal::read(dir.path());
    next.missing().unwrap();
    next.in_place(700).unwrap();
    assert_eq!(gaps(&next, 900), [(500, 701)], "from when the agent before saw it last");
    next.forget(|uid| uid == "b").unwrap();
    let last = OlderJournal::read(dir.path());
    assert_eq!(gaps(&last, 900), [(500, 701)]);
    assert_eq!([last.is_told("a"), last.is_told("b")], [false, true]);
}

#[test]
fn what_is_from_another_start_of_the_machine_or_no_journal_counts_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for text in [r#"{"boot": "other", "seen": 5, "told": ["a"]}"#, "{", "[]"] {
        std::fs::write(dir.path().join(PLUGIN_TIMES_NAME), text).unwrap();
        let mut journal = OlderJournal::read(dir.path());
        journal.missing().unwrap();
        assert_eq!(gaps(&journal, 9), [(0, 10)], "{text}");
        assert!(!journal.is_told("a"));
    }
}

#[test]
fn gaps_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = OlderJournal::read(dir.path());
    for number in 1..=40 {
        journal.in_place(number * 100).unwrap();
        journal.in_doubt(number * 100).unwrap();
        journal.missing().unwrap();
        journal.in_place(number * 100).unwrap();
    }
    let gaps = gaps(&journal, 9000);
    assert_eq!((gaps.len(), gaps[15]), (16, (3990, 4001)));
}
