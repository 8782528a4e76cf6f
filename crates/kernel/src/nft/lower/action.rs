//! What rules do, as nf_tables has it.

use std::borrow::Cow;
use std::net::IpAddr;

use ruleset::{ALL_BITS, Action, Counting, Families, Family, Limit, RejectWith, Rule};

use super::{Lowering, text};
use crate::nft::expr::Expr;
use crate::nft::uapi::{PORT_GIVEN, ct, family, meta, object, reject, verdict};

impl<'a> Lowering<'a> {
    pub(super) fn action(&mut self, rule: &'a Rule) {
        self.before_action(rule);
        match &rule.action {
            Action::Accept | Action::Tproxy { .. } => self.verdict(verdict::ACCEPT, None),
            Action::Drop => self.verdict(verdict::DROP, None),
            Action::Reject(with) => {
                let (kind, code) = match with {
                    RejectWith::TcpReset => (reject::TCP_RESET, None),
                    RejectWith::PortUnreachable => (reject::ICMPX, Some(reject::PORT)),
                    RejectWith::AdminProhibited => (reject::ICMPX, Some(reject::ADMIN)),
                };
                let (kind, code) = (kind.to_be_bytes(), code.as_slice());
                // A reset has no code.
                self.raw("reject", &[(1, &kind[..]), (2, code)][..1 + code.len()]);
            }
            Action::Log { group, prefix, .. } => {
                self.raw("log", &[(1, &group.to_be_bytes()), (2, &text(prefix))]);
            }
            Action::Return => self.verdict(verdict::RETURN, None),
            Action::Jump(chain) => self.verdict(verdict::JUMP, Some(chain)),
            Action::VerdictMap { map, keys, side } => {
                self.load_key(*keys, *side);
                self.push(Expr::Verdicts { map: Cow::Borrowed(map) });
            }
            Action::Redirect { port } => {
                self.push(Expr::Load(port.to_be_bytes().into()));
                self.push(Expr::Redir { flags: PORT_GIVEN });
            }
            Action::SetMark(mark) => {
                self.push(Expr::Load(mark.to_ne_bytes().into()));
                self.push(Expr::MetaSet(meta::MARK));
            }
            Action::Snat { to } => {
                let (address, family) = match to {
                    IpAddr::V4(v4) => (v4.octets().into(), family::IPV4),
                    IpAddr::V6(v6) => (v6.octets().into(), family::IPV6),
                };
                self.push(Expr::Load(address));
                self.push(Expr::Snat { family: u32::from(family) });
            }
            Action::SetCtMark { mark, mask: ALL_BITS } => {
                self.push(Expr::Load(mark.to_ne_bytes().into()));
                self.push(Expr::CtSet(ct::MARK));
            }
            Action::SetCtMark { mark, mask } => {
                let (keep, xor) = ((!mask).to_ne_bytes().into(), mark.to_ne_bytes().into());
                self.push(Expr::CtLoad(ct::MARK));
                self.push(Expr::Bitwise { mask: keep, xor });
                self.push(Expr::CtSet(ct::MARK));
            }
            Action::SaveMark => {
                self.push(Expr::MetaLoad(meta::MARK));
                self.push(Expr::CtSet(ct::MARK));
            }
            Action::RestoreMark => {
                self.push(Expr::CtLoad(ct::MARK));
                self.push(Expr::MetaSet(meta::MARK));
            }
            Action::SetZone(zone) => {
                self.push(Expr::Load(zone.to_ne_bytes().into()));
                self.push(Expr::CtSet(ct::ZONE));
            }
        }
    }

    /// What only happens to packets that come to the action: a socket is found, the limit is kept, the packet is counted.
    fn before_action(&mut self, rule: &'a Rule) {
        if let Action::Tproxy { port, mark } = &rule.action {
            let v6 = rule.families == Families::Only(Family::V6);
            self.push(Expr::Load(port.to_be_bytes().into()));
            self.push(Expr::Tproxy { family: u32::from(if v6 { family::IPV6 } else { family::IPV4 }) });
            self.push(Expr::Load(mark.to_ne_bytes().into()));
            self.push(Expr::MetaSet(meta::MARK));
        }
        if let Action::Log { limit: Some(Limit { per_second, burst }), .. } = &rule.action {
            let (rate, one) = (u64::from(*per_second).to_be_bytes(), 1u64.to_be_bytes());
            let (burst, none) = (burst.to_be_bytes(), 0u32.to_be_bytes());
            // Each second, so many at once, packets, and no other flag.
            self.raw("limit", &[(1, &rate), (2, &one), (3, &burst), (4, &none), (5, &none)]);
        }
        match &rule.counting {
            Counting::Rule => self.push(Expr::Counter),
            Counting::Off => {}
            Counting::Named(name) => {
                self.raw("objref", &[(1, &object::COUNTER.to_be_bytes()), (2, &text(name))]);
            }
        }
    }
}
