//! Lines of the log about requests that were refused: one a second for each client, so that nobody
//! fills a disk by asking for nonsense.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::info;

const SECOND: Duration = Duration::from_secs(1);

/// At most so many clients have a line of their own in a second.
const CLIENTS_MAX: usize = 100;

static REFUSALS: LazyLock<Mutex<Refusals>> =
    LazyLock::new(|| Mutex::new(Refusals::new(Instant::now())));

/// Whether any refusal of the present second, or of the last one, has no line.
static UNTOLD: AtomicBool = AtomicBool::new(false);

/// Whether this refusal gets a line.
pub(super) fn gets_line(client: IpAddr) -> bool {
    let mut refusals = REFUSALS.lock().unwrap_or_else(PoisonError::into_inner);
    tell(refusals.end_second(Instant::now()));
    let gets_line = refusals.gets_line(client);
    UNTOLD.store(refusals.untold > 0, Ordering::Relaxed);
    gets_line
}

/// Tells of the refusals without a line as soon as their second is over. Called for each request.
pub(super) fn tell_when_due() {
    if UNTOLD.load(Ordering::Relaxed) {
        let mut refusals = REFUSALS.lock().unwrap_or_else(PoisonError::into_inner);
        tell(refusals.end_second(Instant::now()));
        UNTOLD.store(refusals.untold > 0, Ordering::Relaxed);
    }
}

fn tell(ended: Ended) {
    for (client, count) in ended.of_clients {
        info!(target: "access", client = client.to_string().as_str(), count = count; "more requests refused");
    }
    if ended.of_others > 0 {
        info!(target: "access", count = ended.of_others; "more requests refused, of other clients");
    }
}

/// The refusals of a second.
struct Refusals {
    since: Instant,
    /// Of each client that has a line, how many have none.
    clients: HashMap<IpAddr, u64>,
    /// Of the other clients.
    others: u64,
    /// Of all together.
    untold: u64,
}

/// What there is to tell of a second that is over.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ended {
    of_clients: Vec<(IpAddr, u64)>,
    of_others: u64,
}

impl Refusals {
    fn new(since: Instant) -> Self {
        Self {
            since,
            clients: HashMap::new(),
            others: 0,
            untold: 0,
        }
    }

    fn gets_line(&mut self, client: IpAddr) -> bool {
        let room = self.clients.len() < CLIENTS_MAX;
        match self.clients.get_mut(&client) {
            Some(count) => *count += 1,
            None if room => {
                self.clients.insert(client, 0);
                return true;
            }
            None => self.others += 1,
        }
        self.untold += 1;
        false
    }

    /// Nothing while the second lasts.
    fn end_second(&mut self, now: Instant) -> Ended {
        if now.duration_since(self.since) < SECOND {
            return Ended::default();
        }
        let ended = std::mem::replace(self, Self::new(now));
        let of_clients = ended.clients.into_iter().filter(|(_, count)| *count > 0);
        Ended {
            of_clients: of_clients.collect(),
            of_others: ended.others,
        }
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
        assert_eq!(refusals.end_second(begin + SECOND / 2), Ended::default());
        let ended = refusals.end_second(begin + SECOND);
        let of_clients: u64 = ended.of_clients.iter().map(|(_, count)| count).sum();
        assert_eq!(
            (ended.of_clients.len(), of_clients, ended.of_others),
            (100, 100, 100)
        );
        assert!(refusals.gets_line(client(149)));
        assert_eq!(refusals.end_second(begin + 2 * SECOND), Ended::default());
    }
}
