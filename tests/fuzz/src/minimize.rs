//! A shorter input that fails as well.

use std::time::{Duration, Instant};

/// How long a failing input is made shorter.
const LIMIT: Duration = Duration::from_secs(20);

/// Leaves out parts, then makes bytes plain, for as long as `fails` holds.
pub(crate) fn minimize(input: &[u8], fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (end, mut best) = (Instant::now() + LIMIT, input.to_vec());
    loop {
        let before = best.clone();
        leave_out(&mut best, end, &fails);
        make_plain(&mut best, end, &fails);
        if best == before || Instant::now() > end {
            return best;
        }
    }
}

fn leave_out(best: &mut Vec<u8>, end: Instant, fails: &impl Fn(&[u8]) -> bool) {
    let mut part = best.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < best.len() && Instant::now() < end {
            let mut shorter = best.clone();
            shorter.drain(at..(at + part).min(best.len()));
            if fails(&shorter) {
                *best = shorter;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
}

fn make_plain(best: &mut [u8], end: Instant, fails: &impl Fn(&[u8]) -> bool) {
    for at in 0..best.len() {
        for plain in [0, b'a', b'0', b' '] {
            if best[at] == plain || Instant::now() > end {
                break;
            }
            let before = std::mem::replace(&mut best[at], plain);
            if fails(best) {
                break;
            }
            best[at] = before;
        }
    }
}
