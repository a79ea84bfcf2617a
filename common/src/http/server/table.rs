//! All connections, or all watches, each in one state: armed at the poller, waiting for an answer, or owned by the thread that
//! took it out. An index is reused with another generation.

use std::ops::{Deref, DerefMut};

use crate::http::sync::{Mutex, lock};

/// Names a connection for as long as it lives: an index, the table that it is in, and in the upper
/// half a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(pub(super) u64);

/// The bit of a token that distinguishes the tables.
pub(crate) const PEERS: u64 = 0;
pub(crate) const WATCHES: u64 = 1 << 31;

impl Token {
    fn index(self) -> usize {
        (self.0 & (WATCHES - 1)) as usize
    }

    fn next_generation(self) -> Self {
        Self(self.0.wrapping_add(1 << 32))
    }
}

/// What a parked connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// An event of its socket. No answer takes it.
    Armed,
    /// The answer to its request. No event takes it.
    Waiting,
}

struct Entry<P> {
    /// The token of the connection in this entry, or of the next one.
    token: Token,
    /// None if the entry is free, or a thread owns the connection.
    parked: Option<(Parked, Box<P>)>,
}

#[derive(Default)]
struct FreeEntries {
    /// The free entries that were used before.
    free: Vec<usize>,
    /// No entry at or above this index was ever used.
    high: usize,
}

pub(crate) struct Table<P> {
    entries: Box<[Mutex<Entry<P>>]>,
    free_entries: Mutex<FreeEntries>,
}

/// A connection that this thread owns. Dropping it closes the connection and frees its entry.
pub(crate) struct Owned<'t, P> {
    table: &'t Table<P>,
    token: Token,
    peer: Option<Box<P>>,
}

impl<P> Owned<'_, P> {
    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Takes the connection out, and frees its entry.
    pub(crate) fn remove(mut self) -> Option<Box<P>> {
        self.peer.take()
    }

    /// Gives up the ownership of the connection. `arm` runs under the lock of its entry; after that another
    /// thread may close the socket, and its descriptor may belong to a new connection.
    pub(crate) fn park(mut self, parked: Parked, arm: impl FnOnce(&P)) {
        let Some(peer) = self.peer.take() else { return };
        let mut entry = lock(&self.table.entries[self.token.index()]);
        arm(&peer);
        entry.parked = Some((parked, peer));
        drop(entry);
        std::mem::forget(self);
    }
}

impl<P> Deref for Owned<'_, P> {
    type Target = P;

    fn deref(&self) -> &P {
        self.peer.as_ref().expect("it is there until it is parked")
    }
}

impl<P> DerefMut for Owned<'_, P> {
    fn deref_mut(&mut self) -> &mut P {
        self.peer.as_mut().expect("it is there until it is parked")
    }
}

impl<P> Drop for Owned<'_, P> {
    fn drop(&mut self) {
        // The connection is closed before another one may have the entry.
        self.peer = None;
        let index = self.token.index();
        let mut entry = lock(&self.table.entries[index]);
        entry.token = entry.token.next_generation();
        drop(entry);
        lock(&self.table.free_entries).free.push(index);
    }
}

impl<P> Table<P> {
    /// `kind` is [`PEERS`] or [`WATCHES`].
    pub(crate) fn new(kind: u64, capacity: usize) -> Self {
        let entry = |index| {
            let (token, parked) = (Token(kind | index as u64), None);
            Mutex::new(Entry { token, parked })
        };
        Self {
            entries: (0..capacity).map(entry).collect(),
            free_entries: Mutex::default(),
        }
    }

    pub(crate) fn used(&self) -> usize {
        let free_entries = lock(&self.free_entries);
        free_entries.high - free_entries.free.len()
    }

    /// Puts a new connection into a free entry; the caller owns it. None if no entry is free.
    pub(crate) fn insert(&self, peer: P) -> Option<Owned<'_, P>> {
        let mut free_entries = lock(&self.free_entries);
        let index = free_entries.free.pop().unwrap_or(free_entries.high);
        let token = lock(self.entries.get(index)?).token;
        free_entries.high = free_entries.high.max(index + 1);
        Some(Owned {
            table: self,
            token,
            peer: Some(Box::new(peer)),
        })
    }

    /// Makes the caller the owner, if the connection is still there and waits for `expected`.
    pub(crate) fn take(&self, token: Token, expected: Parked) -> Option<Owned<'_, P>> {
        self.take_if(token, |parked, _| parked == expected)
    }

    /// Makes the caller the owner, if the connection is still there, parked, and wanted.
    pub(crate) fn take_if(
        &self,
        token: Token,
        wanted: impl FnOnce(Parked, &P) -> bool,
    ) -> Option<Owned<'_, P>> {
        self.take_at(token.index(), |found, parked, peer| {
            found == token && wanted(parked, peer)
        })
    }

    /// Takes each parked connection that `wanted` chooses.
    pub(crate) fn sweep(
        &self,
        mut wanted: impl FnMut(Token, Parked, &P) -> bool,
    ) -> impl Iterator<Item = Owned<'_, P>> {
        let high = lock(&self.free_entries).high;
        (0..high).filter_map(move |index| self.take_at(index, &mut wanted))
    }

    fn take_at(
        &self,
        index: usize,
        wanted: impl FnOnce(Token, Parked, &P) -> bool,
    ) -> Option<Owned<'_, P>> {
        let mut entry = lock(self.entries.get(index)?);
        let token = entry.token;
        let wanted = |(parked, peer): &mut (Parked, Box<P>)| wanted(token, *parked, peer);
        let (_, peer) = entry.parked.take_if(wanted)?;
        Some(Owned {
            table: self,
            token,
            peer: Some(peer),
        })
    }
}
