//! The worker threads. Each takes one request at a time and owns the state that its handlers
//! use, so a service has as many connections to its database as it has workers, and no lock.
//! Workers stand in halls, one for each kind of request: when those of one hall all wait for
//! something slow, the others go on.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::edge::{Acceptor, Edge, EdgeLimits, HallLanes, LaneHandles, Lanes, PROOF_TARGET, Tls};
use super::exchange::{After, Exchange};
use super::operations::{self, Dependencies, Dependency};
use super::problem::Problem;
use super::request::{LaneFlags, LaneRequest, Request};
use super::response::Response;
use super::router::{self, Destination, HandlerResult, Route};
use crate::env::{ConfigError, Vars};
use crate::metrics::Metrics;
use crate::process::StartError;
use crate::shutdown::Shutdown;

/// What a worker needs of its stack, with room to spare.
const WORKER_STACK_BYTES: usize = 512 * 1024;

/// How long connections may take to end after the shutdown was requested.
const DRAIN_LIMIT: Duration = Duration::from_secs(8);

/// How long workers may take to end when no connection waits for them any more.
const WORKERS_END_LIMIT: Duration = Duration::from_millis(300);

/// The descriptors that a lane and its worker take: both ends, twice each, what the worker asks
/// for its answers, and one more while that is made anew.
const DESCRIPTORS_OF_A_LANE: usize = 6;

/// What else the program opens.
const OTHER_DESCRIPTORS: usize = 32;

/// Where a server listens, with how many workers, and what it puts up with.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Port 0 lets the system choose.
    pub address: SocketAddr,
    /// Whether another process may listen there too, to take over without a gap.
    pub reuse_port: bool,
    /// How many requests of one kind are worked on at the same time.
    pub workers: usize,
    /// What clients may do.
    pub limits: EdgeLimits,
    /// HTTPS instead of HTTP.
    pub tls: Option<Tls>,
}

impl HttpConfig {
    /// From `LISTEN_ADDRESS`, the port that `port_key` names, and the optional `HTTP_…`
    /// variables.
    pub fn from_vars(vars: &Vars, port_key: &str, workers: usize) -> Result<Self, ConfigError> {
        let address: IpAddr = vars.parsed("LISTEN_ADDRESS", "an IP address such as 0.0.0.0")?;
        let expected = "a whole number from 1 to 1024";
        let workers: usize = vars.parsed_or("HTTP_WORKERS", expected, workers)?;
        if !(1..=1024).contains(&workers) {
            return Err(ConfigError::malformed("HTTP_WORKERS", expected));
        }
        Ok(Self {
            address: SocketAddr::new(address, vars.port(port_key)?),
            reuse_port: vars.parsed_or("HTTP_REUSE_PORT", "true or false", false)?,
            workers,
            limits: EdgeLimits::from_vars(vars)?,
            tls: Tls::from_vars(vars)?,
        })
    }

    /// On a loopback port that the system chooses, for tests.
    #[must_use]
    pub fn on_loopback(workers: usize) -> Self {
        Self {
            address: ([127, 0, 0, 1], 0).into(),
            reuse_port: false,
            workers,
            limits: EdgeLimits::default(),
            tls: None,
        }
    }
}

/// What the thread of a worker does.
type Work = dyn Fn(&tiny_http::Server, &Context) + Send + Sync;

/// The workers for one kind of request.
pub struct Hall {
    prefix: &'static str,
    workers: usize,
    work: Arc<Work>,
}

impl Hall {
    /// For `prefix` and all paths below it; the empty prefix takes what no other hall does.
    /// `state` makes what a worker owns, in that worker.
    pub fn new<S: 'static>(
        prefix: &'static str,
        workers: usize,
        routes: &'static [Route<S>],
        state: impl Fn() -> S + Send + Sync + 'static,
    ) -> Self {
        let work = move |tiny: &tiny_http::Server, context: &Context| {
            Worker {
                routes,
                context,
                state: state(),
            }
            .run(tiny, &state);
        };
        Self {
            prefix,
            workers,
            work: Arc::new(work),
        }
    }

    /// Opens the hall: its tiny_http behind a socket in `directory`, its workers as they are
    /// needed.
    fn open(
        self,
        directory: &Path,
        name: usize,
        limits: &EdgeLimits,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> io::Result<(OpenHall, HallLanes)> {
        let socket = directory.join(name.to_string());
        let listener = UnixListener::bind(&socket)?;
        let tiny = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
        let tiny = Arc::new(tiny);
        let handles = Arc::<LaneHandles>::default();
        let context = Arc::new(Context {
            metrics: metrics.clone(),
            lanes: Arc::clone(&handles),
            shutdown: shutdown.clone(),
            closing: AtomicBool::new(false),
        });
        let start_worker = {
            let (tiny, context, work) = (Arc::clone(&tiny), Arc::clone(&context), self.work);
            move |number: usize| {
                let (tiny, context, work) =
                    (Arc::clone(&tiny), Arc::clone(&context), Arc::clone(&work));
                thread::Builder::new()
                    .name(format!("http-{name}-{number}"))
                    .stack_size(WORKER_STACK_BYTES)
                    .spawn(move || work(&tiny, &context))
            }
        };
        let lanes = Lanes::open(
            socket,
            self.workers,
            limits,
            handles,
            Box::new(start_worker),
        )?;
        let hall = OpenHall { tiny, context };
        Ok((
            hall,
            HallLanes {
                prefix: self.prefix,
                lanes,
            },
        ))
    }
}

/// What the workers of a hall share.
struct Context {
    metrics: Metrics,
    lanes: Arc<LaneHandles>,
    shutdown: Shutdown,
    /// No request will come any more.
    closing: AtomicBool,
}

struct OpenHall {
    tiny: Arc<tiny_http::Server>,
    context: Arc<Context>,
}

/// A running server.
pub struct Server {
    acceptor: Acceptor,
    halls: Vec<OpenHall>,
    shutdown: Shutdown,
    /// Where the private sockets are; removed with the server.
    _directory: PrivateDirectory,
}

impl Server {
    /// Starts listening and working. `dependencies` makes, in a worker of its own, what
    /// `/ready` asks.
    pub fn start<D>(
        config: &HttpConfig,
        halls: Vec<Hall>,
        dependencies: impl Fn() -> D + Send + Sync + 'static,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> Result<Self, StartError>
    where
        D: FnMut() -> Vec<Dependency> + 'static,
    {
        let operations = Hall::new("", 1, operations::ROUTES, move || {
            Box::new(dependencies()) as Dependencies
        });
        Self::try_start(config, halls, operations, metrics, shutdown).map_err(|error| {
            StartError::System(format!("cannot listen on {}", config.address), error)
        })
    }

    fn try_start(
        config: &HttpConfig,
        halls: Vec<Hall>,
        operations: Hall,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> io::Result<Self> {
        let lanes = halls.iter().map(|hall| hall.workers).sum::<usize>() + operations.workers;
        let limits = EdgeLimits {
            connections: most_connections(&config.limits, lanes),
            ..config.limits.clone()
        };
        let directory = PrivateDirectory::create()?;
        let (mut open_halls, mut lanes) = (Vec::new(), Vec::new());
        // The operations' hall takes what no other does, so it is asked last.
        for (name, hall) in halls.into_iter().chain([operations]).enumerate() {
            let (open, of_hall) = hall.open(&directory.path, name, &limits, metrics, shutdown)?;
            open_halls.push(open);
            lanes.push(of_hall);
        }
        let edge = Edge::new(limits, config.tls.clone(), lanes, metrics, shutdown);
        let acceptor = Acceptor::start(config.address, config.reuse_port, edge)?;
        log::info!(
            address = acceptor.address.to_string().as_str(), workers = config.workers;
            "listening"
        );
        Ok(Self {
            acceptor,
            halls: open_halls,
            shutdown: shutdown.clone(),
            _directory: directory,
        })
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.acceptor.address
    }

    /// Waits for the shutdown, then until every accepted request is answered.
    pub fn join(self) {
        self.shutdown.wait();
        let edge = self.acceptor.join(Instant::now() + DRAIN_LIMIT);
        let deadline = Instant::now() + WORKERS_END_LIMIT;
        for (hall, lanes) in self.halls.iter().zip(&edge.halls) {
            hall.context.closing.store(true, Ordering::Relaxed);
            for worker in lanes.lanes.close() {
                // Each call wakes one worker, and one that wakes ends.
                while !worker.is_finished() && Instant::now() < deadline {
                    hall.tiny.unblock();
                    thread::sleep(Duration::from_millis(1));
                }
                if !worker.is_finished() {
                    log::warn!(hall = lanes.prefix; "a worker is still busy; it ends with the program");
                }
            }
        }
    }
}

/// Clients must leave descriptors for the lanes: a tiny_http that is refused one accepts no lane
/// ever again.
fn most_connections(limits: &EdgeLimits, lanes: usize) -> usize {
    let own = OTHER_DESCRIPTORS + lanes * DESCRIPTORS_OF_A_LANE;
    let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let left = usize::try_from(all)
        .unwrap_or(usize::MAX)
        .saturating_sub(own)
        .max(1);
    if left < limits.connections {
        log::warn!(
            wanted = limits.connections, possible = left;
            "the limit of open files allows fewer connections"
        );
    }
    left.min(limits.connections)
}

/// A worker with what it owns.
struct Worker<'c, S: 'static> {
    routes: &'static [Route<S>],
    context: &'c Context,
    state: S,
}

impl<S> Worker<'_, S> {
    fn run(&mut self, tiny: &tiny_http::Server, new_state: &dyn Fn() -> S) {
        while !self.context.closing.load(Ordering::Relaxed) {
            let Ok(incoming) = tiny.recv() else { continue };
            if incoming.url() == PROOF_TARGET {
                // A lane that was just opened asks whether anybody is here.
                let mut out = incoming.into_writer();
                let _ = out.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
                let _ = out.flush();
            } else if self.serve(incoming) == Served::Panicked {
                // What the handler left behind may be half done.
                self.state = new_state();
            }
        }
    }

    /// From the request's arrival to its line in the log.
    fn serve(&mut self, mut incoming: tiny_http::Request) -> Served {
        let started = Instant::now();
        let LaneRequest {
            request,
            lane,
            flags,
        } = match receive(&mut incoming) {
            Ok(received) => received,
            Err(error) => {
                log::error!(cause = error.to_string().as_str(); "a lane was cut off");
                return Served::Normally;
            }
        };
        let mut request = request;
        let mut out = Tracked {
            out: incoming.into_writer(),
            begun: false,
        };
        let mut exchange = Exchange {
            request_id: request.request_id.clone(),
            client: request.client,
            method: request.method.as_str().to_owned(),
            target: request.target.clone(),
            route: "none",
            status: 500,
            cause: None,
            broken_off: false,
            started,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let result = dispatch(
                self.routes,
                &mut self.state,
                &mut request,
                &mut exchange.route,
            );
            // It may have been requested while the handler was at work.
            let close = flags.close || self.context.shutdown.is_requested();
            exchange.answer(result, &mut out, LaneFlags { close, ..flags })
        }));
        let after = outcome.as_ref().copied().unwrap_or_else(|_| {
            let problem = Err(Problem::internal("the handler panicked"));
            if out.begun {
                After::End
            } else {
                exchange.answer(problem, &mut out, flags)
            }
        });
        drop(out);
        if after == After::End {
            self.context.lanes.end(lane);
        }
        exchange.record(&self.context.metrics);
        if outcome.is_err() {
            Served::Panicked
        } else {
            Served::Normally
        }
    }
}

#[derive(PartialEq)]
enum Served {
    Normally,
    Panicked,
}

/// Reads a request off its lane, where the edge has put all of it.
fn receive(incoming: &mut tiny_http::Request) -> io::Result<LaneRequest> {
    let mut body = Vec::with_capacity(incoming.body_length().unwrap_or(0));
    incoming.as_reader().read_to_end(&mut body)?;
    let headers = incoming
        .headers()
        .iter()
        .map(|header| (header.field.as_str().as_str(), header.value.as_str()));
    LaneRequest::read(incoming.method().as_str(), incoming.url(), headers, body)
        .ok_or_else(|| io::Error::other("the edge's header is missing"))
}

/// To the handler, or to what every resource answers alike.
fn dispatch<'a, S>(
    routes: &'static [Route<S>],
    state: &'a mut S,
    request: &mut Request,
    route: &mut &'static str,
) -> HandlerResult<'a> {
    match router::find(routes, &request.method, request.path()) {
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

/// Knows whether anything was written, for the answer after a panic.
struct Tracked {
    out: Box<dyn Write + Send>,
    begun: bool,
}

impl Write for Tracked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun = true;
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A directory that nobody else may enter, removed when it is dropped.
struct PrivateDirectory {
    path: PathBuf,
}

impl PrivateDirectory {
    fn create() -> io::Result<Self> {
        let name = format!("crud-master-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
