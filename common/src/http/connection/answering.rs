//! Sends an answer: its framing (RFC 9112 §6 and §7), and the buffer from which it is sent.

use std::io::Write;
use std::time::Instant;

use http::Method;

use super::{Connection, Phase};
use crate::http::message::response::{Body, BodySource, Response};

/// The minimum data rate is this number of bytes in each `send_time` of the limits.
pub(super) const SENT_BYTES: usize = 32 * 1024;

/// The heads of most answers are shorter than this.
const HEAD_BYTES: usize = 512;

impl Connection {
    /// Ends the connection so that the client sees that it has only a part of the answer.
    pub(crate) fn truncate(&mut self) {
        self.phase = Phase::Truncated;
        (self.output, self.sent) = (Vec::new(), 0);
    }

    pub(crate) fn to_send(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    pub(crate) fn on_sent(&mut self, bytes: usize, now: Instant) {
        self.sent += bytes;
        self.sent_in_time += bytes;
        // The buffer is moved only when half of it is sent, so a client that takes little at a time costs no
        // more than another; and it shrinks, so no more memory is held than is reserved.
        if self.sent >= self.output.len() / 2 {
            self.output.drain(..self.sent);
            self.output.shrink_to_fit();
            self.sent = 0;
        }
        let is_answer = !matches!(self.phase, Phase::Body(..));
        if self.output.is_empty() {
            self.output = Vec::new();
            if matches!(self.phase, Phase::Idle) {
                self.deadline = now + self.limits.idle_time;
            }
        } else if self.sent_in_time >= SENT_BYTES && is_answer {
            self.expect_to_send(now);
        }
    }

    fn expect_to_send(&mut self, now: Instant) {
        self.sent_in_time = 0;
        self.deadline = now + self.limits.send_time;
    }

    /// Takes the answer to the current request. If it is a stream, returns what makes its pieces, which
    /// [`Connection::push`] takes.
    pub(crate) fn respond<'a>(
        &mut self,
        response: Response<'a>,
        date: &str,
        now: Instant,
    ) -> Option<BodySource<'a>> {
        debug_assert!(matches!(self.phase, Phase::Answering));
        let head = self.head.clone()?;
        let (length, is_open) = match &response.body {
            Body::Empty => (None, false),
            Body::Bytes(body) => (Some(body.len() as u64), false),
            Body::Stream(stream) => (stream.length, stream.length.is_none()),
        };
        let chunked = is_open && !self.http_10;
        let closes = !self.keep_alive || self.draining || is_open && self.http_10;
        self.lingers |= self.draining || self.keep_alive || !self.input.is_empty();
        self.keep_alive = !closes;
        let out = &mut self.output;
        out.reserve(HEAD_BYTES);
        response.write_head(out, &head.request_id, self.secure, date);
        if closes {
            out.extend_from_slice(b"connection: close\r\n");
        } else if self.http_10 {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        if chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        } else if let Some(length) = length {
            let _ = write!(out, "content-length: {length}\r\n");
        }
        out.extend_from_slice(b"\r\n");
        match response.body {
            _ if head.method == Method::HEAD => {}
            Body::Empty => {}
            Body::Bytes(body) => out.extend_from_slice(&body),
            Body::Stream(stream) => {
                self.expect_to_send(now);
                let left = length;
                self.phase = Phase::Streaming { chunked, left };
                return Some(stream.fill);
            }
        }
        self.expect_to_send(now);
        self.end_answer();
        None
    }

    fn end_answer(&mut self) {
        self.head = None;
        self.phase = if self.keep_alive {
            Phase::Idle
        } else {
            Phase::Parting
        };
    }

    /// Takes the next piece of a stream; an empty piece ends it. Returns false, and truncates the answer, if the
    /// stream is not as long as its Content-Length.
    pub(crate) fn push(&mut self, piece: &[u8], now: Instant) -> bool {
        let Phase::Streaming { chunked, left } = &mut self.phase else {
            return true;
        };
        let bytes = piece.len() as u64;
        if let Some(left) = left {
            if bytes > *left || bytes == 0 && *left > 0 {
                self.truncate();
                return false;
            }
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
