//! CHECK: the pod's namespace against what was applied to it.
//!
//! A runtime that calls CHECK may give the pod up where it fails, so it fails only where capture is proven lost: a record says what was
//! applied to this namespace, and the kernel shows that rules of ours are gone, changed or shadowed. Everything that cannot be had, or is
//! known by another way only, is a line in the log.

use std::fmt::Write;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use applied::{AppliedRecord, Origin, RecordKey};
use cni::Error;
use kernel::{Difference, Record};
use netns::{Inside, Netns};
use ruleset::Ruleset;

use crate::failure::OperationFailure;
use crate::job::Job;
use crate::progress::EndedPhase;
use crate::within::{Unfinished, within};

/// How long a CHECK waits for the pod's facts, where there is no record. A runtime checks all pods of the node one by one at its start. With
/// the time for the report it is a second.
const PATIENCE: Duration = Duration::from_millis(800);
/// How long a CHECK may take in all. What takes longer is a kernel or a program that hangs.
const LIMIT: Duration = Duration::from_secs(5);
/// How often it looks again where the record changes meanwhile.
const TRIES: usize = 3;

/// Differences that a failure tells in its message, and in its details after those; one flushed chain may be thousands of them.
const SHOWN_FIRST: usize = 2;
const SHOWN: usize = 4;
/// Bytes of one difference that are told.
const LONGEST: usize = 240;

/// What a check found.
#[derive(Debug)]
pub(crate) enum CheckVerdict {
    /// Nothing differs.
    AsPlanned,
    /// Capture is lost.
    Differs(Vec<Difference>),
    /// Nothing is proven, for this reason.
    Unknown(String),
}

impl Job {
    /// Compares the pod's namespace with what was applied to it.
    fn check(self: &Arc<Self>) -> CheckVerdict {
        self.progress.ended(EndedPhase::Parse);
        let netns = match self.open_netns() {
            Ok(netns) => netns,
            Err(failure) => return unknown(&failure),
        };
        let end = Instant::now() + PATIENCE;
        let mut before: Option<AppliedRecord> = None;
        for _ in 0..TRIES {
            let Some(applied) = self.recorded(&netns) else {
                return self.check_by_facts(end.saturating_duration_since(Instant::now()));
            };
            // A look takes no lock, so another call may be putting another plan in place.
            if before.as_ref() == Some(&applied) {
                break;
            }
            match self.compare(&netns, &applied) {
                Ok(differences) if differences.is_empty() => return CheckVerdict::AsPlanned,
                Ok(_) => before = Some(applied),
                Err(reason) => return CheckVerdict::Unknown(reason),
            }
        }
        let differences = before.map(|applied| self.compare(&netns, &applied));
        self.progress.ended(EndedPhase::Apply);
        match differences {
            Some(Ok(differences)) if !differences.is_empty() && !self.as_another_attachment(&netns) => {
                CheckVerdict::Differs(differences)
            }
            Some(Err(reason)) => CheckVerdict::Unknown(reason),
            _ => CheckVerdict::AsPlanned,
        }
    }

    /// Whether the namespace is as an ADD for another interface of the same sandbox left it: that one came later.
    fn as_another_attachment(&self, netns: &Netns) -> bool {
        let others =
            self.run_dir().map_or_else(Vec::new, |run_dir| applied::of_container(run_dir, &self.container));
        let mut others =
            others.iter().filter(|other| self.is_of(other, netns) && other.origin.interface != self.ifname);
        others.any(|other| self.compare(netns, other).is_ok_and(|differences| differences.is_empty()))
    }

    /// The record of what was applied to this namespace, for this pod: one of the plugin's own, or one of the node agent's.
    fn recorded(&self, netns: &Netns) -> Option<AppliedRecord> {
        let run_dir = self.run_dir()?;
        let attachment = RecordKey::Attachment { container: &self.container, interface: &self.ifname };
        for key in [attachment, RecordKey::Namespace(netns.id())] {
            match applied::read(run_dir, key) {
                Ok(Some(applied)) if self.is_of(&applied, netns) => return Some(applied),
                Ok(Some(_)) => {
                    self.log.debug("the record is of another namespace or pod; it is not used", &[]);
                }
                Ok(None) => {}
                Err(error) => self.log.warn(&error.to_string(), &[]),
            }
        }
        None
    }

    fn is_of(&self, applied: &AppliedRecord, netns: &Netns) -> bool {
        let origin = &applied.origin;
        let uid = &self.id.uid;
        let same_uid = uid.is_empty() || origin.uid.is_empty() || origin.uid == *uid;
        origin.netns == netns.id() && origin.pod == self.id.to_string() && same_uid
    }

    /// The differences, or why there is nothing to be said.
    fn compare(&self, netns: &Netns, applied: &AppliedRecord) -> Result<Vec<Difference>, String> {
        let entered = netns.enter(|inside| -> Result<_, kernel::Error> {
            let record = applied.record.as_ref();
            let Some((record, owners)) = record.and_then(|record| Some((record, owners_of(record)?))) else {
                return Ok(None);
            };
            let kernel = self.kernel();
            let Some(mut differences) = kernel.observe_record(inside, record, &owners)? else {
                return Ok(None);
            };
            // Rules of ours that are there twice capture all the same.
            differences.retain(|difference| {
                let twice = matches!(difference, Difference::OtherBackend { .. });
                if twice {
                    self.log.warn(&difference.to_string(), &[]);
                }
                !twice
            });
            // What is changed is lost, whatever shadows it.
            let shadows = match &differences[..] {
                [] => self.shadows(inside, record, &owners, &applied.origin)?,
                _ => Vec::new(),
            };
            Ok(Some([differences, shadows].concat()))
        });
        match entered {
            Ok(Ok(Some(differences))) => Ok(differences),
            Ok(Ok(None)) => self.compare_unreadable(netns),
            Ok(Err(error)) => Err(fault::chain(&error)),
            Err(error) => Err(fault::chain(&error)),
        }
    }

    /// The rules of others by which packets escape for certain; what may be so is logged.
    pub(crate) fn shadows(
        &self,
        inside: &Inside,
        record: &Record,
        owners: &[Ruleset],
        origin: &Origin,
    ) -> Result<Vec<Difference>, kernel::Error> {
        let shadows =
            self.kernel().shadows(inside, record, owners, &origin.addresses, &self.ifname, &|_| ())?;
        for text in shadows.possible.iter().take(SHOWN) {
            // Rules of policies let no packet escape: they are ours, too.
            if matches!(text.as_bytes().get(..14), Some(b"chain istio-np" | b"chain ISTIO_NP")) {
                continue;
            }
            self.log.warn(&format!("packets may escape capture: {}", cut(text)), &[]);
        }
        Ok(shadows.proven)
    }

    /// A record that says that rules were applied, and not which: lost is what is gone altogether.
    fn compare_unreadable(&self, netns: &Netns) -> Result<Vec<Difference>, String> {
        let kernel = self.kernel();
        let owners = owners();
        let there = netns.enter(|inside| -> Result<bool, kernel::Error> {
            Ok(kernel.nftables.exists(inside, &owners)? || kernel.iptables.exists(inside, &owners)?)
        });
        let there = match there {
            Ok(result) => result.map_err(|error| fault::chain(&error)),
            Err(error) => Err(fault::chain(&error)),
        };
        if there? {
            return Err(
                "the record of what was applied is of another version; rules of ours are there".to_owned()
            );
        }
        Ok(vec![Difference::MissingTable { table: owners[0].nft_table(ruleset::TableKind::Nat) }])
    }

    /// What today's facts say. The pod may have been set up by other ones, or by nobody, so nothing is proven by them.
    fn check_by_facts(self: &Arc<Self>, limit: Duration) -> CheckVerdict {
        let (sender, receiver) = mpsc::channel();
        let job = self.clone();
        // Left behind when it is late; it ends with the process.
        let thread = std::thread::Builder::new().name("facts".to_owned()).spawn(move || {
            let _ = sender.send(job.target());
        });
        let target = match thread.map(|_| receiver.recv_timeout(limit)) {
            Ok(Ok(Ok(Some(target)))) => target,
            Ok(Ok(Ok(None))) => return CheckVerdict::AsPlanned,
            Ok(Ok(Err(failure))) => return unknown(&failure),
            Ok(Err(_)) => {
                return CheckVerdict::Unknown(format!(
                    "neither the node agent nor the API server had the pod's facts within {} ms",
                    limit.as_millis()
                ));
            }
            Err(error) => return unknown(&OperationFailure::Thread(error)),
        };
        match self.compare_by_facts(&target) {
            Ok(differences) if differences.is_empty() => CheckVerdict::AsPlanned,
            Ok(differences) => CheckVerdict::Unknown(format!(
                "there is no record of what was applied to this pod; by today's facts, {}",
                summary(&differences, SHOWN_FIRST)
            )),
            Err(failure) => unknown(&failure),
        }
    }
}

/// What a check finds within its time.
pub(crate) fn within_limit(job: Job) -> CheckVerdict {
    let job = Arc::new(job);
    within("check", LIMIT, move || job.check()).unwrap_or_else(|unfinished| match unfinished {
        Unfinished::Thread(error) => unknown(&OperationFailure::Thread(error)),
        Unfinished::Late => {
            CheckVerdict::Unknown(format!("the kernel did not answer within {} s", LIMIT.as_secs()))
        }
    })
}

fn unknown(failure: &OperationFailure) -> CheckVerdict {
    CheckVerdict::Unknown(fault::chain(failure))
}

/// The names and the known chains of those that load rules.
fn owners() -> [Ruleset; 2] {
    [capture::plan::no_rules(), capture::ambient::no_rules()]
}

/// Those of a record's layers; absent where one is not known.
pub(crate) fn owners_of(record: &Record) -> Option<Vec<Ruleset>> {
    let of = |name: &String| owners().into_iter().find(|owner| owner.owner == *name);
    record.owners.iter().map(of).collect()
}

/// What a repeated ADD tells of rules that shadow those that it has loaded.
pub(crate) fn shadowed(differences: &[Difference]) -> String {
    format!("packets escape capture by rules of others, {}", summary(differences, SHOWN_FIRST))
}

/// The error to the runtime about lost capture.
pub(crate) fn failure(differences: &[Difference], pod: &str) -> Error {
    let summary = summary(differences, SHOWN_FIRST);
    let message =
        format!("pod {pod} is not captured as planned: {summary}; delete the pod so that it is set up again");
    // A runtime puts both on one line, so the details repeat nothing.
    let further = differences.iter().skip(SHOWN_FIRST).take(SHOWN);
    let further: Vec<String> = further.map(|difference| cut(&difference.to_string())).collect();
    Error::internal(message).with_details(further.join("; "))
}

/// So much of a text as one line tells.
fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(LONGEST);
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

/// How many differences, and the first of them.
fn summary(differences: &[Difference], shown: usize) -> String {
    let count = differences.len();
    let mut text = format!("{count} difference{}", if count == 1 { "" } else { "s" });
    for (at, difference) in differences.iter().take(shown).enumerate() {
        let separator = if at == 0 { ": " } else { "; " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{}", cut(&difference.to_string()));
    }
    if count > shown {
        let _ = write!(text, "; and {} more", count - shown);
    }
    text
}
