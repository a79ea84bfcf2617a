//! The other engine: a pool of workers on `tiny_http`, which reads what clients send. It is for
//! networks where nobody is a stranger: one request can end its process.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::HttpConfig;
use crate::http::message::head::{Head, Method, request_id};
use crate::http::message::problem::Problem;
use crate::http::message::request::{NoSlot, Request, Respond, Slot};
use crate::http::message::response::{Body, Fill, HandlerResult, Response};
use crate::http::service::access_log::{self, Outcome};
use crate::http::service::router::Router;
use crate::http::sync::now;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How often a worker looks up whether the program ends, and the log is written.
const ROUND: Duration = Duration::from_millis(50);

pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    server: tiny_http::Server,
    router: Router,
    metrics: Metrics,
    body_bytes_max: usize,
    shutdown: Shutdown,
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
        let listener = std::net::TcpListener::bind(config.address)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server: tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?,
            router,
            metrics: metrics.clone(),
            body_bytes_max: config.limits.body_bytes,
            shutdown: shutdown.clone(),
        });
        let workers = shared.router.slots() + 1;
        let spawn = |nth: usize| {
            let shared = Arc::clone(&shared);
            let work = move || {
                if nth < workers {
                    shared.work()
                } else {
                    shared.sweep()
                }
            };
            thread::Builder::new().name("worker".to_owned()).spawn(work)
        };
        let threads = (0..=workers).map(spawn).collect::<io::Result<_>>()?;
        log::info!(address = address.to_string().as_str(), workers = workers; "listening");
        Ok(Self { address, threads })
    }

    pub(crate) fn join(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(self: &Arc<Self>) {
        loop {
            match self.server.recv_timeout(ROUND) {
                Ok(Some(from)) => self.take(from),
                Ok(None) if self.shutdown.is_requested() => return,
                Ok(None) => {}
                Err(error) => {
                    log::error!(cause = error.to_string().as_str(); "cannot accept");
                    return;
                }
            }
        }
    }

    fn sweep(&self) {
        while !self.shutdown.wait_at_most(ROUND) {
            self.router
                .bulkheads
                .iter()
                .for_each(|bulkhead| bulkhead.sweep(now()));
            crate::log::flush();
        }
    }

    fn take(self: &Arc<Self>, mut from: tiny_http::Request) {
        let client = from
            .remote_addr()
            .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), SocketAddr::ip);
        let given = from
            .headers()
            .iter()
            .find(|header| header.field.equiv("x-request-id"));
        let id = request_id(given.map(|header| header.value.as_str().as_bytes()));
        let (method, target) = (Method::new(from.method().as_str()), from.url().to_owned());
        let mut head = Head::bare(method, target, id, client.to_canonical(), false, now());
        for header in from.headers() {
            let (name, value) = (header.field.as_str().as_str(), header.value.as_str());
            head.headers.push(name, value.as_bytes());
        }
        let decided = self.router.admit(&mut head);
        let mut body = Vec::new();
        let limit = self.body_bytes_max;
        let read = from
            .as_reader()
            .take(limit as u64 + 1)
            .read_to_end(&mut body);
        let head = Arc::new(head);
        let responder = Box::new(Responder {
            from,
            shared: Arc::clone(self),
        });
        let answer = |allow| Response::empty(204).with_header("allow", allow);
        match (decided, read) {
            (Some(decided), _) => responder.respond(&head, decided.map(answer), &NoSlot),
            (None, Ok(bytes)) if bytes <= limit => {
                self.router.submit(Request::new(head, body, responder));
            }
            (None, Ok(_)) => {
                responder.respond(&head, Err(Problem::content_too_large(limit)), &NoSlot);
            }
            (None, Err(_)) => {
                let problem = Problem::bad_request("the body cannot be read");
                responder.respond(&head, Err(problem), &NoSlot);
            }
        }
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

    fn respond(self: Box<Self>, head: &Head, result: HandlerResult<'_>, _: &dyn Slot) {
        let mut outcome = Outcome::default();
        let response = result.unwrap_or_else(|problem| {
            outcome.cause.clone_from(&problem.cause);
            Response::of_problem(problem, &head.request_id)
        });
        outcome.status = response.status;
        let Self { from, shared } = *self;
        if let Err(error) = send(from, response, &head.request_id) {
            outcome.truncate(format!("the client went away: {error}"));
        }
        access_log::tell(&shared.metrics, head, &outcome, now());
    }
}

fn send(from: tiny_http::Request, response: Response<'_>, request_id: &str) -> io::Result<()> {
    let mut lines = Vec::new();
    super::core::with_date(|date| response.write_head(&mut lines, request_id, false, date));
    let lines = lines
        .split(|byte| *byte == b'\n')
        .skip(1)
        .map(<[u8]>::trim_ascii);
    let header = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        tiny_http::Header::from_bytes(&line[..colon], line[colon + 1..].trim_ascii()).ok()
    };
    let (status, headers) = (response.status, lines.filter_map(header).collect());
    let (content, length): (Box<dyn Read>, _) = match response.body {
        Body::Empty => (Box::new(io::empty()), Some(0)),
        Body::Bytes(bytes) => {
            let length = bytes.len();
            (Box::new(io::Cursor::new(bytes)), Some(length))
        }
        Body::Stream(stream) => {
            let length = stream
                .length
                .and_then(|length| usize::try_from(length).ok());
            (
                Box::new(Pieces {
                    fill: stream.fill,
                    piece: Vec::new(),
                    at: 0,
                }),
                length,
            )
        }
    };
    from.respond(tiny_http::Response::new(
        status.into(),
        headers,
        content,
        length,
        None,
    ))
}

/// A stream's pieces, read one after another.
struct Pieces<'a> {
    fill: Fill<'a>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            self.piece.clear();
            self.at = 0;
            (self.fill)(&mut self.piece).map_err(|problem| io::Error::other(problem.detail))?;
        }
        let bytes = (&self.piece[self.at..]).read(buffer)?;
        self.at += bytes;
        Ok(bytes)
    }
}
