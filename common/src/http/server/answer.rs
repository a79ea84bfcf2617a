//! From the answer of a handler to the client, and into the log.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Peer, with_date};
use super::poller::Interest;
use super::table::{Owned, Parked, Token};
use crate::http::message::head::Head;
use crate::http::message::request::{Respond, Slot};
use crate::http::message::response::{Fill, HandlerResult, PIECE_BYTES, Response, WRONG_LENGTH};
use crate::http::service::access_log::{self, Outcome};
use crate::http::service::workers::waiting;
use crate::http::sync::now;

/// Who waits for a client looks up so often, to see whether another request waits for the slot.
const HOLD: Duration = Duration::from_millis(5);

/// Who may wait looks up so often, to see whether the program ends.
const LONG_HOLD: Duration = Duration::from_millis(250);

/// The right to answer the request of a connection.
pub(crate) struct Responder {
    pub(crate) core: Arc<Core>,
    pub(crate) token: Token,
}

impl Respond for Responder {
    fn begin(&self) -> bool {
        self.core
            .table
            .with_waiting(self.token, |peer| peer.connection.begin(now()))
    }

    fn respond(self: Box<Self>, head: &Head, result: HandlerResult<'_>, slot: Option<&dyn Slot>) {
        // Gone, where the sweeper has answered, and told of it.
        if let Some(peer) = self.core.table.take(self.token, Parked::Waiting) {
            self.core.answer(peer, head, result, slot);
        }
    }
}

impl Core {
    /// Answers the request that is out, or the one that is refused.
    pub(crate) fn answer(
        &self,
        mut peer: Owned<'_, Peer>,
        head: &Head,
        result: HandlerResult<'_>,
        slot: Option<&dyn Slot>,
    ) {
        if self.is_draining() {
            peer.connection.drain();
        }
        let mut outcome = Outcome::default();
        let response = result.unwrap_or_else(|problem| {
            outcome.cause.clone_from(&problem.cause);
            Response::of_problem(problem, &head.request_id)
        });
        outcome.status = response.status;
        let fill = with_date(|date| peer.connection.respond(response, date, now()));
        let peer = if let Some(fill) = fill {
            waiting(|| self.stream(peer, fill, slot, &mut outcome))
        } else {
            if let Err(cause) = self.send(&mut peer) {
                peer.connection.truncate();
                outcome.truncate(cause);
            }
            Some(peer)
        };
        if let Some(peer) = peer {
            access_log::tell(&self.metrics, head, &outcome, now());
            self.settle(peer);
        }
    }

    /// Sends a stream piece by piece, as its client takes it. While a piece is made the connection
    /// is in the table, so that the sweeper can close it; then None is returned.
    fn stream<'t>(
        &'t self,
        mut peer: Owned<'t, Peer>,
        mut fill: Fill<'_>,
        slot: Option<&dyn Slot>,
        outcome: &mut Outcome,
    ) -> Option<Owned<'t, Peer>> {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        loop {
            if let Err(cause) = self.send_at_pace(&mut peer, slot) {
                peer.connection.truncate();
                outcome.truncate(cause);
            }
            if !peer.connection.is_streaming() {
                return Some(peer);
            }
            piece.clear();
            peer.connection.begin(now());
            let token = peer.token();
            peer.park(Parked::Waiting, |_| {});
            let filled = catch_unwind(AssertUnwindSafe(|| fill(&mut piece)));
            peer = match self.table.take(token, Parked::Waiting) {
                Some(peer) => peer,
                None => return filled.map_or_else(|panic| resume_unwind(panic), |_| None),
            };
            let cause = match filled {
                Ok(Ok(())) if peer.connection.push(&piece, now()) => None,
                Ok(Ok(())) => Some(WRONG_LENGTH.to_owned()),
                Ok(Err(problem)) => Some(problem.cause.unwrap_or(problem.detail.into_owned())),
                Err(panic) => {
                    peer.connection.truncate();
                    self.settle(peer);
                    resume_unwind(panic)
                }
            };
            if let Some(cause) = cause {
                peer.connection.truncate();
                outcome.truncate(cause);
            }
        }
    }

    /// Sends what is in the buffer. A slow reader may hold its slot while half of the slots do not
    /// wait for such; after that what it does not take is kept in bounded memory; and where there
    /// is none, the reader is given up as soon as somebody else wants the slot.
    fn send_at_pace(&self, peer: &mut Peer, slot: Option<&dyn Slot>) -> Result<(), String> {
        struct Wait<'s>(Option<&'s dyn Slot>);
        impl Drop for Wait<'_> {
            fn drop(&mut self) {
                if let Some(slot) = self.0 {
                    slot.end_wait();
                }
            }
        }
        let mut wait = Wait(None);
        while !peer.connection.to_send().is_empty() {
            match peer.transport.send(peer.connection.to_send()) {
                Ok(bytes) => {
                    peer.connection.on_sent(bytes, now());
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("the client went away: {error}")),
            }
            let left = peer.connection.deadline().saturating_duration_since(now());
            if left.is_zero() || self.is_cut() {
                return Err("the client takes too long to read".to_owned());
            }
            if wait.0.is_none() && slot.is_some_and(Slot::begin_wait) {
                wait.0 = slot;
            }
            let limit = if wait.0.is_some() {
                LONG_HOLD
            } else if self.keep(peer) {
                return Ok(());
            } else if slot.is_none_or(Slot::is_wanted) {
                return Err("the client reads slowly, and others wait".to_owned());
            } else {
                HOLD
            };
            let _ = peer.transport.socket.wait(Interest::Write, limit.min(left));
        }
        Ok(())
    }
}
