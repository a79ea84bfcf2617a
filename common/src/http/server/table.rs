//! All connections, each in one state: armed at the poller, waiting for an answer, or owned by
//! the thread that took it out. An index is used again under another generation.

use std::ops::{Deref, DerefMut};

use crate::http::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
    lock,
};

/// Names a connection for as long as it lives: an index, and in the upper half its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(pub(super) u64);

impl Token {
    fn new(index: usize, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | index as u64)
    }

    fn index(self) -> usize {
        usize::try_from(self.0 & 0xffff_ffff).unwrap_or(usize::MAX)
    }
}

/// What an owner leaves a connection for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// An event of its socket. No answer takes it.
    Armed,
    /// The answer to its request. No event takes it.
    Waiting,
}

enum State<P> {
    Free,
    Owned,
    Parked(Parked, Box<P>),
}

struct Entry<P> {
    generation: u32,
    state: State<P>,
}

pub(crate) struct Table<P> {
    entries: Box<[Mutex<Entry<P>>]>,
    free: Mutex<Vec<usize>>,
    used: AtomicUsize,
    /// No entry at or above this index was ever used.
    high: AtomicUsize,
}

/// A place in the table whose connection belongs to this thread alone. Dropping it closes the
/// connection and gives the place back.
pub(crate) struct Owned<'t, P> {
    table: &'t Table<P>,
    token: Token,
    peer: Option<Box<P>>,
}

/// A place without a connection; dropping it gives it back.
pub(crate) struct Place<'t, P>(Owned<'t, P>);

impl<'t, P> Place<'t, P> {
    pub(crate) fn fill(mut self, peer: P) -> Owned<'t, P> {
        self.0.peer = Some(Box::new(peer));
        self.0
    }
}

impl<'t, P> Owned<'t, P> {
    /// Closes the connection, and keeps its place for another.
    pub(crate) fn vacate(mut self) -> Place<'t, P> {
        self.peer = None;
        let index = self.token.index();
        let mut entry = lock(&self.table.entries[index]);
        entry.generation = entry.generation.wrapping_add(1);
        self.token = Token::new(index, entry.generation);
        drop(entry);
        Place(self)
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Takes what is there out, and gives the place back.
    pub(crate) fn remove(mut self) -> Option<Box<P>> {
        self.peer.take()
    }

    /// Leaves the connection. `arm` runs under the lock of its entry: were it later, another
    /// thread could have closed the socket, and its descriptor could be a newcomer's.
    pub(crate) fn park(mut self, parked: Parked, arm: impl FnOnce(&P)) {
        let Some(peer) = self.peer.take() else { return };
        let mut entry = lock(&self.table.entries[self.token.index()]);
        arm(&peer);
        entry.state = State::Parked(parked, peer);
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
        // Before another connection may have the place.
        self.peer = None;
        let index = self.token.index();
        {
            let mut entry = lock(&self.table.entries[index]);
            entry.generation = entry.generation.wrapping_add(1);
            entry.state = State::Free;
        }
        lock(&self.table.free).push(index);
        self.table.used.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<P> Table<P> {
    pub(crate) fn new(capacity: usize) -> Self {
        let entry = || {
            Mutex::new(Entry {
                generation: 0,
                state: State::Free,
            })
        };
        Self {
            entries: (0..capacity).map(|_| entry()).collect(),
            free: Mutex::new((0..capacity).rev().collect()),
            used: AtomicUsize::new(0),
            high: AtomicUsize::new(0),
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    pub(crate) fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// How many places are free.
    pub(crate) fn left(&self) -> usize {
        self.capacity() - self.used()
    }

    /// A place for a new connection; None where all are taken.
    pub(crate) fn insert(&self) -> Option<Place<'_, P>> {
        let index = lock(&self.free).pop()?;
        self.used.fetch_add(1, Ordering::SeqCst);
        self.high.fetch_max(index + 1, Ordering::SeqCst);
        let mut entry = lock(&self.entries[index]);
        entry.state = State::Owned;
        let token = Token::new(index, entry.generation);
        Some(Place(Owned {
            table: self,
            token,
            peer: None,
        }))
    }

    /// Makes the caller the owner, if the connection is still there and was left for that.
    pub(crate) fn take(&self, token: Token, expected: Parked) -> Option<Owned<'_, P>> {
        let mut entry = lock(self.entries.get(token.index())?);
        if Token::new(token.index(), entry.generation) != token {
            return None;
        }
        self.take_if(&mut entry, token, |parked, _| parked == expected)
    }

    /// Looks at a connection that waits for its answer; false where it does so no more.
    pub(crate) fn with_waiting(&self, token: Token, look: impl FnOnce(&mut P)) -> bool {
        let Some(entry) = self.entries.get(token.index()) else {
            return false;
        };
        let mut entry = lock(entry);
        if Token::new(token.index(), entry.generation) != token {
            return false;
        }
        let State::Parked(Parked::Waiting, peer) = &mut entry.state else {
            return false;
        };
        look(peer);
        true
    }

    /// Takes each parked connection that `wanted` chooses, and hands it to `owner`.
    pub(crate) fn sweep<'t>(
        &'t self,
        mut wanted: impl FnMut(Parked, &P) -> bool,
        mut owner: impl FnMut(Owned<'t, P>),
    ) {
        for index in 0..self.high.load(Ordering::SeqCst) {
            let mut entry = lock(&self.entries[index]);
            let token = Token::new(index, entry.generation);
            let found = self.take_if(&mut entry, token, &mut wanted);
            drop(entry);
            if let Some(found) = found {
                owner(found);
            }
        }
    }

    fn take_if(
        &self,
        entry: &mut Entry<P>,
        token: Token,
        wanted: impl FnOnce(Parked, &P) -> bool,
    ) -> Option<Owned<'_, P>> {
        match std::mem::replace(&mut entry.state, State::Owned) {
            State::Parked(parked, peer) if wanted(parked, &peer) => Some(Owned {
                table: self,
                token,
                peer: Some(peer),
            }),
            other => {
                entry.state = other;
                None
            }
        }
    }
}
