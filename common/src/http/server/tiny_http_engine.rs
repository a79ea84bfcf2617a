//! The other engine: a pool of workers on `tiny_http`, which reads what clients send. It is for
//! networks where nobody is a stranger: one request can end its process.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tiny_http::{Header, StatusCode};

use super::config::HttpConfig;
use super::core::with_date;
use crate::http::message::head::Head;
use crate::http::message::problem::Problem;
use crate::http::message::request::{Request, Respond, Slot};
use crate::http::message::request_id::request_id;
use crate::http::message::response::{Body, HandlerResult, Response};
use crate::http::service::access_log::{self, Outcome};
use crate::http::service::router::Router;
use crate::http::sync::now;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How often a worker looks up from `recv`.
const ROUND: Duration = Duration::from_millis(50);

pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    server: tiny_http::Server,
    router: Router,
    metrics: Metrics,
    body_bytes_max: usize,
}

impl Engine {
    pub(crate) fn start(
        config: &HttpConfig,
        router: Router,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> io::Result<Self> {
        if config.tls.is_some() {
            return Err(io::Error::other("tiny_http is built without TLS"));
        }
        let listener = TcpListener::bind(config.address)?;
        let address = listener.local_addr()?;
        let workers = router.slots() + 1;
        let shared = Arc::new(Shared {
            server: tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?,
            router,
            metrics: metrics.clone(),
            body_bytes_max: config.limits.framing.body_bytes,
        });
        let spawn = |_| {
            let (shared, shutdown) = (Arc::clone(&shared), shutdown.clone());
            thread::Builder::new().spawn(move || shared.work(&shutdown))
        };
        let workers = (0..workers).map(spawn).collect::<io::Result<Vec<_>>>()?;
        log::info!(address = address.to_string().as_str(), workers = workers.len(); "listening");
        Ok(Self { address, workers })
    }

    pub(crate) fn join(self) {
        self.workers
            .into_iter()
            .for_each(|worker| drop(worker.join()));
    }
}

impl Shared {
    fn work(self: &Arc<Self>, shutdown: &Shutdown) {
        while let Ok(received) = self.server.recv_timeout(ROUND) {
            match received {
                Some(from) => self.take(from),
                None if shutdown.is_requested() => return,
                None => self.router.sweep(now()),
            }
            crate::log::flush();
        }
    }

    fn take(self: &Arc<Self>, mut from: tiny_http::Request) {
        let client = from
            .remote_addr()
            .map_or(Ipv4Addr::LOCALHOST.into(), SocketAddr::ip);
        let given = from
            .headers()
            .iter()
            .find(|header| header.field.equiv("x-request-id"));
        let (method, client) = (from.method().as_str(), IpAddr::to_canonical(&client));
        let mut head = Head::new(method, from.url(), client, false, now());
        head.request_id = request_id(given.map(|header| header.value.as_str().as_bytes()));
        for Header { field, value } in from.headers() {
            head.headers
                .push(field.as_str().as_str(), value.as_str().as_bytes());
        }
        let decided = self.router.admit(&mut head).transpose();
        let (mut body, limit) = (Vec::new(), self.body_bytes_max);
        let read = from
            .as_reader()
            .take(limit as u64 + 1)
            .read_to_end(&mut body);
        let head = Arc::new(head);
        let responder = Box::new(Responder {
            from,
            shared: Arc::clone(self),
        });
        let answer = match (decided, read) {
            (None, Ok(bytes)) if bytes <= limit => {
                return self.router.submit(Request::new(head, body, responder));
            }
            (Some(decided), _) => decided,
            (None, Ok(_)) => Err(Problem::content_too_large(limit)),
            (None, Err(_)) => Err(Problem::bad_request("the body cannot be read")),
        };
        responder.respond(&head, answer, None);
    }
}

struct Responder {
    from: tiny_http::Request,
    shared: Arc<Shared>,
}

impl Respond for Responder {
    fn begin(&self) -> bool {
        true
    }

    fn respond(self: Box<Self>, head: &Head, result: HandlerResult<'_>, _: Option<&dyn Slot>) {
        let cause = result
            .as_ref()
            .err()
            .and_then(|problem| problem.cause.clone());
        let response = result.unwrap_or_else(|p| Response::of_problem(p, &head.request_id));
        let mut outcome = Outcome {
            status: response.status,
            truncated: false,
            cause,
        };
        if let Err(error) = send(self.from, response, &head.request_id) {
            outcome.truncate(format!("the client went away: {error}"));
        }
        access_log::tell(&self.shared.metrics, head, &outcome, now());
    }
}

fn send(from: tiny_http::Request, response: Response<'_>, request_id: &str) -> io::Result<()> {
    let mut lines = Vec::new();
    with_date(|date| response.write_head(&mut lines, request_id, false, date));
    let header = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Header::from_bytes(&line[..colon], line[colon + 1..].trim_ascii()).ok()
    };
    let headers = lines
        .split(|byte| *byte == b'\n')
        .skip(1)
        .filter_map(header)
        .collect();
    let (content, length): (Box<dyn Read>, _) = match response.body {
        Body::Empty => (Box::new(io::empty()), Some(0)),
        Body::Bytes(bytes) => (Box::new(io::Cursor::new(bytes.clone())), Some(bytes.len())),
        Body::Stream(mut stream) => {
            let length = stream
                .length
                .and_then(|length| usize::try_from(length).ok());
            let piece = move |piece: &mut Vec<u8>| {
                (stream.fill)(piece).map_err(|problem| io::Error::other(problem.detail))
            };
            (Box::new(Pieces(piece, io::Cursor::default())), length)
        }
    };
    let status = StatusCode(response.status);
    from.respond(tiny_http::Response::new(
        status, headers, content, length, None,
    ))
}

/// What makes the pieces of a stream, and the one at hand.
struct Pieces<F>(F, io::Cursor<Vec<u8>>);

impl<F: FnMut(&mut Vec<u8>) -> io::Result<()>> Read for Pieces<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.1.read(buffer)? {
            0 => {
                let mut piece = Vec::new();
                (self.0)(&mut piece)?;
                self.1 = io::Cursor::new(piece);
                self.1.read(buffer)
            }
            bytes => Ok(bytes),
        }
    }
}
