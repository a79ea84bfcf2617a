//! One client's connection: reads whole requests and has each answered, here or by a worker.
//! Everything that a client can draw out has a deadline here.

use std::cell::OnceCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::client::Client;
use super::feed::Call;
use super::framing::{
    BodyFraming, Chunked, HEADERS_MAX, Head, HeadScan, append_body, header_storage, parse_head,
    tokens, values,
};
use super::memory::Share;
use super::{Edge, Refusal};
use crate::http::exchange::{Asked, Exchange, request_id};
use crate::http::operations;
use crate::http::problem::Problem;
use crate::http::request::{Method, Request};
use crate::http::response::Terms;

/// How much is read at once; of large bodies, more.
const READ_BYTES: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 32 * 1024;

/// After a refusal the client's bytes are read on for so long and so far: were they left
/// unread, closing would reset the connection and take the answer with it.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 * 1024 * 1024;

/// With no more than so many connections their threads do the work themselves, which spares a
/// change of threads. More would not be quicker, and each takes memory for a stack that was used
/// down to its handlers.
const WORKING_CONNECTIONS_MAX: i64 = 64;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Serves a client until the connection ends.
pub(super) fn serve(client: &Arc<Client>) {
    let mut connection = Connection {
        edge: &client.edge,
        client,
        input: Vec::new(),
        share: client.edge.memory.share(),
        read_limit: None,
        read_until: Instant::now(),
    };
    let lingers = connection.run();
    // After an answer that broke off, dropping the connection resets it.
    if client.wait_for_turn() {
        client.wire.close();
        if lingers {
            connection.linger();
        }
        client.wire.cut();
    }
}

struct Connection<'c> {
    edge: &'c Edge,
    client: &'c Arc<Client>,
    /// What was read and not yet used: a request, and perhaps the begin of the next.
    input: Vec<u8>,
    /// The memory of the request that is being read.
    share: Share,
    /// What the socket is set to, so that it is set only when it changes.
    read_limit: Option<Duration>,
    /// When the reads at hand end, where the socket's own limit is not enough.
    read_until: Instant,
}

/// A request that has arrived whole.
struct Arrived {
    request: Request,
    asked: Arc<Asked>,
    http_10: bool,
    keep_alive: bool,
}

/// Why a connection ends.
enum End {
    /// The client left, or said nothing for long: nobody to answer.
    Silent,
    /// An answer, and then the end.
    Refused(Option<Arc<Asked>>, Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(None, refusal)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        log::debug!(cause = error.to_string().as_str(); "a connection ended");
        Self::Silent
    }
}

impl Connection<'_> {
    /// One request after another; true where the client may still be sending.
    fn run(&mut self) -> bool {
        loop {
            let arrived = self.next_request();
            // Answers go out in the order of their requests.
            if !self.client.wait_for_turn() {
                return false;
            }
            match arrived {
                Ok(arrived) => {
                    let keep_alive = arrived.keep_alive;
                    self.pass_on(arrived);
                    if !keep_alive {
                        return true;
                    }
                }
                Err(End::Silent) => return false,
                Err(End::Refused(asked, refusal)) => {
                    self.refuse(asked, refusal);
                    return true;
                }
            }
        }
    }

    fn next_request(&mut self) -> Result<Arrived, End> {
        let limits = self.edge.limits.framing();
        self.wait_for_first_byte()?;
        let started = Instant::now();
        let head_deadline = started + self.edge.limits.head_time;
        let mut scan = HeadScan::default();
        let head_bytes = loop {
            if let Some(end) = scan.scan(&self.input, &limits)? {
                break end;
            }
            self.reserve(self.input.len())?;
            self.read_before(head_deadline, "the request line and headers take too long")?;
        };
        let mut storage = header_storage();
        let head = match parse_head(&self.input[..head_bytes], &mut storage, &limits) {
            Ok(head) => head,
            Err(refusal) => {
                let asked = self.asked_of_refused(&self.input[..head_bytes], started);
                return Err(End::Refused(Some(Arc::new(asked)), refusal));
            }
        };
        let (framing, expects_continue) = (head.framing, head.expects_continue);
        let (http_10, keep_alive) = (head.http_10, head.keep_alive);
        let mut request = self.request(&head);
        let mut asked = Asked::of(&request, started);
        let body = match framing {
            BodyFraming::None => {
                self.input.drain(..head_bytes);
                Ok(None)
            }
            BodyFraming::Length(length) => self
                .read_length(head_bytes, length, expects_continue)
                .map(Some),
            BodyFraming::Chunked => self.read_chunked(head_bytes, expects_continue),
        };
        match body {
            Ok(None) => {}
            Ok(Some(body)) => {
                let length = body.len().to_string();
                request.headers.push(("content-length".to_owned(), length));
                request.body = body;
            }
            Err(End::Refused(_, refusal)) => {
                return Err(End::Refused(Some(Arc::new(asked)), refusal));
            }
            Err(End::Silent) => return Err(End::Silent),
        }
        asked.arrived = Instant::now();
        Ok(Arrived {
            request,
            asked: Arc::new(asked),
            http_10,
            keep_alive: keep_alive && !self.edge.shutdown.is_requested(),
        })
    }

    /// The request as handlers see it, but for its body.
    fn request(&self, head: &Head<'_, '_>) -> Request {
        let given = head.header("x-request-id");
        let listed: Vec<_> = values(head.headers, "connection")
            .flat_map(tokens)
            .collect();
        let headers = head.headers.iter();
        Request {
            method: Method::new(head.method),
            target: head.target.to_owned(),
            headers: headers
                .filter(|header| !is_of_this_connection(header.name, &listed))
                .map(|header| (header.name.to_owned(), latin_1(header.value)))
                .collect(),
            body: Vec::new(),
            request_id: request_id(given.and_then(|id| std::str::from_utf8(id).ok())),
            client: self.client.address.ip(),
            secure: self.client.wire.is_secure(),
            caller: OnceCell::new(),
            params: Vec::new(),
        }
    }

    /// What can be read of a head that is refused: enough for the answer and the log. Its frame
    /// is apart from the others', which stay small: a thread's stack is touched as far as its
    /// largest frame reaches, and most connections never come here.
    #[cold]
    #[inline(never)]
    fn asked_of_refused(&self, head: &[u8], started: Instant) -> Asked {
        let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut storage);
        let complete = request.parse(head).is_ok();
        let given = values(request.headers, "x-request-id")
            .next()
            .filter(|_| complete);
        Asked {
            request_id: request_id(given.and_then(|id| std::str::from_utf8(id).ok())),
            client: self.client.address.ip(),
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            arrived: started,
        }
    }

    /// Waits for a request to begin; the empty lines before it are passed over (RFC 9112 §2.2).
    fn wait_for_first_byte(&mut self) -> Result<(), End> {
        let begun = Instant::now();
        let idle_time = self.edge.limits.idle_time;
        // The whole time at first, and not what is left of it: setting it is a system call.
        let mut limit = idle_time;
        loop {
            let lines = self.input.chunks(2).take_while(|line| *line == b"\r\n");
            let empty_lines = 2 * lines.count();
            self.input.drain(..empty_lines);
            if !self.input.is_empty() && self.input != b"\r" {
                return Ok(());
            }
            self.client.expecting.store(true, Ordering::Relaxed);
            let read = self.read_within(limit);
            self.client.expecting.store(false, Ordering::Relaxed);
            match read {
                Ok(0) => return Err(End::Silent),
                Err(error) if !is_timeout(&error) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
            // While its last request is answered, a client need say nothing.
            let since = self.client.idle_since().unwrap_or_else(Instant::now);
            limit = idle_time.saturating_sub(since.max(begun).elapsed());
            if limit.is_zero() {
                return Err(End::Silent);
            }
        }
    }

    fn read_length(
        &mut self,
        head_bytes: usize,
        length: usize,
        expects_continue: bool,
    ) -> Result<Vec<u8>, End> {
        let deadline = Instant::now() + self.edge.limits.body_time;
        let end = head_bytes + length;
        if expects_continue && self.input.len() < end {
            self.send_continue()?;
        }
        while self.input.len() < end {
            // What has arrived counts, not what was announced: announcing costs a client nothing.
            self.reserve(self.input.len())?;
            self.read_before(deadline, "the body takes too long")?;
        }
        let next = self.input.split_off(end);
        let mut body = std::mem::replace(&mut self.input, next);
        body.drain(..head_bytes);
        Ok(body)
    }

    /// None where there is no content: it is passed on as if there had been no body.
    fn read_chunked(
        &mut self,
        head_bytes: usize,
        expects_continue: bool,
    ) -> Result<Option<Vec<u8>>, End> {
        let deadline = Instant::now() + self.edge.limits.body_time;
        let limits = self.edge.limits.framing();
        let mut chunked = Chunked::default();
        let mut body = Vec::new();
        if expects_continue && self.input.len() == head_bytes {
            self.send_continue()?;
        }
        self.input.drain(..head_bytes);
        loop {
            let used = chunked.read(&self.input, |piece| append_body(&mut body, piece, &limits))?;
            self.input.drain(..used);
            if chunked.is_done() {
                return Ok(Some(body).filter(|body| !body.is_empty()));
            }
            self.reserve(body.len())?;
            self.read_before(deadline, "the body takes too long")?;
        }
    }

    fn send_continue(&mut self) -> Result<(), End> {
        // Behind the answer to the request before.
        if !self.client.wait_for_turn() {
            return Err(End::Silent);
        }
        // A client that has no room for so little has not taken its answers, and asks for more.
        let sent = self.client.wire.write_some(CONTINUE)?;
        if sent == CONTINUE.len() {
            Ok(())
        } else {
            Err(End::Silent)
        }
    }

    /// Reads what has arrived; `problem` is what a client hears that lets the deadline pass.
    fn read_before(&mut self, deadline: Instant, problem: &'static str) -> Result<(), End> {
        let late = || Refusal::new(408, problem);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late().into());
        }
        match self.read_within(left) {
            Ok(0) => Err(End::Silent),
            Ok(_) => Ok(()),
            Err(error) if is_timeout(&error) => Err(late().into()),
            Err(error) => Err(error.into()),
        }
    }

    fn read_within(&mut self, limit: Duration) -> io::Result<usize> {
        self.set_read_limit(limit)?;
        let begin = self.input.len();
        let room = begin.clamp(READ_BYTES, READ_BYTES_MAX);
        self.input.resize(begin + room, 0);
        let read = loop {
            let read = self
                .client
                .wire
                .read(&mut self.input[begin..], self.read_until);
            match read {
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
        if self.client.wire.is_secure() {
            self.read_until = Instant::now() + limit;
        } else if self.read_limit != Some(limit) {
            self.client.wire.tcp().set_read_timeout(Some(limit))?;
            self.read_limit = Some(limit);
        }
        Ok(())
    }

    /// Asks for memory beyond the allowance: what all connections hold together has a bound.
    fn reserve(&mut self, bytes: usize) -> Result<(), Refusal> {
        if self.share.grow(bytes) {
            Ok(())
        } else {
            Err(Refusal::new(
                503,
                "too many large requests at the same time; try again",
            ))
        }
    }

    /// To the hall that the path belongs to.
    fn pass_on(&mut self, arrived: Arrived) {
        let Arrived {
            request,
            asked,
            http_10,
            keep_alive,
        } = arrived;
        let terms = Terms {
            http_10,
            close: !keep_alive,
            https: self.edge.tls.is_some(),
        };
        let exchange = self.exchange(asked, terms);
        if self.input.is_empty() {
            self.input.shrink_to(READ_BYTES);
        }
        let path = request.path();
        if let Some(result) = operations::answer(self.edge, &request) {
            return exchange.answer(result);
        }
        let Some(hall) = self.edge.halls.iter().find(|hall| hall.takes(path)) else {
            return exchange.answer(Err(Problem::internal("no hall takes this path")));
        };
        let here = self.edge.metrics.connections.get() <= WORKING_CONNECTIONS_MAX;
        if let Err(call) = hall.submit(Box::new(Call { request, exchange }), here) {
            let problem = Problem::overloaded("as many requests wait as may wait");
            call.exchange.answer(Err(problem));
        }
    }

    fn refuse(&mut self, asked: Option<Arc<Asked>>, refusal: Refusal) {
        self.edge
            .metrics
            .refused_requests
            .with_label_values(&[&refusal.status.to_string()])
            .inc();
        let asked = asked.unwrap_or_else(|| Arc::new(self.asked_of_refused(b"", Instant::now())));
        let terms = Terms {
            http_10: false,
            close: true,
            https: self.edge.tls.is_some(),
        };
        let exchange = self.exchange(asked, terms);
        exchange.answer(Err(Problem::refused(refusal)));
    }

    /// Begins the answer to a request; its memory goes with it.
    fn exchange(&mut self, asked: Arc<Asked>, terms: Terms) -> Exchange {
        let share = std::mem::replace(&mut self.share, self.edge.memory.share());
        Exchange::new(asked, self.client.outlet(), terms, share)
    }

    /// Lets the client read its last answer before the connection goes.
    fn linger(&mut self) {
        let deadline = Instant::now() + LINGER_TIME;
        let mut discarded = 0;
        while discarded < LINGER_BYTES {
            let left = deadline.saturating_duration_since(Instant::now());
            self.input.clear();
            if left.is_zero() {
                return;
            }
            match self.read_within(left) {
                Ok(read @ 1..) => discarded += read,
                _ => return,
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// One character for each octet; nearly all values are ASCII.
fn latin_1(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if text.is_ascii() => text.to_owned(),
        _ => value.iter().copied().map(char::from).collect(),
    }
}

/// Framing, which the edge has read, and what the client's `Connection` lists.
fn is_of_this_connection(name: &str, listed: &[&[u8]]) -> bool {
    const OWN: [&str; 5] = [
        "connection",
        "content-length",
        "transfer-encoding",
        "expect",
        "keep-alive",
    ];
    OWN.iter().any(|own| name.eq_ignore_ascii_case(own))
        || listed.iter().any(|token| {
            token.eq_ignore_ascii_case(name.as_bytes()) && !name.eq_ignore_ascii_case("host")
        })
}
