use super::{BLOCK, Edit, align};

fn edits(planned: &[u32], found: &[u32]) -> Vec<Edit> {
    let edits = align(planned.len(), found.len(), |i, j| planned[i] == found[j]);
    assert_eq!(edits.is_empty(), planned == found);
    // What is left on both sides must be one and the same.
    let rest = |all: &[u32], is: fn(usize) -> Edit| -> Vec<u32> {
        let gone: std::collections::HashSet<usize> =
            (0..all.len()).filter(|n| edits.contains(&is(*n))).collect();
        all.iter().enumerate().filter(|(n, _)| !gone.contains(n)).map(|(_, value)| *value).collect()
    };
    if edits.len() < 100 {
        assert_eq!(rest(planned, Edit::Missing), rest(found, Edit::Unexpected));
    }
    edits
}

#[test]
fn small_sequences_differ_by_as_little_as_possible() {
    use Edit::{Missing, Unexpected};
    assert_eq!(edits(&[], &[]), []);
    assert_eq!(edits(&[1, 2, 3], &[1, 2, 3]), []);
    assert_eq!(edits(&[1, 2, 3], &[1, 3]), [Missing(1)]);
    assert_eq!(edits(&[1, 3], &[1, 2, 3]), [Unexpected(1)]);
    assert_eq!(edits(&[], &[7]), [Unexpected(0)]);
    assert_eq!(edits(&[7, 7], &[7]), [Missing(1)]);
    assert_eq!(edits(&[1, 2, 3, 4], &[2, 1, 4, 3]).len(), 4);
    assert_eq!(edits(&[1, 2, 3, 4, 5], &[2, 3, 4, 1, 5]), [Missing(0), Unexpected(3)]);
}

#[test]
fn long_sequences_are_compared_in_bounded_blocks() {
    let planned: Vec<u32> = (0..12_000).collect();
    let calls = std::cell::Cell::new(0_usize);
    let count = |found: &[u32]| {
        calls.set(0);
        align(planned.len(), found.len(), |i, j| {
            calls.set(calls.get() + 1);
            planned[i] == found[j]
        })
    };
    assert_eq!(count(&planned), []);
    assert_eq!(calls.get(), planned.len(), "equal ones are walked once");

    // Differences all over, each of them small.
    let mut found = planned.clone();
    found.remove(11_000);
    found.insert(6000, 77_777);
    found.swap(3, 4);
    assert_eq!(edits(&planned, &found).len(), 4);

    // Nothing in common, one reversed, one moved further than a block.
    let other: Vec<u32> = planned.iter().map(|n| n + 50_000).collect();
    assert_eq!(count(&other).len(), 24_000);
    assert!(calls.get() < 2 * 24_000 / (BLOCK / 2) * (BLOCK + 1) * (BLOCK + 1), "{}", calls.get());
    let reversed: Vec<u32> = planned.iter().rev().copied().collect();
    assert!(count(&reversed).len() > 20_000);
    let mut moved = planned.clone();
    let first = moved.remove(0);
    moved.insert(9000, first);
    assert_eq!(edits(&planned, &moved), [Edit::Missing(0), Edit::Unexpected(9000)]);
}
