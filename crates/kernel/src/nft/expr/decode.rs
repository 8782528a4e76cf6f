//! Instructions of the kernel's, as far as they are such as ours.

use std::borrow::Cow;

use super::super::uapi::{ADDRESS_GIVEN, LOOKUP_INVERTED, ORIGINAL, SNAT, expr as uapi};
use super::{Expr, RegisterValue};
use crate::netlink::wire::{Attribute, Attributes};

impl Expr<'static> {
    /// Reads an item of `NFTA_RULE_EXPRESSIONS`.
    pub(in crate::nft) fn decode(item: &Attribute<'_>) -> Self {
        let name = item.nested().find(uapi::NAME).map(|a| a.text().into_owned()).unwrap_or_default();
        let operands = || item.nested().find(uapi::DATA).map(|a| a.nested());
        let known = operands().and_then(Operands::read).and_then(|operands| operands.decode(&name));
        known.unwrap_or_else(|| {
            // Those without data only fill a gap.
            let data = operands().into_iter().flatten().filter(|a| !a.data.is_empty());
            let mut operands: Vec<(u16, Vec<u8>)> = Vec::new();
            for a in data {
                let at = operands.iter().take_while(|(kind, _)| *kind <= a.kind).count();
                operands.insert(at, (a.kind, a.data.to_vec()));
            }
            Self::Raw { name: name.into(), operands }
        })
    }
}

/// The attributes of an instruction by their kinds, all of which are below 8 for ours.
struct Operands<'a>([Option<Attribute<'a>>; 8]);

impl<'a> Operands<'a> {
    /// `None` when there is an attribute that we do not know, and so a meaning that we would miss.
    fn read(attributes: Attributes<'a>) -> Option<Self> {
        let mut slots = [None; 8];
        for attribute in attributes {
            *slots.get_mut(usize::from(attribute.kind))? = Some(attribute);
        }
        Some(Self(slots))
    }

    fn number(&self, kind: usize) -> Option<u32> {
        self.0[kind].and_then(|a| a.be32())
    }

    fn value(&self, kind: usize) -> Option<RegisterValue> {
        self.0[kind].and_then(|a| a.nested().find(uapi::DATA_VALUE)).and_then(|a| RegisterValue::new(a.data))
    }

    /// Whether only attributes of these kinds are there.
    fn only(&self, kinds: &[usize]) -> Option<()> {
        let all = self.0.iter().enumerate().all(|(kind, slot)| slot.is_none() || kinds.contains(&kind));
        all.then_some(())
    }

    /// Whether the attribute is our register.
    fn register(&self, kind: usize) -> Option<()> {
        (self.number(kind)? == uapi::REGISTER).then_some(())
    }

    /// `None`: not one of ours.
    fn decode(&self, name: &str) -> Option<Expr<'static>> {
        match name {
            "meta" => {
                let load_to = |register, key| Expr::MetaLoadTo { register, key };
                self.load_or_set(3, Expr::MetaLoad, Some(load_to), Expr::MetaSet)
            }
            "ct" if self.0[3].is_some() => {
                self.only(&[1, 2, 3])?;
                self.register(1)?;
                (self.0[3]?.data == [ORIGINAL]).then_some(Expr::CtOriginal(self.number(2)?))
            }
            "ct" => self.load_or_set(4, Expr::CtLoad, None, Expr::CtSet),
            "payload" => {
                self.only(&[1, 2, 3, 4])?;
                let (base, offset, len) = (self.number(2)?, self.number(3)?, self.number(4)?);
                Some(match self.number(1)? {
                    uapi::REGISTER => Expr::Payload { base, offset, len },
                    register => Expr::PayloadTo { register, base, offset, len },
                })
            }
            "bitwise" => self.bitwise(),
            "cmp" => {
                self.only(&[1, 2, 3])?;
                self.register(1)?;
                Some(Expr::Cmp { op: self.number(2)?, data: self.value(3)? })
            }
            "lookup" => self.lookup(),
            "immediate" => self.immediate(),
            "counter" => Some(Expr::Counter),
            "redir" => {
                // The kernel shows the first port of the range as the last one too.
                self.only(&[1, 2, 3])?;
                self.register(1)?;
                self.0[2].map_or(Some(()), |_| self.register(2))?;
                Some(Expr::Redir { flags: self.number(3)? })
            }
            "nat" => {
                // The kernel shows the first address of the range as the last one too, and that there is one.
                self.only(&[1, 2, 3, 4, 7])?;
                self.register(3)?;
                self.0[4].map_or(Some(()), |_| self.register(4))?;
                let plain = self.0[7].is_none() || self.number(7) == Some(ADDRESS_GIVEN);
                (plain && self.number(1)? == SNAT).then_some(Expr::Snat { family: self.number(2)? })
            }
            "tproxy" => {
                self.only(&[1, 3])?;
                self.register(3)?;
                Some(Expr::Tproxy { family: self.number(1)? })
            }
            _ => None,
        }
    }

    fn load_or_set(
        &self,
        source: usize,
        load: fn(u32) -> Expr<'static>,
        load_to: Option<fn(u32, u32) -> Expr<'static>>,
        set: fn(u32) -> Expr<'static>,
    ) -> Option<Expr<'static>> {
        let key = self.number(2)?;
        if self.0[source].is_some() {
            self.only(&[2, source])?;
            self.register(source)?;
            Some(set(key))
        } else {
            self.only(&[1, 2])?;
            match self.number(1)? {
                uapi::REGISTER => Some(load(key)),
                register => load_to.map(|load_to| load_to(register, key)),
            }
        }
    }

    fn bitwise(&self) -> Option<Expr<'static>> {
        self.only(&[1, 2, 3, 4, 5, 6])?;
        self.register(1)?;
        self.register(2)?;
        // Kernels before 5.6 have no operation; 0 is the only one with mask and xor.
        let plain = self.0[6].is_none() || self.number(6) == Some(0);
        let (mask, xor) = (self.value(4)?, self.value(5)?);
        let len = self.number(3)?;
        (plain && len == u32::from(mask.len) && mask.len == xor.len).then_some(Expr::Bitwise { mask, xor })
    }

    fn lookup(&self) -> Option<Expr<'static>> {
        self.only(&[1, 2, 3, 4, 5])?;
        self.register(2)?;
        let set = Cow::Owned(self.0[1]?.text().into_owned());
        let flags = self.0[5].map_or(Some(0), |a| a.be32())?;
        if self.0[3].is_some() {
            // To the register of the verdict.
            return (self.number(3)? == 0 && flags == 0).then_some(Expr::Verdicts { map: set });
        }
        (flags & !LOOKUP_INVERTED == 0).then_some(Expr::Lookup { set, inverted: flags != 0 })
    }

    fn immediate(&self) -> Option<Expr<'static>> {
        self.only(&[1, 2])?;
        let data = self.0[2]?.nested();
        let Some(verdict) = data.find(uapi::DATA_VERDICT) else {
            self.register(1)?;
            return self.value(2).map(Expr::Load);
        };
        let code = verdict.nested().find(uapi::VERDICT_CODE)?.be32()?;
        let chain = verdict.nested().find(uapi::VERDICT_CHAIN).map(|a| Cow::Owned(a.text().into_owned()));
        (self.number(1)? == 0).then_some(Expr::Verdict { code: code.cast_signed(), chain })
    }
}
