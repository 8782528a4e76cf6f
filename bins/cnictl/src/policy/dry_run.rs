//! `policy dry-run`: what trying a policy out, or enforcing it again, would change, and the command that does it.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use facts::networkpolicy::MODE;
use policy::PolicyName;
use policy::preview::preview;

use super::end::policy_name;
use super::source::PolicySourceArgs;
use crate::output::VerbAnswer;
use crate::pods::NOTHING;

const EXAMPLES: &str = "\
Examples:
  # What would this policy deny, without denying it?
  cnictl policy dry-run on shop/db

Exit codes: 0 the command is printed
            1 failed
            2 wrong command line
            3 there is no such policy";

/// Show the command by which a policy is only tried out, or enforced again, and what that changes
///
/// A policy with the annotation policy.cni.istio.io/mode: audit isolates no pod: what it would deny is counted and logged, and allowed. What its rules
/// allow is allowed. Pods that another policy isolates stay isolated. This program has no right to change objects: it prints the command of kubectl.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DryRunArgs {
    /// Try it out, or enforce it
    #[arg(value_enum, value_name = "on|off")]
    state: DryRunState,
    /// The policy
    #[arg(value_name = "NAMESPACE/POLICY", value_parser = policy_name)]
    policy: (String, String),
    #[command(flatten)]
    source: PolicySourceArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DryRunState {
    On,
    Off,
}

impl DryRunArgs {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        let (namespace, name) = &self.policy;
        let known = self.source.load()?;
        let named = PolicyName::of_networkpolicy(namespace, name);
        let Some(terms) = known.world.policy(&named) else {
            let problem =
                format!("policy {namespace}/{name} is not known; look with kubectl get networkpolicies");
            return Ok(VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(String::new(), problem) });
        };
        let tries = self.state == DryRunState::On;
        let mut changed = terms.clone();
        changed.ingress.is_tried_out = tries;
        changed.egress.is_tried_out = tries;
        let mut after = known.world.clone();
        after.put_policy(changed);
        let found = preview(&known.world, &after).context("compare the verdicts")?;
        let (key, value) = MODE;
        let setting = if tries { format!("{key}={value} --overwrite") } else { format!("{key}-") };
        let text = format!(
            "kubectl annotate networkpolicy -n {namespace} {name} {setting}\n\
             pods whose isolation changes: {}; kinds of connections between pods whose verdict changes: {}\n{}\n",
            found.isolation.len(),
            found.verdicts.len(),
            known.evidence.line()
        );
        Ok(VerbAnswer::text(text))
    }
}
