//! Two texts beside each other, as `diff -u` prints them.

use std::fmt::Write as _;

/// Lines around a difference that are shown.
const AROUND: usize = 3;
/// The most lines of a text. A plan has some dozens.
const MAX_LINES: usize = 4000;

/// A line of the result: kept, only in the first text, only in the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Kept(usize, usize),
    Removed(usize),
    Added(usize),
}

/// The differences of two texts; empty where there are none. Lines are compared by `same`, and printed by `text`. A text of more than 4,000 lines is
/// cut there.
pub(super) fn unified<T>(
    names: [&str; 2],
    before: &[T],
    after: &[T],
    same: impl Fn(&T, &T) -> bool,
    text: impl Fn(&T) -> String,
) -> String {
    let (before, after) = (&before[..before.len().min(MAX_LINES)], &after[..after.len().min(MAX_LINES)]);
    let steps = steps(before, after, same);
    let changed: Vec<usize> = steps
        .iter()
        .enumerate()
        .filter(|(_, step)| !matches!(step, Step::Kept(..)))
        .map(|(at, _)| at)
        .collect();
    let (Some(_), mut out) = (changed.first(), String::new()) else { return String::new() };
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(out, "--- {}\n+++ {}", names[0], names[1]);
    let mut from = 0;
    while from < changed.len() {
        let mut to = from;
        while changed.get(to + 1).is_some_and(|next| next - changed[to] <= 2 * AROUND) {
            to += 1;
        }
        let hunk = &steps[changed[from].saturating_sub(AROUND)..steps.len().min(changed[to] + AROUND + 1)];
        write_hunk(&mut out, hunk, &steps, changed[from].saturating_sub(AROUND));
        for step in hunk {
            let _ = match step {
                Step::Kept(at, _) => writeln!(out, " {}", text(&before[*at])),
                Step::Removed(at) => writeln!(out, "-{}", text(&before[*at])),
                Step::Added(at) => writeln!(out, "+{}", text(&after[*at])),
            };
        }
        from = to + 1;
    }
    out
}

/// `@@ -1,4 +1,5 @@`
fn write_hunk(out: &mut String, hunk: &[Step], steps: &[Step], start: usize) {
    let count = |steps: &[Step], skip: fn(&Step) -> bool| steps.iter().filter(|step| !skip(step)).count();
    let (removed, added) =
        (|step: &Step| matches!(step, Step::Removed(_)), |step: &Step| matches!(step, Step::Added(_)));
    let (old, new) = (count(hunk, added), count(hunk, removed));
    let first = |length: usize, before: usize| if length == 0 { before } else { before + 1 };
    let old_start = first(old, count(&steps[..start], added));
    let new_start = first(new, count(&steps[..start], removed));
    let _ = writeln!(out, "@@ -{old_start},{old} +{new_start},{new} @@");
}

/// The shortest way from one to the other, by the longest common subsequence.
fn steps<T>(before: &[T], after: &[T], same: impl Fn(&T, &T) -> bool) -> Vec<Step> {
    let width = after.len() + 1;
    // Length of the longest common subsequence of what follows; at most 4,001 squared.
    let mut longest = vec![0_u16; (before.len() + 1) * width];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            longest[i * width + j] = if same(&before[i], &after[j]) {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut steps) = (0, 0, Vec::new());
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && same(&before[i], &after[j]) {
            steps.push(Step::Kept(i, j));
            (i, j) = (i + 1, j + 1);
        } else if j >= after.len()
            || (i < before.len() && longest[(i + 1) * width + j] >= longest[i * width + j + 1])
        {
            steps.push(Step::Removed(i));
            i += 1;
        } else {
            steps.push(Step::Added(j));
            j += 1;
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(before: &str, after: &str) -> String {
        let lines = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        unified(["plan", "kernel"], &lines(before), &lines(after), |a, b| a == b, Clone::clone)
    }

    #[test]
    fn differences_are_shown_with_what_is_around_them() {
        assert_eq!(diff("a b c", "a b c"), "");
        assert_eq!(diff("", ""), "");
        assert_eq!(diff("a b c", "a x c"), "--- plan\n+++ kernel\n@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n");
        assert_eq!(diff("", "x"), "--- plan\n+++ kernel\n@@ -0,0 +1,1 @@\n+x\n");
        let text = diff("1 2 3 4 5 6 7 8 9 10 11 12", "2 3 4 5 6 7 8 9 10 11 12 13");
        assert_eq!(text.matches("@@ -").count(), 2, "{text}");
        assert!(
            text.contains("@@ -1,4 +1,3 @@\n-1\n 2\n 3\n 4\n@@ -10,3 +9,4 @@\n 10\n 11\n 12\n+13\n"),
            "{text}"
        );
    }

    #[test]
    fn the_result_is_what_diff_prints() {
        // The same texts through diff(1) are a cross-check where it is installed; here by applying the steps.
        for (before, after) in [("a b c d e", "b c x e f"), ("a a a", "a a"), ("x y", "y x")] {
            let lines = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let (before, after) = (lines(before), lines(after));
            let mut made = Vec::new();
            for step in steps(&before, &after, |a, b| a == b) {
                match step {
                    Step::Kept(at, _) => made.push(before[at].clone()),
                    Step::Added(at) => made.push(after[at].clone()),
                    Step::Removed(_) => {}
                }
            }
            assert_eq!(made, after);
        }
    }
}
