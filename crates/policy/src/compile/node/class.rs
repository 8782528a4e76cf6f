//! A class of a node's pods as chains and sets.

use std::borrow::Cow;

use ruleset::{Action, Backend, Chain, MapVerdict, Rule, Set};

use super::super::answer::ChainRole;
use super::super::rules::{Compiler, regular};
use super::super::tunnel::section_jumps;
use super::super::{LeftOut, can_return, class_name};
use super::EnforcementSettings;
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
    entries: ClassEntries,
    /// Those of the chains that answer, where something that the class denies is answered.
    answering: Option<ClassEntries>,
    pub(super) chains: Vec<Chain>,
    pub(super) blocks: Vec<Set>,
    left_out: Vec<LeftOut>,
}

/// Where packets enter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClassEntries {
    plain: Cow<'static, str>,
    /// Where those of pods enter whose tunnel is judged inside, if there are such pods.
    tunnel: Option<Cow<'static, str>>,
}

/// Where packets of a class's pods lead, by what becomes of their tunnel and by what chains do.
pub(super) type Leads = Vec<Option<MapVerdict>>;

// === impl NodeClass ===

impl NodeClass {
    /// Where the packets of a pod lead. To chains that answer only where something is answered.
    pub(super) fn lead(&self, role: ChainRole, tunnel: TunnelJudge) -> Option<MapVerdict> {
        let entries = match (&self.rules, role) {
            (None, ChainRole::Decide) => return Some(MapVerdict::Drop),
            (None, ChainRole::Answer) => return None,
            (Some(rules), ChainRole::Decide) => &rules.entries,
            (Some(rules), ChainRole::Answer) => rules.answering.as_ref()?,
        };
        let opened = entries.tunnel.as_ref().filter(|_| tunnel == TunnelJudge::Inside);
        Some(MapVerdict::Jump(opened.unwrap_or(&entries.plain).clone()))
    }

    /// Where those of pods lead whose tunnel is a port as any other, and of those whose tunnel is judged inside.
    pub(super) fn leads(&self) -> Leads {
        let tunnels = [TunnelJudge::Port, TunnelJudge::Inside];
        ChainRole::ALL.iter().flat_map(|role| tunnels.map(|tunnel| self.lead(*role, tunnel))).collect()
    }

    /// Whether it has rules for the pods that there are.
    pub(super) fn has_its_rules(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.entries.tunnel.is_some() == (self.tunnels > 0))
    }

    /// Where packets of its pods enter.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Cow<'static, str>> {
        self.rules.iter().flat_map(|rules| rules.entries.iter())
    }

    /// The same, each with where they enter what answers, if there is something.
    pub(super) fn answering(&self) -> impl Iterator<Item = (&Cow<'static, str>, &Cow<'static, str>)> {
        let rules = self.rules.iter();
        rules.flat_map(|rules| rules.entries.iter().zip(rules.answering.iter().flat_map(ClassEntries::iter)))
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = &Chain> {
        self.rules.iter().flat_map(|rules| &rules.chains)
    }

    pub(super) fn left_out(&self) -> impl Iterator<Item = &LeftOut> {
        self.rules.iter().flat_map(|rules| &rules.left_out)
    }
}

// === impl ClassEntries ===

impl ClassEntries {
    fn iter(&self) -> impl Iterator<Item = &Cow<'static, str>> {
        std::iter::once(&self.plain).chain(&self.tunnel)
    }
}

// === impl ClassRules ===

impl ClassRules {
    /// `has_tunnels`: for pods, too, whose tunnel is judged inside. Nothing where the backend cannot express it.
    pub(super) fn of(
        class: &PolicyClass,
        index: &PolicyIndex,
        settings: EnforcementSettings,
        has_tunnels: bool,
    ) -> Option<Self> {
        let returns = match settings.backend {
            Backend::Nftables => false,
            Backend::Iptables if can_return(class) => true,
            // To accept would pass the other direction by.
            Backend::Iptables => return None,
        };
        let compiler = || {
            let compiler = Compiler::new(index).logging();
            if returns { compiler.returning() } else { compiler }
        };
        let mut deciding = compiler();
        let (entries, mut chains) = written(&mut deciding, class, has_tunnels);
        let (sets, _, left_out) = deciding.finish();
        // They look into the same sets, and lack the same.
        let answering = settings.answer.is_of(class, index).then(|| {
            let (entries, answering) =
                written(&mut compiler().answering(settings.answer), class, has_tunnels);
            chains.extend(answering);
            entries
        });
        let blocks = sets.into_iter().filter(|set| !set.is_kept()).collect();
        Some(Self { entries, answering, chains, blocks, left_out })
    }
}

/// All chains of a class that a compiler writes, and where they are entered.
fn written(
    compiler: &mut Compiler<'_>,
    class: &PolicyClass,
    has_tunnels: bool,
) -> (ClassEntries, Vec<Chain>) {
    let role = compiler.role();
    let (mut chains, apart) = compiler.class(class);
    let tunnel = has_tunnels.then(|| compiler.tunnel(class));
    let plain = if let [only] = &chains[..] {
        only.name.clone()
    } else {
        let name: Cow<'static, str> = class_name(class, role).into();
        let jumps = section_jumps((class, role), &chains, None, &[]);
        chains.push(regular(name.clone(), jumps));
        name
    };
    let tunnel = tunnel.map(|tunnel| {
        let name: Cow<'static, str> = format!("{}-e", class_name(class, role)).into();
        let mut rules = tunnel.jumps(&[]);
        let why = format!("{} policies of the pod", class.direction);
        rules.push(Rule::new(Vec::new(), Action::Jump(plain.clone()), why));
        chains.extend(tunnel.outer);
        chains.push(regular(name.clone(), rules));
        name
    });
    chains.extend(apart);
    (ClassEntries { plain, tunnel }, chains)
}
