//! Which entries of two sequences differ, in memory that does not grow with them.

/// Longest part of each sequence that is compared at once; the table then has half a megabyte. Where more than this differs
/// between the common start and the common end, an entry that was moved further is reported as gone and as new, and others near
/// it may be, too.
const BLOCK: usize = 512;

/// An entry that the other sequence lacks at that place, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Planned, not found.
    Missing(usize),
    /// Found, not planned.
    Unexpected(usize),
}

/// Everything outside of a common subsequence of `planned` entries and `found` ones, in order; empty if and only if all are the
/// same. Below [`BLOCK`] differing entries the subsequence is a longest one.
pub(crate) fn align(planned: usize, found: usize, same: impl Fn(usize, usize) -> bool) -> Vec<Edit> {
    let shorter = planned.min(found);
    let start = (0..shorter).take_while(|n| same(*n, *n)).count();
    let end = (1..=shorter - start).take_while(|n| same(planned - n, found - n)).count();
    let (planned, found) = (planned - end, found - end);
    let (mut i, mut j) = (start, start);
    let mut edits = Vec::new();
    while i < planned && j < found {
        let (rows, columns) = ((planned - i).min(BLOCK), (found - j).min(BLOCK));
        let last = i + rows == planned && j + columns == found;
        let longest = Longest::new(rows, columns, |row, column| same(i + row, j + column));
        let (mut row, mut column) = (0, 0);
        // A block's second half is decided only with what follows it in view.
        while row < rows && column < columns && (last || row.max(column) < BLOCK / 2) {
            if same(i + row, j + column) {
                (row, column) = (row + 1, column + 1);
            } else if longest.from(row + 1, column) >= longest.from(row, column + 1) {
                edits.push(Edit::Missing(i + row));
                row += 1;
            } else {
                edits.push(Edit::Unexpected(j + column));
                column += 1;
            }
        }
        (i, j) = (i + row, j + column);
    }
    edits.extend((i..planned).map(Edit::Missing));
    edits.extend((j..found).map(Edit::Unexpected));
    edits
}

/// How long the longest common subsequence is, from each pair of places to the end.
struct Longest {
    columns: usize,
    lengths: Vec<u16>,
}

impl Longest {
    fn new(rows: usize, columns: usize, same: impl Fn(usize, usize) -> bool) -> Self {
        let mut longest = Self { columns, lengths: vec![0; (rows + 1) * (columns + 1)] };
        for row in (0..rows).rev() {
            for column in (0..columns).rev() {
                longest.lengths[row * (columns + 1) + column] = if same(row, column) {
                    longest.from(row + 1, column + 1) + 1
                } else {
                    longest.from(row + 1, column).max(longest.from(row, column + 1))
                };
            }
        }
        longest
    }

    fn from(&self, row: usize, column: usize) -> u16 {
        self.lengths[row * (self.columns + 1) + column]
    }
}

#[cfg(test)]
mod tests;
