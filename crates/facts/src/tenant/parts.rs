//! Selectors, ranges, ports and peers of tenants and grants.

use ipnet::IpNet;
use serde_json::Value;

use super::place::FieldPlace;
use super::reader::{FieldItems, TenantReader};
use super::{FaultReason, TenantEntity, TenantPeer};
use crate::labels::{Operator, Requirement, Selector};
use crate::networkpolicy::{Block, Entries, NumberOrName, PolicyProtocol, Port};

const MAX_REQUIREMENTS: usize = 16;
const MAX_VALUES: usize = 64;
const MAX_PORTS: usize = 16;
const MAX_VALUE: usize = 63;
/// Of a label with its prefix.
const MAX_KEY: usize = 317;

/// What an operator wants: to be there with or without one of its values.
#[derive(Clone, Copy)]
enum Wants {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl TenantReader {
    /// A range in its one form.
    pub(super) fn range(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<IpNet> {
        let text = self.text(Some(value), place)?;
        let is_mapped = |net: &IpNet| matches!(net, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some());
        let net = text.parse::<IpNet>().ok();
        let net = net.filter(|net| net.trunc() == *net && net.to_string() == text && !is_mapped(net));
        if net.is_none() {
            self.fault(place, FaultReason::Range);
        }
        net
    }

    /// A selector; nothing if not all of it is understood.
    pub(super) fn selector(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<Selector> {
        let members = self.members(Some(value), place, &["matchLabels", "matchExpressions"]);
        let (mut found, mut is_whole) = (Vec::new(), members.is_whole);
        let at = place.member("matchLabels");
        match members.get("matchLabels") {
            None => {}
            Some(Value::Object(labels)) if labels.len() <= MAX_REQUIREMENTS => {
                for (key, value) in labels {
                    let value = self.label_value(value, &at.member(key));
                    is_whole &= value.is_some();
                    let is_value = |value: Box<str>| Operator::In([value].into());
                    found.extend(
                        value
                            .map(|value| Requirement { key: key.as_str().into(), operator: is_value(value) }),
                    );
                }
            }
            Some(Value::Object(_)) => {
                self.fault(&at, FaultReason::Count(0, MAX_REQUIREMENTS));
                is_whole = false;
            }
            Some(_) => {
                self.fault(&at, FaultReason::Type("a mapping"));
                is_whole = false;
            }
        }
        let at = place.member("matchExpressions");
        let all = self.items(members.get("matchExpressions"), &at, [0, MAX_REQUIREMENTS]);
        is_whole &= all.is_whole;
        for (number, value) in all.values.iter().enumerate() {
            let requirement = self.requirement(value, &at.item(number));
            is_whole &= requirement.is_some();
            found.extend(requirement);
        }
        is_whole.then(|| Selector::new(found))
    }

    fn requirement(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<Requirement> {
        const OPERATORS: &[(&str, Wants)] = &[
            ("In", Wants::In),
            ("NotIn", Wants::NotIn),
            ("Exists", Wants::Exists),
            ("DoesNotExist", Wants::DoesNotExist),
        ];
        let members = self.members(Some(value), place, &["key", "operator", "values"]);
        let key = self.bounded(members.get("key"), &place.member("key"), MAX_KEY);
        let told = "In, NotIn, Exists, DoesNotExist";
        let operator = self.word(members.get("operator"), &place.member("operator"), OPERATORS, told);
        let at = place.member("values");
        let FieldItems { values, is_whole } = self.items(members.get("values"), &at, [0, MAX_VALUES]);
        let mut read = Vec::new();
        for (number, value) in values.iter().enumerate() {
            read.push(self.label_value(value, &at.item(number))?);
        }
        read.sort_unstable();
        read.dedup();
        let (key, operator) = (key?, operator?);
        let operator = match (operator, read.is_empty()) {
            (Wants::In, false) => Operator::In(read.into()),
            (Wants::NotIn, false) => Operator::NotIn(read.into()),
            (Wants::Exists, true) => Operator::Exists,
            (Wants::DoesNotExist, true) => Operator::DoesNotExist,
            _ => {
                self.fault(place, FaultReason::Selector);
                return None;
            }
        };
        (members.is_whole && is_whole).then_some(Requirement { key, operator })
    }

    fn label_value(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<Box<str>> {
        let text = self.text(Some(value), place)?;
        if text.chars().count() > MAX_VALUE {
            self.fault(place, FaultReason::Length(MAX_VALUE));
            return None;
        }
        Some(text.into())
    }

    /// Ports. Where one is not understood, all are meant by what `denies`, and the others by what allows.
    pub(super) fn ports(
        &mut self,
        value: Option<&Value>,
        place: &FieldPlace<'_>,
        denies: bool,
    ) -> Entries<Port> {
        if value.is_none() {
            return Entries::Any;
        }
        let all = self.items(value, place, [1, MAX_PORTS]);
        let (mut found, mut is_whole) = (Vec::new(), all.is_whole);
        for (number, value) in all.values.iter().enumerate() {
            let port = self.port(value, &place.item(number));
            is_whole &= port.is_some();
            found.extend(port);
        }
        if denies && !is_whole { Entries::Any } else { Entries::Of(found.into()) }
    }

    fn port(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<Port> {
        const PROTOCOLS: &[(&str, PolicyProtocol)] =
            &[("TCP", PolicyProtocol::Tcp), ("UDP", PolicyProtocol::Udp), ("SCTP", PolicyProtocol::Sctp)];
        let members = self.members(Some(value), place, &["protocol", "port", "endPort"]);
        let protocol = match members.defaulted("protocol") {
            None => Some(PolicyProtocol::Tcp),
            some => self.word(some, &place.member("protocol"), PROTOCOLS, "TCP, UDP, SCTP"),
        };
        let at = place.member("port");
        let first = match members.get("port") {
            None => {
                self.fault(&at, FaultReason::Missing);
                None
            }
            Some(value) => self.port_number(value, &at),
        };
        let last = match members.get("endPort") {
            None => first,
            Some(value) => self.port_number(value, &place.member("endPort")),
        };
        let (protocol, first, last) = (protocol?, first?, last?);
        let number = |port: u16| NumberOrName::Number(port.into());
        match Port::parse(Some(protocol.name()), Some(number(first)), Some(last.into())) {
            Ok(port) => members.is_whole.then_some(port),
            Err(_) => {
                self.fault(place, FaultReason::EndPort);
                None
            }
        }
    }

    fn port_number(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<u16> {
        let number = value.as_i64().and_then(|number| u16::try_from(number).ok());
        let number = number.filter(|number| *number > 0);
        if number.is_none() {
            self.fault(place, FaultReason::Port);
        }
        number
    }

    /// A peer of a rule; nothing if not all of it is understood.
    pub(super) fn peer(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<TenantPeer> {
        const FIELDS: &[&str] = &["tenant", "namespaces", "podSelector", "ipBlock", "entity"];
        const ENTITIES: &[(&str, TenantEntity)] = &[
            ("Node", TenantEntity::Node),
            ("APIServer", TenantEntity::ApiServer),
            ("World", TenantEntity::World),
            ("Unassigned", TenantEntity::Unassigned),
        ];
        let members = self.members(Some(value), place, FIELDS);
        let names_pods = members.has("tenant") || members.has("namespaces");
        let kinds = [names_pods, members.has("ipBlock"), members.has("entity")];
        if kinds.iter().filter(|is| **is).count() != 1 {
            self.fault(place, FaultReason::Peer);
            return None;
        }
        if members.has("podSelector") && !names_pods {
            self.fault(place, FaultReason::PeerSelector);
            return None;
        }
        let peer = if let Some(block) = members.get("ipBlock") {
            TenantPeer::Block(self.block(block, &place.member("ipBlock"))?)
        } else if let some @ Some(_) = members.get("entity") {
            let told = "Node, APIServer, World, Unassigned";
            TenantPeer::Entity(self.word(some, &place.member("entity"), ENTITIES, told)?)
        } else {
            let tenant = match members.get("tenant") {
                None => None,
                some => Some(self.name(some, &place.member("tenant"))?),
            };
            let namespaces = match members.get("namespaces") {
                None => None,
                some => {
                    let (mut names, is_whole) = self.names(some, &place.member("namespaces"), [1, 32]);
                    names.sort_unstable();
                    is_whole.then_some(Some(names.into()))?
                }
            };
            let labels = match members.get("podSelector") {
                None => Selector::default(),
                Some(labels) => self.selector(labels, &place.member("podSelector"))?,
            };
            TenantPeer::Pods { tenant, namespaces, labels }
        };
        members.is_whole.then_some(peer)
    }

    fn block(&mut self, value: &Value, place: &FieldPlace<'_>) -> Option<Block> {
        let members = self.members(Some(value), place, &["cidr", "except"]);
        let at = place.member("cidr");
        let net = match members.get("cidr") {
            None => {
                self.fault(&at, FaultReason::Missing);
                None
            }
            Some(value) => self.range(value, &at),
        };
        let at = place.member("except");
        let (except, is_whole) = self.set(members.get("except"), &at, [0, 32], Self::range);
        let net = net?;
        if except.iter().any(|part| !net.contains(part) || part.prefix_len() <= net.prefix_len()) {
            self.fault(place, FaultReason::Exception);
            return None;
        }
        (members.is_whole && is_whole).then(|| Block { net, except: except.into() })
    }
}
