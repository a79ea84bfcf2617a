//! One client's connection: reads whole requests, sends each over a lane to a worker, and
//! passes the answer back. Everything that a client can draw out has a deadline here.

use std::io::{self, Read, Write};
use std::net::Shutdown as Half;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::framing::{
    BodyFraming, Chunked, HEADERS_MAX, Head, HeadScan, append_body, parse_head, tokens, values,
};
use super::lanes::{EDGE_HEADER, Lane, Lanes};
use super::tls::Wire;
use super::{Edge, NoLane, Open, Refusal};
use crate::http::exchange::{Exchange, request_id};
use crate::http::problem::Problem;
use crate::http::request::{LaneFlags, encode_octets, is_of_the_edge};
use crate::http::response::Response;

/// How much is read at once.
const READ_BYTES: usize = 4 * 1024;

/// How much of an answer is passed on at once.
const RELAY_BYTES: usize = 32 * 1024;

/// A client that takes nothing for so long gives its worker up when another wants it.
const HOLD_MILLISECONDS: i32 = 20;

/// What a connection may hold without asking; most requests are far below.
const ALLOWANCE_BYTES: usize = 16 * 1024;

/// After a refusal the client's bytes are read on for so long and so far: were they left
/// unread, closing would reset the connection and take the answer with it.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 * 1024 * 1024;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Serves a client until the connection ends.
pub(super) fn serve(edge: &Edge, open: &Open) {
    let wire = match Wire::new(&open.stream, edge.tls.as_ref()) {
        Ok(wire) => wire,
        Err(error) => {
            log::error!(cause = error.to_string().as_str(); "cannot begin a TLS session");
            return;
        }
    };
    let mut connection = Connection {
        edge,
        open,
        wire,
        input: Vec::new(),
        outgoing: Vec::new(),
        kept: Vec::new(),
        reserved: 0,
        read_limit: None,
    };
    let lingers = connection.run();
    if lingers {
        connection.linger();
    }
    edge.buffered
        .fetch_sub(connection.reserved, Ordering::Relaxed);
    let _ = open.stream.shutdown(Half::Both);
}

struct Connection<'e> {
    edge: &'e Edge,
    open: &'e Open,
    wire: Wire<'e>,
    /// What was read and not yet used: a request, and perhaps the begin of the next.
    input: Vec<u8>,
    /// The request as it goes over the lane.
    outgoing: Vec<u8>,
    /// What a worker has answered and the client has not yet taken.
    kept: Vec<u8>,
    /// This connection's share of [`Edge::buffered`].
    reserved: usize,
    /// What the socket is set to, so that it is set only when it changes.
    read_limit: Option<Duration>,
}

/// What is known of a request when its bytes are on their way.
struct Asked {
    request_id: String,
    method: String,
    target: String,
    framing: BodyFraming,
    http_10: bool,
    keep_alive: bool,
    started: Instant,
}

impl Asked {
    /// What can be read of a head that is refused: enough for the answer and the log.
    fn of_refused(head: &[u8], started: Instant) -> Self {
        let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut storage);
        let complete = request.parse(head).is_ok();
        let given = values(request.headers, "x-request-id")
            .next()
            .filter(|_| complete);
        Self {
            request_id: request_id(given.and_then(|id| std::str::from_utf8(id).ok())),
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            framing: BodyFraming::None,
            http_10: request.version == Some(0),
            keep_alive: false,
            started,
        }
    }
}

/// Why a connection ends.
enum End {
    /// The client left, or said nothing for long: nobody to answer.
    Silent,
    /// An answer, and then the end.
    Refused(Option<Box<Asked>>, Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(None, refusal)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Silent
    }
}

impl Connection<'_> {
    /// One request after another; true where the client may still be sending.
    fn run(&mut self) -> bool {
        loop {
            match self.next_request() {
                Ok(asked) => {
                    let keep_alive = asked.keep_alive;
                    if !self.answer(&asked) {
                        return false;
                    }
                    self.release();
                    // The answer has said so.
                    if !keep_alive || self.edge.shutdown.is_requested() {
                        return true;
                    }
                }
                Err(End::Silent) => return false,
                Err(End::Refused(asked, refusal)) => {
                    self.refuse(asked.as_deref(), refusal);
                    return true;
                }
            }
        }
    }

    /// Reads the next request; when this returns, `outgoing` holds all of it.
    fn next_request(&mut self) -> Result<Asked, End> {
        let limits = &self.edge.limits;
        let framing_limits = limits.framing();
        self.wait_for_first_byte()?;
        let started = Instant::now();
        let head_deadline = started + limits.head_time;
        let mut scan = HeadScan::default();
        let head_bytes = loop {
            if let Some(end) = scan.scan(&self.input, &framing_limits)? {
                break end;
            }
            self.read_before(head_deadline, "the request line and headers take too long")?;
        };
        let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let parsed = parse_head(&self.input[..head_bytes], &mut storage, &framing_limits);
        let head = match parsed {
            Ok(head) => head,
            Err(refusal) => {
                let asked = Asked::of_refused(&self.input[..head_bytes], started);
                return Err(End::Refused(Some(Box::new(asked)), refusal));
            }
        };
        let asked = Asked {
            request_id: request_id(
                head.header("x-request-id")
                    .and_then(|id| std::str::from_utf8(id).ok()),
            ),
            method: head.method.to_owned(),
            target: head.target.to_owned(),
            framing: head.framing,
            http_10: head.http_10,
            keep_alive: head.keep_alive && !self.edge.shutdown.is_requested(),
            started,
        };
        let expects_continue = head.expects_continue;
        let flags = LaneFlags {
            http_10: asked.http_10,
            close: !asked.keep_alive,
            secure: self.wire.is_secure(),
        };
        let edge_words = format!("{} {flags} {}", self.open.client, asked.request_id);
        begin_lane_request(&mut self.outgoing, &head, &edge_words);

        let body_deadline = Instant::now() + limits.body_time;
        let used = match asked.framing {
            BodyFraming::None => {
                self.outgoing.extend_from_slice(b"\r\n");
                Ok(head_bytes)
            }
            BodyFraming::Length(length) => {
                self.read_length(head_bytes, length, expects_continue, body_deadline)
            }
            BodyFraming::Chunked => self.read_chunked(head_bytes, expects_continue, body_deadline),
        };
        let used = match used {
            Ok(used) => used,
            Err(End::Refused(_, refusal)) => {
                return Err(End::Refused(Some(Box::new(asked)), refusal));
            }
            Err(End::Silent) => return Err(End::Silent),
        };
        if used == self.input.len() {
            self.input.clear();
        } else {
            self.input.drain(..used);
        }
        Ok(asked)
    }

    /// Waits for a request to begin; the empty lines before it are passed over (RFC 9112 §2.2).
    fn wait_for_first_byte(&mut self) -> Result<(), End> {
        let deadline = Instant::now() + self.edge.limits.idle_time;
        loop {
            let lines = self.input.chunks(2).take_while(|line| *line == b"\r\n");
            let empty_lines = 2 * lines.count();
            self.input.drain(..empty_lines);
            if !self.input.is_empty() && self.input != b"\r" {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(End::Silent);
            }
            self.open.idle.store(true, Ordering::Relaxed);
            // At the shutdown idle connections are closed; this one may have become idle since.
            if self.edge.shutdown.is_requested() {
                self.set_read_limit(Duration::from_millis(1))?;
            } else {
                self.set_read_limit(self.edge.limits.idle_time)?;
            }
            let read = self.read_more();
            self.open.idle.store(false, Ordering::Relaxed);
            if read? == 0 {
                return Err(End::Silent);
            }
        }
    }

    fn read_length(
        &mut self,
        head_bytes: usize,
        length: usize,
        expects_continue: bool,
        deadline: Instant,
    ) -> Result<usize, End> {
        let end = head_bytes + length;
        if expects_continue && self.input.len() < end {
            self.send(CONTINUE)?;
        }
        while self.input.len() < end {
            // What has arrived counts, not what was announced: announcing costs a client nothing.
            self.reserve(self.input.len())?;
            self.read_before(deadline, "the body takes too long")?;
        }
        let body = &self.input[head_bytes..end];
        end_lane_request(&mut self.outgoing, Some(length), body);
        Ok(end)
    }

    fn read_chunked(
        &mut self,
        head_bytes: usize,
        expects_continue: bool,
        deadline: Instant,
    ) -> Result<usize, End> {
        let limits = self.edge.limits.framing();
        let mut chunked = Chunked::default();
        let mut body = Vec::new();
        if expects_continue && self.input.len() == head_bytes {
            self.send(CONTINUE)?;
        }
        // What was decoded is dropped, so that a megabyte in small chunks is held only once.
        let mut at = head_bytes;
        loop {
            at += chunked.read(&self.input[at..], |piece| {
                append_body(&mut body, piece, &limits)
            })?;
            if chunked.is_done() {
                break;
            }
            self.input.truncate(head_bytes);
            at = head_bytes;
            self.reserve(body.len())?;
            self.read_before(deadline, "the body takes too long")?;
        }
        // No content at all is passed on without a length, as if there had been no body.
        let length = if body.is_empty() {
            None
        } else {
            Some(body.len())
        };
        end_lane_request(&mut self.outgoing, length, &body);
        Ok(at)
    }

    /// Reads what has arrived; `problem` is what a client hears that lets the deadline pass.
    fn read_before(&mut self, deadline: Instant, problem: &'static str) -> Result<(), End> {
        let late = || Refusal::new(408, problem);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late().into());
        }
        self.set_read_limit(left)?;
        match self.read_more() {
            Ok(0) => Err(End::Silent),
            Ok(_) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                Err(late().into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read_more(&mut self) -> io::Result<usize> {
        let begin = self.input.len();
        // Large bodies are read in larger pieces.
        let room = READ_BYTES.max(begin.min(RELAY_BYTES));
        self.input.resize(begin + room, 0);
        let read = loop {
            match self.wire.read(&mut self.input[begin..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.input
            .truncate(begin + read.as_ref().map_or(0, |read| *read));
        read
    }

    fn set_read_limit(&mut self, limit: Duration) -> io::Result<()> {
        // The system knows no limit below a microsecond, and takes zero for none.
        let limit = limit.max(Duration::from_millis(1));
        if self.wire.is_secure() {
            self.wire.read_until(Instant::now() + limit);
        } else if self.read_limit != Some(limit) {
            self.wire.tcp.set_read_timeout(Some(limit))?;
            self.read_limit = Some(limit);
        }
        Ok(())
    }

    /// Asks for memory beyond the allowance: what all connections hold together has a bound.
    fn reserve(&mut self, bytes: usize) -> Result<(), Refusal> {
        if self.try_reserve(bytes, self.edge.limits.buffer_bytes) {
            Ok(())
        } else {
            Err(Refusal::new(
                503,
                "too many large requests at the same time; try again",
            ))
        }
    }

    fn try_reserve(&mut self, bytes: usize, limit: usize) -> bool {
        let wanted = bytes
            .saturating_sub(ALLOWANCE_BYTES)
            .saturating_sub(self.reserved);
        let held = self.edge.buffered.fetch_add(wanted, Ordering::Relaxed);
        if wanted > 0 && held + wanted > limit {
            self.edge.buffered.fetch_sub(wanted, Ordering::Relaxed);
            return false;
        }
        self.reserved += wanted;
        true
    }

    /// Gives memory back that a large request has left.
    fn release(&mut self) {
        if self.reserved > 0 {
            self.edge
                .buffered
                .fetch_sub(self.reserved, Ordering::Relaxed);
            self.reserved = 0;
            self.input.shrink_to(READ_BYTES);
            self.outgoing = Vec::new();
            self.kept = Vec::new();
        }
    }

    /// Has the request answered; false where the client is gone.
    fn answer(&mut self, asked: &Asked) -> bool {
        let path = asked.target.split('?').next().unwrap_or_default();
        if let Some(result) = super::super::operations::answer(self.edge, &asked.method, path) {
            return self.answer_here(Some(asked), result, asked.keep_alive);
        }
        let Some(hall) = self.edge.hall(path) else {
            let problem = Problem::internal("no hall takes this path");
            return self.answer_here(Some(asked), Err(problem), asked.keep_alive);
        };
        let mut lane = match hall.lanes.take() {
            Ok(lane) => lane,
            Err(no_lane) => {
                let cause = match no_lane {
                    NoLane::QueueFull => "as many requests wait as may wait",
                    NoLane::TimedOut => "no worker came free in time",
                    NoLane::Broken => "no lane could be opened",
                };
                let problem = Problem::unavailable("this service is overloaded; try again", cause);
                return self.answer_here(Some(asked), Err(problem), asked.keep_alive);
            }
        };
        match self.exchange(&hall.lanes, &mut lane, asked) {
            Ok(Relayed::Whole) => {
                hall.lanes.give_back(lane);
                self.send_kept().is_ok()
            }
            Ok(Relayed::NotBegun) => {
                hall.lanes.give_up(&lane);
                let problem = Problem::internal("the lane broke before an answer");
                self.answer_here(Some(asked), Err(problem), false)
            }
            Ok(Relayed::TooLate) => {
                hall.lanes.give_up(&lane);
                let detail = "this takes too long; whether it is done is not known";
                let problem = Problem::unavailable(detail, "the worker does not answer");
                self.answer_here(Some(asked), Err(problem), false)
            }
            Ok(Relayed::ToTheEnd) => {
                hall.lanes.give_up(&lane);
                let _ = self.send_kept();
                false
            }
            Err(_) => {
                hall.lanes.give_up(&lane);
                false
            }
        }
    }

    /// Sends the request over the lane and passes the answer on as it comes.
    fn exchange(&mut self, lanes: &Lanes, lane: &mut Lane, asked: &Asked) -> io::Result<Relayed> {
        set_lane_id(&mut self.outgoing, lane.id);
        if lane.stream.write_all(&self.outgoing).is_err() {
            return Ok(Relayed::NotBegun);
        }
        lane.buffer.clear();
        let head = loop {
            match read_lane(lane) {
                Ok(0) => return Ok(Relayed::NotBegun),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Relayed::TooLate);
                }
                Err(error) => return Err(error),
            }
            if let Some(head) = answer_head(&lane.buffer, asked.method == "HEAD")? {
                break head;
            }
        };
        let mut rest = match head.framing {
            AnswerFraming::Length(length) => {
                Rest::Bytes(length.saturating_sub((lane.buffer.len() - head.bytes) as u64))
            }
            AnswerFraming::Chunked => {
                let mut chunked = Chunked::default();
                advance(&mut chunked, &lane.buffer[head.bytes..])?;
                Rest::Chunks(chunked)
            }
            AnswerFraming::LaneEnd => Rest::LaneEnd,
        };
        loop {
            self.pass_on(&lane.buffer, lanes)?;
            match &rest {
                Rest::Bytes(0) => return Ok(Relayed::Whole),
                Rest::Chunks(chunked) if chunked.is_done() => return Ok(Relayed::Whole),
                _ => {}
            }
            lane.buffer.clear();
            if read_lane(lane)? == 0 {
                // The end of an answer for HTTP/1.0, or of one that broke off: either way the
                // client learns it by the end of the connection.
                return Ok(Relayed::ToTheEnd);
            }
            match &mut rest {
                Rest::Bytes(left) => *left = left.saturating_sub(lane.buffer.len() as u64),
                Rest::Chunks(chunked) => advance(chunked, &lane.buffer)?,
                Rest::LaneEnd => {}
            }
        }
    }

    /// Passes a piece of a worker's answer on. What the client does not take at once is kept, so
    /// that a slow reader holds no worker; where there is no memory left for it, the client may
    /// hold the worker for as long as nobody else wants one.
    fn pass_on(&mut self, piece: &[u8], lanes: &Lanes) -> io::Result<()> {
        if self.wire.is_secure() {
            return self.send(piece);
        }
        let mut left = piece;
        if self.kept.is_empty() {
            left = &left[self.send_at_once(left)?..];
        }
        // Half of the memory, so that the other half is left for requests.
        let share = self.edge.limits.buffer_bytes / 2;
        if left.is_empty() {
            Ok(())
        } else if self.try_reserve(self.kept.len() + left.len(), share) {
            self.kept.extend_from_slice(left);
            Ok(())
        } else {
            let kept = std::mem::take(&mut self.kept);
            self.send_while_unwanted(&kept, lanes)?;
            self.send_while_unwanted(left, lanes)
        }
    }

    fn send_while_unwanted(&self, bytes: &[u8], lanes: &Lanes) -> io::Result<()> {
        let mut left = bytes;
        let mut deadline = Instant::now() + self.edge.limits.send_time;
        while !left.is_empty() {
            let mut writable = [PollFd::new(self.wire.tcp, PollFlags::OUT)];
            match poll(&mut writable, HOLD_MILLISECONDS) {
                Ok(0) if lanes.are_wanted() || Instant::now() >= deadline => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let sent = self.send_at_once(left)?;
            if sent > 0 {
                left = &left[sent..];
                deadline = Instant::now() + self.edge.limits.send_time;
            }
        }
        Ok(())
    }

    /// How much of it the system takes without waiting for the client.
    fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        match send(
            self.wire.tcp,
            bytes,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn send_kept(&mut self) -> io::Result<()> {
        let kept = std::mem::take(&mut self.kept);
        kept.chunks(RELAY_BYTES)
            .try_for_each(|piece| self.send(piece))
    }

    /// Writes to the client, who may take [`EdgeLimits::send_time`] for it and no longer.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        let deadline = Instant::now() + self.edge.limits.send_time;
        while !left.is_empty() {
            match self.wire.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if !left.is_empty() && Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        self.wire.flush()
    }

    /// Answers without a worker; false where the client is gone.
    fn answer_here(
        &mut self,
        asked: Option<&Asked>,
        result: Result<Response<'static>, Problem>,
        keep_alive: bool,
    ) -> bool {
        let mut exchange = Exchange {
            request_id: asked.map_or_else(|| request_id(None), |asked| asked.request_id.clone()),
            client: self.open.client.ip(),
            method: asked.map_or_else(String::new, |asked| asked.method.clone()),
            target: asked.map_or_else(String::new, |asked| asked.target.clone()),
            route: "edge",
            status: 0,
            cause: None,
            broken_off: false,
            started: asked.map_or_else(Instant::now, |asked| asked.started),
        };
        let flags = LaneFlags {
            http_10: asked.is_some_and(|asked| asked.http_10),
            close: !keep_alive || self.edge.shutdown.is_requested(),
            secure: self.wire.is_secure(),
        };
        let mut answer = Vec::new();
        exchange.answer(result, &mut answer, flags);
        let sent = self.send(&answer);
        if let Err(error) = &sent {
            exchange.cause = Some(format!("the client went away: {error}"));
        }
        exchange.record(&self.edge.metrics);
        sent.is_ok()
    }

    fn refuse(&mut self, asked: Option<&Asked>, refusal: Refusal) {
        self.edge
            .metrics
            .refused_requests
            .with_label_values(&[&refusal.status.to_string()])
            .inc();
        self.answer_here(asked, Err(Problem::refused(refusal)), false);
    }

    /// Lets the client read its last answer before the connection goes.
    fn linger(&mut self) {
        self.wire.close();
        let deadline = Instant::now() + LINGER_TIME;
        let mut discarded = 0;
        while discarded < LINGER_BYTES {
            let left = deadline.saturating_duration_since(Instant::now());
            self.input.clear();
            if left.is_zero() || self.set_read_limit(left).is_err() {
                return;
            }
            match self.read_more() {
                Ok(read @ 1..) => discarded += read,
                _ => return,
            }
        }
    }
}

/// How an answer came over the lane.
enum Relayed {
    /// All of it, and the lane is free for the next.
    Whole,
    /// Up to the end of the lane.
    ToTheEnd,
    /// Nothing of it.
    NotBegun,
    /// Nothing of it for very long; its worker may still be busy with it.
    TooLate,
}

enum Rest {
    Bytes(u64),
    Chunks(Chunked),
    LaneEnd,
}

enum AnswerFraming {
    Length(u64),
    Chunked,
    LaneEnd,
}

struct AnswerHead {
    bytes: usize,
    framing: AnswerFraming,
}

fn read_lane(lane: &mut Lane) -> io::Result<usize> {
    let begin = lane.buffer.len();
    lane.buffer.resize(begin + RELAY_BYTES, 0);
    let read = (&lane.stream).read(&mut lane.buffer[begin..]);
    lane.buffer
        .truncate(begin + read.as_ref().map_or(0, |read| *read));
    read
}

/// The head of a worker's answer, once it is there. What workers write is ours, and well-formed.
fn answer_head(answer: &[u8], to_head: bool) -> io::Result<Option<AnswerHead>> {
    let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut storage);
    let bytes = match response.parse(answer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(io::Error::other(error.to_string())),
    };
    let length = values(response.headers, "content-length").next();
    let length = length.and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
    let framing = match (length, response.code) {
        _ if to_head => AnswerFraming::Length(0),
        (_, Some(204 | 304)) => AnswerFraming::Length(0),
        (Some(length), _) => AnswerFraming::Length(length),
        (None, _)
            if values(response.headers, "transfer-encoding")
                .next()
                .is_some() =>
        {
            AnswerFraming::Chunked
        }
        (None, _) => AnswerFraming::LaneEnd,
    };
    Ok(Some(AnswerHead { bytes, framing }))
}

fn advance(chunked: &mut Chunked, bytes: &[u8]) -> io::Result<()> {
    match chunked.read(bytes, |_| Ok(())) {
        Ok(_) => Ok(()),
        Err(refusal) => Err(io::Error::other(refusal.detail)),
    }
}

/// The width of a lane's id in the edge's header, which is written before the lane is known.
const LANE_DIGITS: usize = 20;

/// Where that id stands.
fn lane_id_at(outgoing: &[u8]) -> usize {
    let line = outgoing.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    line + 1 + EDGE_HEADER.len() + 2
}

fn set_lane_id(outgoing: &mut [u8], id: usize) {
    let at = lane_id_at(outgoing);
    let _ = write!(&mut outgoing[at..at + LANE_DIGITS], "{id:0LANE_DIGITS$}");
}

/// Writes the head as tiny_http is to read it: in HTTP/1.1, without what concerns this
/// connection alone, and with the edge's own header before all others.
fn begin_lane_request(outgoing: &mut Vec<u8>, head: &Head<'_, '_>, edge_words: &str) {
    outgoing.clear();
    let _ = write!(
        outgoing,
        "{} {} HTTP/1.1\r\n{EDGE_HEADER}: {:0LANE_DIGITS$} {edge_words}\r\n",
        head.method, head.target, 0
    );
    for header in head.headers {
        if is_of_this_connection(header.name, head) || is_of_the_edge(header.name) {
            continue;
        }
        if header.value.is_ascii() {
            outgoing.extend_from_slice(header.name.as_bytes());
            outgoing.extend_from_slice(b": ");
            outgoing.extend_from_slice(header.value);
        } else {
            encode_octets(outgoing, header.name, header.value);
        }
        outgoing.extend_from_slice(b"\r\n");
    }
}

fn end_lane_request(outgoing: &mut Vec<u8>, length: Option<usize>, body: &[u8]) {
    if let Some(length) = length {
        let _ = write!(outgoing, "content-length: {length}\r\n");
    }
    outgoing.extend_from_slice(b"\r\n");
    outgoing.extend_from_slice(body);
}

/// Framing, which the lane has its own, and what the client's `Connection` lists.
fn is_of_this_connection(name: &str, head: &Head<'_, '_>) -> bool {
    const OWN: [&str; 5] = [
        "connection",
        "content-length",
        "transfer-encoding",
        "expect",
        "keep-alive",
    ];
    OWN.iter().any(|own| name.eq_ignore_ascii_case(own))
        || values(head.headers, "connection")
            .flat_map(tokens)
            .any(|token| {
                token.eq_ignore_ascii_case(name.as_bytes()) && !name.eq_ignore_ascii_case("host")
            })
}
