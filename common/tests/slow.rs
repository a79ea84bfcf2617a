//! Clients that send slowly, and clients that do not read, delay no other client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::http::{
    AnyBulkhead, Body, Bulkhead, Handler, HandlerResult, HttpConfig, Limits, Request, Response,
    Route, Server, Stream, Verb,
};
use common::metrics::Metrics;
use common::shutdown::{self, ShutdownTrigger};
use socket2::{Domain, Socket, Type};

/// More bytes than the kernel keeps for a client that does not read.
const LONG_BYTES: usize = 14_000_000;

const ROUTES: &[Route<()>] = &[
    (Verb::Get, "/good", Handler::One(good)),
    (Verb::Get, "/long", Handler::One(long)),
    (Verb::Get, "/stream", Handler::One(stream)),
    (Verb::Get, "/lasting", Handler::One(lasting)),
    (Verb::Get, "/held", Handler::One(held)),
];

/// Half of them may wait for slow readers.
const SLOTS: usize = 4;

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn good<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    Ok(Response::new(200, Body::Bytes(b"good".to_vec())))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn long<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    Ok(Response::new(200, Body::Bytes(vec![b'x'; LONG_BYTES])))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn stream<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    let fill = |piece: &mut Vec<u8>| {
        piece.resize(40_000, b'x');
        Ok(())
    };
    let (length, fill) = (None, Box::new(fill));
    Ok(Response::new(200, Body::Stream(Stream { length, fill })))
}

/// Whether the answer of [`lasting`] has ended.
static IS_OVER: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// A stream of some pieces, whose end waits for [`IS_OVER`].
#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn lasting<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    struct Pieces(Range<usize>);
    impl Drop for Pieces {
        fn drop(&mut self) {
            let over = IS_OVER.0.lock().expect("nobody panics there");
            drop(IS_OVER.1.wait_while(over, |over| !*over));
        }
    }
    let mut pieces = Pieces(0..3);
    let fill = move |piece: &mut Vec<u8>| {
        if pieces.0.next().is_some() {
            piece.resize(40_000, b'x');
        }
        Ok(())
    };
    let (length, fill) = (None, Box::new(fill));
    Ok(Response::new(200, Body::Stream(Stream { length, fill })))
}

/// How many more requests [`held`] answers.
static PERMITS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn held<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    let permits = PERMITS.0.lock().expect("nobody panics there");
    let permits = PERMITS.1.wait_while(permits, |permits| *permits == 0);
    *permits.expect("nobody panics there") -= 1;
    Ok(Response::new(200, Body::Bytes(b"held".to_vec())))
}

fn permit(permits: usize) {
    *PERMITS.0.lock().expect("nobody panics there") += permits;
    PERMITS.1.notify_all();
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::yield_now();
    }
}

struct RunningServer {
    server: Option<Server>,
    trigger: Option<ShutdownTrigger>,
}

impl RunningServer {
    fn start(limits: Limits) -> Self {
        let (trigger, shutdown) = shutdown::channel();
        let config = HttpConfig {
            limits,
            ..HttpConfig::on_loopback(SLOTS)
        };
        let bulkhead = Bulkhead::new("", SLOTS, ROUTES, &config.limits, || ());
        let bulkheads: Vec<Arc<dyn AnyBulkhead>> = vec![Arc::new(bulkhead)];
        let server = Server::start(&config, bulkheads, || Vec::new, &Metrics::new(), &shutdown);
        Self {
            server: Some(server.expect("a server")),
            trigger: Some(trigger),
        }
    }

    /// A connection from 127.0.0.`last` with a small receive buffer.
    fn connect(&self, last: u8) -> TcpStream {
        let server = self.server.as_ref().expect("it runs").address();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a socket option");
        let own = SocketAddr::from(([127, 0, 0, last], 0));
        socket.bind(&own.into()).expect("an address");
        socket.connect(&server.into()).expect("a connection");
        let stream = TcpStream::from(socket);
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).expect("a socket option");
        stream
    }

    /// A client of that address that has sent a request for the path.
    fn asking(&self, last: u8, path: &str) -> TcpStream {
        let mut stream = self.connect(last);
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        stream
    }

    /// The answer to a client of that address.
    fn status(&self, last: u8, path: &str) -> Option<String> {
        let mut stream = self.asking(last, path);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.get(9..12).map(str::to_owned)
    }

    /// A client of that address that has read the begin of its answer; None if there was none.
    fn ask(&self, last: u8, path: &str) -> Option<TcpStream> {
        let mut stream = self.asking(last, path);
        stream.read_exact(&mut [0; 32]).ok().map(|()| stream)
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        drop(self.trigger.take());
        if let Some(server) = self.server.take() {
            server.join();
        }
    }
}

/// Whether the rest of the long answer arrives completely.
fn has_all(mut stream: TcpStream) -> bool {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).is_ok() && rest.len() > LONG_BYTES
}

#[test]
fn who_has_read_nothing_for_longest_makes_room_and_nobody_else() {
    // Half of the bytes is for answers, and half of that for one client: room for two long answers that wait.
    let mut limits = Limits::default();
    limits.buffer_bytes = 48_000_000;
    limits.send_time = Duration::from_mins(10);
    let running = RunningServer::start(limits);
    let first = running.ask(2, "/long").expect("there is room");
    let second = running.ask(3, "/long").expect("there is room");

    // The server cuts off no client that may just have begun to read.
    let too_early = running.ask(4, "/long").is_some_and(has_all);
    let begun = Instant::now();
    while !running.ask(4, "/long").is_some_and(has_all) {
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(30), "nobody has made room");
    }

    assert!(!too_early, "somebody was cut off at once");
    assert!(has_all(second), "the second has its answer");
    assert!(!has_all(first), "the first has made room");
}

#[test]
fn thousands_of_clients_that_send_a_byte_now_and_then_keep_nobody_waiting_and_are_told_so() {
    let head_time = Duration::from_secs(5);
    let mut limits = Limits::default();
    limits.head_time = head_time;
    let running = RunningServer::start(limits);
    let mut slow: Vec<TcpStream> = (0..2000).map(|_| running.connect(2)).collect();
    for stream in &mut slow {
        let begin = b"GET /good HTTP/1.1\r\nHost: h\r\nX-Slow: ";
        stream.write_all(begin).expect("it reads");
    }
    let begun = Instant::now();

    let mut writing: Vec<&mut TcpStream> = slow.iter_mut().collect();
    while !writing.is_empty() {
        assert!(begun.elapsed() < 10 * head_time, "they are still there");
        writing.retain_mut(|stream| stream.write_all(b"a").is_ok());
        let asked = Instant::now();
        let answer = running.ask(3, "/good");
        assert!(answer.is_some(), "somebody else was not answered");
        assert!(asked.elapsed() < head_time, "somebody else had to wait");
    }

    let told = slow.iter_mut().filter_map(|stream| {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).is_ok().then_some(answer)
    });
    let told: Vec<_> = told.collect();
    // A byte that arrives after the answer may reset the connection before the client has read the answer.
    assert!(!told.is_empty() && told.iter().all(|answer| answer == b"HTTP/1.1 408"));
}

#[test]
fn slow_readers_of_streams_give_their_slots_to_whoever_waits() {
    let mut limits = Limits::default();
    limits.buffer_bytes = 4_000_000;
    limits.send_time = Duration::from_mins(10);
    let running = RunningServer::start(limits);
    let readers = [(); SLOTS].map(|()| running.ask(2, "/stream").expect("a slot is free"));

    let statuses: Vec<_> = (0..10).map(|_| running.status(3, "/good")).collect();

    assert_eq!(statuses, vec![Some("200".to_owned()); 10]);
    drop(readers);
}

#[test]
fn requests_that_do_not_come_to_their_ends_make_room_at_the_cap() {
    let mut limits = Limits::default();
    limits.connections = 64;
    limits.head_time = Duration::from_mins(10);
    limits.body_time = Duration::from_mins(10);
    let running = RunningServer::start(limits);
    for begin in [
        "GET /good HTTP/1.1\r\nHo",
        "GET /good HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
    ] {
        let mut endless: Vec<TcpStream> = (0..200).map(|_| running.connect(2)).collect();
        for stream in &mut endless {
            let _ = stream.write_all(begin.as_bytes());
        }

        let begun = Instant::now();
        while running.status(3, "/good").as_deref() != Some("200") {
            let waited = begun.elapsed();
            assert!(waited < Duration::from_secs(30), "nobody made room");
        }
    }
}

#[test]
fn a_stream_whose_end_lasts_keeps_neither_its_connection_nor_its_client() {
    let running = RunningServer::start(Limits::default());

    let status = running.status(2, "/lasting");

    *IS_OVER.0.lock().expect("nobody panics there") = true;
    IS_OVER.1.notify_all();
    assert_eq!(status.as_deref(), Some("200"));
}

#[test]
fn whoever_fills_the_queue_of_a_bulkhead_waits_there_alone() {
    const QUEUE: usize = 8;
    let mut limits = Limits::default();
    limits.queue = QUEUE;
    limits.queue_time = Duration::from_mins(10);
    limits.answer_time = Duration::from_mins(10);
    let running = RunningServer::start(limits);
    let many: Vec<_> = (0..40).map(|_| running.asking(2, "/held")).collect();
    let answered = || {
        let is_answered = |stream: &&TcpStream| {
            stream.set_nonblocking(true).expect("a socket option");
            stream.peek(&mut [0]).is_ok()
        };
        many.iter().filter(is_answered).count()
    };
    let refused = many.len() - SLOTS - QUEUE;
    until("the queue is full", || answered() == refused);

    let mut other = running.asking(3, "/good");
    until("one gives its place to the other client", || {
        answered() == refused + 1
    });
    // The first request in the queue gets a slot, and the other client gets the next one.
    permit(2);
    let mut answer = [0; 12];
    other.read_exact(&mut answer).expect("an answer");
    let waiting = many.len() - answered();
    permit(1000);

    assert_eq!(&answer, b"HTTP/1.1 200");
    assert!(waiting >= SLOTS + QUEUE - 1 - 2, "{waiting} waited");
}
