//! The bytes of a register as the number of a field.

use ruleset::Family;
use ruleset::listed::{Field, names_from};

/// Whether the kernel keeps the field in the machine's order.
pub(super) fn is_native(field: Field) -> bool {
    use Field::{CtMark, CtState, DestinationType, Gid, Mark, Uid};
    matches!(field, Mark | CtMark | CtState | Uid | Gid | DestinationType)
}

/// The bytes of a register as the field's number. Of an address the first bytes alone may be loaded: they are its highest.
pub(super) fn field_number(field: Field, loaded: usize, bytes: &[u8]) -> u128 {
    let mut wide = [0; 16];
    let len = bytes.len().min(loaded).min(16);
    if is_native(field) {
        return <[u8; 4]>::try_from(bytes).map_or(0, u32::from_ne_bytes).into();
    }
    let from = 16 - width(field);
    for (to, byte) in wide[from..].iter_mut().zip(&bytes[..len]) {
        *to = *byte;
    }
    u128::from_be_bytes(wide)
}

/// Bytes of a field's number.
pub(super) fn width(field: Field) -> usize {
    match field {
        Field::Source(Family::V6)
        | Field::Destination(Family::V6)
        | Field::OriginalDestination(Family::V6) => 16,
        Field::InInterface | Field::OutInterface => 16,
        Field::SourcePort | Field::DestinationPort | Field::OriginalPort => 2,
        Field::Family | Field::Protocol | Field::Socket | Field::Reply => 1,
        _ => 4,
    }
}

/// The numbers that begin with the bytes that were compared.
pub(super) fn covered(field: Field, compared: usize, low: u128) -> (u128, u128) {
    let free = 8 * width(field).saturating_sub(compared) as u32;
    match field {
        Field::InInterface | Field::OutInterface if free > 0 => {
            names_from(&low.to_be_bytes()[..compared.min(16)])
        }
        _ if is_native(field) || free == 0 => (low, low),
        _ => (low, low | (1u128.checked_shl(free).unwrap_or(0)).wrapping_sub(1)),
    }
}
