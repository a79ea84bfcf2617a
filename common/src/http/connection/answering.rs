//! The way of an answer to the client: its framing (RFC 9112 §6 and §7), and the buffer that it is
//! sent from.

use std::io::Write;
use std::time::Instant;

use http::Method;

use super::{Connection, Phase, Terms};
use crate::http::message::response::{Body, Fill, Response, Stream};

/// The minimum data rate is so much of an answer in each `send` of the limits.
pub(super) const SENT_BYTES: usize = 32 * 1024;

impl Connection {
    /// The client holds a part of an answer, and must be able to tell.
    pub(crate) fn truncate(&mut self) {
        self.phase = Phase::Truncated;
        self.output = Vec::new();
        self.sent = 0;
    }

    pub(super) fn has_output(&self) -> bool {
        self.sent < self.output.len()
    }

    pub(crate) fn to_send(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    pub(crate) fn on_sent(&mut self, bytes: usize, now: Instant) {
        self.sent += bytes;
        self.sent_in_time += bytes;
        if !self.has_output() {
            self.output = Vec::new();
            self.sent = 0;
            if matches!(self.phase, Phase::Idle) {
                self.deadline = now + self.limits.idle;
            }
        } else if self.sent_in_time >= SENT_BYTES && self.is_answered() {
            self.expect_to_send(now);
        }
    }

    /// Whether what is to be sent is an answer.
    fn is_answered(&self) -> bool {
        matches!(
            self.phase,
            Phase::Idle | Phase::Streaming { .. } | Phase::Parting(_)
        )
    }

    fn expect_to_send(&mut self, now: Instant) {
        self.sent_in_time = 0;
        self.deadline = now + self.limits.send;
    }

    /// Takes the answer to the request that is out. Pieces of a stream follow by `push`; what is
    /// returned makes them.
    pub(crate) fn respond<'a>(
        &mut self,
        response: Response<'a>,
        date: &str,
        now: Instant,
    ) -> Option<Fill<'a>> {
        debug_assert!(matches!(self.phase, Phase::Answering));
        let head = self.head.take();
        let (id, head_only) = head.as_ref().map_or(("", false), |head| {
            (&*head.request_id, head.method == Method::HEAD)
        });
        let Terms {
            http_10,
            keep_alive,
            ..
        } = self.terms;
        let chunked = matches!(&response.body, Body::Stream(Stream { length: None, .. }));
        let closes = !keep_alive || self.draining || chunked && http_10;
        let out = &mut self.output;
        out.reserve(if let Body::Bytes(body) = &response.body {
            512 + body.len()
        } else {
            512
        });
        response.write_head(out, id, self.limits.secure, date);
        match (closes, http_10) {
            (true, _) => out.extend_from_slice(b"connection: close\r\n"),
            (false, true) => out.extend_from_slice(b"connection: keep-alive\r\n"),
            (false, false) => {}
        }
        let length = match &response.body {
            Body::Empty => None,
            Body::Bytes(body) => Some(body.len() as u64),
            Body::Stream(stream) => stream.length,
        };
        if let Some(length) = length {
            let _ = write!(out, "content-length: {length}\r\n\r\n");
        } else if chunked && !http_10 {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        } else {
            out.extend_from_slice(b"\r\n");
        }
        self.terms.keep_alive = !closes;
        self.lingers |= self.draining || keep_alive || !self.input.is_empty();
        self.expect_to_send(now);
        match response.body {
            Body::Stream(stream) if !head_only => {
                self.phase = Phase::Streaming {
                    chunked: chunked && !http_10,
                    left: stream.length,
                };
                self.head = head;
                return Some(stream.fill);
            }
            Body::Bytes(body) if !head_only => self.output.extend_from_slice(&body),
            _ => {}
        }
        self.end_answer();
        None
    }

    fn end_answer(&mut self) {
        self.head = None;
        self.phase = if self.terms.keep_alive {
            Phase::Idle
        } else {
            Phase::Parting(self.lingers)
        };
    }

    /// The next piece of a stream is being made.
    pub(crate) fn await_piece(&mut self, now: Instant) {
        self.deadline = now + self.limits.answer;
    }

    /// The next piece of a stream; an empty one is its end. False where the answer is not as long
    /// as it was said to be, and is truncated for it.
    pub(crate) fn push(&mut self, piece: &[u8], now: Instant) -> bool {
        let Phase::Streaming { chunked, left } = &mut self.phase else {
            return true;
        };
        let bytes = piece.len() as u64;
        if left.is_some_and(|left| bytes > left || bytes == 0 && left > 0) {
            self.truncate();
            return false;
        }
        if let Some(left) = left {
            *left -= bytes;
        }
        if *chunked {
            let _ = write!(self.output, "{bytes:x}\r\n");
            self.output.extend_from_slice(piece);
            self.output.extend_from_slice(b"\r\n");
        } else {
            self.output.extend_from_slice(piece);
        }
        self.expect_to_send(now);
        if piece.is_empty() {
            self.end_answer();
        }
        true
    }
}
