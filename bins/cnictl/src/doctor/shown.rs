//! The report for people.

use checks::{CheckReport, CheckResult, CheckSection, CheckState};

use crate::output::{Colour, one_line, paint};

/// One line: the worst, or that nothing is wrong.
pub(super) fn short(report: &CheckReport) -> String {
    let count = |state| report.count(state);
    let Some(worst) = report.worst() else {
        return format!("{} ok: {} checks\n", CheckState::Ok.sign(), count(CheckState::Ok));
    };
    let others = match worst.others {
        0 => String::new(),
        others => format!(" (and {others} more)"),
    };
    let CheckResult { id, state, text, .. } = worst.result;
    format!("{} {} {id}: {}{others}\n", state.sign(), state.word(), one_line(text))
}

/// CheckSection by section.
pub(super) fn table(report: &CheckReport, explain: bool) -> String {
    let mut out = String::new();
    for section in CheckSection::ALL {
        let of: Vec<&CheckResult> = report.items.iter().filter(|item| item.section == section).collect();
        if of.is_empty() {
            continue;
        }
        out.push_str(&format!("{}\n", section.word()));
        of.iter().for_each(|result| out.push_str(&lines(result, explain)));
        out.push('\n');
    }
    out + &verdict(report)
}

fn lines(result: &CheckResult, explain: bool) -> String {
    let sign = result.state.sign().to_string();
    let sign = match result.state {
        CheckState::Ok => paint(&sign, Colour::Green),
        CheckState::Failed => paint(&sign, Colour::Red),
        CheckState::Warning | CheckState::Unknown => paint(&sign, Colour::Yellow),
        CheckState::Skipped => sign,
    };
    let name = result.id.split_once('.').map_or(result.id.as_str(), |(_, name)| name);
    let unknown = if result.state == CheckState::Unknown { "not known: " } else { "" };
    let mut out = format!("  {sign} {name}: {unknown}{}\n", one_line(&result.text));
    if explain {
        out.push_str(&format!("      looks at {} ({:.3} s)\n", result.looks_at, result.seconds));
    }
    if let Some(advice) = &result.advice {
        out.push_str(&format!("      {}\n", one_line(advice)));
    }
    if let Some(more) = &result.more {
        out.push_str(&format!("      more: {more}\n"));
    }
    out
}

fn verdict(report: &CheckReport) -> String {
    let [failed, warnings, unknown] =
        [CheckState::Failed, CheckState::Warning, CheckState::Unknown].map(|state| report.count(state));
    let (word, colour) = match (failed, unknown) {
        (0, 0) => ("healthy", Colour::Green),
        (0, _) => ("unknown", Colour::Yellow),
        _ => ("unhealthy", Colour::Red),
    };
    let ok = report.count(CheckState::Ok);
    format!("{}: {failed} failed, {warnings} warnings, {unknown} not known, {ok} ok\n", paint(word, colour))
}

#[cfg(test)]
mod tests {
    use checks::{CheckFinding, catalogue};

    use super::*;

    fn report(findings: Vec<CheckFinding>) -> CheckReport {
        CheckReport::new(
            findings.into_iter().map(|finding| finding.of(&catalogue::CONNTRACK, 0.25)).collect(),
        )
    }

    #[test]
    fn the_short_form_is_one_line_with_the_worst() {
        for (findings, line) in [
            (vec![CheckFinding::ok("fine"), CheckFinding::skipped("off")], "√ ok: 1 checks\n"),
            (
                vec![CheckFinding::ok("fine"), CheckFinding::unknown("denied")],
                "– unknown kernel.conntrack: denied\n",
            ),
            (
                vec![CheckFinding::warning("w", "x"), CheckFinding::failed("a\nb", "x")],
                "× failed kernel.conntrack: a\\u000ab\n",
            ),
            (
                vec![CheckFinding::failed("a", "x"), CheckFinding::failed("b", "x")],
                "× failed kernel.conntrack: a (and 1 more)\n",
            ),
        ] {
            assert_eq!(short(&report(findings)), line);
        }
    }

    #[test]
    fn the_table_says_what_helps_and_where_more_is_said() {
        let text = table(
            &report(vec![CheckFinding::failed("full", "raise it"), CheckFinding::unknown("denied")]),
            true,
        );
        let expected = "\
kernel
  × conntrack: full
      looks at connections that the node tracks and how many it may (0.250 s)
      raise it
      more: docs/troubleshooting.md#connection-tracking
  – conntrack: not known: denied
      looks at connections that the node tracks and how many it may (0.250 s)

unhealthy: 1 failed, 0 warnings, 1 not known, 0 ok
";
        assert_eq!(text, expected);
    }
}
