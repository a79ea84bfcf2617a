//! Waiting for a fact, never for a time: quick where the fact is quick, and patient on a busy
//! machine.

use std::thread;
use std::time::{Duration, Instant};

/// After this long the fact is taken not to come.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long the first look is apart from the second; later ones are further apart.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Waits until `fact` holds.
///
/// # Panics
/// When it does not come; `expected` says what was waited for.
pub fn eventually(expected: &str, mut fact: impl FnMut() -> bool) {
    eventually_some(expected, || fact().then_some(()));
}

/// Waits until `fact` has a value, and returns it.
///
/// # Panics
/// When it does not come; `expected` says what was waited for.
pub fn eventually_some<T>(expected: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(value) = fact() {
            return value;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain: {expected}"
        );
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(200));
    }
}
