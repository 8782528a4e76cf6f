//! Jobs and reports as bytes, from one process to another of the same program.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Failure, ProgramFailure};
use super::job::{IptablesJob, JobReport, ProgramRun, TableStep};
use super::{FAMILIES, KINDS, VARIANTS};

/// Tables by number.

#[derive(Debug, Default)]
struct Writer(Vec<u8>);

#[derive(Debug)]
struct Reader<'a>(&'a [u8]);

pub(super) fn encode_job(job: &IptablesJob) -> Vec<u8> {
    let mut w = Writer::default();
    w.number(u64::try_from(job.timeout.as_millis()).unwrap_or(u64::MAX));
    w.text(&job.path);
    w.number(u64::from(job.node));
    w.list(&job.runs, |w, run| {
        w.path(&run.save);
        w.path(&run.restore);
        w.number(number_of(&FAMILIES, &run.family));
        w.number(number_of(&VARIANTS, &run.variant));
        w.number(u64::from(run.unproven));
        w.list(&run.tables, |w, table| {
            w.number(number_of(&KINDS, &table.kind));
            w.text(&table.forward);
            w.text(&table.backward);
            w.list(table.before.as_slice(), |w, before| w.list(before, |w, line| w.text(line)));
        });
    });
    w.0
}

/// `None` when the bytes are not from [`encode_job`].
pub(super) fn decode_job(bytes: &[u8]) -> Option<IptablesJob> {
    let mut r = Reader(bytes);
    let timeout = Duration::from_millis(r.number()?);
    let path = r.text()?;
    let node = r.number()? != 0;
    let runs = r.list(|r| {
        Some(ProgramRun {
            save: r.path()?,
            restore: r.path()?,
            family: *FAMILIES.get(r.size()?)?,
            variant: *VARIANTS.get(r.size()?)?,
            unproven: r.number()? != 0,
            tables: r.list(|r| {
                Some(TableStep {
                    kind: *KINDS.get(r.size()?)?,
                    forward: r.text()?,
                    backward: r.text()?,
                    before: r.list(|r| r.list(Reader::text))?.pop(),
                })
            })?,
        })
    })?;
    r.0.is_empty().then_some(IptablesJob { timeout, path, node, runs })
}

pub(super) fn encode_report(report: &JobReport) -> Vec<u8> {
    let mut w = Writer::default();
    w.list(&report.warnings, |w, warning| w.text(warning));
    w.list(report.failure.as_slice(), |w, (number, failure)| {
        w.number(*number as u64);
        w.path(&failure.program);
        let (kind, value, text) = match &failure.cause {
            ProgramFailure::Start(text) => (0, 0, text.as_str()),
            ProgramFailure::Exit(code) => (1, u64::from(code.cast_unsigned()), ""),
            ProgramFailure::Signal(signal) => (2, u64::from(signal.cast_unsigned()), ""),
            ProgramFailure::TooMuch(most) => (4, *most, ""),
            ProgramFailure::Timeout(limit) => (3, u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), ""),
        };
        w.number(kind);
        w.number(value);
        w.text(text);
        w.text(&failure.said);
        w.list(&failure.left, |w, line| w.text(line));
    });
    w.0
}

/// `None` when the bytes are not a whole report: its writer did not come to the end.
pub(super) fn decode_report(bytes: &[u8]) -> Option<JobReport> {
    let mut r = Reader(bytes);
    let warnings = r.list(Reader::text)?;
    let mut failures = r.list(|r| {
        let number = r.size()?;
        let program = r.path()?;
        let (kind, value, text) = (r.number()?, r.number()?, r.text()?);
        let signed = || u32::try_from(value).ok().map(u32::cast_signed);
        let cause = match kind {
            0 => ProgramFailure::Start(text),
            1 => ProgramFailure::Exit(signed()?),
            2 => ProgramFailure::Signal(signed()?),
            3 => ProgramFailure::Timeout(Duration::from_millis(value)),
            4 => ProgramFailure::TooMuch(value),
            _ => return None,
        };
        Some((number, Failure { program, cause, said: r.text()?, left: r.list(Reader::text)? }))
    })?;
    r.0.is_empty().then_some(JobReport { warnings, failure: failures.pop() })
}

/// The number of a value in a list that has all there are.
fn number_of<T: PartialEq>(all: &[T], value: &T) -> u64 {
    all.iter().position(|other| other == value).unwrap_or(0) as u64
}

impl Writer {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_ne_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn path(&mut self, path: &Path) {
        self.bytes(path.as_os_str().as_bytes());
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        for item in items {
            write(self, item);
        }
    }
}

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*bytes))
    }

    fn size(&mut self) -> Option<usize> {
        self.number()?.try_into().ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.size()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn path(&mut self) -> Option<PathBuf> {
        Some(PathBuf::from(OsString::from_vec(self.bytes()?.to_vec())))
    }

    fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        // No capacity is reserved by a number that may be nonsense.
        (0..self.number()?).map(|_| read(self)).collect()
    }
}
