//! One client's connection as a value: bytes and times go in; requests, bytes to send and the
//! next deadline come out. It has no socket, no lock and no clock, and every rule of RFC 9112
//! about a connection stands here.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limits::Limits;
use super::message::framing::{BodyFraming, HeadScan, settle_version};
use super::message::head::{Head, ParsedHead};
use super::message::problem::Problem;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How long, and how many bytes, the server reads on after the last answer. If it closed the connection with
/// unread bytes, the kernel would reset it, and the client could lose the answer.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 * 1024 * 1024;

/// The age at which a connection without a request may be closed to make room.
const GRACE: Duration = Duration::from_secs(1);

/// A client that makes no progress with a request or an answer for so long may be cut off to make room.
const SLOW: Duration = Duration::from_secs(2);

/// What closing a connection makes room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    Connections,
    Memory,
}

/// What the owner of a connection does next.
#[derive(Debug)]
pub(crate) enum Next {
    /// A head has arrived; the owner calls [`Connection::decide`].
    Head,
    /// A whole request has arrived; its answer is given to [`Connection::respond`].
    Request(Arc<Head>, Vec<u8>),
    /// The request is refused; the answer is this problem.
    Refused(Problem),
    Read,
    Write,
    /// The owner shuts down the sending side, then asks again.
    EndOutput,
    /// A handler is making the answer or the next piece of it.
    Answer,
    Close,
    /// The connection is closed by a reset, so that the client sees that its answer is truncated.
    Reset,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Head(HeadScan),
    /// True if the client waits to be asked for the body.
    Decide(BodyFraming, bool),
    /// The body so far; None if the body is discarded.
    Body(BodyFraming, Option<Vec<u8>>),
    Answering,
    Streaming {
        chunked: bool,
        left: Option<u64>,
    },
    /// The last answer is in `output`.
    Parting,
    Lingering(usize),
    Closed,
    Truncated,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Connection {
    limits: Arc<Limits>,
    client: IpAddr,
    /// Whether the connection is one of TLS.
    secure: bool,
    phase: Phase,
    http_10: bool,
    keep_alive: bool,
    /// The head of the current request.
    head: Option<Arc<Head>>,
    input: Vec<u8>,
    /// Whether the client has ended its side.
    ended: bool,
    /// What is being sent; empty if all of it is sent.
    output: Vec<u8>,
    /// How much of `output` is sent.
    sent: usize,
    /// How many bytes were sent since the deadline was set.
    sent_in_time: usize,
    deadline: Instant,
    /// When the connection was accepted; None after the first byte of a request.
    unasked_since: Option<Instant>,
    draining: bool,
    /// Whether the client may still be sending when the last answer is sent.
    lingers: bool,
}

impl Connection {
    pub(crate) fn new(limits: &Arc<Limits>, client: IpAddr, secure: bool, now: Instant) -> Self {
        Self {
            limits: Arc::clone(limits),
            client,
            secure,
            phase: Phase::Idle,
            http_10: false,
            keep_alive: true,
            head: None,
            input: Vec::new(),
            ended: false,
            output: Vec::new(),
            sent: 0,
            sent_in_time: 0,
            deadline: now + limits.idle_time,
            unasked_since: Some(now),
            draining: false,
            lingers: false,
        }
    }

    pub(crate) fn on_bytes(&mut self, bytes: &[u8]) {
        if let Phase::Lingering(discarded) = &mut self.phase {
            *discarded += bytes.len();
            if *discarded > LINGER_BYTES {
                self.phase = Phase::Closed;
            }
        } else {
            self.input.extend_from_slice(bytes);
        }
    }

    /// The client has ended its side.
    pub(crate) fn on_end(&mut self) {
        self.ended = true;
    }

    /// The socket is broken.
    pub(crate) fn on_error(&mut self) {
        self.phase = Phase::Closed;
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How many bytes of memory the input and the current request take.
    pub(crate) fn held_input(&self) -> usize {
        let body = match &self.phase {
            Phase::Body(_, Some(body)) => body.capacity(),
            _ => 0,
        };
        let head = self.head.as_ref().map_or(0, |head| head.bytes());
        self.input.capacity() + body + head
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle) && self.output.is_empty() && self.input.is_empty()
    }

    /// Whether closing the connection loses nothing, not even a request that has been sent but not received.
    pub(crate) fn may_be_closed(&self, now: Instant) -> bool {
        self.is_idle() && self.unasked_since.is_none_or(|since| now >= since + GRACE)
    }

    /// What closing the connection would make room for; None if the connection must not be closed for that.
    /// It may be closed if it is idle, or if its client is slow to send a request or to read an answer.
    pub(crate) fn shortage(&self, now: Instant) -> Option<Shortage> {
        let (limit, shortage) = match self.phase {
            Phase::Head(_) => (self.limits.head_time, Shortage::Connections),
            Phase::Body(..) => (self.limits.body_time, Shortage::Connections),
            _ if !self.output.is_empty() => (self.limits.send_time, Shortage::Memory),
            _ => return self.may_be_closed(now).then_some(Shortage::Connections),
        };
        (now + limit >= self.deadline + SLOW).then_some(shortage)
    }

    /// Whether bytes of the next request have arrived, so that no event is needed to go on.
    pub(crate) fn has_input(&self) -> bool {
        matches!(self.phase, Phase::Idle) && self.output.is_empty() && !self.input.is_empty()
    }

    pub(crate) fn is_streaming(&self) -> bool {
        matches!(self.phase, Phase::Streaming { .. })
    }

    /// The head of the request that is being answered.
    pub(crate) fn head(&self) -> Option<&Arc<Head>> {
        let is_answered = matches!(self.phase, Phase::Answering | Phase::Streaming { .. });
        self.head.as_ref().filter(|_| is_answered)
    }

    /// The head that [`Connection::decide`] is about.
    pub(crate) fn head_mut(&mut self) -> Option<&mut Head> {
        self.head.as_mut().and_then(Arc::get_mut)
    }

    /// Makes the next answer the last one.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    pub(crate) fn next(&mut self, now: Instant) -> Next {
        self.step(now)
            .unwrap_or_else(|problem| Next::Refused(self.refuse(problem, now)))
    }

    fn step(&mut self, now: Instant) -> Result<Next, Problem> {
        Ok(match &mut self.phase {
            Phase::Closed => Next::Close,
            Phase::Truncated => Next::Reset,
            _ if !self.output.is_empty() => Next::Write,
            Phase::Idle => {
                // Empty lines before a request are ignored (RFC 9112 §2.2).
                let lines = self.input.chunks(2);
                let empty = lines.take_while(|line| *line == b"\r\n").count();
                self.input.drain(..2 * empty);
                if self.input.is_empty() || self.input == b"\r" {
                    return Ok(self.more(now));
                }
                self.deadline = now + self.limits.head_time;
                self.unasked_since = None;
                self.phase = Phase::Head(HeadScan::default());
                return self.step(now);
            }
            Phase::Head(scan) => match scan.scan(&self.input, &self.limits.framing)? {
                Some(end) => self.on_head(end, now)?,
                None => self.more(now),
            },
            Phase::Decide(..) => Next::Head,
            Phase::Body(content, body) => {
                let keep = |piece: &[u8]| {
                    if let Some(body) = body {
                        body.extend_from_slice(piece);
                    }
                };
                let (used, is_whole) = content.read(&self.input, keep)?;
                let body = body.take_if(|_| is_whole);
                self.input.drain(..used);
                if is_whole {
                    self.hand_out(body.unwrap_or_default(), now)
                } else {
                    self.more(now)
                }
            }
            Phase::Answering | Phase::Streaming { .. } => Next::Answer,
            Phase::Parting => {
                self.input = Vec::new();
                self.deadline = now + LINGER_TIME;
                self.phase = if self.lingers {
                    Phase::Lingering(0)
                } else {
                    Phase::Closed
                };
                Next::EndOutput
            }
            Phase::Lingering(_) => self.more(now),
        })
    }

    /// Asks for more bytes, or closes the connection if none will come.
    fn more(&mut self, now: Instant) -> Next {
        if self.ended || self.draining && self.may_be_closed(now) {
            self.phase = Phase::Closed;
            return Next::Close;
        }
        Next::Read
    }

    fn on_head(&mut self, end: usize, now: Instant) -> Result<Next, Problem> {
        settle_version(&mut self.input[..end]);
        let (bytes, framing) = (&self.input[..end], &self.limits.framing);
        let parsed = ParsedHead::parse(bytes, framing, self.client, self.secure, now)?;
        (self.http_10, self.keep_alive) = (parsed.http_10, parsed.keep_alive);
        self.phase = Phase::Decide(parsed.framing, parsed.expects_continue);
        self.head = Some(Arc::new(parsed.head));
        self.input.drain(..end);
        self.input.shrink_to_fit();
        self.deadline = now + self.limits.body_time;
        Ok(Next::Head)
    }

    /// Goes on after [`Next::Head`] with the body. If the head alone has decided the answer, the body is
    /// discarded; a client that waits for 100 (Continue) then gets the answer instead, and the connection ends.
    pub(crate) fn decide(&mut self, is_decided: bool) {
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        let Phase::Decide(mut content, expects) = phase else {
            return;
        };
        // A client that has sent a part of the body does not wait for 100 (RFC 9110 §10.1.1).
        let is_empty = matches!(content, BodyFraming::None | BodyFraming::Length(0));
        if expects && self.input.is_empty() && !is_empty {
            if is_decided {
                self.be_the_last();
                content = BodyFraming::None;
            } else {
                self.output.extend_from_slice(CONTINUE);
            }
        }
        self.phase = Phase::Body(content, (!is_decided).then(Vec::new));
    }

    fn hand_out(&mut self, body: Vec<u8>, now: Instant) -> Next {
        self.phase = Phase::Answering;
        self.deadline = now + self.limits.queue_time + self.limits.answer_time;
        // The memory of a large request is not kept while the connection is idle.
        self.input.shrink_to_fit();
        if let Some(head) = self.head_mut() {
            // An empty chunked body counts as no body.
            if !body.is_empty() && head.header("content-length").is_none() {
                let length = body.len().to_string();
                head.headers.push("content-length", length.as_bytes());
            }
            head.arrived = now;
        }
        let head = self.head.clone();
        head.map_or(Next::Close, |head| Next::Request(head, body))
    }

    /// Starts the time for a handler: the request has left its queue, or the next piece of a stream is due.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.deadline = now + self.limits.answer_time;
    }
}

mod answering;
mod refusing;

#[cfg(test)]
mod tests;
