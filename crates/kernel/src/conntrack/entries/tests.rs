//! Lists with any content.

use super::{count, list};
use crate::fuzz::{Open, Read};

/// The number of entries, and those that were redirected.
pub(crate) fn read(open: Open<'_>) -> Vec<Read> {
    let ports: Vec<u16> = (0..100).collect();
    let entries = list(&mut open(), &ports).ok().map(|entries| entries.len());
    vec![count(&mut open()).map(|count| count as usize), entries]
}
