//! The loop: which input comes next, and what is done with what came of it.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use proptest::strategy::{BoxedStrategy, Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use crate::outcome::Outcome;
use crate::random::Random;
use crate::{Target, files, memory, minimize, mutate};

/// Time of a target without `FUZZ_SECONDS`.
const DEFAULT_SECONDS: f64 = 2.0;
/// An input that takes longer in each of so many tries fails.
const LONGEST: Duration = Duration::from_secs(5);
const TURNS: usize = 4;
/// After this the process ends: the input may never be done.
const STUCK: Duration = Duration::from_secs(60);
/// Between two lines of a long run.
const PROGRESS: Duration = Duration::from_secs(60);
/// One input in so many is generated; the others are mutated.
const GENERATED: usize = 4;

thread_local! {
    /// Whether a panic of this thread is an input's.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
    /// Its text, with its place.
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A run of a target.
struct Run<'a> {
    target: &'a Target,
    random: Random,
    runner: TestRunner,
    generator: BoxedStrategy<Vec<u8>>,
    /// Inputs to mutate.
    pool: Vec<Vec<u8>>,
    outcomes: HashSet<Outcome>,
    inputs: u64,
    watch: Watch,
}

/// The input that runs and since when, for a thread that ends the process if it is never done.
#[derive(Clone, Default)]
struct Watch(Arc<Mutex<Option<Running>>>);

type Running = (Instant, Vec<u8>);

/// Runs a target for its time.
pub(crate) fn fuzz(target: &Target) {
    keep_expected_panics_quiet();
    let seed = variable("FUZZ_SEED").map_or(1, |text| text.parse().expect("FUZZ_SEED is a number"));
    let seconds = variable("FUZZ_SECONDS")
        .map_or(DEFAULT_SECONDS, |text| text.parse().expect("FUZZ_SECONDS is a number"));
    let mut random = Random::new(seed);
    let (runner, generator) = (random.runner(), (target.generate)());
    let (pool, watch) = (Vec::new(), Watch::start(target));
    let outcomes = HashSet::new();
    let mut run = Run { target, random, runner, generator, pool, outcomes, inputs: 0, watch };
    run.go(seed, Duration::from_secs_f64(seconds));
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

impl Run<'_> {
    fn go(&mut self, seed: u64, time: Duration) {
        let start = Instant::now();
        for input in files::seeds(self.target) {
            self.look_at(&input, seed);
            self.pool.push(input);
        }
        for input in files::kept(self.target) {
            // Half of the time is for new ones.
            if start.elapsed() < time / 2 && self.look_at(&input, seed).is_some() {
                self.pool.push(input);
            }
        }
        let mut told = start;
        while start.elapsed() < time {
            let input = self.next();
            if let Some(new) = self.look_at(&input, seed) {
                files::keep(self.target, &input, new);
                self.pool.push(input);
            }
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                self.tell(start.elapsed(), "");
            }
        }
        self.tell(start.elapsed(), ", done");
    }

    /// Past the capture of test output: it is there while the run lasts.
    fn tell(&self, since: Duration, end: &str) {
        let (name, inputs, outcomes) = (self.target.name, self.inputs, self.outcomes.len());
        let line =
            format!("fuzz {name}: {:.0} s, {inputs} inputs, {outcomes} outcomes{end}\n", since.as_secs_f64());
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn next(&mut self) -> Vec<u8> {
        let mut input = if self.random.below(GENERATED) == 0 || self.pool.is_empty() {
            self.generated()
        } else {
            let base = self.random.below(self.pool.len());
            self.pool[base].clone()
        };
        let other = self.random.below(self.pool.len());
        let other = self.pool.get(other).map(Vec::as_slice).unwrap_or_default();
        // What is generated is well-formed as it is, now and then.
        if self.random.below(3) > 0 {
            let Target { dictionary, max_len, .. } = self.target;
            mutate::mutate(&mut input, other, dictionary, *max_len, &mut self.random);
        }
        input
    }

    fn generated(&mut self) -> Vec<u8> {
        let tree = self.generator.new_tree(&mut self.runner).unwrap_or_else(|why| panic!("generate: {why}"));
        tree.current()
    }

    /// Runs the target on an input; its outcome if that is new.
    fn look_at(&mut self, input: &[u8], seed: u64) -> Option<Outcome> {
        self.inputs += 1;
        self.watch.begin(input);
        let result = attempt(self.target, input);
        self.watch.end();
        match result {
            Ok(outcome) => self.outcomes.insert(outcome).then_some(outcome),
            Err(why) => self.fail(input, seed, &why),
        }
    }

    fn fail(&self, input: &[u8], seed: u64, why: &str) -> ! {
        let shortest = minimize::minimize(input, |shorter| attempt(self.target, shorter).is_err());
        let why = attempt(self.target, &shortest).err().unwrap_or_else(|| why.to_owned());
        let Target { name, package, .. } = self.target;
        let path = files::write_failure(name, &shortest);
        panic!(
            "fuzz {name}: {why}\n\
             input {} of seed {seed}, {} bytes at its shortest: {}\n\
             {}\n\
             again: FUZZ_INPUT={} cargo test -p {package} fuzz_{name}",
            self.inputs,
            shortest.len(),
            path.display(),
            shortest.escape_ascii(),
            path.display(),
        );
    }
}

/// Runs a target on one input.
pub(crate) fn repeat(target: &Target, input: &[u8]) {
    keep_expected_panics_quiet();
    if let Err(why) = attempt(target, input) {
        panic!("fuzz {}: {why}", target.name);
    }
}

/// Runs the target; what is wrong otherwise. An input that takes long may be one to which a crowded machine gave no turn: it gets others.
fn attempt(target: &Target, input: &[u8]) -> Result<Outcome, String> {
    let mut taken = Duration::ZERO;
    for _ in 0..TURNS {
        let start = Instant::now();
        let outcome = attempt_once(target, input)?;
        taken = start.elapsed();
        if taken < LONGEST {
            return Ok(outcome);
        }
    }
    Err(format!("{} bytes of input took {taken:?} at the last of {TURNS} tries", input.len()))
}

fn attempt_once(target: &Target, input: &[u8]) -> Result<Outcome, String> {
    EXPECTED.set(true);
    let (result, memory) = memory::measured(|| catch_unwind(AssertUnwindSafe(|| (target.run)(input))));
    EXPECTED.set(false);
    let outcome = result.map_err(|_| SAID.take())?;
    let allowed = target.memory + Target::MEMORY_PER_BYTE * input.len();
    if memory > allowed {
        return Err(format!(
            "{} bytes of input held {memory} bytes of memory, and {allowed} are allowed",
            input.len()
        ));
    }
    Ok(outcome)
}

/// Panics of inputs are noted and not printed; those of tests are printed as ever.
fn keep_expected_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if EXPECTED.get() {
                SAID.set(info.to_string());
            } else {
                before(info);
            }
        }));
    });
}

// === impl Watch ===

impl Watch {
    fn start(target: &Target) -> Self {
        let watch = Self::default();
        let (weak, name) = (Arc::downgrade(&watch.0), target.name);
        std::thread::spawn(move || {
            while let Some(running) = weak.upgrade() {
                let stuck = running.lock().unwrap_or_else(PoisonError::into_inner).clone();
                drop(running);
                if let Some((since, input)) = stuck
                    && since.elapsed() > STUCK
                {
                    let path = files::write_failure(name, &input);
                    let line = format!("fuzz {name}: not done after {STUCK:?}: {}\n", path.display());
                    let _ = std::io::stderr().write_all(line.as_bytes());
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        watch
    }

    fn begin(&self, input: &[u8]) {
        self.set(Some((Instant::now(), input.to_vec())));
    }

    fn end(&self) {
        self.set(None);
    }

    fn set(&self, running: Option<Running>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = running;
    }
}
