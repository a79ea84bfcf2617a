//! The worker threads. Each takes one request at a time and owns the state that its handlers
//! use, so a service has as many connections to its database as it has workers, and no lock.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, select};
use serde_json::json;

use super::edge;
use super::problem::Problem;
use super::request::{self, BODY_BYTES_MAX, Method, Request};
use super::response::{Response, Sent};
use super::router::{self, Destination, HandlerResult, Route};
use crate::env::{ConfigError, Vars};
use crate::metrics::Metrics;
use crate::process::StartError;
use crate::shutdown::Shutdown;

/// What a worker needs of its stack, measured with room to spare.
const WORKER_STACK_BYTES: usize = 512 * 1024;

/// Where a server listens, and with how many workers.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Port 0 lets the system choose.
    pub address: SocketAddr,
    /// How many requests are worked on at the same time.
    pub workers: usize,
}

impl HttpConfig {
    /// From `LISTEN_ADDRESS`, the port that `port_key` names, and `HTTP_WORKERS` where it is
    /// set; else `workers`.
    pub fn from_vars(vars: &Vars, port_key: &str, workers: usize) -> Result<Self, ConfigError> {
        let address: IpAddr = vars.parsed("LISTEN_ADDRESS", "an IP address such as 0.0.0.0")?;
        let expected = "a whole number from 1 to 1024";
        let workers: usize = vars.parsed_or("HTTP_WORKERS", expected, workers)?;
        if !(1..=1024).contains(&workers) {
            return Err(ConfigError::malformed("HTTP_WORKERS", expected));
        }
        Ok(Self {
            address: SocketAddr::new(address, vars.port(port_key)?),
            workers,
        })
    }
}

/// What a server answers with. `/health` and `/metrics` are the same for all.
pub struct Service<S: 'static> {
    /// The table of handlers.
    pub routes: &'static [Route<S>],
    /// What the service needs and whether it is there, asked by `/ready`.
    pub dependencies: fn(&mut S) -> Vec<Dependency>,
}

/// Something that a service cannot work without.
#[derive(Debug)]
pub struct Dependency {
    /// As `/ready` shows it: `postgresql`.
    pub name: &'static str,
    /// Whether it answers.
    pub up: bool,
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    tiny: Arc<tiny_http::Server>,
    workers: Vec<JoinHandle<()>>,
    shutdown: Shutdown,
    listener_failed: Receiver<io::Error>,
}

impl Server {
    /// Starts listening and working; `state` makes what a worker owns, in that worker.
    pub fn start<S>(
        config: &HttpConfig,
        service: Service<S>,
        metrics: &Metrics,
        shutdown: &Shutdown,
        state: impl Fn() -> S + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        Self::try_start(config, service, metrics, shutdown, state).map_err(|error| {
            StartError::System(format!("cannot listen on {}", config.address), error)
        })
    }

    fn try_start<S>(
        config: &HttpConfig,
        service: Service<S>,
        metrics: &Metrics,
        shutdown: &Shutdown,
        state: impl Fn() -> S + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = edge::listen(config.address)?;
        let address = listener.local_addr()?;
        let tiny =
            Arc::new(tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?);
        let (failed, listener_failed) = crossbeam_channel::bounded(1);
        let shared = Arc::new(Shared {
            service,
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            state,
            failed,
        });
        log::info!(address = address.to_string().as_str(), workers = config.workers; "listening");
        let workers = (1..=config.workers)
            .map(|number| {
                let (tiny, shared) = (Arc::clone(&tiny), Arc::clone(&shared));
                thread::Builder::new()
                    .name(format!("http-{number}"))
                    .stack_size(WORKER_STACK_BYTES)
                    .spawn(move || work(&tiny, &shared))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            address,
            tiny,
            workers,
            shutdown: shutdown.clone(),
            listener_failed,
        })
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the shutdown, then until every accepted request is answered. An error means
    /// that the listener failed, and that nobody can be served any more.
    pub fn join(self) -> io::Result<()> {
        let outcome = select! {
            recv(self.shutdown.requested()) -> _ => Ok(()),
            recv(self.listener_failed) -> error => Err(error.unwrap_or_else(io::Error::other)),
        };
        for worker in self.workers {
            // Each call wakes one worker, and one that wakes ends.
            while !worker.is_finished() {
                self.tiny.unblock();
                thread::yield_now();
            }
            let _ = worker.join();
        }
        outcome
    }
}

/// What all workers of a server share.
struct Shared<S: 'static, F> {
    service: Service<S>,
    metrics: Metrics,
    shutdown: Shutdown,
    state: F,
    failed: Sender<io::Error>,
}

fn work<S, F: Fn() -> S>(tiny: &tiny_http::Server, shared: &Shared<S, F>) {
    let mut state = (shared.state)();
    loop {
        // At the shutdown, what was accepted is still answered.
        let incoming = if shared.shutdown.is_requested() {
            match tiny.try_recv() {
                Ok(Some(incoming)) => incoming,
                Ok(None) | Err(_) => return,
            }
        } else {
            match tiny.recv() {
                Ok(incoming) => incoming,
                Err(_) if shared.shutdown.is_requested() => continue,
                Err(error) => {
                    let _ = shared.failed.try_send(error);
                    return;
                }
            }
        };
        if serve(&mut state, shared, incoming) == Served::Panicked {
            state = (shared.state)();
        }
    }
}

#[derive(PartialEq)]
enum Served {
    Normally,
    Panicked,
}

/// From the request's arrival to its line in the log.
fn serve<S, F>(state: &mut S, shared: &Shared<S, F>, mut incoming: tiny_http::Request) -> Served {
    let started = Instant::now();
    let http_10 = *incoming.http_version() <= tiny_http::HTTPVersion(1, 0);
    let (mut request, refused) = receive(&mut incoming);
    let mut out = Tracked {
        out: incoming.into_writer(),
        begun: AtomicBool::new(false),
    };
    let mut exchange = Exchange {
        route: "none",
        status: 500,
        cause: None,
        broken_off: false,
    };

    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let result = match refused {
            Some(problem) => Err(problem),
            None => dispatch(state, shared, &mut request, &mut exchange.route),
        };
        exchange.answer(
            &request,
            result,
            &mut out,
            shared.shutdown.is_requested(),
            http_10,
        );
    }));
    if outcome.is_err() {
        exchange.cause = Some("the handler panicked".to_owned());
        if !out.begun.load(Ordering::Relaxed) {
            let problem = Err(Problem::internal("the handler panicked"));
            exchange.answer(&request, problem, &mut out, true, http_10);
        }
    }
    exchange.record(&request, started, &shared.metrics);
    if outcome.is_err() {
        Served::Panicked
    } else {
        Served::Normally
    }
}

/// Reads the request into memory; the problem is one that no handler should see.
fn receive(incoming: &mut tiny_http::Request) -> (Request, Option<Problem>) {
    let headers: Vec<(String, String)> = incoming
        .headers()
        .iter()
        .map(|header| (header.field.to_string(), header.value.to_string()))
        .collect();
    let mut request = Request {
        method: Method::new(incoming.method().as_str()),
        target: incoming.url().to_owned(),
        request_id: request::request_id(request::header(&headers, "x-request-id")),
        client: incoming
            .remote_addr()
            .map_or(IpAddr::from([0, 0, 0, 0]), SocketAddr::ip),
        headers,
        body: Vec::new(),
        params: Vec::new(),
    };
    if incoming
        .body_length()
        .is_some_and(|length| length > BODY_BYTES_MAX)
    {
        return (request, Some(Problem::content_too_large(BODY_BYTES_MAX)));
    }
    let limit = BODY_BYTES_MAX as u64 + 1;
    let refused = match incoming
        .as_reader()
        .take(limit)
        .read_to_end(&mut request.body)
    {
        Ok(_) if request.body.len() > BODY_BYTES_MAX => {
            Some(Problem::content_too_large(BODY_BYTES_MAX))
        }
        Ok(_) => None,
        Err(error) => Some(Problem::bad_request(format!(
            "the body could not be read: {error}"
        ))),
    };
    (request, refused)
}

/// To the handler, or to what every resource answers alike.
fn dispatch<'a, S, F>(
    state: &'a mut S,
    shared: &Shared<S, F>,
    request: &mut Request,
    route: &mut &'static str,
) -> HandlerResult<'a> {
    if let Some(operation) = OPERATIONS.iter().find(|path| **path == request.path()) {
        *route = operation;
        return operate(state, shared, request);
    }
    match router::find(shared.service.routes, &request.method, request.path()) {
        Destination::Handler {
            pattern,
            handler,
            params,
        } => {
            *route = pattern;
            request.params = params;
            handler(state, request)
        }
        Destination::Options { pattern, allow } => {
            *route = pattern;
            Ok(Response::empty(204).with_header("allow", allow))
        }
        Destination::MethodNotAllowed { pattern, allow } => {
            *route = pattern;
            Err(Problem::method_not_allowed(allow))
        }
        Destination::Unknown => Err(Problem::not_found(format!(
            "there is nothing at {}",
            request.path()
        ))),
    }
}

const HEALTH: &str = "/health";
const READY: &str = "/ready";
const METRICS: &str = "/metrics";
const OPERATIONS: [&str; 3] = [HEALTH, READY, METRICS];

/// What an operator asks of every program.
fn operate<'a, S, F>(state: &mut S, shared: &Shared<S, F>, request: &Request) -> HandlerResult<'a> {
    const ALLOW: &str = "GET, HEAD, OPTIONS";
    match (&request.method, request.path()) {
        (Method::Options, _) => Ok(Response::empty(204).with_header("allow", ALLOW)),
        (Method::Get | Method::Head, HEALTH) => Ok(health()),
        (Method::Get | Method::Head, READY) => readiness(&(shared.service.dependencies)(state)),
        (Method::Get | Method::Head, _) => Ok(Response::text(
            200,
            "text/plain; version=0.0.4; charset=utf-8",
            shared.metrics.text(),
        )),
        _ => Err(Problem::method_not_allowed(ALLOW.to_owned())),
    }
}

/// The answer that says that the process lives.
#[must_use]
pub fn health() -> Response<'static> {
    Response::json(200, &json!({ "status": "ok" }))
}

fn readiness<'a>(dependencies: &[Dependency]) -> HandlerResult<'a> {
    let states: serde_json::Map<_, _> = dependencies
        .iter()
        .map(|dependency| {
            (
                dependency.name.to_owned(),
                json!(if dependency.up { "up" } else { "down" }),
            )
        })
        .collect();
    if dependencies.iter().all(|dependency| dependency.up) {
        return Ok(Response::json(
            200,
            &json!({ "status": "ready", "dependencies": states }),
        ));
    }
    let down = dependencies
        .iter()
        .filter(|dependency| !dependency.up)
        .map(|dependency| dependency.name);
    let down = down.collect::<Vec<_>>().join(" and ");
    Err(Problem::unavailable(
        format!("not ready: {down} cannot be reached"),
        format!("{down} down"),
    )
    .with_dependencies(states.into()))
}

/// What is known of an exchange when it is over.
struct Exchange {
    route: &'static str,
    status: u16,
    cause: Option<String>,
    broken_off: bool,
}

impl Exchange {
    /// Writes the answer that came of the request.
    fn answer(
        &mut self,
        request: &Request,
        result: HandlerResult<'_>,
        out: &mut dyn Write,
        close: bool,
        http_10: bool,
    ) {
        let head_only = request.method == Method::Head;
        let response = result.unwrap_or_else(|problem| self.refuse(request, problem));
        self.status = response.status;
        match finished(response, request, close).write_to(out, head_only, http_10) {
            Sent::Whole => {}
            Sent::Refused(problem) => {
                let response = self.refuse(request, problem);
                self.status = response.status;
                if let Sent::ClientGone(error) =
                    finished(response, request, close).write_to(out, head_only, http_10)
                {
                    self.break_off(error.to_string());
                }
            }
            Sent::BrokenOff(problem) => self.break_off(problem.cause.unwrap_or_default()),
            Sent::ClientGone(error) => self.break_off(format!("the client went away: {error}")),
        }
    }

    fn refuse(&mut self, request: &Request, problem: Problem) -> Response<'static> {
        self.cause.clone_from(&problem.cause);
        problem.into_response(&request.request_id)
    }

    fn break_off(&mut self, cause: String) {
        self.broken_off = true;
        self.cause = Some(cause);
    }

    /// One line in the log, one count in the metrics.
    fn record(self, request: &Request, started: Instant, metrics: &Metrics) {
        let elapsed = started.elapsed();
        let method = match &request.method {
            // What a client makes up must not make up new time series.
            Method::Other(_) => "other",
            method => method.as_str(),
        };
        metrics
            .http_requests
            .with_label_values(&[self.route, method, &self.status.to_string()])
            .inc();
        metrics
            .http_seconds
            .with_label_values(&[self.route])
            .observe(elapsed.as_secs_f64());
        let level = match self.status {
            // A dependency that is down is logged as an error where it is noticed, once.
            500 => log::Level::Error,
            502..=504 => log::Level::Warn,
            _ if self.broken_off => log::Level::Warn,
            _ => log::Level::Info,
        };
        log::log!(
            target: "access", level,
            request_id = request.request_id.as_str(),
            client = request.client.to_string().as_str(),
            method = request.method.as_str(),
            path = request.target.as_str(),
            route = self.route,
            status = self.status,
            ms = format!("{:.2}", elapsed.as_secs_f64() * 1000.0).as_str(),
            broken_off = self.broken_off,
            cause = self.cause.as_deref().unwrap_or("none");
            "request"
        );
    }
}

/// Adds what every answer carries.
fn finished<'a>(mut response: Response<'a>, request: &Request, close: bool) -> Response<'a> {
    if !response.has_header("x-request-id") {
        response.push_header("x-request-id".to_owned(), request.request_id.clone());
    }
    if close {
        response = response.with_header("connection", "close");
    }
    response
}

/// Knows whether anything was written, for the answer after a panic.
struct Tracked {
    out: Box<dyn Write + Send>,
    begun: AtomicBool,
}

impl Write for Tracked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.store(true, Ordering::Relaxed);
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
