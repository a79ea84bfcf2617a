use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::http::limits::Limits;
use crate::http::message::request::Request;
use crate::http::message::response::{Body, HandlerResult, Response, Stream};
use crate::http::service::bulkhead::{Answers, Batch, Bulkhead, Handler, Lease, Route};
use crate::http::service::router::Verb;
use crate::shutdown::{self, ShutdownTrigger};

fn ok(body: &str) -> Response<'static> {
    Response::new(200, Body::Bytes(body.as_bytes().to_vec()))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn good<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    Ok(ok("good"))
}

fn panics<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    panic!("as the test wants it")
}

fn batch_panics(_: &mut (), _: &[Request]) -> Answers {
    panic!("as the test wants it")
}

fn batch_forgets(_: &mut (), _: &[Request]) -> Answers {
    Vec::new()
}

fn owned_panics(_: Lease<()>, _: Request) {
    panic!("as the test wants it")
}

/// What goes on with the socket panics.
fn watched_panics(lease: Lease<()>, request: Request) {
    let address: SocketAddr = std::str::from_utf8(&request.body)
        .expect("text")
        .parse()
        .expect("an address");
    let socket = connect(address).expect("a socket");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let then = move |_| {
        let _held = (lease, request);
        panic!("as the test wants it")
    };
    watch(socket, Interest::Write, deadline, then).expect("a place");
}

fn stream(good_pieces: usize) -> Response<'static> {
    let mut made = 0;
    let fill = move |piece: &mut Vec<u8>| {
        assert!(made < good_pieces, "as the test wants it");
        made += 1;
        piece.resize(40_000, b'x');
        Ok(())
    };
    let stream = Stream {
        length: None,
        fill: Box::new(fill),
    };
    Response::new(200, Body::Stream(stream))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn first_piece_panics<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    Ok(stream(0))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn third_piece_panics<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    Ok(stream(2))
}

const ROUTES: &[Route<()>] = &[
    (Verb::Get, "/good", Handler::One(good)),
    (Verb::Get, "/one", Handler::One(panics)),
    (Verb::Get, "/batch", Handler::Batch(&BATCH_PANICS)),
    (Verb::Get, "/forgotten", Handler::Batch(&BATCH_FORGETS)),
    (Verb::Get, "/owned", Handler::Owned(owned_panics)),
    (Verb::Get, "/watched", Handler::Owned(watched_panics)),
    (Verb::Get, "/first-piece", Handler::One(first_piece_panics)),
    (Verb::Get, "/third-piece", Handler::One(third_piece_panics)),
];

const BATCH_PANICS: Batch<()> = Batch {
    slots: 1,
    requests_max: 4,
    filter: |_| true,
    answer: batch_panics,
    one: good,
};

const BATCH_FORGETS: Batch<()> = Batch {
    answer: batch_forgets,
    ..BATCH_PANICS
};

/// A server whose only slot each request needs.
struct RunningServer {
    server: Option<Server>,
    trigger: Option<ShutdownTrigger>,
    metrics: Metrics,
}

impl RunningServer {
    fn start(limits: Limits) -> Self {
        let (trigger, shutdown) = shutdown::channel();
        let metrics = Metrics::new();
        let config = HttpConfig {
            limits,
            ..HttpConfig::on_loopback(1)
        };
        let bulkhead = Bulkhead::new("", 1, ROUTES, &config.limits, || ());
        let bulkheads: Vec<Arc<dyn AnyBulkhead>> = vec![Arc::new(bulkhead)];
        let server = Server::start(&config, bulkheads, || Vec::new, &metrics, &shutdown);
        let server = Some(server.expect("a server"));
        Self {
            server,
            trigger: Some(trigger),
            metrics,
        }
    }

    fn connect(&self) -> TcpStream {
        let address = self.server.as_ref().expect("it runs").address();
        let stream = TcpStream::connect(address).expect("a connection");
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).expect("a socket option");
        stream
    }

    /// All that comes as the answer to that path; None where it is cut off.
    fn ask(&self, path: &str, body: &str) -> Option<String> {
        let mut stream = self.connect();
        let length = body.len();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| answer)
    }

    fn stop(&mut self) {
        drop(self.trigger.take());
        if let Some(server) = self.server.take() {
            server.join();
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn whatever_panics_its_client_hears_so_and_the_slot_serves_the_next() {
    let running = RunningServer::start(Limits::default());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let behind = listener.local_addr().expect("an address").to_string();

    for path in [
        "/one",
        "/batch",
        "/forgotten",
        "/owned",
        "/watched",
        "/first-piece",
    ] {
        for _ in 0..3 {
            let answer = running.ask(path, &behind).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 500 "), "{path}: {answer}");
        }
        let next = running.ask("/good", "").expect("an answer");
        assert!(next.ends_with("good"), "{path}: {next}");
    }
    let cut = running.ask("/third-piece", "");
    assert!(cut.is_none_or(|answer| !answer.ends_with("\r\n0\r\n\r\n")));
    assert!(
        running
            .ask("/good", "")
            .is_some_and(|answer| answer.ends_with("good"))
    );
    // A client sees the end of its connection before the server has put it away.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while running.metrics.connections.get() != 0 {
        assert!(std::time::Instant::now() < deadline, "one is left");
        std::thread::yield_now();
    }
    let labels = ["/third-piece", "GET", "200"];
    let truncated = running.metrics.http_requests.with_label_values(&labels);
    assert_eq!(truncated.get(), 1, "it is logged and counted");
}

#[test]
fn a_connection_in_any_state_ends_with_the_server_and_what_was_asked_is_answered() {
    let mut running = RunningServer::start(Limits::default());
    let idle_since_an_answer = {
        let mut stream = running.connect();
        stream
            .write_all(b"GET /good HTTP/1.1\r\nHost: h\r\n\r\n")
            .expect("it reads");
        stream.read_exact(&mut [0]).expect("an answer");
        stream
    };
    let mut others = vec![running.connect(), idle_since_an_answer];
    for begin in [
        "GET /go",
        "GET /good HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab",
    ] {
        let mut stream = running.connect();
        stream.write_all(begin.as_bytes()).expect("it reads");
        others.push(stream);
    }
    let mut asked = running.connect();
    let mut late = running.connect();
    late.write_all(b"GET /good HTTP/1.1\r\nHo")
        .expect("it reads");

    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| running.stop());
        asked
            .write_all(b"GET /good HTTP/1.1\r\nHost: h\r\n\r\n")
            .expect("it reads");
        late.write_all(b"st: h\r\n\r\n").expect("it reads");
        for mut stream in [asked, late] {
            let mut answer = String::new();
            stream
                .read_to_string(&mut answer)
                .expect("an answer, and an end");
            assert!(answer.contains("200 OK"), "{answer}");
        }
        stopping.join().expect("it ends");
    });

    for mut stream in others {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(running.metrics.connections.get(), 0);
}
