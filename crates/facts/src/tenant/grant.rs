//! A TenantGrant as it is written, and what it means.

use serde_json::Value;

use super::place::FieldPlace;
use super::reader::TenantReader;
use super::{FaultReason, GrantTarget, TenantGrant};
use crate::labels::Selector;

const MAX_FROM: usize = 64;
const MAX_TO: usize = 16;

pub(super) fn read(object: &Value) -> TenantGrant {
    let mut reader = TenantReader::default();
    let metadata = &object["metadata"];
    let name = reader.object_name(metadata);
    let namespace = metadata["namespace"].as_str().filter(|name| !name.is_empty()).unwrap_or("default");
    let at = FieldPlace::Root.member("spec");
    if object.get("spec").is_none() {
        reader.fault(&at, FaultReason::Missing);
    }
    let spec = reader.members(object.get("spec"), &at, &["from", "to", "ports"]);
    for name in ["from", "to"] {
        if object.get("spec").is_some() && !spec.has(name) {
            reader.fault(&at.member(name), FaultReason::Missing);
        }
    }
    let tenant = |reader: &mut TenantReader, value: &Value, place: &FieldPlace<'_>| {
        let members = reader.members(Some(value), place, &["tenant"]);
        let tenant = reader.name(members.get("tenant"), &place.member("tenant"))?;
        members.is_whole.then_some(tenant)
    };
    let (from, _) = reader.set(spec.get("from"), &at.member("from"), [1, MAX_FROM], tenant);
    let place = at.member("to");
    let all = reader.items(spec.get("to"), &place, [1, MAX_TO]);
    let mut to = Vec::new();
    for (number, value) in all.values.iter().enumerate() {
        to.extend(reader.target(value, &place.item(number)));
    }
    let ports = reader.ports(spec.get("ports"), &at.member("ports"), false);
    // A field that is not known may say when the consent holds.
    if !spec.is_whole {
        to.clear();
    }
    TenantGrant {
        namespace: namespace.into(),
        name,
        generation: metadata["generation"].as_u64().unwrap_or_default(),
        from: from.into(),
        to: to.into(),
        ports,
        faults: reader.faults,
    }
}

impl TenantReader {
    /// Nothing if not all of it is understood.
    fn target(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<GrantTarget> {
        let members = self.members(Some(value), place, &["kind", "name", "podSelector"]);
        let words = &[("Service", true), ("Pod", false)];
        let is_service = self.word(members.get("kind"), &place.member("kind"), words, "Service, Pod")?;
        let name = match members.get("name") {
            None => None,
            some => Some(self.target_name(some, &place.member("name"))?),
        };
        let labels = members.get("podSelector");
        if labels.is_some() && (is_service || name.is_some()) {
            self.fault(place, FaultReason::Target);
            return None;
        }
        let labels = match labels {
            None => Selector::default(),
            Some(value) => self.selector(value, &place.member("podSelector"))?,
        };
        let target = match (is_service, name) {
            (true, name) => GrantTarget::Service(name),
            (false, Some(name)) => GrantTarget::Pod(name),
            (false, None) => GrantTarget::Pods(labels),
        };
        members.is_whole.then_some(target)
    }

    /// Names of pods may have dots.
    fn target_name(&mut self, value: Option<&Value>, place: &FieldPlace<'_>) -> Option<Box<str>> {
        let text = self.bounded(value, place, 253)?;
        let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let is_end = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends = [text.as_bytes().first(), text.as_bytes().last()];
        if !text.bytes().all(is_inner) || !ends.into_iter().flatten().all(|b| is_end(*b)) {
            self.fault(place, FaultReason::Name);
            return None;
        }
        Some(text)
    }
}
