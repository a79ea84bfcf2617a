//! Chooses the connections that are closed to make room when connections or memory are exhausted.

use std::net::IpAddr;
use std::time::Instant;

use super::budget::Exhausted;
use super::peer::Peer;
use super::table::{Owned, Parked, Table, Token};
use crate::http::connection::Shortage;
use crate::http::sync::{Mutex, lock, now};

struct Candidate {
    deadline: Instant,
    token: Token,
    client: IpAddr,
}

/// For each [`Shortage`] the connections that may be closed, sorted so that the one to close next is the last; None
/// until the table is searched, which happens at most once in a round of the sweeper.
#[derive(Default)]
pub(crate) struct Evictable(Mutex<Option<[Vec<Candidate>; 2]>>);

impl Evictable {
    /// Forgets the candidates, so that the next call of [`Evictable::take`] searches the table again.
    pub(crate) fn forget(&self) {
        *lock(&self.0) = None;
    }

    /// Takes the connection with the earliest deadline, of those that use what is exhausted.
    pub(crate) fn take<'t>(
        &self,
        table: &'t Table<Peer>,
        Exhausted(shortage, client): Exhausted,
    ) -> Option<Owned<'t, Peer>> {
        let mut candidates = lock(&self.0);
        let candidates = candidates.get_or_insert_with(|| look(table));
        let candidates = &mut candidates[shortage as usize];
        let is_of = |found: &Candidate| client.is_none_or(|client| client == found.client);
        loop {
            let found = candidates.remove(candidates.iter().rposition(is_of)?);
            // A connection that made progress since the search has another deadline.
            let same = |parked, peer: &Peer| {
                parked == Parked::Armed && peer.connection.deadline() == found.deadline
            };
            if let Some(peer) = table.take_if(found.token, same) {
                return Some(peer);
            }
        }
    }
}

fn look(table: &Table<Peer>) -> [Vec<Candidate>; 2] {
    let (mut candidates, now) = ([Vec::new(), Vec::new()], now());
    let look = |token, parked, peer: &Peer| {
        if parked == Parked::Armed
            && let Some(shortage) = peer.connection.shortage(now)
            && (shortage == Shortage::Connections || peer.reservation.bytes > 0)
        {
            candidates[shortage as usize].push(Candidate {
                deadline: peer.connection.deadline(),
                token,
                client: peer.reservation.client,
            });
        }
        false
    };
    table.sweep(look).for_each(drop);
    for candidates in &mut candidates {
        candidates.sort_unstable_by_key(|candidate| std::cmp::Reverse(candidate.deadline));
    }
    candidates
}
