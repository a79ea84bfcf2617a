//! The delay before the next try. It doubles with each try up to a ceiling, and it has jitter, so that threads
//! that have lost one server do not all return to it at once.

use std::time::Duration;

use crate::shutdown::Shutdown;

/// The delays between the tries of one operation.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    ceiling: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays grow from about `first` to about `ceiling`.
    #[must_use]
    pub fn new(first: Duration, ceiling: Duration) -> Self {
        Self {
            first,
            ceiling,
            next: first,
        }
    }

    /// The next delay: between half of the step and all of it.
    pub fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.ceiling);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Waits for the next delay; true if the shutdown was requested meanwhile.
    #[must_use]
    pub fn wait(&mut self, shutdown: &Shutdown) -> bool {
        let delay = self.delay();
        shutdown.wait_at_most(delay)
    }

    /// Must be called after a success: the next delay is the first one again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling_and_start_over_after_a_success() {
        let millis = Duration::from_millis;
        let mut backoff = Backoff::new(millis(100), millis(350));

        for step in [100, 200, 350, 350] {
            let delay = backoff.delay();
            assert!(
                delay >= millis(step) / 2 && delay <= millis(step),
                "{delay:?} for {step}"
            );
        }
        backoff.reset();

        assert!(backoff.delay() <= millis(100));
    }
}
