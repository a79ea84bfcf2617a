//! Which connections go first, for others' sake, where there are no places or no memory left.

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

/// Those that may go, by the [`Shortage`] that they end, the first at the end. The table is looked through
/// once in a round of the sweeper at most, however many ask; None where it was not yet.
#[derive(Default)]
pub(crate) struct Evictable(Mutex<Option<[Vec<Candidate>; 2]>>);

impl Evictable {
    /// Has the table looked through again when somebody asks.
    pub(crate) fn forget(&self) {
        *lock(&self.0) = None;
    }

    /// The connection whose time would end first, of those that use what is exhausted.
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
            // Whatever has happened to a connection has set it another deadline.
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
