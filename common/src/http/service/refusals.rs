//! Limits the lines of the log about refused requests: one a second for each client, so that nobody can fill the
//! disk with them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// How many clients have a line of their own in a second.
const CLIENTS_MAX: usize = 100;

/// The refusals of this process.
pub(super) fn refusals() -> MutexGuard<'static, Refusals> {
    static REFUSALS: LazyLock<Mutex<Refusals>> =
        LazyLock::new(|| Mutex::new(Refusals::new(Instant::now())));
    REFUSALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logs the number of refusals without a line when their second is over.
pub(super) fn log_when_due(now: Instant) {
    for (client, count) in refusals().end_second(now) {
        let of_others = client.map_or(", of other clients", |_| "");
        let client = client.map(|client| client.to_string());
        log::info!(
            target: "access", client = client.as_deref(), count = count;
            "more requests refused{of_others}"
        );
    }
}

/// The refusals of a second.
pub(super) struct Refusals {
    since: Instant,
    /// Of each client that has a line, how many have none; by None those of all other clients.
    unlogged: HashMap<Option<IpAddr>, u64>,
}

impl Refusals {
    fn new(since: Instant) -> Self {
        Self {
            since,
            unlogged: HashMap::new(),
        }
    }

    /// Whether this refusal gets a line.
    pub(super) fn gets_line(&mut self, client: IpAddr) -> bool {
        let is_new = !self.unlogged.contains_key(&Some(client));
        if is_new && self.unlogged.len() < CLIENTS_MAX {
            self.unlogged.insert(Some(client), 0);
            return true;
        }
        let counted = Some(client).filter(|_| !is_new);
        *self.unlogged.entry(counted).or_default() += 1;
        false
    }

    /// What there is to tell of a second that is over; nothing while it lasts.
    fn end_second(&mut self, now: Instant) -> Vec<(Option<IpAddr>, u64)> {
        if now.saturating_duration_since(self.since) < SECOND {
            return Vec::new();
        }
        let Self { unlogged, .. } = std::mem::replace(self, Self::new(now));
        unlogged
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_line_a_second_and_the_rest_is_counted() {
        let begin = Instant::now();
        let client = |n: u32| IpAddr::from(n.to_be_bytes());
        let mut refusals = Refusals::new(begin);

        let lines: Vec<_> = (0..300)
            .map(|n| refusals.gets_line(client(n % 150)))
            .collect();

        assert_eq!(lines.iter().filter(|line| **line).count(), CLIENTS_MAX);
        assert_eq!(refusals.end_second(begin + SECOND / 2), []);
        let ended: HashMap<_, _> = refusals.end_second(begin + SECOND).into_iter().collect();
        let of_clients = (0..100).filter(|n| ended.get(&Some(client(*n))) == Some(&1));
        assert_eq!(
            (ended.len(), of_clients.count(), ended.get(&None)),
            (101, 100, Some(&100))
        );
        assert!(refusals.gets_line(client(149)));
        assert_eq!(refusals.end_second(begin + 2 * SECOND), []);
    }
}
