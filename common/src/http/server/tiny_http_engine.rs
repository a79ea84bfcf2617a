//! The other engine: a pool of workers on `tiny_http`, which reads what clients send. It is for
//! networks where nobody is a stranger: one request can end its process.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tiny_http::{Header, StatusCode};

use super::config::HttpConfig;
use crate::http::message::head::Head;
use crate::http::message::problem::Problem;
use crate::http::message::request::{Request, Respond, StreamSlot};
use crate::http::message::request_id::request_id;
use crate::http::message::response::{Body, BodySource, HandlerResult, Response};
use crate::http::service::access_log::{self, Outcome};
use crate::http::service::router::Router;
use crate::http::sync::{date, now};
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How long a worker waits in `recv` before it checks whether the program ends.
const ROUND: Duration = Duration::from_millis(50);

struct Shared {
    server: tiny_http::Server,
    router: Router,
    metrics: Metrics,
    body_bytes_max: usize,
}

/// Starts a server; returns its address, and a function that waits for its end.
pub(crate) fn start(
    config: &HttpConfig,
    router: Router,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> io::Result<(SocketAddr, impl FnOnce() + Send + Sync + 'static)> {
    if config.tls.is_some() {
        return Err(io::Error::other("tiny_http is built without TLS"));
    }
    let listener = TcpListener::bind(config.address)?;
    let (address, workers) = (listener.local_addr()?, router.slots() + 1);
    let shared = Arc::new(Shared {
        server: tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?,
        router,
        metrics: metrics.clone(),
        body_bytes_max: config.limits.framing.body_bytes,
    });
    let spawn = |_| {
        let (shared, shutdown) = (Arc::clone(&shared), shutdown.clone());
        thread::Builder::new().spawn(move || work(&shared, &shutdown))
    };
    let threads = (0..workers).map(spawn).collect::<io::Result<Vec<_>>>()?;
    log::info!(address = address.to_string().as_str(), workers; "listening");
    let join = || drop(threads.into_iter().map(thread::JoinHandle::join).last());
    Ok((address, join))
}

fn work(shared: &Arc<Shared>, shutdown: &Shutdown) {
    while let Ok(received) = shared.server.recv_timeout(ROUND) {
        match received {
            Some(from) => take(shared, from),
            None if shutdown.is_requested() => return,
            None => shared.router.sweep(now()),
        }
        crate::log::flush();
    }
}

fn take(shared: &Arc<Shared>, mut from: tiny_http::Request) {
    let client = from.remote_addr().map(SocketAddr::ip);
    let client = client.map_or(Ipv4Addr::LOCALHOST.into(), |ip| ip.to_canonical());
    let mut head = Head::new(from.method().as_str(), from.url(), client, false, now());
    for Header { field, value } in from.headers() {
        let (name, value) = (field.as_str().as_str(), value.as_str().as_bytes());
        head.headers.push(name, value);
    }
    let framing = ["content-length", "transfer-encoding"];
    head.announces_body = framing.iter().any(|name| head.header(name).is_some());
    head.request_id = request_id(head.header("x-request-id").map(str::as_bytes));
    let decided = shared.router.admit(&mut head).transpose();
    let (mut body, limit) = (Vec::new(), shared.body_bytes_max);
    let mut reader = from.as_reader().take(limit as u64 + 1);
    let read = reader.read_to_end(&mut body);
    let (head, shared) = (Arc::new(head), Arc::clone(shared));
    let responder = Box::new(Responder {
        from,
        shared,
        head: Arc::clone(&head),
    });
    let decided = match (decided, read) {
        (None, Ok(bytes)) if bytes <= limit => {
            let shared = Arc::clone(&responder.shared);
            return shared.router.submit(Request::new(head, body, responder));
        }
        (Some(decided), _) => decided,
        (None, Ok(_)) => Err(Problem::content_too_large(limit)),
        (None, Err(_)) => Err(Problem::bad_request("the body cannot be read")),
    };
    responder.respond(decided, None);
}

struct Responder {
    from: tiny_http::Request,
    shared: Arc<Shared>,
    head: Arc<Head>,
}

impl Respond for Responder {
    fn begin(&self) -> bool {
        true
    }

    fn respond(self: Box<Self>, result: HandlerResult<'_>, _: Option<&dyn StreamSlot>) {
        let (response, mut outcome) = Outcome::of(result, Arc::clone(&self.head));
        if let Err(error) = send(self.from, response, &self.head.request_id) {
            outcome.truncate(format!("the client went away: {error}"));
        }
        access_log::record(&self.shared.metrics, &outcome, now());
    }
}

fn send(from: tiny_http::Request, response: Response<'_>, request_id: &str) -> io::Result<()> {
    let mut lines = Vec::new();
    response.write_head(&mut lines, request_id, false, &date());
    let lines = String::from_utf8_lossy(&lines);
    let headers = lines.lines().skip(1).filter_map(|line| line.parse().ok());
    let (length, first, fill): (_, _, BodySource<'_>) = match response.body {
        Body::Empty => (Some(0), Vec::new(), Box::new(|_| Ok(()))),
        Body::Bytes(bytes) => (Some(bytes.len() as u64), bytes, Box::new(|_| Ok(()))),
        Body::Stream(stream) => (stream.length, Vec::new(), stream.fill),
    };
    let length = length.and_then(|length| usize::try_from(length).ok());
    let (status, headers) = (StatusCode(response.status), headers.collect());
    let content = StreamReader(io::Cursor::new(first), fill);
    let answer = tiny_http::Response::new(status, headers, content, length, None);
    from.respond(answer)
}

/// The current piece of a stream, and what makes the next ones.
struct StreamReader<'a>(io::Cursor<Vec<u8>>, BodySource<'a>);

impl Read for StreamReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.position() == self.0.get_ref().len() as u64 {
            self.0 = io::Cursor::default();
            let made = (self.1)(self.0.get_mut());
            made.map_err(|problem| io::Error::other(problem.detail))?;
        }
        self.0.read(buffer)
    }
}
