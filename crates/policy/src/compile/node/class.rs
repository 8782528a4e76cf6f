//! A class of a node's pods as chains and sets.

use std::borrow::Cow;

use ruleset::{Action, Chain, MapVerdict, Rule, Set};

use super::super::rules::{Compiler, regular};
use super::super::{LeftOut, class_name};
use crate::index::{PolicyClass, PolicyIndex};

/// A class that pods have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NodeClass {
    /// How many pods have it.
    pub(super) pods: usize,
    /// Absent where another class has its name, or another set that of one of its sets.
    pub(super) rules: Option<ClassRules>,
}

/// What it is in the kernel, but for sets that follow pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClassRules {
    /// Where packets enter.
    entry: Cow<'static, str>,
    pub(super) chains: Vec<Chain>,
    pub(super) blocks: Vec<Set>,
    left_out: Vec<LeftOut>,
}

// === impl NodeClass ===

impl NodeClass {
    pub(super) fn lead(&self) -> MapVerdict {
        match &self.rules {
            Some(rules) => MapVerdict::Jump(rules.entry.clone()),
            None => MapVerdict::Drop,
        }
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
    pub(super) fn of(class: &PolicyClass, index: &PolicyIndex) -> Self {
        let mut compiler = Compiler::logging(index);
        let (mut chains, apart) = compiler.class(class);
        let (sets, _, left_out) = compiler.finish();
        let entry = if let [only] = &chains[..] {
            only.name.clone()
        } else {
            let name: Cow<'static, str> = class_name(class).into();
            let jump = |section: &Chain| {
                let why = format!("{} policies of the pod", class.direction);
                Rule::new(Vec::new(), Action::Jump(section.name.clone()), why)
            };
            let jumps = chains.iter().map(jump).collect();
            chains.push(regular(name.clone(), jumps));
            name
        };
        chains.extend(apart);
        let blocks = sets.into_iter().filter(|set| !set.is_kept()).collect();
        Self { entry, chains, blocks, left_out }
    }
}
