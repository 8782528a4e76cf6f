//! A class of a node's pods as chains and sets.

use std::borrow::Cow;

use ruleset::{Action, Backend, Chain, MapVerdict, Rule, Set};

use super::super::rules::{Compiler, regular};
use super::super::tunnel::section_jumps;
use super::super::{LeftOut, can_return, class_name};
use crate::index::{PolicyClass, PolicyIndex, TunnelJudge};

/// A class that pods have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NodeClass {
    /// How many pods have it.
    pub(super) pods: usize,
    /// How many of them have a tunnel that is judged inside.
    pub(super) tunnels: usize,
    /// Absent where another class has its name, or another set that of one of its sets, or the backend cannot express it.
    pub(super) rules: Option<ClassRules>,
}

/// What it is in the kernel, but for sets that follow pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClassRules {
    /// Where packets enter.
    entry: Cow<'static, str>,
    /// Where those of pods enter whose tunnel is judged inside, if there are such pods.
    tunnel_entry: Option<Cow<'static, str>>,
    pub(super) chains: Vec<Chain>,
    pub(super) blocks: Vec<Set>,
    left_out: Vec<LeftOut>,
}

// === impl NodeClass ===

impl NodeClass {
    /// Where the packets of a pod lead.
    pub(super) fn lead(&self, tunnel: TunnelJudge) -> MapVerdict {
        let Some(rules) = &self.rules else { return MapVerdict::Drop };
        let opened = rules.tunnel_entry.as_ref().filter(|_| tunnel == TunnelJudge::Inside);
        MapVerdict::Jump(opened.unwrap_or(&rules.entry).clone())
    }

    /// Where those of pods lead whose tunnel is a port as any other, and of those whose tunnel is judged inside.
    pub(super) fn leads(&self) -> [MapVerdict; 2] {
        [TunnelJudge::Port, TunnelJudge::Inside].map(|tunnel| self.lead(tunnel))
    }

    /// Whether it has rules for the pods that there are.
    pub(super) fn has_its_rules(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.tunnel_entry.is_some() == (self.tunnels > 0))
    }

    /// Where packets of its pods enter.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Cow<'static, str>> {
        self.rules.iter().flat_map(|rules| std::iter::once(&rules.entry).chain(&rules.tunnel_entry))
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = &Chain> {
        self.rules.iter().flat_map(|rules| &rules.chains)
    }

    pub(super) fn left_out(&self) -> impl Iterator<Item = &LeftOut> {
        self.rules.iter().flat_map(|rules| &rules.left_out)
    }
}

// === impl ClassRules ===

impl ClassRules {
    /// `has_tunnels`: for pods, too, whose tunnel is judged inside. Nothing where the backend cannot express it.
    pub(super) fn of(
        class: &PolicyClass,
        index: &PolicyIndex,
        backend: Backend,
        has_tunnels: bool,
    ) -> Option<Self> {
        let mut compiler = Compiler::new(index).logging();
        match backend {
            Backend::Nftables => {}
            Backend::Iptables if can_return(class) => compiler = compiler.returning(),
            // To accept would pass the other direction by.
            Backend::Iptables => return None,
        }
        let (mut chains, apart) = compiler.class(class);
        let tunnel = has_tunnels.then(|| compiler.tunnel(class));
        let (sets, _, left_out) = compiler.finish();
        let entry = if let [only] = &chains[..] {
            only.name.clone()
        } else {
            let name: Cow<'static, str> = class_name(class).into();
            let jumps = section_jumps(class, &chains, None, &[]);
            chains.push(regular(name.clone(), jumps));
            name
        };
        let tunnel_entry = tunnel.map(|tunnel| {
            let name: Cow<'static, str> = format!("{}-e", class_name(class)).into();
            let mut rules = tunnel.jumps(&[]);
            let why = format!("{} policies of the pod", class.direction);
            rules.push(Rule::new(Vec::new(), Action::Jump(entry.clone()), why));
            chains.extend(tunnel.outer);
            chains.push(regular(name.clone(), rules));
            name
        });
        chains.extend(apart);
        let blocks = sets.into_iter().filter(|set| !set.is_kept()).collect();
        Some(Self { entry, tunnel_entry, chains, blocks, left_out })
    }
}
