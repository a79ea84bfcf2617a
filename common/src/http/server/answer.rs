//! Sends the answers of handlers to clients, and records them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::peer::Peer;
use super::poller::{Interest, wait_for};
use super::table::{Owned, Parked, Token};
use crate::http::message::request::{Respond, StreamSlot};
use crate::http::message::response::{BodySource, HandlerResult, WRONG_LENGTH};
use crate::http::service::access_log::{self, Outcome};
use crate::http::service::workers::waiting;
use crate::http::sync::atomic::Ordering;
use crate::http::sync::{date, now};

/// How often a worker that waits for a client checks whether another request needs the slot.
const HOLD: Duration = Duration::from_millis(5);

/// How often a worker that may wait for a client checks whether the program ends.
const LONG_HOLD: Duration = Duration::from_millis(250);

/// The right to answer the request of a connection.
pub(crate) struct Responder {
    pub(crate) core: Arc<Core>,
    pub(crate) token: Token,
}

impl Respond for Responder {
    fn begin(&self) -> bool {
        let peer = self.core.table.take(self.token, Parked::Waiting);
        let Some(mut peer) = peer else { return false };
        peer.connection.begin(now());
        peer.park(Parked::Waiting, |_| {});
        true
    }

    fn respond(self: Box<Self>, result: HandlerResult<'_>, slot: Option<&dyn StreamSlot>) {
        // None if the sweeper has answered the request, and recorded it.
        if let Some(peer) = self.core.table.take(self.token, Parked::Waiting) {
            self.core.answer(peer, result, slot);
        }
    }
}

impl Core {
    /// Answers the current request of a connection.
    pub(crate) fn answer(
        &self,
        mut peer: Owned<'_, Peer>,
        result: HandlerResult<'_>,
        slot: Option<&dyn StreamSlot>,
    ) {
        let Some(head) = peer.connection.head().cloned() else {
            return;
        };
        if self.draining.load(Ordering::SeqCst) {
            peer.connection.drain();
        }
        let (response, outcome) = Outcome::of(result, head);
        peer.outcome = Some(outcome);
        let Some(mut fill) = peer.connection.respond(response, &date(), now()) else {
            self.send(&mut peer, None);
            return self.end(peer);
        };
        waiting(|| {
            if let Some(peer) = self.stream(peer, &mut fill, slot) {
                self.end(peer);
            }
            // Ending a stream may wait for a database, so the connection is in the table before that.
            drop(fill);
        });
    }

    /// Records an answer that is sent, buffered or truncated, and goes on with its connection.
    pub(crate) fn end(&self, mut peer: Owned<'_, Peer>) {
        if let Some(outcome) = peer.outcome.take() {
            access_log::record(&self.metrics, &outcome, now());
        }
        self.go_on(peer);
    }

    /// Sends a stream piece by piece, as its client takes it. While a piece is made the connection is in the
    /// table, so that the sweeper can close it; None is returned if it has.
    fn stream<'t>(
        &'t self,
        mut peer: Owned<'t, Peer>,
        fill: &mut BodySource<'_>,
        slot: Option<&dyn StreamSlot>,
    ) -> Option<Owned<'t, Peer>> {
        let mut piece = Vec::new();
        while peer.connection.is_streaming() {
            piece.clear();
            peer.connection.begin(now());
            let token = peer.token();
            peer.park(Parked::Waiting, |_| {});
            let filled = catch_unwind(AssertUnwindSafe(|| fill(&mut piece)));
            let back = self.table.take(token, Parked::Waiting);
            let filled = match filled {
                Ok(filled) => filled,
                Err(panic) => {
                    if let Some(mut peer) = back {
                        peer.truncate("the handler panicked");
                        self.end(peer);
                    }
                    resume_unwind(panic)
                }
            };
            peer = back?;
            let cause = match filled {
                Ok(()) if peer.connection.push(&piece, now()) => {
                    self.send(&mut peer, slot);
                    continue;
                }
                Ok(()) => WRONG_LENGTH.to_owned(),
                Err(problem) => problem.cause.unwrap_or(problem.detail.into_owned()),
            };
            peer.truncate(cause);
        }
        Some(peer)
    }

    /// Sends what is in the buffer, or truncates the answer. A slow reader may hold its slot while at most half
    /// of the slots wait for slow readers. Beyond that, what it has not read is kept within the byte budget; if
    /// that is exhausted, the answer is truncated as soon as another request needs the slot.
    fn send(&self, peer: &mut Peer, slot: Option<&dyn StreamSlot>) {
        let mut waits = false;
        let failed = loop {
            match peer.send() {
                Ok(true) => break None,
                Ok(false) => {}
                Err(error) => break Some(format!("the client went away: {error}")),
            }
            let left = peer.connection.deadline().saturating_duration_since(now());
            if self.cut.load(Ordering::SeqCst) {
                break Some("the program ends".to_owned());
            }
            if left.is_zero() {
                break Some("the client takes too long to read".to_owned());
            }
            waits = waits || slot.is_some_and(StreamSlot::begin_wait);
            if !waits && self.keep(peer) {
                break None;
            }
            if !waits && slot.is_none_or(StreamSlot::is_wanted) {
                let cause = "there is no memory left for what the client has not read";
                break Some(cause.to_owned());
            }
            let hold = if waits { LONG_HOLD } else { HOLD };
            let _ = wait_for(&peer.transport.socket, Interest::Write, hold.min(left));
        };
        if waits && let Some(slot) = slot {
            slot.end_wait();
        }
        if let Some(cause) = failed {
            peer.truncate(cause);
        }
    }

    /// Reserves memory for what the client has not read. If there is none, the client that has read nothing of
    /// its answer for longest is cut off.
    fn keep(&self, peer: &mut Peer) -> bool {
        while let Err(exhausted) = peer.reserve() {
            let Some(mut silent) = self.evictable.take(&self.table, exhausted) else {
                return false;
            };
            log::warn!(
                client = silent.reservation.client.to_string().as_str();
                "an answer that was not read was cut off, for others"
            );
            silent.connection.truncate();
            self.go_on(silent);
        }
        true
    }
}
