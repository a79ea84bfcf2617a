//! From the head of a request to its end.

use std::sync::Arc;
use std::time::Instant;

use super::{Connection, Decided, Next, Phase};
use crate::http::message::framing::{BodyFraming, Chunked};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl Connection {
    /// After [`Next::Head`]: the request is read to its end. Where it is decided already, its body
    /// is not kept; and whoever waits to be asked for it is answered, and asked no more.
    pub(crate) fn decide(&mut self, decided: Option<Decided>) {
        let (waits, phase) = match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Decide(head, BodyFraming::None) => (false, Phase::Length(head, 0)),
            Phase::Decide(head, BodyFraming::Length(length)) => {
                (self.input.len() < length, Phase::Length(head, length))
            }
            Phase::Decide(head, BodyFraming::Chunked) => {
                let chunked = Chunked::new(&self.limits.framing);
                (
                    self.input.is_empty(),
                    Phase::Chunked(head, chunked, Vec::new()),
                )
            }
            other => (false, other),
        };
        self.phase = phase;
        self.decided = decided;
        if !waits || !self.terms.expects_continue {
            return;
        }
        if self.decided.is_none() {
            self.output.extend_from_slice(CONTINUE);
        } else if let Phase::Length(head, _) | Phase::Chunked(head, ..) =
            std::mem::replace(&mut self.phase, Phase::Closed)
        {
            self.be_the_last();
            self.phase = Phase::Length(head, 0);
        }
    }

    pub(super) fn hand_out(&mut self, body: Vec<u8>, now: Instant) -> Option<Next> {
        let (Phase::Length(mut head, _) | Phase::Chunked(mut head, ..)) =
            std::mem::replace(&mut self.phase, Phase::Answering)
        else {
            return None;
        };
        // Chunks without content are passed on as if there had been no body.
        if !body.is_empty() && head.header("content-length").is_none() {
            head.headers
                .push("content-length", body.len().to_string().as_bytes());
        }
        head.arrived = now;
        self.deadline = now + self.limits.queue + self.limits.answer;
        let head = Arc::new(*head);
        self.head = Some(Arc::clone(&head));
        Some(match self.decided.take() {
            Some(decided) => Next::Decided(decided),
            None => Next::Request(head, body),
        })
    }
}
