//! Waits for a condition and not for a time, so that a test is quick and also passes on a busy machine.

use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take to hold.
const PATIENCE: Duration = Duration::from_mins(2);

/// The pause between the first two checks; it grows after each check.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Waits until `fact` holds.
///
/// # Panics
/// If it does not hold in time; `expected` describes it.
pub fn eventually(expected: &str, mut fact: impl FnMut() -> bool) {
    eventually_some(expected, || fact().then_some(()));
}

/// Waits until `fact` has a value, and returns it.
///
/// # Panics
/// If there is no value in time; `expected` describes it.
pub fn eventually_some<T>(expected: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(value) = fact() {
            return value;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "this did not happen within {PATIENCE:?}: {expected}"
        );
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(200));
    }
}
