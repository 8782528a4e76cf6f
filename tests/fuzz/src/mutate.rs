//! Changes of an input's bytes.

use crate::random::Random;

/// Numbers at which lengths and counters break.
const EDGES: [u64; 12] = [0, 1, 3, 4, 15, 16, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff];
/// Most bytes that one change repeats.
const LONGEST_RUN: usize = 64;
/// Changes of one input.
const MOST_CHANGES: usize = 8;

/// Changes `input` a few times; `other` is one to take parts from.
pub(crate) fn mutate(
    input: &mut Vec<u8>,
    other: &[u8],
    dictionary: &[&str],
    max_len: usize,
    random: &mut Random,
) {
    for _ in 0..=random.small(MOST_CHANGES) {
        change(input, other, dictionary, random);
    }
    input.truncate(max_len);
}

fn change(input: &mut Vec<u8>, other: &[u8], dictionary: &[&str], random: &mut Random) {
    let part = range(input.len(), random);
    match random.below(13) {
        0 => flip(input, random),
        1 => set(input, random),
        // Truncation, at either end.
        2 => input.truncate(part.0),
        3 => drop(input.drain(part.0..part.1)),
        // Duplication, beside and elsewhere.
        4 => {
            let copy = input[part.0..part.1].to_vec();
            insert(input, part.1, &copy);
        }
        5 => {
            let (copy, at) = (input[part.0..part.1].to_vec(), random.below(input.len() + 1));
            insert(input, at, &copy);
        }
        6 => {
            let run = vec![random.byte(); random.small(LONGEST_RUN) + 1];
            insert(input, part.0, &run);
        }
        // Splices: a part of the other one in between, or its end instead of this one's.
        7 => {
            let from = range(other.len(), random);
            insert(input, part.0, &other[from.0..from.1]);
        }
        8 => {
            let from = range(other.len(), random);
            input.truncate(part.0);
            input.extend_from_slice(&other[from.0..]);
        }
        9 => number(input, random),
        10 => digits(input, random),
        kind => {
            let Some(word) = random.pick(dictionary) else { return flip(input, random) };
            // In between, or over what is there.
            if kind == 11 {
                insert(input, part.0, word.as_bytes());
            } else {
                input.splice(part.0..part.1, word.bytes());
            }
        }
    }
}

/// Begin and end within `len`; short ones are likelier.
fn range(len: usize, random: &mut Random) -> (usize, usize) {
    let start = random.below(len + 1);
    let end = start + random.small(len - start + 1);
    (start, end)
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn flip(input: &mut [u8], random: &mut Random) {
    if !input.is_empty() {
        let at = random.below(input.len());
        input[at] ^= 1 << random.below(8);
    }
}

fn set(input: &mut [u8], random: &mut Random) {
    if !input.is_empty() {
        let at = random.below(input.len());
        input[at] = random.byte();
    }
}

/// Writes a number where a length field may be: of 1, 2, 4 or 8 bytes in either order, an edge, near one, or the rest of the input's length.
fn number(input: &mut [u8], random: &mut Random) {
    let width = 1 << random.below(4);
    if input.len() < width {
        return;
    }
    // Most formats keep their numbers aligned.
    let mut at = random.below(input.len() - width + 1);
    if random.below(4) > 0 {
        at -= at % width;
    }
    let value = match random.below(4) {
        0 => (input.len() - at) as u64,
        1 => EDGES[random.below(EDGES.len())].wrapping_add(random.below(5) as u64).wrapping_sub(2),
        _ => EDGES[random.below(EDGES.len())],
    };
    let mut bytes = value.to_le_bytes();
    if random.below(2) == 0 {
        bytes[..width].reverse();
    }
    input[at..at + width].copy_from_slice(&bytes[..width]);
}

/// Changes a number that is written in digits.
fn digits(input: &mut Vec<u8>, random: &mut Random) {
    let start = random.below(input.len() + 1);
    let Some(first) = input[start..].iter().position(u8::is_ascii_digit).map(|at| start + at) else { return };
    let end = input[first..].iter().position(|b| !b.is_ascii_digit()).map_or(input.len(), |len| first + len);
    let edge = EDGES[random.below(EDGES.len())].wrapping_add(random.below(5) as u64).wrapping_sub(2);
    input.splice(first..end, edge.to_string().bytes());
}
