//! Counting what held and what did not.

use crate::machine::patient;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long anything may take that should happen soon; only ever reached by a failure.
pub const HANG_LIMIT: Duration = Duration::from_secs(180);

/// The checks of one scenario.
#[derive(Default)]
pub struct Checks {
    /// How many held.
    pub passed: usize,
    /// How many did not.
    pub failed: usize,
}

impl Checks {
    /// Count one check and print it.
    pub fn that(&mut self, what: &str, holds: bool) {
        if holds {
            self.passed += 1;
            println!("  ok      {what}");
        } else {
            self.fail(what, "");
        }
    }

    /// Count a failed check.
    pub fn fail(&mut self, what: &str, why: &str) {
        self.failed += 1;
        println!("  FAILED  {what}{}{why}", if why.is_empty() { "" } else { ": " });
    }

    /// `got` must equal `want`; prints both when not.
    pub fn equal<T: PartialEq + Debug>(&mut self, what: &str, got: T, want: T) {
        if got == want {
            self.that(what, true);
        } else {
            self.fail(what, &format!("got {got:?}, expected {want:?}"));
        }
    }

    /// A step that must succeed; its value when it did.
    pub fn step<T>(&mut self, what: &str, result: anyhow::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.that(what, true);
                Some(value)
            }
            Err(error) => {
                self.fail(what, &format!("{error:#}"));
                None
            }
        }
    }

    /// `condition` must come true within [`HANG_LIMIT`].
    pub fn soon(&mut self, what: &str, condition: impl FnMut() -> bool) {
        self.that(what, wait_until(condition));
    }
}

/// Poll until `condition` holds, at most [`HANG_LIMIT`].
pub fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > patient(HANG_LIMIT) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}
