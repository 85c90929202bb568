//! Random tests whose failures shrink: steps are recorded as they are chosen, and after a failure
//! the shortest sequence that still fails is searched for.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// The steps of one attempt: chosen as it runs, or all or some of an earlier attempt's.
#[derive(Debug)]
pub struct Script<S> {
    given: Option<std::vec::IntoIter<S>>,
    taken: Vec<S>,
}

impl<S: Clone> Script<S> {
    /// Returns the next step, by `choose` if this is the first attempt; `None` if no given steps
    /// are left.
    pub fn next(&mut self, choose: impl FnOnce() -> S) -> Option<S> {
        let step = match &mut self.given {
            None => choose(),
            Some(given) => given.next()?,
        };
        self.taken.push(step.clone());
        Some(step)
    }

    /// True if steps are given: then there are fewer, and each is worth a full check.
    pub fn is_given(&self) -> bool {
        self.given.is_some()
    }
}

/// How long to shrink a failure.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs `attempt`. If it panics, runs it again with fewer and fewer steps, prints the fewest with
/// which it still panics, and resumes the first panic.
///
/// An attempt starts afresh each time, and must do the same with the same steps. It leaves out
/// steps that make no sense without earlier ones.
pub fn play<S: Clone + Debug>(attempt: impl Fn(&mut Script<S>)) {
    let mut script = Script {
        given: None,
        taken: Vec::new(),
    };
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| attempt(&mut script))) else {
        return;
    };
    let until = Instant::now() + PATIENCE;
    let fails = |steps: &[S]| {
        let mut script = Script {
            given: Some(Vec::from(steps).into_iter()),
            taken: Vec::new(),
        };
        Instant::now() < until && catch_unwind(AssertUnwindSafe(|| attempt(&mut script))).is_err()
    };
    let steps = script.taken;
    match fails(&steps) {
        false => eprintln!("it does not fail again with these steps: {steps:#?}"),
        true => {
            let all = steps.len();
            let fewest = fewest(steps, fails);
            eprintln!(
                "of {all} steps, these {} are enough: {fewest:#?}",
                fewest.len()
            );
        }
    }
    resume_unwind(panic)
}

/// Leaves out what is not needed for `fails`: halves, then quarters, finally single steps.
pub fn fewest<S: Clone>(mut steps: Vec<S>, fails: impl Fn(&[S]) -> bool) -> Vec<S> {
    let mut size = steps.len().div_ceil(2).max(1);
    loop {
        let (mut at, before) = (0, steps.len());
        while at < steps.len() {
            let mut without = steps.clone();
            without.drain(at..(at + size).min(steps.len()));
            match fails(&without) {
                true => steps = without,
                false => at += size,
            }
        }
        match size {
            1 if steps.len() == before => return steps,
            1 => {}
            _ => size = size.div_ceil(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_is_left_out() {
        let needs = |wanted: &'static [u32]| {
            move |steps: &[u32]| {
                let mut rest = steps.iter();
                wanted.iter().all(|want| rest.any(|step| step == want))
            }
        };
        for wanted in [&[7_u32][..], &[0, 99], &[3, 50, 51, 98], &[]] {
            assert_eq!(fewest((0..100).collect(), needs(wanted)), wanted);
        }
    }

    #[test]
    fn the_first_panic_is_reported_after_shrinking() {
        let attempts = std::cell::RefCell::new(Vec::new());
        let ended = catch_unwind(AssertUnwindSafe(|| {
            play(|script: &mut Script<u32>| {
                let mut sum = 0;
                for step in 0..10 {
                    let Some(step) = script.next(|| step) else {
                        break;
                    };
                    sum += step;
                    if sum > 7 {
                        attempts.borrow_mut().push(script.taken.clone());
                        panic!("{sum} is too much");
                    }
                }
            });
        }));
        let said = ended.unwrap_err();
        assert_eq!(said.downcast_ref::<String>().unwrap(), "10 is too much");
        let attempts = attempts.into_inner();
        assert_eq!(attempts[0], [0, 1, 2, 3, 4]);
        // 3 and 4 are not enough.
        assert_eq!(attempts.last().unwrap().len(), 3);
    }

    #[test]
    fn a_passing_test_runs_once() {
        let attempts = std::cell::Cell::new(0);
        play(|script: &mut Script<u32>| {
            attempts.set(attempts.get() + 1);
            while script.next(|| 1).is_some_and(|_| script.taken.len() < 5) {}
            assert!(!script.is_given());
        });
        assert_eq!(attempts.get(), 1);
    }
}
