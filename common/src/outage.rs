//! Logs an outage: one line for each cause, however many tries fail, and one when the outage is over. A server
//! that accepts connections and serves none of them is one outage.

use std::time::Duration;

use crate::backoff::Backoff;

/// How many causes of one outage are logged.
const CAUSES_MAX: usize = 8;

/// The failures of one operation that is repeated until it succeeds.
#[derive(Debug)]
pub struct Outage {
    backoff: Backoff,
    /// The causes that were logged.
    logged: Vec<String>,
    connected: bool,
}

impl Outage {
    /// Makes a value without an outage. The delays between tries grow from about `first` to about `ceiling`.
    #[must_use]
    pub fn none(first: Duration, ceiling: Duration) -> Self {
        Self {
            backoff: Backoff::new(first, ceiling),
            logged: Vec::new(),
            connected: false,
        }
    }

    /// Logs a failure, unless its cause was logged before, and returns how long to wait before the next
    /// try.
    pub fn note(&mut self, level: log::Level, cause: &str, text: &str) -> Duration {
        // The first failure of an outage means that the connection is lost.
        self.connected &= !self.logged.is_empty();
        if !self.logged.iter().any(|logged| logged == cause) && self.logged.len() < CAUSES_MAX {
            log::log!(level, cause = cause; "{text}");
            self.logged.push(cause.to_owned());
        }
        self.backoff.delay()
    }

    /// Whether this is the first connection since the start or since an outage began, and should be logged. A
    /// connection alone does not end an outage.
    #[must_use]
    pub fn connects(&mut self) -> bool {
        !std::mem::replace(&mut self.connected, true)
    }

    /// Must be called when the operation has succeeded; returns whether that ended an outage.
    pub fn end(&mut self) -> bool {
        self.backoff.reset();
        !std::mem::take(&mut self.logged).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_with_a_success_and_not_with_a_connection() {
        let millis = Duration::from_millis;
        let mut outage = Outage::none(millis(100), millis(1000));

        assert!(outage.connects() && !outage.connects() && !outage.end());
        let first = outage.note(log::Level::Warn, "a", "it fails");
        assert!(outage.connects());
        let second = outage.note(log::Level::Warn, "b", "it fails");
        assert!(!outage.connects());
        assert_eq!(outage.logged, ["a", "b"]);
        assert!(first <= millis(100) && second >= millis(100));

        assert!(outage.end() && !outage.end());
        assert!(outage.note(log::Level::Warn, "a", "it fails") <= millis(100));
    }

    #[test]
    fn each_cause_is_logged_once_and_no_number_of_causes_fills_the_log() {
        let mut outage = Outage::none(Duration::ZERO, Duration::ZERO);

        for round in 0..100 {
            outage.note(log::Level::Warn, "the usual cause", "it fails");
            outage.note(log::Level::Warn, &round.to_string(), "it fails");
        }

        assert_eq!(outage.logged.len(), CAUSES_MAX);
    }
}
