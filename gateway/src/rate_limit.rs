//! The rate limit, by the generic cell rate algorithm. For each caller it has one time: when the next request
//! is due if the caller sends at an even pace. A request may come earlier, by the time that a burst takes at
//! that pace.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After this number of requests, callers whose next request is overdue are removed.
const SWEEP_REQUESTS: u32 = 10_000;

/// How often each caller may call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    interval: Duration,
    /// How much earlier than its due time a request may come.
    tolerance: Duration,
}

impl Rate {
    pub(crate) fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        Self {
            interval,
            tolerance: interval * (burst.get() - 1),
        }
    }
}

/// Counts the requests of each caller.
pub(crate) struct RateLimit<Caller> {
    rate: Rate,
    counts: Mutex<Counts<Caller>>,
}

struct Counts<Caller> {
    due: HashMap<Caller, Instant>,
    requests_since_sweep: u32,
}

impl<Caller: Eq + Hash> RateLimit<Caller> {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            counts: Mutex::new(Counts {
                due: HashMap::new(),
                requests_since_sweep: 0,
            }),
        }
    }

    /// Counts a request that arrives at `now`. A request over the limit is not counted; the error is how long
    /// its caller has to wait.
    pub(crate) fn count(&self, caller: Caller, now: Instant) -> Result<(), Duration> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.requests_since_sweep += 1;
        if counts.requests_since_sweep >= SWEEP_REQUESTS {
            counts.requests_since_sweep = 0;
            counts.due.retain(|_, due| *due > now);
        }
        let due = counts.due.entry(caller).or_insert(now);
        let wait = due.saturating_duration_since(now + self.rate.tolerance);
        if wait.is_zero() {
            *due = now.max(*due) + self.rate.interval;
            Ok(())
        } else {
            Err(wait)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(per_second: u32, burst: u32) -> RateLimit<&'static str> {
        let number = |number| NonZeroU32::new(number).expect("more than 0");
        RateLimit::new(Rate::new(number(per_second), number(burst)))
    }

    #[test]
    fn a_burst_is_let_through_and_what_follows_waits_for_its_turn() {
        let (limit, start) = (limit(2, 3), Instant::now());
        let at_once: Vec<_> = (0..5).map(|_| limit.count("ann", start)).collect();

        let a_turn_later = start + SECOND / 2;
        let later: Vec<_> = (0..2).map(|_| limit.count("ann", a_turn_later)).collect();

        let too_many = Err(SECOND / 2);
        assert_eq!(at_once, [Ok(()), Ok(()), Ok(()), too_many, too_many]);
        assert_eq!(later, [Ok(()), too_many]);
    }

    #[test]
    fn after_a_long_pause_no_more_than_a_burst_is_let_through() {
        let (limit, start) = (limit(1, 2), Instant::now());
        limit.count("ann", start).expect("the first");

        let after = start + SECOND * 3600;
        let counted: Vec<_> = (0..3).map(|_| limit.count("ann", after)).collect();

        assert_eq!(counted, [Ok(()), Ok(()), Err(SECOND)]);
    }

    #[test]
    fn callers_are_counted_apart() {
        let (limit, start) = (limit(1, 1), Instant::now());
        limit.count("ann", start).expect("the first of ann");

        let counted = (limit.count("ann", start), limit.count("bob", start));

        assert_eq!(counted, (Err(SECOND), Ok(())));
    }

    #[test]
    fn the_highest_rate_and_burst_limit_nobody() {
        let (limit, start) = (limit(u32::MAX, u32::MAX), Instant::now());

        assert!((0..1000).all(|_| limit.count("ann", start).is_ok()));
    }

    #[test]
    fn callers_whose_next_request_is_overdue_are_forgotten() {
        let start = Instant::now();
        let limit = RateLimit::new(limit(1, 1).rate);
        let later = start + SECOND;
        for caller in 0..SWEEP_REQUESTS - 1 {
            limit.count(caller, start).expect("the first of its caller");
        }
        limit
            .count(u32::MAX, later)
            .expect("the first of its caller");

        let again = limit.count(u32::MAX, later);

        let known = limit.counts.lock().expect("nobody panicked").due.len();
        assert_eq!((again, known), (Err(SECOND), 1));
    }
}
