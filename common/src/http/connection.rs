//! One client's connection as a value: bytes and times go in; requests, bytes to send and the
//! next deadline come out. It has no socket, no lock and no clock, and every rule of RFC 9112
//! about a connection stands here.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::framing::{
    BodyFraming, Chunked, FramingLimits, HeadScan, header_storage, parse_head, settle_version,
};
use super::message::head::Head;
use super::message::problem::Problem;

/// After its last answer a client's bytes are read on for so long and so far: were they left
/// unread, closing would reset the connection and take the answer with it.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 * 1024 * 1024;

/// A connection without a request is not closed for others' sake before it is so old.
const GRACE: Duration = Duration::from_secs(1);

/// What a client may send, and how long each part may take.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionLimits {
    pub(crate) framing: FramingLimits,
    pub(crate) idle: Duration,
    pub(crate) head: Duration,
    pub(crate) body: Duration,
    /// In the queue of a bulkhead.
    pub(crate) queue: Duration,
    /// From there to the answer, and between two pieces of it.
    pub(crate) answer: Duration,
    pub(crate) send: Duration,
    /// Whether the connection is one of TLS.
    pub(crate) secure: bool,
}

/// What the owner of a connection does next.
#[derive(Debug)]
pub(crate) enum Next {
    /// A head is here: [`Connection::decide`] whether its request is taken.
    Head,
    /// The request that was not taken is to be answered so.
    Decided(Decided),
    /// A request is whole: its answer comes by [`Connection::respond`].
    Request(Arc<Head>, Vec<u8>),
    /// The client is to be told this.
    Refused(Problem),
    Read,
    Write,
    /// Shut down the sending side, then ask again.
    EndOutput,
    /// An answer, or its next piece, is being made.
    Answer,
    Close,
    /// Close so that the client can tell that its answer is truncated.
    Reset,
}

/// What a head alone decides: the methods that `Allow` lists, or what is wrong.
pub(crate) type Decided = Result<String, Problem>;

#[derive(Debug)]
enum Phase {
    Idle,
    Head(HeadScan),
    Decide(Box<Head>, BodyFraming),
    Length(Box<Head>, usize),
    Chunked(Box<Head>, Chunked, Vec<u8>),
    Answering,
    Streaming {
        chunked: bool,
        left: Option<u64>,
    },
    /// The last answer is in `output`; true where the client may still be sending.
    Parting(bool),
    Lingering(usize),
    Closed,
    Truncated,
}

/// What the answer depends on besides the handler.
#[derive(Debug, Clone, Copy)]
struct Terms {
    http_10: bool,
    keep_alive: bool,
    expects_continue: bool,
}

#[derive(Debug)]
pub(crate) struct Connection {
    limits: Arc<ConnectionLimits>,
    client: IpAddr,
    phase: Phase,
    terms: Terms,
    /// Of the request that is being answered.
    head: Option<Arc<Head>>,
    /// The answer to the request whose body is passed over.
    decided: Option<Decided>,
    input: Vec<u8>,
    /// The client sends nothing more.
    ended: bool,
    output: Vec<u8>,
    sent: usize,
    /// Of what was sent since the deadline was set.
    sent_in_time: usize,
    deadline: Instant,
    /// Since when it is open, until something was asked.
    unasked_since: Option<Instant>,
    draining: bool,
    /// The client may be in the middle of a request that is not read on.
    lingers: bool,
}

impl Connection {
    pub(crate) fn new(limits: &Arc<ConnectionLimits>, client: IpAddr, now: Instant) -> Self {
        Self {
            deadline: now + limits.idle,
            limits: Arc::clone(limits),
            client,
            phase: Phase::Idle,
            terms: Terms {
                http_10: false,
                keep_alive: true,
                expects_continue: false,
            },
            head: None,
            decided: None,
            input: Vec::new(),
            ended: false,
            output: Vec::new(),
            sent: 0,
            sent_in_time: 0,
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

    /// The client sends nothing more.
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

    /// How many bytes of requests are held here.
    pub(crate) fn held_input(&self) -> usize {
        let body = if let Phase::Chunked(_, _, body) = &self.phase {
            body.len()
        } else {
            0
        };
        self.input.len() + body
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle) && !self.has_output() && self.input.is_empty()
    }

    /// Whether closing the connection loses nothing: not even a request that is on its way.
    pub(crate) fn may_be_closed(&self, now: Instant) -> bool {
        self.is_idle() && self.unasked_since.is_none_or(|since| now >= since + GRACE)
    }

    /// Whether a next request is here, for which no event has to come.
    pub(crate) fn has_input(&self) -> bool {
        matches!(self.phase, Phase::Idle) && !self.has_output() && !self.input.is_empty()
    }

    pub(crate) fn is_streaming(&self) -> bool {
        matches!(self.phase, Phase::Streaming { .. })
    }

    /// The request that is being answered.
    pub(crate) fn head(&self) -> Option<&Arc<Head>> {
        self.head.as_ref()
    }

    /// The head that is to be decided about.
    pub(crate) fn head_mut(&mut self) -> Option<&mut Head> {
        if let Phase::Decide(head, _) = &mut self.phase {
            Some(head)
        } else {
            None
        }
    }

    /// From now on every answer is the last.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    pub(crate) fn next(&mut self, now: Instant) -> Next {
        loop {
            match self.phase {
                Phase::Closed => return Next::Close,
                Phase::Truncated => return Next::Reset,
                _ if self.has_output() => return Next::Write,
                _ => {}
            }
            match self.step(now) {
                Ok(Some(next)) => return next,
                Ok(None) => {}
                Err(problem) => return Next::Refused(self.refuse(problem, now)),
            }
        }
    }

    /// One step; None where another may follow.
    fn step(&mut self, now: Instant) -> Result<Option<Next>, Problem> {
        match &mut self.phase {
            Phase::Idle => {
                // Empty lines before a request are passed over (RFC 9112 §2.2).
                let empty = 2 * self
                    .input
                    .chunks(2)
                    .take_while(|line| *line == b"\r\n")
                    .count();
                self.input.drain(..empty);
                if self.input.is_empty() || self.input == b"\r" {
                    return Ok(Some(self.more(now)));
                }
                self.deadline = now + self.limits.head;
                self.unasked_since = None;
                self.phase = Phase::Head(HeadScan::default());
                Ok(None)
            }
            Phase::Head(scan) => match scan.scan(&self.input, &self.limits.framing)? {
                Some(end) => self.on_head(end, now),
                None => Ok(Some(self.more(now))),
            },
            Phase::Decide(..) => Ok(Some(Next::Head)),
            Phase::Length(_, left) if self.decided.is_some() => {
                let passed = self.input.len().min(*left);
                self.input.drain(..passed);
                *left -= passed;
                if *left > 0 {
                    Ok(Some(self.more(now)))
                } else {
                    Ok(self.hand_out(Vec::new(), now))
                }
            }
            Phase::Length(_, length) if self.input.len() < *length => Ok(Some(self.more(now))),
            Phase::Length(_, length) => {
                let rest = self.input.split_off(*length);
                let body = std::mem::replace(&mut self.input, rest);
                Ok(self.hand_out(body, now))
            }
            Phase::Chunked(_, chunked, body) => {
                let passed_over = self.decided.is_some();
                let keep = |piece: &[u8]| {
                    if !passed_over {
                        body.extend_from_slice(piece);
                    }
                };
                let used = chunked.read(&self.input, keep)?;
                let body = if chunked.is_done() {
                    Some(std::mem::take(body))
                } else {
                    None
                };
                self.input.drain(..used);
                match body {
                    Some(body) => Ok(self.hand_out(body, now)),
                    None => Ok(Some(self.more(now))),
                }
            }
            Phase::Answering | Phase::Streaming { .. } => Ok(Some(Next::Answer)),
            Phase::Parting(lingers) => {
                let lingers = *lingers;
                self.input = Vec::new();
                self.deadline = now + LINGER_TIME;
                self.phase = if lingers {
                    Phase::Lingering(0)
                } else {
                    Phase::Closed
                };
                Ok(Some(Next::EndOutput))
            }
            Phase::Lingering(_) => Ok(Some(self.more(now))),
            Phase::Closed => Ok(Some(Next::Close)),
            Phase::Truncated => Ok(Some(Next::Reset)),
        }
    }

    /// More bytes are needed.
    fn more(&mut self, now: Instant) -> Next {
        if self.ended || self.draining && self.may_be_closed(now) {
            self.phase = Phase::Closed;
            return Next::Close;
        }
        Next::Read
    }

    fn on_head(&mut self, end: usize, now: Instant) -> Result<Option<Next>, Problem> {
        let limits = Arc::clone(&self.limits);
        let mut storage = header_storage();
        settle_version(&mut self.input[..end]);
        let head = parse_head(&self.input[..end], &mut storage, &limits.framing)?;
        self.terms = Terms {
            http_10: head.http_10,
            keep_alive: head.keep_alive,
            expects_continue: head.expects_continue,
        };
        let framing = head.framing;
        let head = Box::new(Head::of(&head, self.client, limits.secure, now));
        self.input.drain(..end);
        self.deadline = now + limits.body;
        self.phase = Phase::Decide(head, framing);
        Ok(None)
    }

    /// The request has left its queue.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.deadline = now + self.limits.answer;
    }
}

mod answering;
mod body;
mod refusing;

#[cfg(test)]
mod tests;
