//! Forwards a request to a service and passes its answer back. An exchange is a value: no thread waits for the
//! service, and a worker continues when its socket is ready. Only a long answer occupies a worker, from its
//! second piece on.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::http::{
    Body, Interest, Lease, Problem, Request, Socket, Stream, connect, wait_for, watch,
};
use rustix::time::{ClockId, clock_gettime};
use ureq_proto::BodyMode;
use ureq_proto::client::state::{RecvBody, RecvResponse};
use ureq_proto::client::{Call, RecvBodyResult, RecvResponseResult, SendRequestResult};

use crate::config::UpstreamLimits;
use crate::proxy::{
    answered_here, content_length, has_body, may_be_repeated, passed_back, passed_on,
};
use crate::upstreams::Upstreams;

/// A connection that was idle for longer is not used again.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// A shorter answer is passed back in one piece.
const PIECE_BYTES: usize = 32 * 1024;

/// The longest head of an answer or of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How many bytes one call reads.
const READ_BYTES: usize = 16 * 1024;

/// The state of a slot that forwards to services of one kind: an idle connection to each.
pub(crate) struct Forwarder {
    upstreams: Arc<Upstreams>,
    limits: UpstreamLimits,
    idle: Vec<IdleConnection>,
}

/// An idle connection, which the next request may use.
struct IdleConnection {
    address: SocketAddr,
    socket: Socket,
    /// Since when it is idle, by a clock that runs while the machine is suspended: a peer that closed the
    /// connection meanwhile may have sent nothing.
    since: Duration,
}

impl Forwarder {
    pub(crate) fn new(upstreams: &Arc<Upstreams>, limits: UpstreamLimits) -> Self {
        Self {
            upstreams: Arc::clone(upstreams),
            limits,
            idle: Vec::new(),
        }
    }

    /// Takes the idle connection to this address, if neither bytes nor its end have arrived on it: bytes that
    /// arrive without a request are not an answer.
    fn take(&mut self, address: SocketAddr) -> Option<Socket> {
        let index = self.idle.iter().position(|idle| idle.address == address)?;
        let idle = self.idle.swap_remove(index);
        let silent = || {
            let read = (&idle.socket).read(&mut [0]);
            read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        let fresh = since_boot().saturating_sub(idle.since) <= IDLE_LIMIT;
        (fresh && silent()).then_some(idle.socket)
    }
}

/// The time since the machine was booted, suspensions included.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
}

/// Passes the request on. The slot is free when the answer has been passed back.
pub(crate) fn forward(mut lease: Lease<Forwarder>, request: Request) {
    if let Some(answer) = answered_here(&request) {
        return request.respond(answer);
    }
    let address = lease.state().upstreams.choose();
    match Exchange::prepared(&request, address) {
        Ok((head, call)) => {
            let exchange = Exchange {
                request,
                address,
                is_reused: false,
                is_repeat: false,
                is_sent: false,
                stage: Stage::Connect,
                deadline: Instant::now(),
                last: Instant::now() + lease.state().limits.answer,
                head,
                sent: 0,
                call: Some(call),
                input: Vec::new(),
                lease,
            };
            exchange.begin();
        }
        Err(problem) => request.respond(Err(problem)),
    }
}

/// A request that is being forwarded.
struct Exchange {
    lease: Lease<Forwarder>,
    request: Request,
    address: SocketAddr,
    /// Whether the connection has carried another request before.
    is_reused: bool,
    is_repeat: bool,
    /// Whether a service may have received the request.
    is_sent: bool,
    stage: Stage,
    deadline: Instant,
    /// The deadline of the whole exchange.
    last: Instant,
    /// The bytes before the body.
    head: Vec<u8>,
    /// How many bytes of head and body are sent.
    sent: usize,
    call: Option<Call<RecvResponse>>,
    /// The bytes that have arrived and are not parsed yet.
    input: Vec<u8>,
}

enum Stage {
    Connect,
    Send,
    Receive,
    Body(Box<Answer>),
}

/// An answer whose head has arrived.
struct Answer {
    head: http::Response<()>,
    /// None after the end of the connection has ended the body.
    call: Option<Call<RecvBody>>,
    body: Vec<u8>,
}

/// Why an exchange failed.
enum Failure {
    /// No byte of the request can have reached the service.
    NeverSent(io::Error),
    /// The connection ended before any byte of an answer.
    Disconnected(io::Error),
    TimedOut(&'static str),
    /// The answer is malformed or truncated.
    InvalidAnswer(String),
}

/// The progress of an exchange.
enum Progress {
    Waits(Interest),
    /// A complete answer, and whether its connection can be used again.
    Whole(http::Response<()>, Body<'static>, bool),
    Long,
}

impl Exchange {
    /// The bytes before the body, and the state of the protocol after the request.
    fn prepared(
        request: &Request,
        address: SocketAddr,
    ) -> Result<(Vec<u8>, Call<RecvResponse>), Problem> {
        let cannot = |error: ureq_proto::Error| {
            Problem::bad_request(format!("the request cannot be passed on: {error}"))
        };
        let mut call = Call::new(passed_on(request, address)?).map_err(cannot)?;
        call.allow_non_standard_methods(true);
        if has_body(request) {
            call.force_send_body();
        }
        let mut call = call.proceed();
        let mut head = vec![0; 1024];
        let mut length = 0;
        while !call.can_proceed() {
            match call.write(&mut head[length..]) {
                Ok(written) => length += written,
                Err(ureq_proto::Error::OutputOverflow) if head.len() < HEAD_BYTES_MAX => {}
                Err(error) => return Err(cannot(error)),
            }
            if !call.can_proceed() {
                head.resize(2 * head.len(), 0);
            }
        }
        head.truncate(length);
        let call = match call.proceed().map_err(cannot)? {
            Some(SendRequestResult::RecvResponse(call)) => Some(call),
            Some(SendRequestResult::SendBody(mut call)) => {
                if call.is_chunked() {
                    // The last chunk of an empty body, which this method must have.
                    let mut end = [0; 16];
                    let (_, written) = call.write(&[], &mut end).map_err(cannot)?;
                    head.extend_from_slice(&end[..written]);
                } else {
                    call.consume_direct_write(request.body.len())
                        .map_err(cannot)?;
                }
                call.proceed()
            }
            _ => None,
        };
        let call = call.ok_or_else(|| Problem::internal("a request has no end"))?;
        Ok((head, call))
    }

    /// Sends the request over the idle connection, or over a new one.
    fn begin(mut self) {
        let address = self.address;
        let idle = self.lease.state().take(address);
        self.is_reused = idle.is_some();
        if let Some(socket) = idle {
            self.enter(Stage::Send);
            return self.go_on(socket);
        }
        self.enter(Stage::Connect);
        match connect(address) {
            Ok(socket) => self.wait(socket, Interest::Write),
            Err(error) => self.fail(Failure::NeverSent(error)),
        }
    }

    fn enter(&mut self, stage: Stage) {
        let limits = self.lease.state().limits;
        let limit = match &stage {
            Stage::Connect => limits.connect,
            Stage::Send => limits.send,
            Stage::Receive => limits.response,
            Stage::Body(_) => limits.pause,
        };
        self.allow(limit);
        self.stage = stage;
    }

    fn allow(&mut self, limit: Duration) {
        self.deadline = self.last.min(Instant::now() + limit);
    }

    fn wait(self, socket: Socket, interest: Interest) {
        let deadline = self.deadline;
        let watched = watch(socket, interest, deadline, move |socket| {
            self.go_on(socket);
        });
        if let Err(error) = watched {
            log::error!(cause = error.to_string().as_str(); "cannot wait for a service");
        }
    }

    /// Continues as far as it can without waiting. The lease is dropped when the exchange is over.
    fn go_on(mut self, socket: Socket) {
        match self.advance(&socket) {
            Ok(Progress::Waits(interest)) => self.wait(socket, interest),
            Ok(Progress::Whole(head, body, reusable)) => {
                if reusable {
                    self.keep(socket);
                }
                let Self { lease, request, .. } = self;
                lease.respond(request, Ok(passed_back(&head, body)));
            }
            Ok(Progress::Long) => self.pass_back(socket),
            Err(failure) => self.fail(failure),
        }
    }

    fn keep(&mut self, socket: Socket) {
        let (address, since) = (self.address, since_boot());
        self.lease.state().idle.push(IdleConnection {
            address,
            socket,
            since,
        });
    }

    fn advance(&mut self, socket: &Socket) -> Result<Progress, Failure> {
        if Instant::now() >= self.deadline {
            return Err(match self.stage {
                Stage::Connect => Failure::NeverSent(ErrorKind::TimedOut.into()),
                Stage::Send => Failure::TimedOut("it does not take the request"),
                Stage::Receive => Failure::TimedOut("it does not answer"),
                Stage::Body(_) => Failure::TimedOut("its answer stops"),
            });
        }
        if let Stage::Connect = self.stage {
            if let Some(error) = socket.take_error().unwrap_or_else(Some) {
                return Err(Failure::NeverSent(error));
            }
            self.enter(Stage::Send);
        }
        if let Stage::Send = self.stage {
            if !self.send(socket)? {
                return Ok(Progress::Waits(Interest::Write));
            }
            self.enter(Stage::Receive);
            // The answer has rarely arrived by now.
            return Ok(Progress::Waits(Interest::Read));
        }
        // One read for each event, so that a service that sends without a pause leaves the worker to others, and
        // the deadline is checked again.
        match receive(socket, &mut self.input) {
            Ok(0) => return self.end(),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Ok(Progress::Waits(Interest::Read));
            }
            Err(error) => return Err(self.disconnected(error)),
        }
        if let Stage::Body(_) = self.stage {
            let pause = self.lease.state().limits.pause;
            self.allow(pause);
        }
        let progress = self.understand()?;
        Ok(progress.unwrap_or(Progress::Waits(Interest::Read)))
    }

    /// Sends as much of head and body as the socket takes; true if all of it is sent.
    fn send(&mut self, mut socket: &Socket) -> Result<bool, Failure> {
        let body = if has_body(&self.request) {
            &self.request.body[..]
        } else {
            &[]
        };
        loop {
            let left = match self.head.get(self.sent..) {
                Some(left) if !left.is_empty() => left,
                _ => &body[self.sent - self.head.len()..],
            };
            if left.is_empty() {
                return Ok(true);
            }
            match socket.write(left) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(self.disconnected(error)),
            }
        }
    }

    fn disconnected(&self, error: io::Error) -> Failure {
        match &self.stage {
            Stage::Body(_) => Failure::InvalidAnswer(error.to_string()),
            _ if self.input.is_empty() => Failure::Disconnected(error),
            _ => Failure::InvalidAnswer(error.to_string()),
        }
    }

    /// Handles the end of the connection.
    fn end(&mut self) -> Result<Progress, Failure> {
        if let Stage::Body(answer) = &mut self.stage
            && answer.ends_with_the_connection()
        {
            let body = Body::Bytes(std::mem::take(&mut answer.body));
            let head = std::mem::take(&mut answer.head);
            return Ok(Progress::Whole(head, body, false));
        }
        Err(self.disconnected(ErrorKind::UnexpectedEof.into()))
    }

    /// Parses the bytes that have arrived; None if more are needed.
    fn understand(&mut self) -> Result<Option<Progress>, Failure> {
        while let Some(call) = &mut self.call {
            let (used, head) = call
                .try_response(&self.input, false)
                .map_err(|error| nonsense(&error))?;
            self.input.drain(..used);
            match head {
                Some(head) => {
                    if let Some(progress) = self.on_head(head)? {
                        return Ok(Some(progress));
                    }
                }
                // Another answer follows an interim answer.
                None if used > 0 => {}
                None if self.input.len() > HEAD_BYTES_MAX => {
                    return Err(Failure::InvalidAnswer("its head is too long".to_owned()));
                }
                None => return Ok(None),
            }
        }
        let Stage::Body(answer) = &mut self.stage else {
            return Ok(None);
        };
        answer.read(&mut self.input, PIECE_BYTES)?;
        if answer.is_ended() {
            let body = Body::Bytes(std::mem::take(&mut answer.body));
            let head = std::mem::take(&mut answer.head);
            let reusable = self.input.is_empty() && answer.may_be_followed();
            return Ok(Some(Progress::Whole(head, body, reusable)));
        }
        Ok((answer.body.len() >= PIECE_BYTES).then_some(Progress::Long))
    }

    fn on_head(&mut self, head: http::Response<()>) -> Result<Option<Progress>, Failure> {
        if head.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::InvalidAnswer(
                "it switches to a protocol that the request did not name".into(),
            ));
        }
        match self.call.take().and_then(Call::<RecvResponse>::proceed) {
            Some(RecvResponseResult::RecvBody(call)) => {
                let call = Some(call);
                self.enter(Stage::Body(Box::new(Answer {
                    head,
                    call,
                    body: Vec::new(),
                })));
                Ok(None)
            }
            Some(RecvResponseResult::Cleanup(call)) => {
                let reusable = self.input.is_empty() && !call.must_close_connection();
                Ok(Some(Progress::Whole(head, Body::Empty, reusable)))
            }
            Some(RecvResponseResult::Redirect(call)) => {
                let reusable = self.input.is_empty() && !call.proceed().must_close_connection();
                Ok(Some(Progress::Whole(head, Body::Empty, reusable)))
            }
            None => Err(Failure::InvalidAnswer("its answer has no end".to_owned())),
        }
    }

    /// Passes a long answer back while it arrives. This thread waits for the service and for the client.
    fn pass_back(mut self, socket: Socket) {
        let service = self.lease.state().upstreams.service();
        let is_unknown = !self.request.method.is_safe();
        let pause = self.lease.state().limits.pause;
        let Stage::Body(mut answer) = std::mem::replace(&mut self.stage, Stage::Receive) else {
            return;
        };
        let head = std::mem::take(&mut answer.head);
        let length = content_length(head.headers());
        let mut input = std::mem::take(&mut self.input);
        let fill = |buffer: &mut Vec<u8>| {
            let read = answer.next_piece(&socket, &mut input, pause);
            buffer.append(&mut answer.body);
            read.map_err(|failure| failure.into_problem(service, is_unknown))
        };
        let fill = Box::new(fill);
        let response = passed_back(&head, Body::Stream(Stream { length, fill }));
        let Self {
            mut lease,
            request,
            address,
            ..
        } = self;
        lease.respond(request, Ok(response));
        if answer.is_ended() && input.is_empty() && answer.may_be_followed() {
            lease.state().idle.push(IdleConnection {
                address,
                socket,
                since: since_boot(),
            });
        }
    }

    /// Tries again if that may help and can do no harm; otherwise answers the client. That a service has closed
    /// an idle connection may show only when the connection is used; for a service that is down there may be
    /// another one.
    fn fail(mut self, failure: Failure) {
        let upstreams = Arc::clone(&self.lease.state().upstreams);
        let disconnected = matches!(failure, Failure::Disconnected(_));
        self.is_sent |= !matches!(failure, Failure::NeverSent(_));
        if !disconnected || self.is_repeat {
            upstreams.mark_down(self.address);
        }
        let repeatable = !self.is_repeat
            && match &failure {
                Failure::NeverSent(_) => true,
                Failure::Disconnected(_) => may_be_repeated(&self.request, self.is_reused),
                _ => false,
            };
        let other = upstreams.choose_other(self.address);
        let next = other
            .or(disconnected.then_some(self.address))
            .filter(|_| repeatable);
        let prepared = next.map(|next| (next, Self::prepared(&self.request, next)));
        if let Some((next, Ok((head, call)))) = prepared {
            (self.address, self.head, self.call) = (next, head, Some(call));
            (self.sent, self.is_repeat) = (0, true);
            return self.begin();
        }
        let is_unknown = self.is_sent && !self.request.method.is_safe();
        let problem = failure.into_problem(upstreams.service(), is_unknown);
        self.request.respond(Err(problem));
    }
}

impl Answer {
    /// Reads the body from the bytes that have arrived, up to `bytes_max` bytes.
    fn read(&mut self, input: &mut Vec<u8>, bytes_max: usize) -> Result<(), Failure> {
        let Some(call) = &mut self.call else {
            return Ok(());
        };
        while self.body.len() < bytes_max {
            let filled = self.body.len();
            self.body.resize(filled + input.len().min(READ_BYTES), 0);
            let read = call.read(input, &mut self.body[filled..]);
            let (used, made) = read.map_err(|error| nonsense(&error))?;
            self.body.truncate(filled + made);
            input.drain(..used);
            if used == 0 && made == 0 {
                break;
            }
        }
        if self.body.len() < bytes_max && input.len() > HEAD_BYTES_MAX {
            // The line before a chunk, or after the last one, has no end.
            return Err(Failure::InvalidAnswer("its body is malformed".to_owned()));
        }
        Ok(())
    }

    /// Reads until there is a piece; a service that sends less within the pause does not keep the slot.
    fn next_piece(
        &mut self,
        socket: &Socket,
        input: &mut Vec<u8>,
        pause: Duration,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + pause;
        loop {
            self.read(input, READ_BYTES)?;
            if self.body.len() >= READ_BYTES || self.is_ended() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Failure::TimedOut("its answer stops"));
            }
            match receive(socket, input) {
                Ok(0) if self.ends_with_the_connection() => {
                    self.call = None;
                    return Ok(());
                }
                Ok(0) => {
                    return Err(Failure::InvalidAnswer(
                        "its answer ended before it was complete".to_owned(),
                    ));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if !wait_for(socket, Interest::Read, left) {
                        return Err(Failure::TimedOut("its answer stops"));
                    }
                }
                Err(error) => return Err(Failure::InvalidAnswer(error.to_string())),
            }
        }
    }

    fn ends_with_the_connection(&self) -> bool {
        let mode = self.call.as_ref().map(Call::<RecvBody>::body_mode);
        mode == Some(BodyMode::CloseDelimited)
    }

    /// Whether all of the body has arrived.
    fn is_ended(&self) -> bool {
        let ended = self.call.as_ref().is_none_or(Call::<RecvBody>::can_proceed);
        ended && !self.ends_with_the_connection()
    }

    /// Whether another request may follow on the connection.
    fn may_be_followed(&mut self) -> bool {
        match self.call.take().and_then(Call::<RecvBody>::proceed) {
            Some(RecvBodyResult::Cleanup(call)) => !call.must_close_connection(),
            Some(RecvBodyResult::Redirect(call)) => !call.proceed().must_close_connection(),
            None => false,
        }
    }
}

impl Failure {
    /// The answer to the client. `is_unknown` if the service may have carried out a request that changes something.
    fn into_problem(self, service: &str, is_unknown: bool) -> Problem {
        let (status, what, cause) = match self {
            Self::NeverSent(error) | Self::Disconnected(error) => {
                (502, "cannot be reached", error.to_string())
            }
            Self::InvalidAnswer(cause) => (502, "gave no valid answer", cause),
            Self::TimedOut(cause) => (504, "takes too long", cause.to_owned()),
        };
        let advice = if is_unknown {
            "whether the request was carried out is not known; look before you send it again"
        } else {
            "try again"
        };
        Problem::new(status, format!("{service} {what}; {advice}")).with_cause(cause)
    }
}

fn nonsense(error: &ureq_proto::Error) -> Failure {
    Failure::InvalidAnswer(error.to_string())
}

/// Reads the bytes that have arrived.
fn receive(mut socket: &Socket, input: &mut Vec<u8>) -> io::Result<usize> {
    let begin = input.len();
    input.resize(begin + READ_BYTES, 0);
    let read = socket.read(&mut input[begin..]);
    input.truncate(begin + *read.as_ref().unwrap_or(&0));
    read
}
