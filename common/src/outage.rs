//! An outage, as the log is told of it: a line for each cause, however often it is tried meanwhile, and
//! one when it is over. A server that accepts connections and serves none of them is one outage.

use std::time::Duration;

use crate::backoff::Backoff;

/// More causes than these are not told of one outage.
const CAUSES_MAX: usize = 8;

/// The tries at something that fails now and then.
#[derive(Debug)]
pub struct Outage {
    backoff: Backoff,
    /// The causes that the log was told.
    told: Vec<String>,
    connected: bool,
}

impl Outage {
    /// None yet. The delays between tries grow from about `first` to about `ceiling`.
    #[must_use]
    pub fn none(first: Duration, ceiling: Duration) -> Self {
        Self {
            backoff: Backoff::new(first, ceiling),
            told: Vec::new(),
            connected: false,
        }
    }

    /// Logs a failure, unless its cause is known already, and says how long to wait before the next
    /// try.
    pub fn note(&mut self, level: log::Level, cause: &str, text: &str) -> Duration {
        // An outage begins: whatever was connected is not any more.
        self.connected &= !self.told.is_empty();
        if !self.told.iter().any(|told| told == cause) && self.told.len() < CAUSES_MAX {
            log::log!(level, cause = cause; "{text}");
            self.told.push(cause.to_owned());
        }
        self.backoff.delay()
    }

    /// Whether this is the first connection since the start or since an outage began, and so is to be
    /// logged. A connection proves nothing: it ends no outage.
    #[must_use]
    pub fn connects(&mut self) -> bool {
        !std::mem::replace(&mut self.connected, true)
    }

    /// To be called when something has succeeded: whether that ended an outage.
    pub fn end(&mut self) -> bool {
        self.backoff.reset();
        !std::mem::take(&mut self.told).is_empty()
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
        assert_eq!(outage.told, ["a", "b"]);
        assert!(first <= millis(100) && second >= millis(100));

        assert!(outage.end() && !outage.end());
        assert!(outage.note(log::Level::Warn, "a", "it fails") <= millis(100));
    }

    #[test]
    fn each_cause_is_told_once_and_no_number_of_causes_fills_the_log() {
        let mut outage = Outage::none(Duration::ZERO, Duration::ZERO);

        for round in 0..100 {
            outage.note(log::Level::Warn, "the usual cause", "it fails");
            outage.note(log::Level::Warn, &round.to_string(), "it fails");
        }

        assert_eq!(outage.told.len(), CAUSES_MAX);
    }
}
