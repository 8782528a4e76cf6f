//! The command line.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::output::VerbAnswer;
use crate::{
    audit, bug_report, chain, conflicts, doctor, explain, log, node, page, pods, policy, render, shell,
    tenants, trace,
};

/// What every help text ends with.
const EXIT_CODES: &str = "\
Exit codes:
  0    done; for explain: the question is answered, whatever the verdict; for status and doctor: healthy; for verify: all captured; for policy
       explain: allowed
  1    something failed or, for status, doctor, verify, conflicts, diff, policy eval, policy lint, tenants list --lagging,
       tenants lint, is wrong; for policy explain: denied; for
       policy diff: a verdict changes; the message says
       what, where and what to do
  2    the command line is wrong
  3    there is nothing to show: no such pod, or none that should be captured; for render: the pod is not captured
  4    nothing wrong was seen, but not everything could be looked at (status, doctor, pods, verify, conflicts, policy explain)
  5    for policy explain --kernel: the kernel's rules do something else
  124  the time of --timeout was over";

const EXAMPLES: &str = "\
Examples:
  # What would the plugin load into this pod's namespace?
  cnictl render web.yaml

  # Where does a connection of the application to 10.0.0.5:443 go, and because of which rule?
  cnictl explain web.yaml --to 10.0.0.5:443

  # Attach a namespace to a network, as a container runtime would, with the time and memory of each plugin
  ip netns add web
  cnictl add --conf /etc/cni/net.d/10-net.conflist --pod web.yaml --netns web --stats
  cnictl del --conf /etc/cni/net.d/10-net.conflist --pod web.yaml

  # Are all pods of this node captured that should be?
  cnictl verify

  # Is the plugin installed on this node, and does its agent answer?
  cnictl status

  # What of this node is not as the mesh needs it, and what helps?
  cnictl doctor";

/// Runs, renders and explains what the CNI plugin does to a pod, and tells how it is installed.
#[derive(Debug, Parser)]
#[command(name = "cnictl", version, propagate_version = true, after_help = EXIT_CODES)]
#[command(after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"), max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Render(render::RenderArgs),
    Explain(explain::ExplainArgs),
    Trace(trace::TraceArgs),
    Add(chain::AddArgs),
    Check(chain::CheckArgs),
    Del(chain::DelArgs),
    Pods(pods::PodsArgs),
    Verify(pods::VerifyArgs),
    Diff(pods::DiffArgs),
    Conflicts(conflicts::ConflictsArgs),
    Restore(pods::RestoreArgs),
    Policy(policy::PolicyArgs),
    Tenants(tenants::TenantsArgs),
    Audit(audit::AuditArgs),
    Status(node::StatusArgs),
    Doctor(doctor::DoctorArgs),
    Selftest(chain::SelftestArgs),
    Log(log::LogArgs),
    BugReport(bug_report::BugReportArgs),
    Page(page::PageArgs),
    Gc(chain::GcArgs),
    Uninstall(node::UninstallArgs),
    Version(chain::VersionArgs),
    Completion(shell::CompletionArgs),
    Man(shell::ManArgs),
}

impl Cli {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// It could not be done.
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        match &self.verb {
            Verb::Render(args) => args.run(),
            Verb::Explain(args) => args.run(),
            Verb::Trace(args) => args.run(),
            Verb::Add(args) => args.run(),
            Verb::Check(args) => args.run(),
            Verb::Del(args) => args.run(),
            Verb::Pods(args) => args.run(),
            Verb::Verify(args) => args.run(),
            Verb::Diff(args) => args.run(),
            Verb::Conflicts(args) => args.run(),
            Verb::Restore(args) => args.run(),
            Verb::Policy(args) => args.run(),
            Verb::Tenants(args) => args.run(),
            Verb::Audit(args) => args.run(),
            Verb::Status(args) => args.run(),
            Verb::Doctor(args) => args.run(),
            Verb::Selftest(args) => args.run(),
            Verb::Log(args) => args.run(),
            Verb::BugReport(args) => args.run(),
            Verb::Page(args) => args.run(),
            Verb::Gc(args) => args.run(),
            Verb::Uninstall(args) => args.run(),
            Verb::Version(args) => args.run(),
            Verb::Completion(args) => args.run(),
            Verb::Man(args) => args.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
