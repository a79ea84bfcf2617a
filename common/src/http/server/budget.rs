//! What clients may take: connections, and bytes of memory for requests and for answers that they
//! have not read yet. No client has all of it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::http::limits::Limits;
use crate::http::sync::{Mutex, lock};

/// What a connection may hold without asking; most requests are far below.
const ALLOWANCE_BYTES: usize = 16 * 1024;

/// The budget of one listener.
pub(crate) struct Budget {
    bytes_max: usize,
    connections_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    bytes: usize,
    clients: HashMap<IpAddr, (usize, usize)>,
}

/// What bytes are for. Answers have half of them, so that requests always find the other half;
/// and a client has half of either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Request = 1,
    Answer = 2,
}

/// What there is no more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// The part of one client.
    Share(IpAddr),
    Budget,
}

/// The part of a connection; given back when it is dropped.
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    client: IpAddr,
    bytes: usize,
}

/// Whose connections are counted together: a client with IPv6 usually has a whole /64.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            bytes_max: limits.buffer_bytes,
            connections_max: limits.connections_per_client,
            taken: Mutex::default(),
        })
    }

    /// For a new connection; None where its client has as many as it may have.
    pub(crate) fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Reservation> {
        let client = network(client);
        let mut taken = lock(&self.taken);
        let (connections, _) = taken.clients.entry(client).or_default();
        if *connections >= self.connections_max {
            return None;
        }
        *connections += 1;
        Some(Reservation {
            budget: Arc::clone(self),
            client,
            bytes: 0,
        })
    }
}

impl Reservation {
    /// Whose it is.
    pub(crate) fn client(&self) -> IpAddr {
        self.client
    }

    /// Grows to so many bytes beyond the allowance, as far as the budget reaches.
    pub(crate) fn grow(&mut self, bytes: usize, purpose: Use) -> Result<(), Exhausted> {
        let more = bytes
            .saturating_sub(ALLOWANCE_BYTES)
            .saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let all = self.budget.bytes_max / purpose as usize;
        let mut taken = lock(&self.budget.taken);
        let of_client = taken
            .clients
            .get(&self.client)
            .map_or(0, |(_, bytes)| *bytes);
        if of_client + more > all / 2 {
            return Err(Exhausted::Share(self.client));
        }
        if taken.bytes + more > all {
            return Err(Exhausted::Budget);
        }
        taken.bytes += more;
        taken.clients.entry(self.client).or_default().1 += more;
        self.bytes += more;
        Ok(())
    }

    /// Whether there is more than the allowance.
    pub(crate) fn is_used(&self) -> bool {
        self.bytes > 0
    }

    /// Gives back what is more than so many bytes beyond the allowance.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let less = self
            .bytes
            .saturating_sub(bytes.saturating_sub(ALLOWANCE_BYTES));
        if less > 0 {
            let mut taken = lock(&self.budget.taken);
            taken.bytes -= less;
            taken.clients.entry(self.client).or_default().1 -= less;
            self.bytes -= less;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(0);
        let mut taken = lock(&self.budget.taken);
        if let Some((connections, _)) = taken.clients.get_mut(&self.client) {
            *connections -= 1;
            if *connections == 0 {
                taken.clients.remove(&self.client);
            }
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    fn budget(bytes: usize) -> Arc<Budget> {
        let limits = Limits {
            buffer_bytes: bytes,
            connections_per_client: 2,
            ..Limits::default()
        };
        Budget::new(&limits)
    }

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn bytes_are_bounded_together_and_for_each_client_and_given_back() {
        let budget = budget(200_000);
        let mut reservations: Vec<_> = (1..=3)
            .map(|last| budget.admit(client(last)).expect("a connection"))
            .collect();

        let all = Err(Exhausted::Budget);
        let share = Err(Exhausted::Share(client(1)));
        let mut grow =
            |nth: usize, bytes, purpose| reservations[nth].grow(ALLOWANCE_BYTES + bytes, purpose);
        assert_eq!(grow(0, 100_000, Use::Request), Ok(()));
        assert_eq!(grow(0, 100_001, Use::Request), share);
        assert_eq!(grow(1, 90_000, Use::Request), Ok(()));
        assert_eq!(grow(2, 0, Use::Answer), Ok(()));
        assert_eq!(grow(2, 1, Use::Answer), all);
        assert_eq!(grow(2, 10_001, Use::Request), all);
        reservations[0].shrink(ALLOWANCE_BYTES);
        reservations.remove(1);

        let grown = reservations[1].grow(ALLOWANCE_BYTES + 50_000, Use::Answer);
        assert_eq!(grown, Ok(()));
        drop(reservations);
        let taken = lock(&budget.taken);
        assert_eq!((taken.bytes, taken.clients.len()), (0, 0));
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
