//! A NetworkTenant as it is written, and what it means.

use ipnet::IpNet;
use serde_json::Value;

use super::place::FieldPlace;
use super::reader::{FieldMembers, TenantReader, is_name};
use super::{
    ALLOW_SYSTEM, DenyMode, FaultReason, NetworkTenant, TenantDefault, TenantEnforcement, TenantRule,
    TenantService,
};
use crate::networkpolicy::Entries;

const MAX_NAMESPACES: usize = 256;
const MAX_RANGES: usize = 256;
const MAX_SERVICES: usize = 128;
const MAX_RULES: usize = 64;
const MAX_PEERS: usize = 16;
const MAX_ADMINS: usize = 32;

const FIELDS: &[&str] = &[
    "namespaces",
    "namespaceSelector",
    "allowedIPRanges",
    "deniedIPRanges",
    "allowedServices",
    "networkPolicy",
    "defaults",
    "system",
    "denyMode",
    "enforcement",
    "admins",
];

const DEFAULTS: &[(&str, TenantDefault)] = &[
    ("Deny", TenantDefault::Deny),
    ("Allow", TenantDefault::Allow),
    ("AllowEgress", TenantDefault::AllowEgress),
];

pub(super) fn read(object: &Value) -> NetworkTenant {
    let mut reader = TenantReader::default();
    let metadata = &object["metadata"];
    let name = reader.object_name(metadata);
    let at = FieldPlace::Root.member("spec");
    if object.get("spec").is_none() {
        reader.fault(&at, FaultReason::Missing);
    }
    let spec = reader.members(object.get("spec"), &at, FIELDS);
    let (mut namespaces, _) =
        reader.names(spec.get("namespaces"), &at.member("namespaces"), [0, MAX_NAMESPACES]);
    namespaces.sort_unstable();
    let allows_system = metadata["annotations"][ALLOW_SYSTEM] == "true";
    if !allows_system && namespaces.iter().any(|name| **name == *"kube-system") {
        reader.fault(&at.member("namespaces"), FaultReason::System);
        namespaces.retain(|name| **name != *"kube-system");
    }
    if namespaces.is_empty() && !spec.has("namespaceSelector") && object.get("spec").is_some() {
        reader.fault(&at, FaultReason::NoNamespaces);
    }
    let selector = spec.get("namespaceSelector");
    let selector = selector.and_then(|value| reader.selector(value, &at.member("namespaceSelector")));
    let [external, unassigned] = reader.defaults(&spec, &at);
    let (allowed, _) = reader.ranges(&spec, &at, "allowedIPRanges");
    let (denied, is_whole) = reader.ranges(&spec, &at, "deniedIPRanges");
    if denied.iter().any(|net| net.prefix_len() == 0) && external == TenantDefault::Allow {
        reader.fault(&at, FaultReason::EverythingDenied);
    }
    let services = reader.services(&spec, &at);
    let place = at.member("networkPolicy");
    let rules = reader.members(spec.get("networkPolicy"), &place, &["ingressRules", "egressRules"]);
    let is_known = rules.is_whole;
    let ingress = reader.rules(&rules, &place, "ingressRules", is_known);
    let egress = reader.rules(&rules, &place, "egressRules", is_known);
    let [allows_dns, allows_api_server] = reader.system(&spec, &at);
    let deny_mode = match spec.defaulted("denyMode") {
        None => DenyMode::Reject,
        some => {
            let words = &[("Reject", DenyMode::Reject), ("Drop", DenyMode::Drop)];
            reader.word(some, &at.member("denyMode"), words, "Reject, Drop").unwrap_or_default()
        }
    };
    let enforcement = reader.enforcement(&spec, &at);
    reader.admins(&spec, &at);
    NetworkTenant {
        name,
        created: created(metadata),
        generation: metadata["generation"].as_u64().unwrap_or_default(),
        namespaces: namespaces.into(),
        selector,
        allowed: allowed.into(),
        denied: if is_whole { Entries::Of(denied.into()) } else { Entries::Any },
        services,
        ingress,
        egress,
        external,
        unassigned,
        allows_dns,
        allows_api_server,
        deny_mode,
        enforcement,
        faults: reader.faults,
    }
}

/// The digits of the time, year first.
fn created(metadata: &Value) -> u64 {
    let text = metadata["creationTimestamp"].as_str().unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_digit).take(14).collect();
    digits.parse().unwrap_or_default()
}

impl TenantReader {
    /// The name of an object. It is kept as it is, because the object is called by it.
    pub(super) fn object_name(&mut self, metadata: &Value) -> Box<str> {
        let name = metadata["name"].as_str().unwrap_or_default();
        if !is_name(name) {
            // The API server's rule is one of the whole object.
            self.fault(&FieldPlace::Root, FaultReason::Name);
        }
        name.into()
    }

    fn ranges(&mut self, spec: &FieldMembers<'_>, place: &FieldPlace<'_>, name: &str) -> (Vec<IpNet>, bool) {
        self.set(spec.get(name), &place.member(name), [0, MAX_RANGES], Self::range)
    }

    fn defaults(&mut self, spec: &FieldMembers<'_>, place: &FieldPlace<'_>) -> [TenantDefault; 2] {
        let at = place.member("defaults");
        let defaults = self.members(spec.defaulted("defaults"), &at, &["external", "unassigned"]);
        let external = match defaults.defaulted("external") {
            None => TenantDefault::Deny,
            some => {
                self.word(some, &at.member("external"), &DEFAULTS[..2], "Deny, Allow").unwrap_or_default()
            }
        };
        let unassigned = match defaults.defaulted("unassigned") {
            None => TenantDefault::Deny,
            some => {
                let told = "Deny, Allow, AllowEgress";
                self.word(some, &at.member("unassigned"), DEFAULTS, told).unwrap_or_default()
            }
        };
        [external, unassigned]
    }

    /// Whether DNS and the API server are allowed; what is not understood is not.
    fn system(&mut self, spec: &FieldMembers<'_>, place: &FieldPlace<'_>) -> [bool; 2] {
        let at = place.member("system");
        let system = self.members(spec.defaulted("system"), &at, &["dns", "apiServer"]);
        ["dns", "apiServer"].map(|name| match system.defaulted(name) {
            None => system.is_whole,
            some => {
                let words = &[("Allow", true), ("Deny", false)];
                self.word(some, &at.member(name), words, "Allow, Deny").unwrap_or_default()
            }
        })
    }

    fn enforcement(&mut self, spec: &FieldMembers<'_>, place: &FieldPlace<'_>) -> TenantEnforcement {
        let words = &[
            ("Enforce", TenantEnforcement::Enforce),
            ("Audit", TenantEnforcement::Audit),
            ("Off", TenantEnforcement::Off),
        ];
        match spec.defaulted("enforcement") {
            None => TenantEnforcement::Enforce,
            some => {
                let told = "Enforce, Audit, Off";
                self.word(some, &place.member("enforcement"), words, told).unwrap_or_default()
            }
        }
    }

    fn services(&mut self, spec: &FieldMembers<'_>, place: &FieldPlace<'_>) -> Box<[TenantService]> {
        let at = place.member("allowedServices");
        let all = self.items(spec.get("allowedServices"), &at, [0, MAX_SERVICES]);
        let mut found: Vec<TenantService> = Vec::new();
        for (number, value) in all.values.iter().enumerate() {
            let at = at.item(number);
            let members = self.members(Some(value), &at, &["namespace", "name", "ports"]);
            let namespace = self.name(members.get("namespace"), &at.member("namespace"));
            let name = self.name(members.get("name"), &at.member("name"));
            let ports = self.ports(members.get("ports"), &at.member("ports"), false);
            let (Some(namespace), Some(name), true) = (namespace, name, members.is_whole) else { continue };
            if found.iter().any(|one| one.namespace == namespace && one.name == name) {
                self.fault(&at, FaultReason::Twice);
                continue;
            }
            found.push(TenantService { namespace, name, ports });
        }
        found.into()
    }

    /// The rules of a direction. One that cannot be read may have denied anything.
    fn rules(
        &mut self,
        policy: &FieldMembers<'_>,
        place: &FieldPlace<'_>,
        name: &str,
        mut is_whole: bool,
    ) -> Box<[TenantRule]> {
        let at = place.member(name);
        let all = self.items(policy.get(name), &at, [0, MAX_RULES]);
        is_whole &= all.is_whole;
        let mut found: Vec<TenantRule> = Vec::new();
        for (number, value) in all.values.iter().enumerate() {
            let at = at.item(number);
            match self.rule(value, &at) {
                Some(rule) => {
                    if found.iter().any(|known| known.name == rule.name) {
                        self.fault(&at, FaultReason::Twice);
                    }
                    found.push(rule);
                }
                None => is_whole = false,
            }
        }
        if !is_whole {
            let (peers, ports) = (Entries::Any, Entries::Any);
            found.push(TenantRule { name: "not-understood".into(), denies: true, peers, ports });
        }
        found.into()
    }

    /// Nothing if it is not said what the rule does. What is not understood of a rule that denies stands for everything.
    fn rule(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<TenantRule> {
        let members = self.members(Some(value), place, &["name", "action", "peers", "ports"]);
        let name = self.name(members.get("name"), &place.member("name"));
        let words = &[("Allow", false), ("Deny", true)];
        let denies = self.word(members.get("action"), &place.member("action"), words, "Allow, Deny")?;
        let at = place.member("peers");
        if !members.has("peers") {
            self.fault(&at, FaultReason::Missing);
        }
        let all = self.items(members.get("peers"), &at, [1, MAX_PEERS]);
        let mut is_whole = all.is_whole && members.is_whole && name.is_some() && members.has("peers");
        let mut peers = Vec::new();
        for (number, value) in all.values.iter().enumerate() {
            let peer = self.peer(value, &at.item(number));
            is_whole &= peer.is_some();
            peers.extend(peer);
        }
        let ports = self.ports(members.get("ports"), &place.member("ports"), denies);
        // A field that is not known may say of an allowance when it holds.
        if !denies && !members.is_whole {
            peers.clear();
        }
        let everything = denies && !is_whole;
        Some(TenantRule {
            name: name.unwrap_or_else(|| "not-understood".into()),
            denies,
            peers: if everything { Entries::Any } else { Entries::Of(peers.into()) },
            ports: if everything && !members.is_whole { Entries::Any } else { ports },
        })
    }

    /// Who is to be asked. Nothing of it is kept.
    fn admins(&mut self, spec: &FieldMembers<'_>, place: &FieldPlace<'_>) {
        let at = place.member("admins");
        let all = self.items(spec.get("admins"), &at, [0, MAX_ADMINS]);
        for (number, value) in all.values.iter().enumerate() {
            let at = at.item(number);
            let members = self.members(Some(value), &at, &["kind", "name", "namespace"]);
            let words = &[("User", ()), ("Group", ()), ("ServiceAccount", ())];
            self.word(members.get("kind"), &at.member("kind"), words, "User, Group, ServiceAccount");
            self.bounded(members.get("name"), &at.member("name"), 253);
            if let some @ Some(_) = members.get("namespace") {
                self.name(some, &at.member("namespace"));
            }
        }
    }
}
