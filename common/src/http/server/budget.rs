//! Limits what clients may use: connections, and bytes of memory for requests and for answers that they have not
//! read yet. No client can use all of it.

use std::collections::hash_map::{Entry, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::http::connection::Shortage;
use crate::http::limits::Limits;
use crate::http::message::head::network;
use crate::http::sync::{Mutex, lock};
use crate::metrics::Metrics;

/// How many bytes a connection may use without a reservation. Most requests need far less.
const ALLOWANCE_BYTES: usize = 16 * 1024;

/// The budget of one listener.
pub(crate) struct Budget {
    limits: Limits,
    usage: Mutex<Usage>,
    metrics: Metrics,
}

/// The bytes of each [`BufferKind`].
type Bytes = [usize; 2];

#[derive(Default)]
struct Usage {
    bytes: Bytes,
    clients: HashMap<IpAddr, ClientUsage>,
}

#[derive(Default)]
struct ClientUsage {
    connections: usize,
    bytes: Bytes,
}

/// What a buffer contains. Each kind has half of the budget, and a client may use half of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BufferKind {
    Request,
    Answer,
}

/// What is exhausted, and whose share of it: that of a client, or, with None, that of all clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted(pub(crate) Shortage, pub(crate) Option<IpAddr>);

/// The part of the budget that a connection uses; dropping it gives the part back.
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    /// The client of the connection.
    pub(crate) client: IpAddr,
    /// The bytes beyond the allowance.
    pub(crate) bytes: usize,
    kind: BufferKind,
}

impl Budget {
    pub(crate) fn new(limits: &Limits, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            limits: limits.clone(),
            usage: Mutex::default(),
            metrics: metrics.clone(),
        })
    }

    /// Makes a reservation for a new connection; `others` is the number of connections that there are.
    pub(crate) fn admit(
        self: &Arc<Self>,
        client: IpAddr,
        others: usize,
    ) -> Result<Reservation, Exhausted> {
        if others >= self.limits.connections_before(client) {
            return Err(Exhausted(Shortage::Connections, None));
        }
        let network = network(client);
        let mut usage = lock(&self.usage);
        let of_client = usage.clients.entry(network).or_default();
        if of_client.connections >= self.limits.connections_per_client {
            return Err(Exhausted(Shortage::Connections, Some(network)));
        }
        of_client.connections += 1;
        self.metrics.connections.inc();
        Ok(Reservation {
            budget: Arc::clone(self),
            client: network,
            bytes: 0,
            kind: BufferKind::Request,
        })
    }
}

impl Reservation {
    /// Sets the reservation to this number of bytes, the allowance included; it grows only within the budget.
    pub(crate) fn resize(&mut self, bytes: usize, kind: BufferKind) -> Result<(), Exhausted> {
        let bytes = bytes.saturating_sub(ALLOWANCE_BYTES);
        if (bytes, kind) == (self.bytes, self.kind) {
            return Ok(());
        }
        let most = self.budget.limits.buffer_bytes / 2;
        let mut usage = lock(&self.budget.usage);
        let Usage {
            bytes: all,
            clients,
        } = &mut *usage;
        let client = clients.entry(self.client).or_default();
        all[self.kind as usize] -= self.bytes;
        client.bytes[self.kind as usize] -= self.bytes;
        let exhausted = if kind == self.kind && bytes < self.bytes {
            None
        } else if client.bytes[kind as usize] + bytes > most / 2 {
            Some(Exhausted(Shortage::Memory, Some(self.client)))
        } else if all[kind as usize] + bytes > most {
            Some(Exhausted(Shortage::Memory, None))
        } else {
            None
        };
        if exhausted.is_none() {
            (self.bytes, self.kind) = (bytes, kind);
        }
        all[self.kind as usize] += self.bytes;
        client.bytes[self.kind as usize] += self.bytes;
        exhausted.map_or(Ok(()), Err)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.metrics.connections.dec();
        let mut usage = lock(&self.budget.usage);
        usage.bytes[self.kind as usize] -= self.bytes;
        if let Entry::Occupied(mut client) = usage.clients.entry(self.client) {
            client.get_mut().connections -= 1;
            client.get_mut().bytes[self.kind as usize] -= self.bytes;
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
            .map(|last| budget.admit(client(last), 0).expect("a connection"))
            .collect();
        let mut resize =
            |nth: usize, bytes, kind| reservations[nth].resize(ALLOWANCE_BYTES + bytes, kind);

        let share = Err(Exhausted(Shortage::Memory, Some(client(1))));
        assert_eq!(resize(0, 50_000, BufferKind::Request), Ok(()));
        assert_eq!(resize(0, 50_001, BufferKind::Request), share);
        assert_eq!(resize(1, 50_000, BufferKind::Request), Ok(()));
        assert_eq!(
            resize(2, 1, BufferKind::Request),
            Err(Exhausted(Shortage::Memory, None))
        );
        // Requests take nothing of what answers have.
        assert_eq!(resize(2, 50_000, BufferKind::Answer), Ok(()));
        assert_eq!(resize(0, 50_000, BufferKind::Answer), Ok(()));
        assert_eq!(
            resize(1, 1, BufferKind::Answer),
            Err(Exhausted(Shortage::Memory, None))
        );
        assert_eq!(reservations[0].bytes, 50_000);
        let shrunk = reservations[0].resize(ALLOWANCE_BYTES, BufferKind::Answer);
        assert_eq!(shrunk, Ok(()));
        let moved = reservations[1].resize(ALLOWANCE_BYTES + 50_000, BufferKind::Answer);
        assert_eq!(moved, Ok(()), "there is room again");

        drop(reservations);
        let usage = lock(&budget.usage);
        assert_eq!((usage.bytes, usage.clients.len()), ([0, 0], 0));
    }

    #[test]
    fn connections_are_counted_by_client_and_those_of_ipv6_by_network() {
        let budget = budget(0);
        let admit = |address: &str| budget.admit(address.parse().expect("an address"), 0);

        let first = admit("2001:db8:1:2::3");
        let second = admit("2001:db8:1:2:4::");

        assert!(first.is_ok() && second.is_ok());
        assert!(admit("2001:db8:1:2::5").is_err());
        assert!(admit("2001:db8:1:3::5").is_ok());
        drop(first);
        assert!(admit("2001:db8:1:2::5").is_ok());
    }
}
