//! What clients may take: connections, and bytes of memory for requests and for answers that they
//! have not read yet. No client has all of it.

use std::collections::hash_map::{Entry, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::http::limits::Limits;
use crate::http::message::head::network;
use crate::http::sync::{Mutex, lock};
use crate::metrics::Metrics;

/// What a connection may hold without asking; most requests are far below.
const ALLOWANCE_BYTES: usize = 16 * 1024;

/// The budget of one listener.
pub(crate) struct Budget {
    bytes_max: usize,
    connections_max: usize,
    taken: Mutex<Taken>,
    metrics: Metrics,
}

/// By what it is for, as [`Use`] counts.
type Bytes = [usize; 2];

#[derive(Default)]
struct Taken {
    bytes: Bytes,
    clients: HashMap<IpAddr, OfClient>,
}

#[derive(Default)]
struct OfClient {
    connections: usize,
    bytes: Bytes,
}

/// What bytes are for. Each has half of them, whatever becomes of the other, and a client has half of
/// either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Request,
    Answer,
}

/// There is no more for this client, or for anybody.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exhausted(pub(crate) Option<IpAddr>);

/// The part of a connection; given back when it is dropped.
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    /// Whose it is.
    pub(crate) client: IpAddr,
    /// Beyond the allowance.
    pub(crate) bytes: usize,
    purpose: Use,
}

impl Budget {
    pub(crate) fn new(limits: &Limits, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            bytes_max: limits.buffer_bytes,
            connections_max: limits.connections_per_client,
            taken: Mutex::default(),
            metrics: metrics.clone(),
        })
    }

    /// For a new connection; None where its client has as many as it may have.
    pub(crate) fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Reservation> {
        let client = network(client);
        let mut taken = lock(&self.taken);
        let of_client = taken.clients.entry(client).or_default();
        if of_client.connections >= self.connections_max {
            return None;
        }
        of_client.connections += 1;
        self.metrics.connections.inc();
        Some(Reservation {
            budget: Arc::clone(self),
            client,
            bytes: 0,
            purpose: Use::Request,
        })
    }
}

impl Reservation {
    /// Makes it so many bytes at least.
    pub(crate) fn grow(&mut self, bytes: usize, purpose: Use) -> Result<(), Exhausted> {
        self.resize(bytes.max(ALLOWANCE_BYTES + self.bytes), purpose)
    }

    /// Makes it so many bytes, the allowance among them; it grows only as far as the budget reaches.
    pub(crate) fn resize(&mut self, bytes: usize, purpose: Use) -> Result<(), Exhausted> {
        let bytes = bytes.saturating_sub(ALLOWANCE_BYTES);
        if (bytes, purpose) == (self.bytes, self.purpose) {
            return Ok(());
        }
        let most = self.budget.bytes_max / 2;
        let mut taken = lock(&self.budget.taken);
        let Taken {
            bytes: all,
            clients,
        } = &mut *taken;
        let client = clients.entry(self.client).or_default();
        all[self.purpose as usize] -= self.bytes;
        client.bytes[self.purpose as usize] -= self.bytes;
        let exhausted = if purpose == self.purpose && bytes < self.bytes {
            None
        } else if client.bytes[purpose as usize] + bytes > most / 2 {
            Some(Exhausted(Some(self.client)))
        } else if all[purpose as usize] + bytes > most {
            Some(Exhausted(None))
        } else {
            None
        };
        if exhausted.is_none() {
            (self.bytes, self.purpose) = (bytes, purpose);
        }
        all[self.purpose as usize] += self.bytes;
        client.bytes[self.purpose as usize] += self.bytes;
        exhausted.map_or(Ok(()), Err)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.metrics.connections.dec();
        let mut taken = lock(&self.budget.taken);
        taken.bytes[self.purpose as usize] -= self.bytes;
        if let Entry::Occupied(mut client) = taken.clients.entry(self.client) {
            client.get_mut().connections -= 1;
            client.get_mut().bytes[self.purpose as usize] -= self.bytes;
            if client.get().connections == 0 {
                client.remove();
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    fn budget(bytes: usize) -> Arc<Budget> {
        let limits = Limits {
            buffer_bytes: bytes,
            connections_per_client: 2,
            ..Limits::default()
        };
        Budget::new(&limits, &Metrics::new())
    }

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn bytes_are_bounded_for_each_use_and_each_client_and_given_back() {
        let budget = budget(200_000);
        let mut reservations: Vec<_> = (1..=3)
            .map(|last| budget.admit(client(last)).expect("a connection"))
            .collect();
        let mut grow =
            |nth: usize, bytes, purpose| reservations[nth].grow(ALLOWANCE_BYTES + bytes, purpose);

        let share = Err(Exhausted(Some(client(1))));
        assert_eq!(grow(0, 50_000, Use::Request), Ok(()));
        assert_eq!(grow(0, 50_001, Use::Request), share);
        assert_eq!(grow(1, 50_000, Use::Request), Ok(()));
        assert_eq!(grow(2, 1, Use::Request), Err(Exhausted(None)));
        // Requests take nothing of what answers have.
        assert_eq!(grow(2, 50_000, Use::Answer), Ok(()));
        assert_eq!(grow(0, 0, Use::Answer), Ok(()));
        assert_eq!(grow(1, 1, Use::Answer), Err(Exhausted(None)));
        assert_eq!(reservations[0].bytes, 50_000);
        let shrunk = reservations[0].resize(ALLOWANCE_BYTES, Use::Answer);
        assert_eq!(shrunk, Ok(()));
        assert_eq!(
            reservations[1].grow(ALLOWANCE_BYTES, Use::Answer),
            Ok(()),
            "there is room again"
        );

        drop(reservations);
        let taken = lock(&budget.taken);
        assert_eq!((taken.bytes, taken.clients.len()), ([0, 0], 0));
    }

    #[test]
    fn connections_are_counted_by_client_and_those_of_ipv6_by_network() {
        let budget = budget(0);
        let admit = |address: &str| budget.admit(address.parse().expect("an address"));

        let first = admit("2001:db8:1:2::3");
        let second = admit("2001:db8:1:2:4::");

        assert!(first.is_some() && second.is_some());
        assert!(admit("2001:db8:1:2::5").is_none());
        assert!(admit("2001:db8:1:3::5").is_some());
        drop(first);
        assert!(admit("2001:db8:1:2::5").is_some());
    }
}
