//! Values of an object, with what is wrong with them.

use serde_json::{Map, Value};

use super::place::FieldPlace;
use super::{FaultReason, MAX_TENANT_SIZE, TenantFaults};

/// What is wrong so far.
#[derive(Default)]
pub(super) struct TenantReader {
    pub(super) faults: TenantFaults,
    size: usize,
}

/// A mapping.
#[derive(Clone, Copy)]
pub(super) struct FieldMembers<'v> {
    map: Option<&'v Map<String, Value>>,
    /// Whether it is one, and has no member that is not known.
    pub(super) is_whole: bool,
}

/// A list.
pub(super) struct FieldItems<'v> {
    pub(super) values: &'v [Value],
    /// Whether it is one, and as long as may be.
    pub(super) is_whole: bool,
}

/// What each entry counts beside its text.
const ENTRY: usize = 8;

// === impl FieldMembers ===

impl<'v> FieldMembers<'v> {
    pub(super) fn get(&self, name: &str) -> Option<&'v Value> {
        self.map.and_then(|map| map.get(name))
    }

    /// A member with a default: `null` counts as absent, as it does to the API server.
    pub(super) fn defaulted(&self, name: &str) -> Option<&'v Value> {
        self.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

// === impl TenantReader ===

impl TenantReader {
    pub(super) fn fault(&mut self, place: &FieldPlace<'_>, reason: FaultReason) {
        self.faults.add(place, reason);
    }

    /// The members of a mapping; other names than `known` are faults.
    pub(super) fn members<'v>(
        &mut self,
        value: Option<&'v Value>,
        place: &FieldPlace<'_>,
        known: &[&str],
    ) -> FieldMembers<'v> {
        let Some(value) = value else { return FieldMembers { map: None, is_whole: true } };
        let Value::Object(map) = value else {
            self.fault(place, FaultReason::Type("a mapping"));
            return FieldMembers { map: None, is_whole: false };
        };
        let mut is_whole = self.takes(ENTRY, place);
        for name in map.keys().filter(|name| !known.contains(&name.as_str())) {
            self.fault(&place.member(name), FaultReason::UnknownField);
            is_whole = false;
        }
        FieldMembers { map: Some(map), is_whole }
    }

    /// As many items of a list as may be.
    pub(super) fn items<'v>(
        &mut self,
        value: Option<&'v Value>,
        place: &FieldPlace<'_>,
        [least, most]: [usize; 2],
    ) -> FieldItems<'v> {
        let Some(value) = value else { return FieldItems { values: &[], is_whole: true } };
        let Value::Array(all) = value else {
            self.fault(place, FaultReason::Type("a list"));
            return FieldItems { values: &[], is_whole: false };
        };
        let is_whole = (least..=most).contains(&all.len());
        if !is_whole {
            self.fault(place, FaultReason::Count(least, most));
        }
        FieldItems { values: &all[..all.len().min(most)], is_whole }
    }

    pub(super) fn text<'v>(&mut self, value: Option<&'v Value>, place: &FieldPlace<'_>) -> Option<&'v str> {
        match value {
            None => self.fault(place, FaultReason::Missing),
            Some(Value::String(text)) => return self.takes(ENTRY + text.len(), place).then_some(text),
            Some(_) => self.fault(place, FaultReason::Type("a text")),
        }
        None
    }

    /// A text of some letters.
    pub(super) fn bounded(
        &mut self,
        value: Option<&Value>,
        place: &FieldPlace<'_>,
        most: usize,
    ) -> Option<Box<str>> {
        let text = self.text(value, place)?;
        if text.is_empty() || text.chars().count() > most {
            self.fault(place, FaultReason::Length(most));
            return None;
        }
        Some(text.into())
    }

    /// The name of a tenant, a namespace, a Service or a rule.
    pub(super) fn name(&mut self, value: Option<&Value>, place: &FieldPlace<'_>) -> Option<Box<str>> {
        let text = self.text(value, place)?;
        if !is_name(text) {
            self.fault(place, FaultReason::Name);
            return None;
        }
        Some(text.into())
    }

    /// One of some words, or what `unknown` stands for.
    pub(super) fn word<T: Copy>(
        &mut self,
        value: Option<&Value>,
        place: &FieldPlace<'_>,
        words: &[(&str, T)],
        told: &'static str,
    ) -> Option<T> {
        let text = self.text(value, place)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, means)| *means);
        if found.is_none() {
            self.fault(place, FaultReason::UnknownWord(told));
        }
        found
    }

    /// Each name of a set once; whether all of them are understood.
    pub(super) fn names(
        &mut self,
        value: Option<&Value>,
        place: &FieldPlace<'_>,
        bounds: [usize; 2],
    ) -> (Vec<Box<str>>, bool) {
        self.set(value, place, bounds, |reader, value, place| reader.name(Some(value), place))
    }

    /// Each entry of a set once; whether all of them are understood.
    pub(super) fn set<T: PartialEq>(
        &mut self,
        value: Option<&Value>,
        place: &FieldPlace<'_>,
        bounds: [usize; 2],
        read: impl Fn(&mut Self, &Value, &FieldPlace<'_>) -> Option<T>,
    ) -> (Vec<T>, bool) {
        let FieldItems { values, mut is_whole } = self.items(value, place, bounds);
        let mut found: Vec<T> = Vec::new();
        for (number, value) in values.iter().enumerate() {
            let place = place.item(number);
            match read(self, value, &place) {
                Some(entry) if found.contains(&entry) => self.fault(&place, FaultReason::Twice),
                Some(entry) => found.push(entry),
                None => is_whole = false,
            }
        }
        (found, is_whole)
    }

    /// Counts what is read; whether there is room for it.
    fn takes(&mut self, more: usize, place: &FieldPlace<'_>) -> bool {
        self.size = self.size.saturating_add(more);
        let has_room = self.size <= MAX_TENANT_SIZE;
        if !has_room {
            self.fault(place, FaultReason::TooLarge);
        }
        has_room
    }
}

/// As a label of DNS (RFC 1123).
pub(super) fn is_name(text: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
