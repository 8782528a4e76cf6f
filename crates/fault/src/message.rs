//! What a person is told of a failure, in an Event or in the log.

use crate::Fault;

/// The most bytes of a [`message`]. An Event takes 1024, of which kubelet and `kubectl` show the beginning.
pub const LONGEST_MESSAGE: usize = 300;

/// The most bytes of the advice in it.
const LONGEST_ADVICE: usize = 140;

/// What stands for the rest of a text that was cut.
const CUT: &str = "…";

/// The cause first, then in parentheses what was being done, last what helps. One line of at most [`LONGEST_MESSAGE`] bytes, in which the
/// advice is kept before what was being done. The pod is not named: the Event is about it, and a line of the log has its label.
pub fn message(fault: &dyn Fault) -> String {
    let advice =
        fault.advice().map_or_else(String::new, |advice| format!("; {}", cut(&advice, LONGEST_ADVICE)));
    let operation = fault.operation();
    let cause = cut(&fault.root_cause(), LONGEST_MESSAGE - advice.len());
    let full = format!("{cause} ({operation}){advice}");
    if operation.is_empty() || full.len() > LONGEST_MESSAGE { format!("{cause}{advice}") } else { full }
}

/// The beginning of the text as one line.
fn cut(text: &str, most: usize) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() <= most {
        return text;
    }
    let mut end = most - CUT.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", text[..end].trim_end())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::error::Error;

    use super::*;
    use crate::Retry;
    use crate::chain::tests::{Link, links};

    #[derive(Debug)]
    struct Failed {
        operation: String,
        why: Link,
        advice: Option<String>,
    }

    impl std::fmt::Display for Failed {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(&self.operation)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.why)
        }
    }

    impl Fault for Failed {
        fn retry(&self) -> Retry {
            Retry::OnChange
        }

        fn operation(&self) -> &str {
            &self.operation
        }

        fn advice(&self) -> Option<Cow<'static, str>> {
            self.advice.clone().map(Cow::Owned)
        }
    }

    fn failed(operation: &str, why: &[&'static str], advice: Option<&str>) -> Failed {
        Failed { operation: operation.to_owned(), why: links(why), advice: advice.map(str::to_owned) }
    }

    #[test]
    fn the_cause_comes_first_and_the_advice_last() {
        let fault =
            failed("add table inet a", &["netlink", "out of memory"], Some("look at the node's memory"));
        assert_eq!(message(&fault), "out of memory (add table inet a); look at the node's memory");
        assert_eq!(message(&failed("", &["no\nztunnel"], None)), "no ztunnel");
        assert_eq!(message(&failed("add", &["no"], None)), "no (add)");
    }

    #[test]
    fn a_long_one_loses_the_operation_first_and_keeps_its_advice() {
        let long: &'static str = Box::leak("ä".repeat(400).into_boxed_str());
        let text = message(&failed(long, &["out of memory"], Some("more memory")));
        assert_eq!(text, "out of memory; more memory");
        for advice in ["more memory", long] {
            let text = message(&failed(long, &[long], Some(advice)));
            assert!(
                text.len() <= LONGEST_MESSAGE && text.starts_with("ää") && text.contains("…; "),
                "{text}"
            );
            assert!(text.ends_with("more memory") || text.ends_with(CUT), "{text}");
        }
    }
}
