//! Marks of others that rules of ours take for the proxy's.

use super::Found;
use super::packets::{Escape, Hits};
use super::view::told;
use crate::ConflictId;

pub(super) fn find(hits: &Hits<'_>, found: &mut Found) {
    for hit in &hits.all {
        for way in &hit.ways {
            let Some(Escape::Marked(place)) = hit.escape(way) else { continue };
            let affects = format!(
                "{} gets mark {:#x}, which rules of ours take for the proxy's: it goes on instead of to port {}",
                told(&hit.packet),
                way.state.packet.mark,
                hit.port
            );
            let advice = "use a mark whose low 12 bits are neither 0x539 nor 0x111, and which is not 1337 beside TPROXY";
            found.add(hit.by(ConflictId::P6, place, affects, advice));
        }
    }
}
