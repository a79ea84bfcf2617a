//! A client as everyone sees it who answers it. Requests of one connection are answered one
//! after the other: its thread reads, then whoever answers has the turn, then its thread again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{Shutdown as Half, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Edge;
use super::feed::Desk;
use super::memory::Share;
use super::wire::Wire;
use crate::http::exchange::After;
use crate::metrics::Metrics;

/// How much of an answer a client must take in [`super::EdgeLimits::send_time`].
const PIECE_BYTES: usize = 32 * 1024;

/// Who waits for a client looks up so often, to see whether another request waits
/// for it.
const HOLD: Duration = Duration::from_millis(5);

/// A connection that was let in.
pub(crate) struct Client {
    pub(super) edge: Arc<Edge>,
    pub(super) address: SocketAddr,
    pub(super) wire: Wire,
    turn: Mutex<Turn>,
    turned: Condvar,
    /// Its thread waits for a request to begin.
    pub(super) expecting: AtomicBool,
}

struct Turn {
    answering: bool,
    /// An answer broke off: there will be no other.
    cut: bool,
    /// The end of the last answer.
    ended: Instant,
}

impl Client {
    pub(super) fn new(edge: &Arc<Edge>, address: SocketAddr, wire: Wire) -> Self {
        Self {
            edge: Arc::clone(edge),
            address,
            wire,
            turn: Mutex::new(Turn {
                answering: false,
                cut: false,
                ended: Instant::now(),
            }),
            turned: Condvar::new(),
            expecting: AtomicBool::new(true),
        }
    }

    /// Waits until the last request is answered; false if its answer was the end.
    pub(super) fn wait_for_turn(&self) -> bool {
        let turn = self.turn();
        let ended = self.turned.wait_while(turn, |turn| turn.answering);
        !ended.unwrap_or_else(PoisonError::into_inner).cut
    }

    /// Since when it owes nothing and is owed nothing; None while it is answered.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let turn = self.turn();
        (!turn.answering).then_some(turn.ended)
    }

    /// Whether closing it loses nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.expecting.load(Ordering::Relaxed)
            && self.idle_since().is_some()
            && !self.wire.is_handshaking()
    }

    /// Whether the answer at hand is its last: the program ends.
    pub(crate) fn is_last(&self) -> bool {
        self.edge.shutdown.is_requested()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.edge.metrics
    }

    /// Where the answer to its next request goes.
    pub(super) fn outlet(self: &Arc<Self>) -> Outlet {
        self.turn().answering = true;
        self.outlet_of_this_turn()
    }

    /// Where the answer goes in place of somebody who does not give it.
    pub(super) fn outlet_of_this_turn(self: &Arc<Self>) -> Outlet {
        Outlet {
            client: Arc::clone(self),
            desk: None,
            phase: Phase::Waiting,
            kept: Kept::new(self.edge.memory.share()),
            pace: Pace::new(self.edge.limits.send_time),
        }
    }

    /// Breaks off an answer in place of somebody who does not go on with it.
    pub(super) fn cut(&self) {
        // They hold the connection open, so there would be no reset.
        self.wire.cut();
        self.end_turn(true);
    }

    /// Ends the connection behind its last answer, which its own thread may be too busy to do.
    pub(super) fn end(&self) {
        self.turn().cut = true;
        self.wire.close();
        let _ = self.wire.tcp().shutdown(Half::Read);
    }

    fn end_turn(&self, cut: bool) {
        if cut {
            self.wire.abort();
        }
        let mut turn = self.turn();
        turn.answering = false;
        turn.cut |= cut;
        turn.ended = Instant::now();
        drop(turn);
        self.turned.notify_one();
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        // Nothing that happens under the lock can panic half way.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the answer to one request goes. Whoever holds it owes the answer; dropped without an
/// end, it cuts the connection, so that nobody waits for ever.
pub(crate) struct Outlet {
    client: Arc<Client>,
    /// Of whoever is at work on the request, for as long as they are.
    desk: Option<Desk>,
    phase: Phase,
    kept: Kept,
    pace: Pace,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// Nothing was written.
    Waiting,
    Begun,
    /// The turn is the client's again.
    Ended,
    /// Nothing was heard for too long, and somebody else ended the turn.
    TakenOver,
}

impl Outlet {
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// From now on whoever is there writes here.
    pub(super) fn bind(&mut self, desk: Desk) {
        self.desk = Some(desk);
    }

    /// The place is left; another thread will answer.
    pub(crate) fn leave_place(&mut self) {
        if let Some(desk) = self.desk.take() {
            self.desk = desk.hand_on();
            if self.desk.is_none() {
                self.phase = Phase::TakenOver;
            }
        }
    }

    /// The call waits again, for somebody else; false where it was ended meanwhile.
    pub(super) fn unbind(&mut self) -> bool {
        if self.desk.take().is_some_and(|desk| !desk.leave_call()) {
            self.phase = Phase::TakenOver;
        }
        self.phase != Phase::TakenOver
    }

    /// Whether anything was written.
    pub(crate) fn has_begun(&self) -> bool {
        self.phase != Phase::Waiting
    }

    /// Whether the answer was another's to give, who gave it before anything was written here.
    pub(crate) fn is_taken_over(&self) -> bool {
        self.phase == Phase::TakenOver
    }

    /// Gives the turn back to the client, as soon as it has taken what is left.
    pub(crate) fn end(mut self, after: After) {
        if self.desk.take().is_some_and(|desk| !desk.leave_call()) {
            // Who was silent for long may still find out here that it is too late.
            self.phase = Phase::TakenOver;
        }
        if matches!(self.phase, Phase::Ended | Phase::TakenOver) {
            return;
        }
        let flushed = match after {
            After::Next => self.send_kept(),
            After::Cut => Err(io::ErrorKind::BrokenPipe.into()),
        };
        match flushed {
            Ok(false) => {
                self.pace = Pace::new(self.client.edge.limits.send_time);
                let edge = Arc::clone(&self.client.edge);
                let _ = edge.left.0.send(self);
            }
            flushed => self.end_now(flushed.is_err()),
        }
    }

    pub(super) fn end_now(&mut self, cut: bool) {
        self.phase = Phase::Ended;
        self.client.end_turn(cut);
    }

    /// Sends what the client takes of what was kept; true when nothing is left.
    pub(super) fn send_kept(&mut self) -> io::Result<bool> {
        while let Some(piece) = self.kept.first() {
            let taken = self.client.wire.write_some(piece)?;
            if taken == 0 {
                return Ok(false);
            }
            self.kept.took(taken);
            self.pace.took(taken);
        }
        self.client.wire.is_flushed()
    }

    pub(super) fn is_late(&self) -> bool {
        self.pace.is_late()
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.desk.as_ref().is_some_and(|desk| !desk.may_write()) {
            self.phase = Phase::TakenOver;
        }
        if matches!(self.phase, Phase::Ended | Phase::TakenOver) {
            // The client has perhaps asked for something else already.
            return Err(io::Error::other("somebody else has answered it"));
        }
        self.phase = Phase::Begun;
        let taken = if self.kept.is_empty() {
            self.client.wire.write_some(bytes)?
        } else {
            0
        };
        match &bytes[taken..] {
            [] => Ok(()),
            left => self.send_slowly(left),
        }
    }

    /// A slow reader may hold its place for as long as others are free. When they become few,
    /// what it does not take is kept for it; and where there is no memory for that, it is given
    /// up as soon as somebody else wants the place.
    fn send_slowly(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        self.pace = Pace::new(self.client.edge.limits.send_time);
        loop {
            if self.send_kept()? {
                let taken = self.client.wire.write_some(left)?;
                self.pace.took(taken);
                left = &left[taken..];
            }
            if left.is_empty() {
                return Ok(());
            }
            if self.desk.as_ref().is_none_or(Desk::is_scarce) && self.kept.keep(left) {
                return Ok(());
            }
            if self.desk.as_ref().is_none_or(Desk::must_yield) || self.is_late() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.client.wire.wait_until_writable(HOLD)?;
        }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        if matches!(self.phase, Phase::Waiting | Phase::Begun) {
            self.end_now(true);
        }
    }
}

/// What a client has not taken yet, and nobody could wait for.
struct Kept {
    pieces: VecDeque<Vec<u8>>,
    /// How much of the first piece was taken.
    taken: usize,
    bytes: usize,
    share: Share,
}

impl Kept {
    fn new(share: Share) -> Self {
        Self {
            pieces: VecDeque::new(),
            taken: 0,
            bytes: 0,
            share,
        }
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// What is to be sent next.
    fn first(&self) -> Option<&[u8]> {
        self.pieces.front().map(|piece| &piece[self.taken..])
    }

    fn took(&mut self, bytes: usize) {
        self.taken += bytes;
        if let Some(piece) = self.pieces.pop_front_if(|piece| piece.len() <= self.taken) {
            self.taken = 0;
            self.bytes -= piece.len();
            self.share.shrink_to(self.bytes);
        }
    }

    /// False where the memory does not reach.
    fn keep(&mut self, piece: &[u8]) -> bool {
        let reaches = self.share.grow_within_half(self.bytes + piece.len());
        if reaches {
            self.bytes += piece.len();
            self.pieces.push_back(piece.to_vec());
        }
        reaches
    }
}

/// How fast a client must read.
struct Pace {
    send_time: Duration,
    since: Instant,
    taken: usize,
}

impl Pace {
    fn new(send_time: Duration) -> Self {
        Self {
            send_time,
            since: Instant::now(),
            taken: 0,
        }
    }

    fn took(&mut self, bytes: usize) {
        self.taken += bytes;
        if self.taken >= PIECE_BYTES {
            *self = Self::new(self.send_time);
        }
    }

    fn is_late(&self) -> bool {
        self.since.elapsed() >= self.send_time
    }
}
